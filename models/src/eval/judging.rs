//! Conversations that a judge rates.

use super::judge_prompts::JudgePrompt;
use super::{Ask, Gold, Item, Judgement, Measure, Metric, Scale, Writing};
use crate::generate::Sampling;

/// A rating from 1 to 10, as a mean of judgements of its name.
pub(super) const fn rating(name: &'static str) -> Metric {
    Metric {
        name,
        measure: Measure::Mean,
        scale: Scale::Rating,
    }
}

/// An item that a judge rates: a conversation, sampled at `temperature`.
pub(super) fn item(
    id: String,
    mut turns: Vec<String>,
    references: Vec<Option<String>>,
    (temperature, max_tokens): (f32, usize),
) -> Item {
    let greedy = Writing::greedy(max_tokens, &[]);
    let writing = match temperature {
        0.0 => greedy,
        _ => Writing {
            sampling: Sampling::Nucleus {
                temperature,
                top_p: 1.0,
                seed: 0,
            },
            ..greedy
        },
    };
    let prompt = match turns.is_empty() {
        true => String::new(),
        false => turns.remove(0),
    };
    Item {
        id,
        cluster: None,
        prompt,
        answer: String::new(),
        ask: Ask::Converse { turns, writing },
        gold: match references.iter().any(Option::is_some) {
            true => Gold::References(references),
            false => Gold::Open,
        },
    }
}

impl JudgePrompt {
    /// A question to a judge, with what stands for each name in braces.
    pub(super) fn judgement(
        &self,
        metric: Metric,
        temperature: f32,
        values: &[(&str, &str)],
    ) -> Judgement {
        Judgement {
            metric: metric.name,
            system: self.system.to_owned(),
            prompt: filled(self.template, values),
            temperature,
            figure: rated,
        }
    }
}

/// A template with its names replaced. It is read once: braces in what is put in mean nothing.
fn filled(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, (name, after))) = rest
        .split_once('{')
        .and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    {
        let value = values.iter().find(|(known, _)| *known == name);
        filled.push_str(before);
        filled.push_str(value.map_or("", |(_, value)| value));
        rest = after;
    }
    filled + rest
}

/// The first number in double brackets, or else in single ones, if it is a rating.
fn rated(judgement: &str) -> Option<f64> {
    let within = |open: &str, close: &str| {
        judgement.match_indices(open).find_map(|(at, _)| {
            let rest = &judgement[at + open.len()..];
            let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
            let whole = digits(rest);
            let decimals = match rest[whole..].strip_prefix('.') {
                Some(decimals) => 1 + digits(decimals),
                None => 0,
            };
            let number = &rest[..whole + decimals];
            let closed = whole > 0 && rest[number.len()..].starts_with(close);
            closed.then(|| number.parse().ok()).flatten()
        })
    };
    let number: Option<f64> = within("[[", "]]").or_else(|| within("[", "]"));
    number.filter(|rating| (1.0..=10.0).contains(rating))
}

/// The reference answer to a turn; nothing where there is none.
pub(super) fn reference(item: &Item, turn: usize) -> Option<&str> {
    match &item.gold {
        Gold::References(references) => references.get(turn)?.as_deref(),
        _ => None,
    }
}

/// A turn's question and answer.
pub(super) fn turn<'a>(item: &'a Item, replies: &'a [String], turn: usize) -> (&'a str, &'a str) {
    let question = match (&item.ask, turn) {
        (_, 0) => item.prompt.as_str(),
        (Ask::Converse { turns, .. }, turn) => turns.get(turn - 1).map_or("", String::as_str),
        _ => "",
    };
    (question, replies.get(turn).map_or("", String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::judge_prompts::{SECOND, SINGLE};

    #[test]
    fn ratings_are_found_in_judgements() {
        for (judgement, rating) in [
            ("Good. Rating: [[7]]", Some(7.0)),
            ("[[8.5]] rather than [[2]]", Some(8.5)),
            ("Rating: [6]", Some(6.0)),
            ("[1] says so. Rating: [[9]]", Some(9.0)),
            ("[[9.]]", Some(9.0)),
            ("[[rating]] [[x]] [[3]", Some(3.0)),
            ("[[11]]", None),
            ("[[0]]", None),
            ("[[-3]]", None),
            ("[[99999999999999999999999999]]", None),
            ("[[", None),
            ("", None),
            ("[[７]]", None),
        ] {
            assert_eq!(rated(judgement), rating, "{judgement}");
        }
    }

    #[test]
    fn what_is_put_into_a_prompt_is_not_read_again() {
        let values = [("question", "{answer} {"), ("answer", "42}")];
        let judgement = SINGLE.judgement(super::rating("rating"), 0.2, &values);
        let prompt = &judgement.prompt;
        assert!(
            prompt.contains("[Question]\n{answer} {\n\n[The Start of Assistant's Answer]\n42}\n")
        );
        assert_eq!(judgement.metric, "rating");
        assert_eq!(judgement.system, "You are a helpful assistant.");
        assert!(
            SECOND
                .template
                .ends_with("{answer_2}\n\n<|The End of Assistant A's Conversation with User|>")
        );
        assert_eq!(filled("{a", &[("a", "1")]), "{a");
        assert_eq!(filled("a}{b}", &[("b", "1")]), "a}1");
    }
}
