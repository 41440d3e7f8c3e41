//! The one thread that has the model, and the bounded queue before it.

use std::sync::Arc;
use std::thread::JoinHandle;

use fedllm_models::generate::Sampling;
use fedllm_models::ops::TokenLogProbs;
use fedllm_models::{CausalLm, Lora, Tokenizer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::desk::Desk;
use super::error::ApiError;

/// What a request asks of the model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    /// Which adapter answers; none is the base.
    pub(super) adapter: Option<usize>,
    /// Each has at least one token and at most as many as the context.
    pub(super) prompts: Vec<Vec<u32>>,
    /// Whether the log-probabilities of the prompts' own tokens are wanted.
    pub(super) score_prompts: bool,
    /// Log-probabilities are wanted, with so many of the most probable tokens.
    pub(super) top: Option<usize>,
    /// Tokens to write to each prompt, as far as the context has room.
    pub(super) max_tokens: usize,
    /// How they are chosen.
    pub(super) sampling: Sampling,
    /// Texts before which an answer ends.
    pub(super) stops: Vec<String>,
}

/// A part of the answer, about the prompt with this index. For each prompt they come in this order,
/// among those of others.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// What the model says of the prompt's tokens, from the second on.
    Prompt {
        index: usize,
        said: Vec<TokenLogProbs>,
    },
    /// A token was written. The text that it makes sure may be none, or more than its own.
    Token {
        index: usize,
        token: u32,
        text: String,
        said: Option<TokenLogProbs>,
    },
    /// Nothing more is written.
    Done {
        index: usize,
        /// What was still held back.
        text: String,
        /// Whether the answer ended by itself, not by its length.
        ended: bool,
    },
    /// Tokens could not become text.
    Failed(String),
}

/// Where requests wait.
pub(crate) struct Worker {
    queue: mpsc::UnboundedSender<Job>,
    places: Arc<Semaphore>,
}

/// A question, and where its answer goes.
pub(super) struct Job {
    pub(super) question: Question,
    pub(super) events: mpsc::UnboundedSender<Event>,
    /// Its place in the queue, for as long as the model has not begun with all of its prompts.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// What the thread has.
pub(crate) struct Model {
    /// The base.
    pub(crate) base: CausalLm,
    /// Adapters of it.
    pub(crate) adapters: Vec<Lora>,
    /// Its tokens.
    pub(crate) tokenizer: Tokenizer,
}

impl Worker {
    /// Starts the thread, for `queue` questions that wait and keys and values of `cache_bytes`. It
    /// ends when the worker is dropped and what waited is answered.
    pub(crate) fn start(
        model: Model,
        queue: usize,
        cache_bytes: usize,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, jobs) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name("model".to_owned());
        let thread = thread.spawn(move || Desk::new(&model, cache_bytes).work(jobs))?;
        let places = Arc::new(Semaphore::new(queue));
        let queue = sender;
        Ok((Self { queue, places }, thread))
    }

    /// Puts a question into the queue. Who drops the receiver no longer wants the answer; if it ends
    /// before every prompt is done, the model has failed.
    pub(super) fn ask(
        &self,
        question: Question,
    ) -> Result<mpsc::UnboundedReceiver<Event>, ApiError> {
        // Nobody closes the semaphore.
        let place = self.places.clone().try_acquire_owned();
        let place = Some(place.map_err(|_| ApiError::QueueFull)?);
        let (events, answer) = mpsc::unbounded_channel();
        let job = Job {
            question,
            events,
            place,
        };
        self.queue.send(job).map_err(|_| ApiError::Gone)?;
        Ok(answer)
    }

    /// Waits for the thread's end, which only a failure brings about while the worker is there.
    pub(crate) async fn failed(&self) {
        self.queue.closed().await;
    }
}
