//! `POST /v1/chat/completions`: the assistant's next turn, by the model's own chat template.

use std::sync::Arc;

use fedllm_models::Message;
use fedllm_models::template::RenderOptions;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::http::{Api, Head};
use super::log_probs::chat_token;
use super::stream::Parts;
use super::worker::{Event, Question};

/// A turn, as clients send it.
#[derive(Deserialize)]
pub(super) struct ChatMessage {
    role: String,
    content: Option<Content>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`content` is a text or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// Writes the answer to one request.
pub(super) struct Writer {
    api: Arc<Api>,
    head: Head,
    prompt: usize,
    /// Alternatives to each token, if log-probabilities are wanted.
    alternatives: Option<usize>,
    streams_usage: bool,
    written: usize,
}

/// The answer, or a part of it.
#[derive(Debug, Default)]
struct Turn {
    content: String,
    log_probs: Vec<Value>,
    finish_reason: Option<&'static str>,
}

/// What a request asks of the model, and who writes the answer.
pub(super) fn prepare(api: Arc<Api>, fields: Fields) -> Result<(Question, Writer), ApiError> {
    fields.check_supported()?;
    let adapter = api.model(fields.model.as_deref())?;
    let alternatives = fields.chat_alternatives()?;
    let streams_usage = fields.streams_usage();
    let object = match fields.stream {
        Some(true) => "chat.completion.chunk",
        _ => "chat.completion",
    };
    let (sampling, stops, max_tokens) = (fields.sampling()?, fields.stops()?, fields.max_tokens());
    let ids = api.encode(&render(&api, fields)?, false)?;
    api.check_prompt(0, &ids)?;
    let room = (api.context + 1 - ids.len())
        .min(api.limits.max_tokens_per_request.saturating_sub(ids.len()));
    let max_tokens = max_tokens.unwrap_or(room);
    let prompts = vec![ids];
    api.check_tokens(&prompts, max_tokens)?;
    let writer = Writer {
        head: api.head("chatcmpl", object, adapter)?,
        api,
        prompt: prompts[0].len(),
        alternatives,
        streams_usage,
        written: 0,
    };
    let question = Question {
        adapter,
        prompts,
        score_prompts: false,
        top: alternatives,
        max_tokens,
        sampling,
        stops,
    };
    Ok((question, writer))
}

/// The conversation as text, up to where the assistant begins.
fn render(api: &Api, fields: Fields) -> Result<String, ApiError> {
    let Some(messages) = fields.messages.filter(|messages| !messages.is_empty()) else {
        let said = match fields.prompt {
            Some(_) => "`prompt` belongs to POST /v1/completions",
            None => "`messages` is required",
        };
        return Err(ApiError::Invalid(said.to_owned()));
    };
    let Some(template) = &api.chat else {
        let said = "this model has no chat template; POST /v1/completions continues plain text";
        return Err(ApiError::Invalid(said.to_owned()));
    };
    let messages = messages.into_iter().enumerate();
    let messages = messages.map(|(index, message)| message.read(index));
    let messages: Vec<Message> = messages.collect::<Result<_, _>>()?;
    let options = RenderOptions {
        add_generation_prompt: true,
        variables: fields.chat_template_kwargs.unwrap_or_default(),
        ..RenderOptions::default()
    };
    let rendered = template.render_with(&messages, &options);
    let rendered = rendered.map_err(|error| ApiError::Invalid(error.to_string()))?;
    Ok(rendered.text)
}

impl ChatMessage {
    fn read(self, index: usize) -> Result<Message, ApiError> {
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let mut text = String::new();
                for part in parts {
                    match part.text.filter(|_| part.kind == "text") {
                        Some(part) => text.push_str(&part),
                        None => {
                            return Err(ApiError::Invalid(format!(
                                "message {index} has a part of type {:?}; this model reads text",
                                part.kind
                            )));
                        }
                    }
                }
                text
            }
        };
        Ok(Message {
            role: self.role,
            content,
            extra: self.extra,
        })
    }
}

impl Writer {
    /// Puts the whole answer together.
    pub(super) fn whole(mut self, events: Vec<Event>) -> Result<Value, ApiError> {
        let mut turn = Turn::default();
        for event in events {
            let part = self.part(event)?;
            turn.content.push_str(&part.content);
            turn.log_probs.extend(part.log_probs);
            turn.finish_reason = part.finish_reason.or(turn.finish_reason);
        }
        let log_probs = self.log_probs(turn.log_probs);
        let mut answer = self.head.json(json!([{
            "index": 0,
            "message": { "role": "assistant", "content": turn.content, "refusal": null },
            "logprobs": log_probs,
            "finish_reason": turn.finish_reason,
        }]));
        answer["usage"] = Head::usage(self.prompt, self.written);
        Ok(answer)
    }

    /// What an event adds.
    fn part(&mut self, event: Event) -> Result<Turn, ApiError> {
        match event {
            // The prompt of a chat is never scored.
            Event::Prompt { .. } => Ok(Turn::default()),
            Event::Token {
                token, text, said, ..
            } => {
                self.written += 1;
                let alternatives = self.alternatives.unwrap_or(0);
                let said = said.iter();
                Ok(Turn {
                    content: text,
                    log_probs: said
                        .map(|said| chat_token(&self.api.pieces, token, said, alternatives))
                        .collect(),
                    finish_reason: None,
                })
            }
            Event::Done { text, ended, .. } => Ok(Turn {
                content: text,
                log_probs: Vec::new(),
                finish_reason: Some(if ended { "stop" } else { "length" }),
            }),
            Event::Failed(reason) => Err(ApiError::Internal(reason)),
        }
    }

    fn log_probs(&self, content: Vec<Value>) -> Value {
        match self.alternatives {
            Some(_) => json!({ "content": content, "refusal": null }),
            None => Value::Null,
        }
    }
}

impl Writer {
    /// A part of the answer.
    fn chunk(&self, delta: Value, log_probs: Vec<Value>, finish_reason: Option<&str>) -> Value {
        let log_probs = match log_probs.is_empty() {
            true => Value::Null,
            false => self.log_probs(log_probs),
        };
        self.head.json(json!([{
            "index": 0,
            "delta": delta,
            "logprobs": log_probs,
            "finish_reason": finish_reason,
        }]))
    }
}

impl Parts for Writer {
    fn first(&mut self) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        Some(self.chunk(delta, Vec::new(), None))
    }

    fn next(&mut self, event: Event) -> Result<Option<Value>, ApiError> {
        let part = self.part(event)?;
        let delta = match part.content.is_empty() {
            true => json!({}),
            false => json!({ "content": part.content }),
        };
        let is_empty = part.content.is_empty() && part.log_probs.is_empty();
        let is_part = !is_empty || part.finish_reason.is_some();
        Ok(is_part.then(|| self.chunk(delta, part.log_probs, part.finish_reason)))
    }

    fn last(&mut self) -> Option<Value> {
        let mut last = self.streams_usage.then(|| self.head.json(json!([])))?;
        last["usage"] = Head::usage(self.prompt, self.written);
        Some(last)
    }
}
