//! A judge: a model at an OpenAI-compatible endpoint that rates answers.
//!
//! What it said is stored at once, so that a run that broke off goes on where it was and nothing is
//! paid for twice.

mod client;
mod cost;
mod endpoint;
mod error;
mod secret;
#[cfg(test)]
mod tests;
mod wait;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use fedllm_models::eval::Judgement;
use fedllm_shared::{Backoff, Digest};
use serde::{Deserialize, Serialize};

pub(crate) use cost::{Estimate, Price, Usage};
pub(crate) use error::JudgeError;
pub(crate) use secret::Secret;

use crate::answers::Answers;
use client::Client;
use wait::Stop;

/// Requests that a judge may have to answer at once.
const PARALLEL: usize = 64;

/// Which model judges, and how it is asked.
#[derive(Clone, Debug)]
pub(crate) struct JudgeConfig {
    /// Where it is: a host, a base such as `https://host/v1`, or all of `…/chat/completions`.
    pub(crate) endpoint: String,
    /// What the endpoint calls it.
    pub(crate) model: String,
    /// What the endpoint wants to see.
    pub(crate) key: Option<Secret>,
    /// Tokens of an answer at most.
    pub(crate) max_tokens: u32,
    /// Requests at once, 1 to 64.
    pub(crate) parallel: usize,
    /// How long one request may take in all.
    pub(crate) timeout: Duration,
    /// How often a request is repeated that the endpoint was too busy for, or lost.
    pub(crate) retries: u32,
    /// Ask hosts other than this one without encryption: whoever is in between reads the key.
    pub(crate) danger_allow_http: bool,
    /// What tokens cost, if it is to be shown.
    pub(crate) price: Option<Price>,
}

impl JudgeConfig {
    /// The settings of MT-Bench's own judge: 2,048 tokens at most.
    pub(crate) fn new(endpoint: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            model: model.into(),
            key: None,
            max_tokens: 2048,
            parallel: 4,
            timeout: Duration::from_secs(120),
            retries: 6,
            danger_allow_http: false,
            price: None,
        }
    }

    fn check(&self) -> Result<(), JudgeError> {
        let setting = |name, got: String, expected| {
            Err(JudgeError::Setting {
                name,
                got,
                expected,
            })
        };
        if self.model.trim().is_empty() {
            return setting("model", format!("{:?}", self.model), "a name");
        }
        if self.max_tokens == 0 {
            return setting("max_tokens", "0".into(), "1 or more");
        }
        if !(1..=PARALLEL).contains(&self.parallel) {
            return setting("parallel", self.parallel.to_string(), "1 to 64");
        }
        if self.timeout.is_zero() {
            return setting("timeout", "0 s".into(), "more");
        }
        Ok(())
    }
}

/// A judge, and what it said so far.
#[derive(Debug)]
pub(crate) struct Judge {
    config: JudgeConfig,
    client: Client,
    said: Mutex<Answers<Entry>>,
}

/// What the judge said to one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    /// The model that was asked.
    judge: String,
    /// The model that answered, as the endpoint calls it.
    answered_by: Option<String>,
    /// Its words.
    answer: String,
    /// The rating in them.
    figure: Option<f64>,
    /// How often it was asked until there was a rating.
    requests: u32,
    /// Tokens that were read for that.
    prompt_tokens: u64,
    /// Tokens that were written for that.
    completion_tokens: u64,
    /// Answers that came without a count of tokens.
    uncounted: u32,
}

/// What a judge came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    /// The rating of each question, where there is one.
    pub(crate) ratings: Vec<Option<f64>>,
    /// Questions whose answers hold no rating.
    pub(crate) unrated: usize,
    /// Questions that the endpoint refused to pass on; they are asked again next time.
    pub(crate) refused: usize,
    /// The models that answered, as the endpoint calls them, and how many questions each.
    pub(crate) answered_by: BTreeMap<String, usize>,
    /// What was used up this time.
    pub(crate) usage: Usage,
}

impl Judge {
    /// A judge whose answers are stored in the file `store`, which need not exist.
    ///
    /// # Errors
    ///
    /// [`JudgeError`] if a setting is wrong, or the file cannot be used or is in use.
    pub(crate) fn open(config: JudgeConfig, store: &Path) -> Result<Self, JudgeError> {
        config.check()?;
        let client = Client::new(&config)?;
        let said = Mutex::new(Answers::open(store.to_owned())?);
        Ok(Self {
            config,
            client,
            said,
        })
    }

    /// What the endpoint calls the model.
    pub(crate) fn model(&self) -> &str {
        &self.config.model
    }

    /// What so much costs, in dollars, if prices are known.
    pub(crate) fn dollars(&self, usage: &Usage) -> Option<f64> {
        Some(usage.dollars(self.config.price?))
    }

    /// What asking these would take, without those that are stored.
    pub(crate) fn estimate(&self, asked: &[Judgement]) -> Estimate {
        let keys = self.keys(asked);
        let open = self.open_questions(asked, &keys);
        let distinct: HashSet<&Digest> = keys.iter().collect();
        let characters = open.iter().map(|(_, judgement)| {
            let characters = judgement.system.chars().count() + judgement.prompt.chars().count();
            characters as u64
        });
        Estimate::new(
            open.len(),
            distinct.len() - open.len(),
            characters,
            self.config.max_tokens,
            self.config.price,
        )
    }

    /// Asks whatever is not stored, several at once, and stores each answer as it comes.
    /// `progress` hears how many of the [estimated](Self::estimate) requests are done.
    ///
    /// # Errors
    ///
    /// The first [`JudgeError`] that trying again did not help against. What was answered until
    /// then is stored.
    pub(crate) fn ask(
        &self,
        asked: &[Judgement],
        progress: &dyn Fn(usize),
    ) -> Result<Judged, JudgeError> {
        let keys = self.keys(asked);
        let open = self.open_questions(asked, &keys);
        let asking = Asking {
            client: &self.client,
            next: AtomicUsize::new(0),
            answered: AtomicBool::new(keys.iter().any(|key| self.said().get(key).is_some())),
            stop: Stop::default(),
            open,
        };
        let (sender, outcomes) = mpsc::channel();
        let (mut usage, mut refused, mut failure) = (Usage::default(), 0, None);
        thread::scope(|scope| {
            for _ in 0..self.config.parallel.min(asking.open.len()) {
                let (asking, sender) = (&asking, sender.clone());
                scope.spawn(move || asking.work(&sender));
            }
            drop(sender);
            for (done, outcome) in outcomes.into_iter().enumerate() {
                refused += usize::from(matches!(outcome, Ok(None)));
                let kept = outcome.and_then(|entry| match entry {
                    Some((key, metric, entry)) => {
                        usage.add(&entry);
                        self.keep(key, metric, entry)
                    }
                    None => Ok(()),
                });
                if let Err(error) = kept {
                    asking.stop.set();
                    failure.get_or_insert(error);
                }
                progress(done + 1);
            }
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(self.judged(asked, &keys, refused, usage)),
        }
    }

    fn judged(&self, asked: &[Judgement], keys: &[Digest], refused: usize, usage: Usage) -> Judged {
        let said = self.said();
        let mut judged = Judged {
            ratings: Vec::with_capacity(asked.len()),
            unrated: 0,
            refused,
            answered_by: BTreeMap::new(),
            usage,
        };
        for (judgement, key) in asked.iter().zip(keys) {
            let stored = said.get(key);
            // Read again from the words: how ratings are found in them may have been mended.
            let rating = stored.and_then(|stored| client::rating(judgement, &stored.answer));
            if let Some(stored) = stored {
                judged.unrated += usize::from(rating.is_none());
                let name = stored.answered_by.as_ref().unwrap_or(&self.config.model);
                *judged.answered_by.entry(name.clone()).or_default() += 1;
            }
            judged.ratings.push(rating);
        }
        judged
    }

    /// Keeps what the judge said: it is paid for, so it is on the disk when this returns.
    fn keep(&self, key: Digest, metric: &str, entry: Entry) -> Result<(), JudgeError> {
        let mut said = self.said();
        said.put(key, metric, entry)?;
        Ok(said.sync()?)
    }

    /// What names the answers to these questions, whichever endpoint gives them.
    fn keys(&self, asked: &[Judgement]) -> Vec<Digest> {
        let key = |judgement: &Judgement| {
            let (system, prompt) = (&judgement.system, &judgement.prompt);
            let settings = (judgement.temperature.to_bits(), self.config.max_tokens);
            let mut hasher = blake3::Hasher::new_derive_key("fedllm 1 judgements");
            for part in [&self.config.model, system, prompt] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
            hasher.update(&settings.0.to_le_bytes());
            hasher.update(&settings.1.to_le_bytes());
            Digest(hasher.finalize().into())
        };
        asked.iter().map(key).collect()
    }

    /// Those that are not stored, each once.
    fn open_questions<'a>(
        &self,
        asked: &'a [Judgement],
        keys: &[Digest],
    ) -> Vec<(Digest, &'a Judgement)> {
        let said = self.said();
        let mut seen = HashSet::new();
        let pairs = keys.iter().copied().zip(asked);
        pairs
            .filter(|(key, _)| said.get(key).is_none() && seen.insert(*key))
            .collect()
    }

    /// A panic elsewhere leaves what was said whole: it changes in one step.
    fn said(&self) -> MutexGuard<'_, Answers<Entry>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Questions that wait, and what those who ask them know of each other.
struct Asking<'a> {
    client: &'a Client,
    open: Vec<(Digest, &'a Judgement)>,
    next: AtomicUsize,
    /// Whether the endpoint has answered a question.
    answered: AtomicBool,
    /// Whether it failed for good.
    stop: Stop,
}

impl Asking<'_> {
    /// Asks one question after another.
    fn work(&self, sender: &mpsc::Sender<Outcome>) {
        let mut backoff = Backoff::new(random_seed());
        while let Some((key, judgement)) = self.open.get(self.next.fetch_add(1, Ordering::Relaxed))
            && !self.stop.is_set()
        {
            let rated = self.client.rate(judgement, &mut backoff, &self.stop);
            let rated = rated.map(|entry| (*key, judgement.metric, entry));
            // Somebody listens as long as this runs.
            let _ = sender.send(self.judge(rated));
        }
    }

    /// What an error means for the other questions.
    fn judge(&self, rated: Result<Said, JudgeError>) -> Outcome {
        let error = match rated {
            Ok(entry) => {
                self.answered.store(true, Ordering::Relaxed);
                return Ok(Some(entry));
            }
            Err(error) => error,
        };
        // An endpoint that has answered others minds this question, not how it is asked.
        if error.is_about_the_question() && self.answered.load(Ordering::Relaxed) {
            tracing::warn!("a question was refused: {error}");
            return Ok(None);
        }
        self.stop.set();
        Err(error)
    }
}

/// What comes of a question: an answer, or none because the endpoint minds it.
type Outcome = Result<Option<Said>, JudgeError>;

/// What the judge said to the question of a key, and what that measures.
type Said = (Digest, &'static str, Entry);

/// Waits have to differ, not to be secret: without randomness the clock will do.
fn random_seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| u64::from(time.subsec_nanos())),
    }
}
