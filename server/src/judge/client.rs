//! One question over HTTP: asked again while the endpoint is busy, and no more than needed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use fedllm_models::eval::Judgement;
use fedllm_shared::Backoff;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ureq::Agent;
use ureq::http::{Response, StatusCode};

use super::Entry;
use super::endpoint::Endpoint;
use super::wait::{Stop, retry_after};
use super::{JudgeConfig, JudgeError, Secret};
use crate::simulate::text::printable;

/// No answer is longer than this.
const ANSWER_BYTES: u64 = 4 << 20;

/// A judge whose answer has no rating is asked this often in all.
const RATINGS: u32 = 3;

/// An endpoint that wants to be left alone for longer is left alone for good.
const PATIENCE: Duration = Duration::from_secs(600);

/// Characters of an endpoint's message that are shown.
const MESSAGE_CHARACTERS: usize = 400;

/// Asks one model at one endpoint.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    url: String,
    key: Option<Secret>,
    model: String,
    max_tokens: u32,
    retries: u32,
    /// Whether the endpoint wants `max_completion_tokens`, as those of reasoning models do.
    renamed: AtomicBool,
}

/// The rating in a judge's words.
pub(super) fn rating(judgement: &Judgement, answer: &str) -> Option<f64> {
    (judgement.figure)(answer).filter(|figure| figure.is_finite())
}

impl Client {
    pub(super) fn new(config: &JudgeConfig) -> Result<Self, JudgeError> {
        let endpoint = Endpoint::parse(&config.endpoint, config.danger_allow_http)?;
        let mut agent = Agent::config_builder()
            .user_agent(concat!("fedllm/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // A question that is sent on would lose its key, or give it away.
            .max_redirects(0)
            .max_idle_connections_per_host(config.parallel)
            .timeout_resolve(Some(Duration::from_secs(5).min(config.timeout)))
            .timeout_connect(Some(Duration::from_secs(5).min(config.timeout)))
            .timeout_global(Some(config.timeout));
        if endpoint.is_loopback {
            // What is on this machine is not asked through another one.
            agent = agent.proxy(None);
        }
        Ok(Self {
            agent: agent.build().new_agent(),
            url: endpoint.url,
            key: config.key.clone(),
            model: config.model.clone(),
            max_tokens: config.max_tokens,
            retries: config.retries,
            renamed: AtomicBool::new(false),
        })
    }

    /// Asks until there is a rating, or too often.
    pub(super) fn rate(
        &self,
        judgement: &Judgement,
        backoff: &mut Backoff,
        stop: &Stop,
    ) -> Result<Entry, JudgeError> {
        let mut entry = Entry {
            judge: self.model.clone(),
            answered_by: None,
            answer: String::new(),
            figure: None,
            requests: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            uncounted: 0,
        };
        while entry.figure.is_none() && entry.requests < RATINGS {
            let said = self.complete(judgement, backoff, stop)?;
            let usage = said.usage.as_ref();
            entry.requests += 1;
            entry.prompt_tokens += usage.map_or(0, |usage| u64::from(usage.prompt_tokens));
            entry.completion_tokens += usage.map_or(0, |usage| u64::from(usage.completion_tokens));
            entry.uncounted += u32::from(usage.is_none());
            entry.answered_by = said.model.as_deref().map(|model| self.hide(model));
            entry.answer = self.hide(&said.text());
            entry.figure = rating(judgement, &entry.answer);
        }
        Ok(entry)
    }

    /// Asks until there is an answer, or no hope of one.
    fn complete(
        &self,
        judgement: &Judgement,
        backoff: &mut Backoff,
        stop: &Stop,
    ) -> Result<Completion, JudgeError> {
        let mut retries = self.retries;
        loop {
            let (error, asked_for) = match self.attempt(judgement) {
                Ok(completion) => {
                    backoff.reset();
                    return Ok(completion);
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, wait }) => (error, wait.unwrap_or_default()),
            };
            if asked_for > PATIENCE {
                return Err(later(error, asked_for));
            }
            let wait = backoff.next_wait().max(asked_for);
            if retries == 0 || !stop.sleep(wait) {
                return Err(error);
            }
            retries -= 1;
            tracing::warn!("{error}; asking again after {:.0} s", wait.as_secs_f64());
        }
    }

    fn attempt(&self, judgement: &Judgement) -> Result<Completion, Failure> {
        let renamed = self.renamed.load(Ordering::Relaxed);
        let mut request = self.agent.post(&self.url);
        if let Some(key) = &self.key {
            request = request.header("Authorization", key.authorization());
        }
        let response = request.send_json(self.question(judgement, renamed));
        let mut response = response.map_err(|error| self.broken(error))?;
        let bytes = response.body_mut().with_config().limit(ANSWER_BYTES);
        let bytes = bytes.read_to_vec().map_err(|error| self.broken(error))?;
        if response.status() == StatusCode::OK {
            return self.parse(&bytes);
        }
        let message = self.message(&bytes);
        let wants_other_name =
            response.status() == 400 && message.contains("max_completion_tokens") && !renamed;
        if wants_other_name {
            self.renamed.store(true, Ordering::Relaxed);
            return self.attempt(judgement);
        }
        Err(self.refused(&response, message))
    }

    fn question<'a>(&'a self, judgement: &'a Judgement, renamed: bool) -> Question<'a> {
        let system = Message {
            role: "system",
            content: &judgement.system,
        };
        let user = Message {
            role: "user",
            content: &judgement.prompt,
        };
        let messages = match judgement.system.is_empty() {
            true => vec![user],
            false => vec![system, user],
        };
        Question {
            model: &self.model,
            messages,
            temperature: judgement.temperature,
            max_tokens: (!renamed).then_some(self.max_tokens),
            max_completion_tokens: renamed.then_some(self.max_tokens),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<Completion, Failure> {
        let wrong = |reason: String| Failure::Passing {
            error: JudgeError::Answer {
                url: self.url.clone(),
                reason: self.hide(&reason),
            },
            wait: None,
        };
        let completion: Completion =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        match completion.choices.is_empty() {
            true => Err(wrong(self.message(bytes))),
            false => Ok(completion),
        }
    }

    fn refused<T>(&self, response: &Response<T>, message: String) -> Failure {
        let status = response.status().as_u16();
        let error = JudgeError::Status {
            url: self.url.clone(),
            status,
            message,
        };
        match status {
            408 | 425 | 429 | 500.. => {
                let after = response.headers().get("retry-after");
                let after = after.and_then(|after| after.to_str().ok());
                let wait = after.and_then(|after| retry_after(after, SystemTime::now()));
                Failure::Passing { error, wait }
            }
            _ => Failure::Final(error),
        }
    }

    fn broken(&self, error: ureq::Error) -> Failure {
        use ureq::Error::{BodyExceedsLimit, ConnectionFailed, Io, Protocol, Timeout};
        if let BodyExceedsLimit(_) = error {
            let reason = format!("it is longer than {} MiB", ANSWER_BYTES >> 20);
            let url = self.url.clone();
            return Failure::Final(JudgeError::Answer { url, reason });
        }
        let passes = matches!(error, Timeout(_) | Io(_) | Protocol(_) | ConnectionFailed);
        let error = JudgeError::Network {
            url: self.url.clone(),
            source: Box::new(error),
        };
        match passes {
            true => Failure::Passing { error, wait: None },
            false => Failure::Final(error),
        }
    }

    /// What an endpoint says that it minds, on one line and without the key.
    fn message(&self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let error = value.get("error").unwrap_or(&value);
        let said = ["message", "detail"]
            .iter()
            .find_map(|name| error.get(name));
        let said = said.unwrap_or(error).as_str().unwrap_or(&text);
        let words: Vec<&str> = said.split_whitespace().collect();
        match words.is_empty() {
            true => "(nothing more)".into(),
            false => printable(&self.hide(&words.join(" ")), MESSAGE_CHARACTERS),
        }
    }

    fn hide(&self, text: &str) -> String {
        match &self.key {
            Some(key) => key.hide(text),
            None => text.to_owned(),
        }
    }
}

/// Why an attempt came to nothing.
enum Failure {
    /// Another one will, too.
    Final(JudgeError),
    /// Another one may not, after the time that the endpoint asks for.
    Passing {
        error: JudgeError,
        wait: Option<Duration>,
    },
}

#[derive(Serialize)]
struct Question<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    temperature: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
    model: Option<String>,
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
struct Choice {
    message: Said,
}

#[derive(Deserialize)]
struct Said {
    /// Null where a model only thought, or refused.
    content: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

impl Completion {
    fn text(&self) -> String {
        let content = self.choices.first().map(|choice| &choice.message.content);
        content.cloned().flatten().unwrap_or_default()
    }
}

fn later(error: JudgeError, wait: Duration) -> JudgeError {
    match error {
        JudgeError::Status {
            url,
            status,
            message,
        } => JudgeError::Later {
            url,
            status,
            seconds: wait.as_secs(),
            message,
        },
        error => error,
    }
}
