//! `POST /v1/completions`: continues prompts, and says how probable their own tokens are.

use std::sync::Arc;

use fedllm_models::Tokenizer;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::http::{Api, Head};
use super::log_probs::CompletionLogProbs;
use super::prompts::Prompt;
use super::stream::Parts;
use super::worker::{Event, Question};

/// Tokens that are written where the request does not say how many, as OpenAI has it.
const MAX_TOKENS: usize = 16;

/// Writes the answer to one request.
pub(super) struct Writer {
    api: Arc<Api>,
    head: Head,
    prompts: Vec<Echo>,
    log_probs: bool,
    streams_usage: bool,
    written: usize,
}

/// A prompt, and what of it belongs to the answer.
struct Echo {
    ids: Vec<u32>,
    /// Characters before each token, if the prompt is given back.
    offsets: Vec<usize>,
    /// The text, until it is given back.
    text: Option<String>,
    /// Characters that were given back or written.
    chars: usize,
}

/// The answer to one prompt, or a part of it.
#[derive(Debug, Default, Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogProbs>,
    finish_reason: Option<&'static str>,
}

/// What a request asks of the model, and who writes the answer.
pub(super) fn prepare(api: Arc<Api>, fields: Fields) -> Result<(Question, Writer), ApiError> {
    fields.check_supported()?;
    let adapter = api.model(fields.model.as_deref())?;
    let Some(prompts) = &fields.prompt else {
        let said = match fields.messages {
            Some(_) => "`messages` belong to POST /v1/chat/completions",
            None => "`prompt` is required",
        };
        return Err(ApiError::Invalid(said.to_owned()));
    };
    let top = fields.completion_alternatives()?;
    let echo = fields.echo.unwrap_or(false);
    let max_tokens = fields.max_tokens().unwrap_or(MAX_TOKENS);
    api.check_count(prompts.0.len())?;
    let read = prompts.0.iter().enumerate();
    let read = read.map(|(index, prompt)| Echo::new(&api, index, prompt, echo));
    let prompts: Vec<Echo> = read.collect::<Result<_, _>>()?;
    let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
    api.check_tokens(&ids, max_tokens)?;
    let question = Question {
        adapter,
        prompts: ids,
        score_prompts: echo && top.is_some(),
        // The arg-max is always told.
        top: top.map(|top| top.max(1)),
        max_tokens,
        sampling: fields.sampling()?,
        stops: fields.stops()?,
    };
    let writer = Writer {
        head: api.head("cmpl", "text_completion", adapter)?,
        api,
        prompts,
        log_probs: top.is_some(),
        streams_usage: fields.streams_usage(),
        written: 0,
    };
    Ok((question, writer))
}

impl Echo {
    fn new(api: &Api, index: usize, prompt: &Prompt, echo: bool) -> Result<Self, ApiError> {
        let ids = match prompt {
            Prompt::Ids(ids) => ids.clone(),
            Prompt::Text(text) => api.encode(text, true)?,
        };
        api.check_prompt(index, &ids)?;
        let (text, offsets) = match (echo, prompt) {
            (false, _) => (None, Vec::new()),
            (true, Prompt::Ids(_)) => {
                let (text, offsets) = spell(&api.tokenizer, &ids)?;
                (Some(text), offsets)
            }
            (true, Prompt::Text(text)) => {
                // The tokens that begin a text are no part of what the client sent.
                let (spelt, mut offsets) = spell(&api.tokenizer, &ids)?;
                let added = spelt.chars().count().saturating_sub(text.chars().count());
                offsets
                    .iter_mut()
                    .for_each(|offset| *offset = offset.saturating_sub(added));
                (Some(text.clone()), offsets)
            }
        };
        Ok(Self {
            ids,
            offsets,
            text,
            chars: 0,
        })
    }
}

/// The text of ids, and how many characters are before each.
fn spell(tokenizer: &Tokenizer, ids: &[u32]) -> Result<(String, Vec<usize>), ApiError> {
    let mut decoder = tokenizer.stream(false);
    let (mut text, mut chars) = (String::new(), 0);
    let mut offsets = Vec::with_capacity(ids.len());
    for id in ids {
        offsets.push(chars);
        let piece = decoder.push(*id)?;
        chars += piece.chars().count();
        text.push_str(&piece);
    }
    text.push_str(&decoder.finish()?);
    Ok((text, offsets))
}

impl Writer {
    /// Puts the whole answer together.
    pub(super) fn whole(mut self, events: Vec<Event>) -> Result<Value, ApiError> {
        let mut choices: Vec<Choice> = (0..self.prompts.len())
            .map(|index| Choice {
                index,
                ..Choice::default()
            })
            .collect();
        for event in events {
            let part = self.part(event)?;
            choices[part.index].add(part);
        }
        let mut answer = self.head.json(json!(choices));
        answer["usage"] = self.usage();
        Ok(answer)
    }

    /// What an event adds.
    fn part(&mut self, event: Event) -> Result<Choice, ApiError> {
        let api = self.api.clone();
        let mut part = Choice::default();
        match event {
            Event::Prompt { index, said } => {
                let mut log_probs = CompletionLogProbs::default();
                let prompt = &self.prompts[index];
                let said = std::iter::once(None).chain(said.iter().map(Some));
                for ((id, offset), said) in prompt.ids.iter().zip(&prompt.offsets).zip(said) {
                    log_probs.push(&api.pieces, *id, said, *offset);
                }
                part.index = index;
                part.logprobs = Some(log_probs);
                part.text = self.echo(index);
            }
            Event::Token {
                index,
                token,
                text,
                said,
            } => {
                part.index = index;
                part.text = self.echo(index);
                if let Some(said) = &said {
                    let mut log_probs = CompletionLogProbs::default();
                    log_probs.push(&api.pieces, token, Some(said), self.prompts[index].chars);
                    part.logprobs = Some(log_probs);
                }
                self.prompts[index].chars += text.chars().count();
                part.text.push_str(&text);
                self.written += 1;
            }
            Event::Done { index, text, ended } => {
                part.index = index;
                part.text = self.echo(index);
                part.text.push_str(&text);
                // The lists are there even where they are empty.
                part.logprobs = self.log_probs.then(CompletionLogProbs::default);
                part.finish_reason = Some(if ended { "stop" } else { "length" });
            }
            Event::Failed(reason) => return Err(ApiError::Internal(reason)),
        }
        Ok(part)
    }

    /// The prompt's text, the first time.
    fn echo(&mut self, index: usize) -> String {
        let prompt = &mut self.prompts[index];
        let text = prompt.text.take().unwrap_or_default();
        prompt.chars += text.chars().count();
        text
    }

    fn usage(&self) -> Value {
        let prompts = self.prompts.iter().map(|prompt| prompt.ids.len()).sum();
        Head::usage(prompts, self.written)
    }
}

impl Parts for Writer {
    fn first(&mut self) -> Option<Value> {
        None
    }

    fn next(&mut self, event: Event) -> Result<Option<Value>, ApiError> {
        let part = self.part(event)?;
        Ok((!part.is_empty()).then(|| self.head.json(json!([part]))))
    }

    fn last(&mut self) -> Option<Value> {
        let usage = self.streams_usage.then(|| self.usage())?;
        let mut last = self.head.json(json!([]));
        last["usage"] = usage;
        Some(last)
    }
}

impl Choice {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.is_none() && self.finish_reason.is_none()
    }

    fn add(&mut self, part: Self) {
        self.text.push_str(&part.text);
        if let Some(more) = part.logprobs {
            self.logprobs.get_or_insert_default().append(more);
        }
        self.finish_reason = part.finish_reason.or(self.finish_reason);
    }
}
