//! Evaluation: the tasks that models are compared by.
//!
//! A [`Task`] says where its rows come from, how a row becomes an [`Item`] (a prompt and what is
//! asked), how a reply is graded, and what is reported. Nothing here reads files, runs programs or
//! talks to a judge: that is the business of whoever drives a task. [`TASKS`] lists all of them.

mod blank;
mod choose;
mod code;
mod dialogue;
mod engine;
pub mod finance;
mod judge_prompts;
mod judging;
mod layout;
mod preference;
mod row;
mod sentiment;
mod split;
mod tasks;
#[cfg(test)]
mod testing;
mod written;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use fedllm_shared::{Average, Bleu, Files, ReadAs, Split};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use dialogue::{dialogue, part, part_at_character};
pub use engine::{Engine, Job, Pair, Written};
pub use split::is_held_out;
pub use tasks::{TASKS, task};

use crate::generate::Sampling;

/// A benchmark.
#[derive(Debug)]
pub struct Task {
    /// Its short name.
    pub name: &'static str,
    /// What it asks.
    pub about: &'static str,
    /// The published prompt that it follows, and where that is published.
    pub prompt: &'static str,
    /// What `--prompts reference` does otherwise, defects included; without one it has one prompt.
    pub reference: Option<&'static str>,
    /// Lists that name it, `paper` among them if the paper reports it.
    pub suites: &'static [&'static str],
    /// Where its rows come from.
    pub source: Source,
    /// The examples before a question.
    pub shots: Shots,
    /// What a row asks.
    pub items: fn(&Row<'_>, Prompts) -> Result<Vec<Item>, ItemError>,
    /// How a reply is graded.
    pub grader: Grader,
    /// What is reported; the first is the one that systems are compared by.
    pub metrics: &'static [Metric],
    /// The group of a cluster, where its clusters form groups (MMLU's subjects).
    pub group: Option<fn(&str) -> &'static str>,
}

impl Task {
    /// Whether its clusters are tasks of their own, such as subjects: their figures are reported,
    /// and a limit of rows holds for each.
    pub fn has_parts(&self) -> bool {
        self.group.is_some() || self.shots.of_cluster
    }

    /// What a folder with its files may be called.
    pub fn folders(&self) -> impl Iterator<Item = &'static str> {
        let hub = self.source.hub.iter();
        let hub = hub.map(|name| name.rsplit('/').next().unwrap_or(name));
        let folders = self.source.folders.iter().copied();
        folders.chain([self.name]).chain(hub)
    }
}

/// Where the rows of a task come from.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Source {
    /// What the Hugging Face hub calls it; of several collections each. Empty if it is not there.
    pub hub: &'static [&'static str],
    /// What its folder is called among those of other sets, besides its task's name and the last
    /// part of its names on the hub.
    pub folders: &'static [&'static str],
    /// The split that is asked.
    pub test: Split,
    /// The split that examples come from, if another.
    pub examples: Option<Split>,
    /// Rows of other files that say more about the same questions.
    pub beside: Option<Beside>,
    /// How its files are laid out.
    pub read_as: ReadAs,
    /// Its licence.
    pub licence: &'static str,
}

/// Rows of other files that say more about the same questions, such as reference answers. A row gets
/// [what it lacks](Beside::complete) from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Beside {
    /// The files, where the rows do not say everything themselves.
    pub files: Files,
    /// The field that is the same in both rows.
    pub by: &'static str,
}

/// The examples that are shown before a question.
#[derive(Clone, Copy, Debug)]
pub struct Shots {
    /// How many, unless the user says otherwise.
    pub count: usize,
    /// Whether they have to be of the question's cluster.
    pub of_cluster: bool,
    /// What is said before them, by cluster and number of examples.
    pub description: Option<fn(Option<&str>, usize) -> String>,
    /// What stands between them, and between the last one and the question.
    pub between: &'static str,
}

impl Shots {
    /// No examples.
    pub const NONE: Self = Self::of(0);

    /// Examples of the whole split, an empty line between them.
    pub const fn of(count: usize) -> Self {
        Self {
            count,
            of_cluster: false,
            description: None,
            between: "\n\n",
        }
    }
}

/// Whose prompts are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompts {
    /// Ours: the published prompt, and answers taken out of replies with care.
    #[default]
    Sound,
    /// Those of OpenFedLLM and FinGPT, defects included.
    Reference,
}

/// A row of a file.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its fields.
    pub fields: &'a Map<String, Value>,
    /// What the file's object calls it, in files that are one object.
    pub key: Option<&'a str>,
    /// The file.
    pub path: &'a Path,
    /// Its number in the file, from 0.
    pub index: usize,
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Names it within its task, whatever else is evaluated.
    pub id: String,
    /// What it belongs to: a subject, a passage. Items of a cluster are not independent.
    pub cluster: Option<Arc<str>>,
    /// The question, as the model reads it after description and examples.
    pub prompt: String,
    /// What follows the prompt where the item is an example, white space before it included.
    pub answer: String,
    /// What the model has to do.
    pub ask: Ask,
    /// What is right.
    pub gold: Gold,
}

/// What a model has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Say how probable each of these continuations of the prompt is, white space before it included.
    Choose(Vec<String>),
    /// Say how probable the same rest is after each of these beginnings, which stand in place of the
    /// prompt.
    Fill {
        /// The beginnings.
        beginnings: Vec<String>,
        /// What follows each.
        rest: String,
    },
    /// Say how probable all of the prompt is.
    Read,
    /// Continue the prompt.
    Write(Writing),
    /// Answer the prompt, which is the user's first turn, and then these, as a conversation in the
    /// model's chat template.
    Converse {
        /// The user's further turns.
        turns: Vec<String>,
        /// How each answer is written.
        writing: Writing,
    },
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Writing {
    /// Tokens at most.
    pub max_tokens: usize,
    /// It ends before any of these.
    pub stop: &'static [&'static str],
    /// How tokens are chosen.
    pub sampling: Sampling,
}

impl Writing {
    /// The most probable tokens.
    pub const fn greedy(max_tokens: usize, stop: &'static [&'static str]) -> Self {
        Self {
            max_tokens,
            stop,
            sampling: Sampling::Greedy,
        }
    }
}

/// What is right.
#[derive(Clone, Debug, PartialEq)]
pub enum Gold {
    /// The choice of this number.
    Choice(usize),
    /// These of the choices.
    Choices(Vec<bool>),
    /// The class of this number.
    Class(usize),
    /// This text.
    Text(String),
    /// Any of these texts.
    AnyOf(Vec<String>),
    /// Any of these lists of texts (DROP).
    Spans(Vec<Vec<String>>),
    /// A program that these checks accept.
    Checks(Checks),
    /// The right answer to each turn, where there is one.
    References(Vec<Option<String>>),
    /// Nothing: the grader knows.
    Open,
}

/// What a written program is put into, to see whether it is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Its language.
    pub language: Language,
    /// What comes before it.
    pub before: String,
    /// What comes after it and fails if it is wrong.
    pub after: String,
}

/// A programming language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Python 3.
    Python,
    /// JavaScript, by Node.
    JavaScript,
    /// Java.
    Java,
    /// Go.
    Go,
    /// C++.
    Cpp,
    /// Rust.
    Rust,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Python,
        Self::JavaScript,
        Self::Java,
        Self::Go,
        Self::Cpp,
        Self::Rust,
    ];
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Python => "Python",
            Self::JavaScript => "JavaScript",
            Self::Java => "Java",
            Self::Go => "Go",
            Self::Cpp => "C++",
            Self::Rust => "Rust",
        })
    }
}

/// A whole program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its language.
    pub language: Language,
    /// Its source; exit status 0 is success. In Rust its tests are what is run.
    pub source: String,
    /// Libraries that it imports besides those of the language.
    pub needs: &'static [&'static str],
}

/// What a model replied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// How probable each continuation is.
    Scores(Vec<ContinuationScore>),
    /// What was written, for each turn.
    Texts(Vec<String>),
}

/// How probable a continuation is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContinuationScore {
    /// The sum of its tokens' log-probabilities, in nats.
    pub log_prob: f64,
    /// Its tokens.
    pub tokens: usize,
    /// Whether greedy decoding would write it.
    pub greedy: bool,
}

impl ContinuationScore {
    /// That of no token at all.
    pub const CERTAIN: Self = Self {
        log_prob: 0.0,
        tokens: 0,
        greedy: true,
    };
}

/// How a reply is graded.
#[derive(Clone, Copy, Debug)]
pub enum Grader {
    /// By itself.
    Direct(fn(&Item, &Reply, Prompts) -> Grade),
    /// Beside what the base model replied, if another system is graded.
    Relative(fn(&Item, &Reply, Option<&Reply>) -> Grade),
    /// By running the program that it makes.
    Program(fn(&Item, &str) -> Program),
    /// By a judge.
    Judge(fn(&Item, &[String]) -> Vec<Judgement>),
}

/// A question to a judge, and how its answer is read.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// What it measures: the name of a metric.
    pub metric: &'static str,
    /// What the judge is told first.
    pub system: String,
    /// What the judge is asked.
    pub prompt: String,
    /// How the judge's words are chosen: by this temperature.
    pub temperature: f32,
    /// The figure in the judge's answer.
    pub figure: fn(&str) -> Option<f64>,
}

/// What a reply is worth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Grade {
    /// Figures, by the names of the [metrics](Task::metrics) that are means.
    pub values: Vec<(String, f64)>,
    /// Which class is right, and which one the reply says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<(usize, usize)>,
    /// What was taken for the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

impl Grade {
    /// A grade of one figure.
    pub fn of(metric: &str, value: f64) -> Self {
        Self::default().and(metric, value)
    }

    /// With another figure.
    pub fn and(mut self, metric: &str, value: f64) -> Self {
        self.values.push((metric.to_owned(), value));
        self
    }

    /// With what was taken for the answer.
    pub fn answering(mut self, answer: impl Into<String>) -> Self {
        self.answer = Some(answer.into());
        self
    }

    /// The figure of a metric.
    pub fn value(&self, metric: &str) -> Option<f64> {
        let mut values = self.values.iter();
        values.find(|(name, _)| name == metric).map(|(_, v)| *v)
    }
}

/// What is reported of a task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How it comes about.
    pub measure: Measure,
    /// Its unit and direction.
    pub scale: Scale,
}

/// How a metric comes about from the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The mean of the grades' figures of its name.
    Mean,
    /// The mean of the grades' figures of these names, of all of them alike.
    MeanOf(&'static [&'static str]),
    /// F1 of the grades' classes, of this many classes.
    F1(Average, usize),
    /// BLEU of all answers against [`Gold::Text`], by this definition.
    Bleu(Bleu),
    /// The exponential of the negative mean log-probability of a token ([`Ask::Read`]).
    Perplexity,
}

/// Unit and direction of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// From 0 to 1, more is better.
    Share,
    /// From 1 to 10, more is better.
    Rating,
    /// Less is better.
    Loss,
}

impl Metric {
    /// A mean between 0 and 1.
    pub const fn mean(name: &'static str) -> Self {
        Self {
            name,
            measure: Measure::Mean,
            scale: Scale::Share,
        }
    }

    /// BLEU by some definition.
    pub const fn bleu(definition: Bleu) -> Self {
        Self {
            name: "bleu",
            measure: Measure::Bleu(definition),
            scale: Scale::Share,
        }
    }

    /// An F1 of so many classes.
    pub const fn f1(name: &'static str, average: Average, classes: usize) -> Self {
        Self {
            name,
            measure: Measure::F1(average, classes),
            scale: Scale::Share,
        }
    }
}

/// Why a row makes no item.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ItemError {
    /// It lacks a field.
    #[error("field `{field}` is missing; the row has {}", .has.join(", "))]
    Missing {
        /// The field.
        field: &'static str,
        /// What it has.
        has: Vec<String>,
    },
    /// A field is of another kind.
    #[error("field `{field}` is not {expected}")]
    Kind {
        /// The field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A field has a value that means nothing.
    #[error("field `{field}` is {got:?}, expected {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it is.
        got: String,
        /// What it could be.
        expected: &'static str,
    },
}
