//! Financial sentiment: how it is asked for, and which class an answer names.
//!
//! `reference` is what OpenFedLLM does (branch `eval`, evaluation/financial/benchmarks), defects
//! included:
//!
//! - the prompt is not the one that it trains with, and not the same for all four sets;
//! - a class counts if its name occurs anywhere in the answer, inside other words too, and even if
//!   the answer lists all classes; which class is looked for first differs from set to set;
//! - whatever names neither good nor bad is neutral, an empty answer and nonsense too;
//! - the answer runs on as far as it likes.

use super::choose::{self, ACCURACY};
use super::row::text;
use super::{Ask, Average, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row};
use super::{Task, Writing};

const CLASSES: [&str; 3] = ["negative", "neutral", "positive"];
pub(super) const NEGATIVE: usize = 0;
pub(super) const NEUTRAL: usize = 1;
pub(super) const POSITIVE: usize = 2;
/// What an answer says that names no class: a miss of every class.
const NO_CLASS: usize = 3;

/// What both prompts are, for a task's `prompt` and `reference`.
const SOUND: &str = "OpenFedLLM utils/template.py: the Alpaca template that it trains with, \
                     FinGPT's question; the class named first as a word, none is a miss";

/// A task of financial sentiment. Its file says the rest.
pub(super) const fn task(
    name: &'static str,
    items: fn(&Row<'_>, Prompts) -> Result<Vec<Item>, ItemError>,
) -> Task {
    Task {
        prompt: SOUND,
        suites: &["paper", "finance"],
        grader: Grader::Direct(|item, reply, prompts| grade(item, reply, prompts, &POSITIVE_FIRST)),
        metrics: METRICS,
        ..choose::task(name, items)
    }
}

const METRICS: &[Metric] = &[
    Metric::f1("f1_weighted", Average::Weighted, CLASSES.len()),
    ACCURACY,
    Metric::f1("f1_macro", Average::Macro, CLASSES.len()),
    Metric::f1("f1_micro", Average::Micro, CLASSES.len()),
];

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    News,
    Tweet,
}

impl Medium {
    fn question(self) -> &'static str {
        match self {
            Self::News => {
                "What is the sentiment of this news? Please choose an answer from \
                 {negative/neutral/positive}."
            }
            Self::Tweet => {
                "What is the sentiment of this tweet? Please choose an answer from \
                 {negative/neutral/positive}."
            }
        }
    }
}

/// A text and its class.
pub(super) struct Said {
    pub(super) id: String,
    pub(super) medium: Medium,
    pub(super) text: String,
    pub(super) class: usize,
}

const TASK: &str = "Below is an instruction that describes a task. Write a response that \
                    appropriately completes the request.";

/// The reference prompt of most sets.
pub(super) fn alpaca(question: &str, text: &str) -> String {
    format!("{TASK}\n\n### Instruction:\n {question}\n\n### Input:\n {text}\n\n### Response: ")
}

/// The reference prompt of TFNS.
pub(super) fn tight(question: &str, text: &str) -> String {
    format!("{TASK}\n###Instruction: {question}\nInput: {text}\n###Response: ")
}

/// The question about a text; `reference` writes the reference prompt of question and text.
pub(super) fn item(said: Said, prompts: Prompts, reference: fn(&str, &str) -> String) -> Item {
    let question = said.medium.question();
    let (prompt, writing) = match prompts {
        Prompts::Sound => (
            format!(
                "{TASK}\n\n### Instruction:\n{question} {} \n\n### Response:",
                said.text
            ),
            Writing::greedy(16, &["\n"]),
        ),
        // Theirs has 512 tokens with the prompt.
        Prompts::Reference => (reference(question, &said.text), Writing::greedy(512, &[])),
    };
    let space = if prompt.ends_with(' ') { "" } else { " " };
    Item {
        id: said.id,
        cluster: None,
        prompt,
        answer: format!("{space}{}", CLASSES[said.class]),
        ask: Ask::Write(writing),
        gold: Gold::Class(said.class),
    }
}

/// What the reference looks for in an answer, in this order; nothing found is neutral.
pub(super) type Search = [(usize, &'static [&'static str]); 2];

pub(super) const POSITIVE_FIRST: Search = [
    (POSITIVE, &["positive", "Positive"]),
    (NEGATIVE, &["negative", "Negative"]),
];

/// Grades an answer by the class it names.
pub(super) fn grade(item: &Item, reply: &Reply, prompts: Prompts, search: &Search) -> Grade {
    let (Reply::Texts(texts), Gold::Class(gold)) = (reply, &item.gold) else {
        return Grade::default();
    };
    let written = texts.first().map_or("", String::as_str);
    let said = match prompts {
        Prompts::Sound => first_named(written).unwrap_or(NO_CLASS),
        Prompts::Reference => {
            // They cut prompt and answer at every mark and read what is after the first.
            let whole = format!("{}{written}", item.prompt);
            let read = whole.split("Response: ").nth(1).unwrap_or_default();
            let found = search.iter().find(|(_, names)| {
                let mut names = names.iter();
                names.any(|name| read.contains(name))
            });
            found.map_or(NEUTRAL, |(class, _)| *class)
        }
    };
    let right = f64::from(u8::from(said == *gold));
    let name = CLASSES.get(said).copied().unwrap_or("none");
    Grade {
        class: Some((*gold, said)),
        ..Grade::of(ACCURACY.name, right).answering(name)
    }
}

/// The class that a text names first, as a word of its own.
fn first_named(text: &str) -> Option<usize> {
    let mut words = text.split(|c: char| !c.is_alphanumeric());
    words.find_map(class)
}

/// The class of this name.
pub(super) fn class(name: &str) -> Option<usize> {
    let mut classes = CLASSES.iter();
    classes.position(|class| class.eq_ignore_ascii_case(name.trim()))
}

/// The class in a field: its name, or its number in `numbered`.
pub(super) fn labelled(
    row: &Row<'_>,
    field: &'static str,
    numbered: [usize; 3],
) -> Result<usize, ItemError> {
    let label = text(row.field(field)?, field)?;
    let by_number = || numbered.get(label.trim().parse::<usize>().ok()?).copied();
    class(&label)
        .or_else(by_number)
        .ok_or_else(|| unknown(field, &label))
}

/// A class that there is not.
pub(super) fn unknown(field: &'static str, label: &str) -> ItemError {
    ItemError::Value {
        field,
        got: label.chars().take(40).collect(),
        expected: "a class: negative, neutral or positive",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEGATIVE_FIRST: Search = [
        (NEGATIVE, &["negative", "Negative", "Neg"]),
        (POSITIVE, &["positive", "Positive", "Pos"]),
    ];

    fn graded(written: &str, prompts: Prompts, search: &Search) -> (usize, String) {
        let said = Said {
            id: "0".to_owned(),
            medium: Medium::News,
            text: "Sales fell.".to_owned(),
            class: NEGATIVE,
        };
        let item = item(said, prompts, alpaca);
        let reply = Reply::Texts(vec![written.to_owned()]);
        let grade = grade(&item, &reply, prompts, search);
        let (gold, said) = grade.class.unwrap();
        assert_eq!(gold, NEGATIVE);
        let right = f64::from(u8::from(said == NEGATIVE));
        assert_eq!(grade.value("acc"), Some(right), "{written}");
        (said, grade.answer.unwrap())
    }

    #[test]
    fn a_sound_answer_is_the_class_named_first() {
        for (written, class, name) in [
            (" negative", NEGATIVE, "negative"),
            (" Positive.", POSITIVE, "positive"),
            ("**NEUTRAL**, not positive", NEUTRAL, "neutral"),
            (" The sentiment is negative/neutral", NEGATIVE, "negative"),
            // Part of a word is no class, and nothing is not neutral.
            (" nonnegative", NO_CLASS, "none"),
            ("", NO_CLASS, "none"),
        ] {
            let expected = (class, name.to_owned());
            assert_eq!(graded(written, Prompts::Sound, &POSITIVE_FIRST), expected);
        }
    }

    #[test]
    fn a_reference_answer_is_whatever_is_searched_for_first() {
        let both = "negative or positive";
        for (written, search, class) in [
            (both, &POSITIVE_FIRST, POSITIVE),
            (both, &NEGATIVE_FIRST, NEGATIVE),
            ("nonnegative", &POSITIVE_FIRST, NEGATIVE),
            ("Neg", &NEGATIVE_FIRST, NEGATIVE),
            ("Neg", &POSITIVE_FIRST, NEUTRAL),
            ("NEGATIVE", &NEGATIVE_FIRST, NEUTRAL),
            ("", &POSITIVE_FIRST, NEUTRAL),
            // What follows a mark that the model writes itself is not read.
            ("x\n### Response: negative", &POSITIVE_FIRST, NEUTRAL),
        ] {
            let said = graded(written, Prompts::Reference, search).0;
            assert_eq!(said, class, "{written}");
        }
    }
}
