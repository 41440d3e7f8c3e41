//! Templates: how a row's text becomes token ids, and which of them are labels.
//!
//! | template | rows | text | labels |
//! |---|---|---|---|
//! | `alpaca` | one question, one answer | as OpenFedLLM writes it | the answer and EOS |
//! | `vicuna` | one question, one answer | as OpenFedLLM writes it | the answer and EOS |
//! | `chat` | questions and conversations | as the model's own chat template writes it | every answer, with the token that ends it |
//! | `plain` | texts; prompts and completions | nothing is added but EOS | the whole text; the completion |
//!
//! A preference becomes two rows with the same prompt: see [`Template::apply_pair`].
//!
//! **EOS is learned.** OpenFedLLM pads with EOS where the tokenizer has no padding token, and its
//! collator then masks every EOS, so a model trained by it never learns where to stop. Rows here
//! are not padded, and the EOS after an answer is a label.
//!
//! **`alpaca` and `vicuna`** tokenize the whole text at once, then look for the last place where
//! the ids of the response template stand (without its first two, as the reference does, because
//! they can melt into what comes before) and learn what follows. Where a tokenizer leaves no such
//! place, the labels begin where the text up to the answer ends.
//!
//! **`chat`** learns what the template marks as generated. Most mark nothing: then the conversation
//! is rendered up to each answer and including it, and what the second rendering adds is the
//! answer. That needs a template that leaves earlier turns as they are; if it does not, the row is
//! refused.
//!
//! A row longer than `max_tokens` loses its end. A row whose answer would be lost is not learned.

mod ask;
mod chat;
mod pair;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use fedllm_models::template::{ChatTemplate, Message};
use fedllm_models::tokenizer::Tokenizer;
use fedllm_shared::{Digest, RowKind};
use serde::Serialize;
use thiserror::Error;

use chat::Conversation;
pub use pair::Pair;

use crate::readers::{Format, Record, RowProblem};

/// Names a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateName {
    /// Stanford Alpaca's, as OpenFedLLM writes it.
    Alpaca,
    /// Vicuna 1.1's, as OpenFedLLM writes it.
    Vicuna,
    /// The model's own.
    Chat,
    /// None: the text as it is.
    Plain,
}

impl TemplateName {
    /// Every template.
    pub const ALL: [Self; 4] = [Self::Alpaca, Self::Vicuna, Self::Chat, Self::Plain];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Vicuna => "vicuna",
            Self::Chat => "chat",
            Self::Plain => "plain",
        }
    }

    /// The template for rows of this format when nobody chose one: `plain` for texts, and for
    /// prompts that are complete as they are; for the rest the model's own, or if the model has
    /// none, `alpaca`, and `vicuna` for preferences, which may be dialogues.
    pub fn default_for(format: Format, first: Option<&Record>, has_chat_template: bool) -> Self {
        let complete = match first {
            Some(record) => matches!(record, Record::Completion { .. } | Record::Text(_)),
            None => matches!(format, Format::Completion | Format::Text),
        };
        match format.kind() {
            _ if complete => Self::Plain,
            _ if has_chat_template => Self::Chat,
            RowKind::Examples => Self::Alpaca,
            RowKind::Preferences => Self::Vicuna,
        }
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for TemplateName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|template| template.name() == name)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("no template is called so; there are {names}")
            })
    }
}

/// A template bound to a model's tokenizer.
#[derive(Debug)]
pub struct Template<'a> {
    name: TemplateName,
    tokenizer: &'a Tokenizer,
    chat: Option<&'a ChatTemplate>,
    /// Ids after which the answer begins; for `alpaca` and `vicuna`.
    response: Vec<u32>,
    /// What the tokenizer itself puts before a text: BOS or nothing.
    lead: Vec<u32>,
    eos: u32,
}

/// A template that this model cannot use.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// `chat` was asked for, and the model has none.
    #[error("the model has no chat template of its own")]
    NoChatTemplate,
    /// Nothing would tell the model where an answer ends.
    #[error("the model's tokenizer names no end-of-sequence token")]
    NoEos,
    /// The tokenizer failed on the template's own text.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

/// A row as a model learns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token 1 if it is a label, else 0.
    pub loss: Vec<u8>,
    /// Whether the row's end was cut off.
    pub truncated: bool,
}

impl<'a> Template<'a> {
    /// Binds the template called `name`.
    ///
    /// # Errors
    ///
    /// [`TemplateError`] if the model lacks what the template needs.
    pub fn new(
        name: TemplateName,
        tokenizer: &'a Tokenizer,
        chat: Option<&'a ChatTemplate>,
    ) -> Result<Self, TemplateError> {
        if name == TemplateName::Chat && chat.is_none() {
            return Err(TemplateError::NoChatTemplate);
        }
        let response = match name {
            TemplateName::Alpaca => response_ids(tokenizer, ALPACA.response)?,
            TemplateName::Vicuna => response_ids(tokenizer, VICUNA.response)?,
            TemplateName::Chat | TemplateName::Plain => Vec::new(),
        };
        Ok(Self {
            name,
            tokenizer,
            chat,
            response,
            lead: lead(tokenizer)?,
            eos: tokenizer.eos().ok_or(TemplateError::NoEos)?,
        })
    }

    /// Its name.
    pub fn name(&self) -> TemplateName {
        self.name
    }

    /// Identifies what the template does to a text: clients of one run must agree on it.
    pub fn digest(&self) -> Digest {
        let text = match (self.name, self.chat) {
            (TemplateName::Alpaca, _) => ALPACA.before.to_owned() + ALPACA.response,
            (TemplateName::Vicuna, _) => VICUNA.before.to_owned() + VICUNA.response,
            (TemplateName::Chat, Some(chat)) => chat.fingerprint().to_string(),
            (TemplateName::Chat, None) | (TemplateName::Plain, _) => String::new(),
        };
        Digest::of(format!("fedllm template 1: {}\0{text}", self.name).as_bytes())
    }

    /// The tokens and labels of a row, `max_tokens` at most.
    ///
    /// # Errors
    ///
    /// [`RowProblem`] if the template cannot write this kind of row, or the row has no room for
    /// a label.
    pub fn apply(&self, record: &Record, max_tokens: usize) -> Result<Tokens, RowProblem> {
        match self.name {
            TemplateName::Alpaca => self.apply_marked(&ALPACA, record, max_tokens),
            TemplateName::Vicuna => self.apply_marked(&VICUNA, record, max_tokens),
            TemplateName::Chat => self.apply_chat(record, max_tokens),
            TemplateName::Plain => self.apply_plain(record, max_tokens),
        }
    }

    fn apply_marked(
        &self,
        marked: &Marked,
        record: &Record,
        max_tokens: usize,
    ) -> Result<Tokens, RowProblem> {
        let (question, answer) = single_turn(record, self.name)?;
        let prompt = marked.prompt(&question);
        let mut ids = self.encode(&format!("{prompt} {answer}"), true)?;
        let start = match last_match(&ids[..ids.len().min(max_tokens)], &self.response) {
            Some(start) => start,
            // Either the prompt is too long, or this tokenizer melts the mark into its neighbours.
            None => common_prefix(&ids, &self.encode(&prompt, true)?),
        };
        self.end(&mut ids);
        let labels = start..ids.len();
        finish(ids, &[labels], max_tokens)
    }

    fn apply_plain(&self, record: &Record, max_tokens: usize) -> Result<Tokens, RowProblem> {
        let (prompt, text) = match record {
            Record::Text(text) => ("", text.as_str()),
            Record::Completion { prompt, completion } => (prompt.as_str(), completion.as_str()),
            Record::Instruction { .. } => return Err(self.cannot_write("an instruction")),
            Record::Conversation { .. } => return Err(self.cannot_write("a conversation")),
            Record::Preference { .. } => return Err(self.cannot_write(PREFERENCE)),
        };
        let mut ids = self.encode(&format!("{prompt}{text}"), true)?;
        let start = match prompt {
            "" => 0,
            prompt => common_prefix(&ids, &self.encode(prompt, true)?),
        };
        self.end(&mut ids);
        let labels = start..ids.len();
        finish(ids, &[labels], max_tokens)
    }

    fn apply_chat(&self, record: &Record, max_tokens: usize) -> Result<Tokens, RowProblem> {
        let Some(template) = self.chat else {
            return Err(RowProblem::ChatTemplate("the model has none".to_owned()));
        };
        let turns;
        let conversation = match record {
            Record::Conversation {
                messages,
                learn_from,
                tools,
            } => Conversation {
                messages,
                learn_from: *learn_from,
                tools: tools.as_ref(),
            },
            _ => {
                let (question, answer) = single_turn(record, self.name)?;
                turns = [
                    Message::new("user", question),
                    Message::new("assistant", answer),
                ];
                Conversation {
                    messages: &turns,
                    learn_from: 0,
                    tools: None,
                }
            }
        };
        let text = conversation.render(template)?;
        let (ids, mut labels) = text.tokenize(|text| self.encode(text, false))?;
        for answer in &mut labels {
            // What a template writes after the end of a turn is nothing that a model says.
            if let Some(end) = ids[answer.clone()].iter().rposition(|&id| id == self.eos) {
                answer.end = answer.start + end + 1;
            }
        }
        finish(ids, &labels, max_tokens)
    }

    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, RowProblem> {
        self.tokenizer
            .encode(text, add_special)
            .map_err(|error| RowProblem::Tokenizer(error.to_string()))
    }

    /// Appends EOS, unless the tokenizer did.
    fn end(&self, ids: &mut Vec<u32>) {
        if ids.last() != Some(&self.eos) {
            ids.push(self.eos);
        }
    }

    fn cannot_write(&self, what: &'static str) -> RowProblem {
        RowProblem::NotForTemplate {
            template: self.name.name(),
            what,
        }
    }
}

/// The instruction and its input as one question, as OpenFedLLM joins them.
fn join(instruction: &str, input: &str) -> String {
    match input {
        "" => instruction.to_owned(),
        input => format!("{instruction} {input}"),
    }
}

/// A template whose answer follows a fixed mark.
struct Marked {
    before: &'static str,
    response: &'static str,
}

const ALPACA: Marked = Marked {
    before: "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n{} \n",
    response: "\n### Response:",
};

const VICUNA: Marked = Marked {
    before: "A chat between a curious user and an artificial intelligence assistant. The \
             assistant gives helpful, detailed, and polite answers to the user's questions. \
             USER: {}",
    response: " ASSISTANT:",
};

impl Marked {
    /// Everything before the answer and the space in front of it.
    fn prompt(&self, question: &str) -> String {
        self.before.replacen("{}", question, 1) + self.response
    }
}

/// The response template's ids without the first two, as OpenFedLLM's `main_sft.py` cuts them.
fn response_ids(tokenizer: &Tokenizer, response: &str) -> Result<Vec<u32>, TemplateError> {
    let ids = tokenizer
        .encode(response, false)
        .map_err(|error| TemplateError::Tokenizer(error.to_string()))?;
    Ok(match ids.len() {
        0..=2 => ids,
        _ => ids[2..].to_vec(),
    })
}

/// The ids that the tokenizer puts before the ids of a text.
fn lead(tokenizer: &Tokenizer) -> Result<Vec<u32>, TemplateError> {
    let encode = |special| {
        tokenizer
            .encode("a", special)
            .map_err(|error| TemplateError::Tokenizer(error.to_string()))
    };
    let (bare, mut special) = (encode(false)?, encode(true)?);
    let start = special
        .windows(bare.len())
        .position(|window| window == bare);
    special.truncate(start.unwrap_or(0));
    Ok(special)
}

/// Question and answer of a row that has one of each.
fn single_turn(record: &Record, name: TemplateName) -> Result<(String, &str), RowProblem> {
    let refuse = |what| {
        Err(RowProblem::NotForTemplate {
            template: name.name(),
            what,
        })
    };
    match record {
        Record::Instruction {
            instruction,
            input,
            output,
        } => Ok((join(instruction, input), output)),
        Record::Completion { prompt, completion } => Ok((prompt.clone(), completion)),
        Record::Conversation { messages, .. } => match &messages[..] {
            [question, answer] if question.role == "user" && answer.role == "assistant" => {
                Ok((question.content.clone(), &answer.content))
            }
            _ => refuse("a conversation of more than one question and its answer"),
        },
        Record::Text(_) => refuse("a text without a question"),
        Record::Preference { .. } => refuse(PREFERENCE),
    }
}

const PREFERENCE: &str = "a preference as one row";

/// Where the last occurrence of `mark` in `ids` ends.
fn last_match(ids: &[u32], mark: &[u32]) -> Option<usize> {
    if mark.is_empty() {
        return None;
    }
    ids.windows(mark.len())
        .rposition(|window| window == mark)
        .map(|start| start + mark.len())
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Cuts the row to length, and off after its last label; refuses it if no label is left.
fn finish(
    mut ids: Vec<u32>,
    labels: &[Range<usize>],
    max_tokens: usize,
) -> Result<Tokens, RowProblem> {
    let mut loss = vec![0; ids.len()];
    for range in labels {
        loss[range.clone()].fill(1);
    }
    if let Some(first) = loss.first_mut() {
        *first = 0; // Nothing comes before it that could predict it.
    }
    let Some(last) = loss.iter().rposition(|&mark| mark == 1) else {
        return Err(RowProblem::NoAnswer);
    };
    let truncated = last >= max_tokens;
    let cut = loss[..loss.len().min(max_tokens)].iter();
    let Some(last) = cut.clone().rposition(|&mark| mark == 1) else {
        return Err(RowProblem::PromptTooLong {
            prompt: loss.iter().take_while(|&&mark| mark == 0).count(),
            max_tokens,
        });
    };
    ids.truncate(last + 1);
    loss.truncate(last + 1);
    Ok(Tokens {
        ids,
        loss,
        truncated,
    })
}

#[cfg(test)]
mod tests;
