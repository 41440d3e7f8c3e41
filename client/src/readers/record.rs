//! What a row says, whatever its file called the fields.

use std::fmt;
use std::str::FromStr;

use fedllm_models::template::Message;
use fedllm_shared::{Compat, RowKind};
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use super::preference;

/// One training example, or one pair of rival answers, as text.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A task, perhaps with the material it is about, and its answer.
    Instruction {
        /// The task.
        instruction: String,
        /// The material; often empty.
        input: String,
        /// The answer.
        output: String,
    },
    /// A conversation.
    Conversation {
        /// The turns.
        messages: Vec<Message>,
        /// Only answers from this turn on are learned.
        learn_from: usize,
        /// Descriptions of the tools that the assistant may call.
        tools: Option<Value>,
    },
    /// A text and how it goes on.
    Completion {
        /// The text, used as it is.
        prompt: String,
        /// How it goes on.
        completion: String,
    },
    /// A text without an answer in it: all of it is learned.
    Text(String),
    /// A prompt and two answers, one of which is preferred.
    Preference {
        /// What both answer.
        prompt: Prompt,
        /// The better answer.
        chosen: String,
        /// The other.
        rejected: String,
        /// The answers begin with what stands between prompt and answer, and the prompt is written
        /// as OpenFedLLM writes it; else the template decides both.
        verbatim: bool,
    },
}

impl Record {
    /// What it becomes in a shard.
    pub fn kind(&self) -> RowKind {
        match self {
            Self::Preference { .. } => RowKind::Preferences,
            _ => RowKind::Examples,
        }
    }
}

/// What two rival answers answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// One question; for the template `plain` the text before the answers.
    Text(String),
    /// A conversation that ends before the assistant's turn.
    Messages(Vec<Message>),
}

/// Which fields the rows of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `instruction`, `input` (may be missing) and `output` or `response`.
    Alpaca,
    /// `messages`, or `conversations` with roles: a list of `{"role", "content"}`.
    Messages,
    /// `conversations`: a list of `{"from", "value"}`.
    ShareGpt,
    /// `prompt` and `completion` or `response`: two texts, or two lists of messages.
    Completion,
    /// `question` and `answer`.
    Qa,
    /// `text`.
    Text,
    /// `prompt`, `chosen` and `rejected`: texts or lists of `{"role", "content"}`; such lists may
    /// be whole conversations, and the prompt missing.
    Preference,
    /// `chosen` and `rejected`: whole dialogues of `\n\nHuman:` and `\n\nAssistant:`.
    Hh,
}

impl Format {
    /// Every format, in the order in which the documentation lists them.
    pub const ALL: [Self; 8] = [
        Self::Alpaca,
        Self::Messages,
        Self::ShareGpt,
        Self::Completion,
        Self::Qa,
        Self::Text,
        Self::Preference,
        Self::Hh,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Messages => "messages",
            Self::ShareGpt => "sharegpt",
            Self::Completion => "completion",
            Self::Qa => "qa",
            Self::Text => "text",
            Self::Preference => "preference",
            Self::Hh => "hh",
        }
    }

    /// What rows of this format become in a shard.
    pub fn kind(self) -> RowKind {
        match self {
            Self::Preference | Self::Hh => RowKind::Preferences,
            _ => RowKind::Examples,
        }
    }

    /// The fields of a row that this format does not read.
    pub fn ignores(self, fields: &Map<String, Value>) -> Vec<String> {
        let read: Vec<&str> = self
            .reads()
            .iter()
            .filter_map(|names| {
                names
                    .iter()
                    .copied()
                    .find(|name| fields.contains_key(*name))
            })
            .collect();
        fields
            .keys()
            .filter(|name| !read.contains(&name.as_str()))
            .cloned()
            .collect()
    }

    /// The fields that are read, each by the names that it may have; the first that a row has is
    /// the one.
    fn reads(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Alpaca => &[&["instruction"], &["input"], &["output", "response"]],
            Self::Messages => &[&["messages", "conversations"], &["tools"]],
            Self::ShareGpt => &[&["conversations"], &["tools"]],
            Self::Completion => &[&["prompt"], &["completion", "response"], &["tools"]],
            Self::Qa => &[&["question"], &["answer"]],
            Self::Text => &[&["text"]],
            Self::Preference => &[&["prompt"], &["chosen"], &["rejected"]],
            Self::Hh => &[&["chosen"], &["rejected"]],
        }
    }

    /// The format of a row with these fields.
    ///
    /// # Errors
    ///
    /// [`RowProblem::UnknownFields`] for fields that no format has.
    pub fn detect(fields: &Map<String, Value>) -> Result<Self, RowProblem> {
        let has = |name: &str| fields.contains_key(name);
        if has("chosen") && has("rejected") {
            let dialogue = !has("prompt") && preference::is_dialogue(fields.get("chosen"));
            return Ok(if dialogue { Self::Hh } else { Self::Preference });
        }
        if has("messages") {
            return Ok(Self::Messages);
        }
        if let Some(turns) = fields.get("conversations") {
            let by_role = turns.get(0).is_some_and(|turn| turn.get("role").is_some());
            return Ok(if by_role {
                Self::Messages
            } else {
                Self::ShareGpt
            });
        }
        // A row without its answer is still of its format, so that the error names the answer.
        for (field, format) in [
            ("instruction", Self::Alpaca),
            ("prompt", Self::Completion),
            ("question", Self::Qa),
            ("text", Self::Text),
        ] {
            if has(field) {
                return Ok(format);
            }
        }
        Err(RowProblem::UnknownFields {
            found: names(fields),
        })
    }

    /// Reads a row of this format.
    ///
    /// # Errors
    ///
    /// [`RowProblem`] if a field is missing, has the wrong type, or there is nothing to learn.
    pub fn record(self, fields: &Map<String, Value>) -> Result<Record, RowProblem> {
        self.record_as(fields, Compat::Paper)
    }

    /// Reads a row of this format as OpenFedLLM would, if that is wanted: it cuts preferences into
    /// prompt and answers in its own way, and drops none.
    ///
    /// # Errors
    ///
    /// [`RowProblem`], as [`record`](Self::record).
    pub fn record_as(
        self,
        fields: &Map<String, Value>,
        compat: Compat,
    ) -> Result<Record, RowProblem> {
        match self {
            Self::Alpaca => Ok(Record::Instruction {
                instruction: text(fields, "instruction")?,
                input: match fields.get("input") {
                    None | Some(Value::Null) => String::new(),
                    Some(_) => text(fields, "input")?,
                },
                output: answer(fields, &["output", "response"])?,
            }),
            Self::Qa => Ok(Record::Instruction {
                instruction: text(fields, "question")?,
                input: String::new(),
                output: answer(fields, &["answer"])?,
            }),
            Self::Text => match text(fields, "text")? {
                text if text.trim().is_empty() => Err(RowProblem::Empty { field: "text" }),
                text => Ok(Record::Text(text)),
            },
            Self::Messages => {
                let field = match fields.contains_key("conversations") {
                    true if !fields.contains_key("messages") => "conversations",
                    _ => "messages",
                };
                conversation(fields, list(fields, field)?, &[], field, &ROLE_KEYS)
            }
            Self::ShareGpt => {
                let field = "conversations";
                conversation(fields, list(fields, field)?, &[], field, &SHAREGPT_KEYS)
            }
            Self::Completion => completion(fields),
            Self::Preference => preference::pair(fields, compat),
            Self::Hh => preference::dialogues(fields, compat),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("no format is called so; there are {names}")
            })
    }
}

/// Why a row is not learned. No message holds the row's text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// It cannot be parsed.
    #[error("{}: {what}", if *unfinished { "incomplete JSON" } else { "no JSON" })]
    NotJson {
        /// The parser's words.
        what: String,
        /// The row ended too early: perhaps one object lies over several lines.
        unfinished: bool,
    },
    /// It is JSON, but has no fields.
    #[error("a row must be a JSON object, this is {found}")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// Its bytes are no UTF-8.
    #[error("not UTF-8: byte 0x{byte:02x} at offset {offset} of the file")]
    NotUtf8 {
        /// Offset in the (uncompressed) file.
        offset: u64,
        /// The first bad byte.
        byte: u8,
    },
    /// A cell's bytes are no UTF-8.
    #[error(
        "not UTF-8: byte 0x{byte:02x} at byte {within} of the cell `{column}`, in the record that \
         begins at offset {record} of the file"
    )]
    CellNotUtf8 {
        /// The cell's column.
        column: String,
        /// The first bad byte.
        byte: u8,
        /// Its offset in the cell.
        within: usize,
        /// The record's offset in the (uncompressed) file.
        record: u64,
    },
    /// A record has more or fewer cells than the header.
    #[error("{found} cells where the header has {expected}")]
    Cells {
        /// Columns of the header.
        expected: u64,
        /// Cells of the record.
        found: u64,
    },
    /// No format has these fields.
    #[error("no known format has the fields {found}")]
    UnknownFields {
        /// The fields' names.
        found: String,
    },
    /// Its two answers are the same.
    #[error("both answers are the same, so neither can be preferred")]
    SameAnswers,
    /// Its two conversations differ in what is asked.
    #[error("`chosen` and `rejected` part before an answer of the assistant")]
    NoSharedPrompt,
    /// A text is no dialogue as HH-RLHF writes it.
    #[error("the field `{field}` does not begin with `Human:` or `Assistant:` after a blank line")]
    NotADialogue {
        /// The field.
        field: &'static str,
    },
    /// It lacks a field.
    #[error("the field `{field}` is missing; the row has {found}")]
    MissingField {
        /// The field.
        field: &'static str,
        /// The fields that it has.
        found: String,
    },
    /// A field is of another type.
    #[error("the field `{field}` is {found}, it must be {expected}")]
    WrongType {
        /// The field.
        field: &'static str,
        /// What it is.
        found: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A turn's speaker is none that a template knows.
    #[error("turn {turn} has a role that is not system, user, assistant or tool")]
    UnknownRole {
        /// The turn, from 1.
        turn: usize,
    },
    /// Nothing is in the field that would be learned.
    #[error("the field `{field}` is empty, so there is nothing to learn")]
    Empty {
        /// The field.
        field: &'static str,
    },
    /// A conversation without an answer.
    #[error("no turn of the assistant says anything, so there is nothing to learn")]
    NoAnswer,
    /// An earlier row of the data set has the same instruction.
    #[error("an earlier row asks the same")]
    Duplicate,
    /// It belongs to another split of its data set.
    #[error("the row is of another split")]
    OtherSplit,
    /// A class is none that the data set has.
    #[error("the field `{field}` holds no class of this data set")]
    UnknownLabel {
        /// The field.
        field: &'static str,
    },
    /// The template cannot write this kind of row.
    #[error("the template `{template}` cannot write {what}")]
    NotForTemplate {
        /// The template.
        template: &'static str,
        /// The kind of row.
        what: &'static str,
    },
    /// The model's own template refused the row.
    #[error("the model's chat template refuses this conversation: {0}")]
    ChatTemplate(String),
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// The prompt alone fills the row.
    #[error("the prompt has {prompt} tokens, which leaves none of {max_tokens} for the answer")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// The most tokens of a row.
        max_tokens: usize,
    },
}

impl RowProblem {
    /// A short name of the kind of problem, to count rows by.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotJson { .. } => "no JSON",
            Self::NotAnObject { .. } => "no object",
            Self::NotUtf8 { .. } | Self::CellNotUtf8 { .. } => "not UTF-8",
            Self::Cells { .. } => "wrong number of cells",
            Self::UnknownFields { .. } => "unknown fields",
            Self::SameAnswers => "equal answers",
            Self::NoSharedPrompt => "no shared prompt",
            Self::NotADialogue { .. } => "no dialogue",
            Self::Duplicate => "duplicate",
            Self::OtherSplit => "of another split",
            Self::UnknownLabel { .. } => "unknown class",
            Self::MissingField { .. } => "missing field",
            Self::WrongType { .. } => "wrong type",
            Self::UnknownRole { .. } => "unknown role",
            Self::Empty { .. } => "empty answer",
            Self::NoAnswer => "no answer",
            Self::NotForTemplate { .. } => "not for this template",
            Self::ChatTemplate(_) => "refused by the chat template",
            Self::Tokenizer(_) => "tokenizer failed",
            Self::PromptTooLong { .. } => "prompt too long",
        }
    }

    /// Whether the row is in order and only has nothing to learn: it is dropped and counted, and
    /// stops nobody.
    pub fn is_harmless(&self) -> bool {
        matches!(
            self,
            Self::Empty { .. }
                | Self::NoAnswer
                | Self::PromptTooLong { .. }
                | Self::SameAnswers
                | Self::NoSharedPrompt
                | Self::Duplicate
                | Self::OtherSplit
        )
    }

    /// What the owner of the file can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotUtf8 { .. } | Self::CellNotUtf8 { .. } => {
                "convert the file, for example with `iconv -f LATIN1 -t UTF-8 OLD > NEW`, or leave \
                 such rows out with `--skip-bad-rows`"
            }
            Self::NotJson {
                unfinished: true, ..
            } => {
                "rows are one JSON array, or one object on each line; an object over several lines \
                 is neither"
            }
            Self::UnknownFields { .. } => {
                "rows need instruction+output, messages, conversations, prompt+completion, \
                 question+answer, text or prompt+chosen+rejected; rename the fields"
            }
            Self::NotForTemplate { .. } => "choose another with `--template`",
            Self::ChatTemplate(_) => "choose another template, for example `--template alpaca`",
            _ => "mend the row, or leave such rows out with `--skip-bad-rows`",
        }
    }
}

/// Whether a turn is one that the model learns to write.
pub(crate) fn is_answer(turn: &Message) -> bool {
    let calls = turn.extra.get("tool_calls").and_then(Value::as_array);
    turn.role == "assistant"
        && (!turn.content.trim().is_empty() || calls.is_some_and(|calls| !calls.is_empty()))
}

/// What the keys of a turn are called, and what its speakers are called.
struct TurnKeys {
    role: &'static str,
    text: &'static str,
}

const ROLE_KEYS: TurnKeys = TurnKeys {
    role: "role",
    text: "content",
};
const SHAREGPT_KEYS: TurnKeys = TurnKeys {
    role: "from",
    text: "value",
};

fn completion(fields: &Map<String, Value>) -> Result<Record, RowProblem> {
    if let (Some(Value::Array(prompt)), Some(Value::Array(completion))) =
        (fields.get("prompt"), fields.get("completion"))
    {
        return conversation(fields, completion, prompt, "completion", &ROLE_KEYS);
    }
    Ok(Record::Completion {
        prompt: text(fields, "prompt")?,
        completion: answer(fields, &["completion", "response"])?,
    })
}

/// The turns `before` and `turns`; answers are learned from `turns` only.
fn conversation(
    fields: &Map<String, Value>,
    turns: &[Value],
    before: &[Value],
    field: &'static str,
    keys: &TurnKeys,
) -> Result<Record, RowProblem> {
    let messages = all_messages(before.iter().chain(turns), field, keys)?;
    let learn_from = before.len();
    if !messages[learn_from..].iter().any(is_answer) {
        return Err(RowProblem::NoAnswer);
    }
    Ok(Record::Conversation {
        messages,
        learn_from,
        tools: fields
            .get("tools")
            .filter(|tools| !tools.is_null())
            .cloned(),
    })
}

/// A list of `{"role", "content"}`.
pub(super) fn messages(turns: &[Value], field: &'static str) -> Result<Vec<Message>, RowProblem> {
    all_messages(turns.iter(), field, &ROLE_KEYS)
}

fn all_messages<'a>(
    turns: impl Iterator<Item = &'a Value>,
    field: &'static str,
    keys: &TurnKeys,
) -> Result<Vec<Message>, RowProblem> {
    turns
        .enumerate()
        .map(|(i, turn)| message(turn, i + 1, field, keys))
        .collect()
}

fn message(
    turn: &Value,
    number: usize,
    field: &'static str,
    keys: &TurnKeys,
) -> Result<Message, RowProblem> {
    let Value::Object(turn) = turn else {
        return Err(RowProblem::WrongType {
            field,
            found: type_name(turn),
            expected: "a list of turns",
        });
    };
    let role = match text(turn, keys.role)?.as_str() {
        "system" => "system",
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
        "tool" | "function" | "observation" => "tool",
        _ => return Err(RowProblem::UnknownRole { turn: number }),
    };
    let mut message = Message::new(role, content(turn, keys.text)?);
    // Templates may read more of a turn, such as the tools that it calls.
    let others = turn
        .iter()
        .filter(|(key, _)| ![keys.role, keys.text].contains(&key.as_str()));
    message.extra = others
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    Ok(message)
}

/// A text, or the text parts of a list of parts.
fn content(turn: &Map<String, Value>, key: &'static str) -> Result<String, RowProblem> {
    match turn.get(key) {
        Some(Value::Array(parts)) => parts
            .iter()
            .map(|part| match part.get("text") {
                Some(Value::String(text)) => Ok(text.as_str()),
                _ => Err(RowProblem::WrongType {
                    field: key,
                    found: "a part that is no text",
                    expected: "text",
                }),
            })
            .collect(),
        // A turn that only calls a tool says nothing.
        None | Some(Value::Null) if turn.contains_key("tool_calls") => Ok(String::new()),
        _ => text(turn, key),
    }
}

/// The first of these fields that the row has; it may not be blank.
fn answer(fields: &Map<String, Value>, names: &[&'static str]) -> Result<String, RowProblem> {
    let name = names
        .iter()
        .copied()
        .find(|name| fields.contains_key(*name));
    let field = name.unwrap_or(names[0]);
    match text(fields, field)? {
        text if text.trim().is_empty() => Err(RowProblem::Empty { field }),
        text => Ok(text),
    }
}

/// The text in this field.
pub(crate) fn text(fields: &Map<String, Value>, field: &'static str) -> Result<String, RowProblem> {
    match fields.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(RowProblem::WrongType {
            field,
            found: type_name(other),
            expected: "a text",
        }),
        None => Err(missing(fields, field)),
    }
}

fn list<'a>(
    fields: &'a Map<String, Value>,
    field: &'static str,
) -> Result<&'a [Value], RowProblem> {
    match fields.get(field) {
        Some(Value::Array(turns)) => Ok(turns),
        Some(other) => Err(RowProblem::WrongType {
            field,
            found: type_name(other),
            expected: "a list of turns",
        }),
        None => Err(missing(fields, field)),
    }
}

fn missing(fields: &Map<String, Value>, field: &'static str) -> RowProblem {
    RowProblem::MissingField {
        field,
        found: names(fields),
    }
}

/// The names of fields, shortened: in a file of another kind they may be anything.
fn names(fields: &Map<String, Value>) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<String> = fields
        .keys()
        .take(SHOWN)
        .map(|name| format!("`{}`", name.chars().take(32).collect::<String>()))
        .collect();
    match fields.len() {
        0 => return "none".to_owned(),
        n if n > SHOWN => names.push(format!("{} more", n - SHOWN)),
        _ => {}
    }
    names.join(", ")
}

/// What a JSON value is, in words.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
