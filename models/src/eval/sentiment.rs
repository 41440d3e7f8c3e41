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
use super::finance::{Medium, Sentiment};
use super::{Ask, Average, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row};
use super::{Task, Writing};

/// How many classes there are.
const CLASSES: usize = Sentiment::NAMES.len();
/// What an answer says that names no class: a miss of every class.
const NO_CLASS: usize = CLASSES;

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
    Metric::f1("f1_weighted", Average::Weighted, CLASSES),
    ACCURACY,
    Metric::f1("f1_macro", Average::Macro, CLASSES),
    Metric::f1("f1_micro", Average::Micro, CLASSES),
];

/// A text and its class.
pub(super) struct Said {
    pub(super) id: String,
    pub(super) medium: Medium,
    pub(super) text: String,
    pub(super) class: Sentiment,
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
        answer: format!("{space}{}", said.class.name()),
        ask: Ask::Write(writing),
        gold: Gold::Class(said.class as usize),
    }
}

/// What the reference looks for in an answer, in this order; nothing found is neutral.
pub(super) type Search = [(Sentiment, &'static [&'static str]); 2];

pub(super) const POSITIVE_FIRST: Search = [
    (Sentiment::Positive, &["positive", "Positive"]),
    (Sentiment::Negative, &["negative", "Negative"]),
];

/// Grades an answer by the class it names.
pub(super) fn grade(item: &Item, reply: &Reply, prompts: Prompts, search: &Search) -> Grade {
    let (Reply::Texts(texts), Gold::Class(gold)) = (reply, &item.gold) else {
        return Grade::default();
    };
    let written = texts.first().map_or("", String::as_str);
    let said = match prompts {
        Prompts::Sound => first_named(written),
        Prompts::Reference => {
            // They cut prompt and answer at every mark and read what is after the first.
            let whole = format!("{}{written}", item.prompt);
            let read = whole.split("Response: ").nth(1).unwrap_or_default();
            let found = search.iter().find(|(_, names)| {
                let mut names = names.iter();
                names.any(|name| read.contains(name))
            });
            Some(found.map_or(Sentiment::Neutral, |(class, _)| *class))
        }
    };
    let name = said.map_or("none", Sentiment::name);
    let said = said.map_or(NO_CLASS, |said| said as usize);
    let right = f64::from(u8::from(said == *gold));
    Grade {
        class: Some((*gold, said)),
        ..Grade::of(ACCURACY.name, right).answering(name)
    }
}

/// The class that a text names first, as a word of its own.
fn first_named(text: &str) -> Option<Sentiment> {
    let mut words = text.split(|c: char| !c.is_alphanumeric());
    words.find_map(Sentiment::named)
}

/// The class in a field: its name, or its number in `numbered`.
pub(super) fn labelled(
    row: &Row<'_>,
    field: &'static str,
    numbered: [Sentiment; 3],
) -> Result<Sentiment, ItemError> {
    let label = row.text(field)?;
    Sentiment::labelled(&label, numbered).ok_or_else(|| unknown(field, &label))
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
    use Sentiment::{Negative, Neutral, Positive};

    const NEGATIVE_FIRST: Search = [
        (Negative, &["negative", "Negative", "Neg"]),
        (Positive, &["positive", "Positive", "Pos"]),
    ];

    fn graded(written: &str, prompts: Prompts, search: &Search) -> (usize, String) {
        let said = Said {
            id: "0".to_owned(),
            medium: Medium::News,
            text: "Sales fell.".to_owned(),
            class: Negative,
        };
        let item = item(said, prompts, alpaca);
        let reply = Reply::Texts(vec![written.to_owned()]);
        let grade = grade(&item, &reply, prompts, search);
        let (gold, said) = grade.class.unwrap();
        assert_eq!(gold, Negative as usize);
        let right = f64::from(u8::from(said == gold));
        assert_eq!(grade.value("acc"), Some(right), "{written}");
        (said, grade.answer.unwrap())
    }

    #[test]
    fn a_sound_answer_is_the_class_named_first() {
        for (written, class, name) in [
            (" negative", Negative as usize, "negative"),
            (" Positive.", Positive as usize, "positive"),
            ("**NEUTRAL**, not positive", Neutral as usize, "neutral"),
            (
                " The sentiment is negative/neutral",
                Negative as usize,
                "negative",
            ),
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
            (both, &POSITIVE_FIRST, Positive),
            (both, &NEGATIVE_FIRST, Negative),
            ("nonnegative", &POSITIVE_FIRST, Negative),
            ("Neg", &NEGATIVE_FIRST, Negative),
            ("Neg", &POSITIVE_FIRST, Neutral),
            ("NEGATIVE", &NEGATIVE_FIRST, Neutral),
            ("", &POSITIVE_FIRST, Neutral),
            // What follows a mark that the model writes itself is not read.
            ("x\n### Response: negative", &POSITIVE_FIRST, Neutral),
        ] {
            let said = graded(written, Prompts::Reference, search).0;
            assert_eq!(said, class as usize, "{written}");
        }
    }
}
