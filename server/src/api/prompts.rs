//! The `prompt` of a completion in its four shapes.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// What a request gives to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prompts(pub(super) Vec<Prompt>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    /// A text.
    Text(String),
    /// Token ids, taken as they are.
    Ids(Vec<u32>),
}

const SHAPES: &str = "a text, a list of texts, a list of token ids or a list of such lists";

// By hand, because serde's untagged enums would first hold every id in 32 bytes and then say of a
// wrong one only that nothing matches.
impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

struct PromptsVisitor;

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHAPES)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompts, A::Error> {
        let mut prompts = Vec::new();
        match list.next_element()? {
            None => {}
            Some(Element::Id(first)) => {
                let mut ids = vec![first];
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                prompts.push(Prompt::Ids(ids));
            }
            Some(Element::Prompt(first)) => {
                prompts.push(first);
                while let Some(element) = list.next_element()? {
                    match element {
                        Element::Prompt(prompt) => prompts.push(prompt),
                        Element::Id(_) => {
                            return Err(A::Error::custom("ids and prompts are mixed in one list"));
                        }
                    }
                }
            }
        }
        Ok(Prompts(prompts))
    }
}

enum Element {
    Id(u32),
    Prompt(Prompt),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a token id or a list of token ids")
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
        let id = u32::try_from(id);
        id.map(Element::Id)
            .map_err(|_| E::custom("a token id is too large"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Prompt(Prompt::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = list.next_element()? {
            ids.push(id);
        }
        Ok(Element::Prompt(Prompt::Ids(ids)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_in_four_shapes() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (json, expected) in [
            (r#""a""#, vec![text("a")]),
            (r#"["a","b"]"#, vec![text("a"), text("b")]),
            ("[1,2]", vec![Prompt::Ids(vec![1, 2])]),
            (
                "[[1,2],[3]]",
                vec![Prompt::Ids(vec![1, 2]), Prompt::Ids(vec![3])],
            ),
            ("[]", vec![]),
        ] {
            let read: Prompts = serde_json::from_str(json).unwrap();
            assert_eq!(read.0, expected, "{json}");
        }
        for (json, problem) in [
            ("7", SHAPES),
            ("[1,\"a\"]", "expected u32"),
            ("[\"a\",1]", "mixed"),
            ("[-1]", "token id"),
            ("[5000000000]", "too large"),
            ("[[1,[2]]]", "expected u32"),
            ("{}", SHAPES),
        ] {
            let error = serde_json::from_str::<Prompts>(json).unwrap_err();
            assert!(error.to_string().contains(problem), "{json}: {error}");
        }
    }
}
