//! The one thread that has the model: it answers what waits in a bounded queue.
//!
//! Everything that this server asks of the model is asked here. What waits is taken together:
//! prompts of several requests are scored in one pass, and texts are written one after another.

use std::ops::Range;
use std::thread::JoinHandle;

use fedllm_models::generate::{Generator, Sampling};
use fedllm_models::ops::TokenLogProbs;
use fedllm_models::{Batch, CausalLm, Lora, Tokenizer, TokenizerError};
use tokio::sync::mpsc;

use super::error::ApiError;
use super::text::Answer;

/// Tokens that go through the model at once.
const PASS_TOKENS: usize = 1024;
/// Tokens of requests that are taken out of the queue together.
const TAKEN_TOKENS: usize = 4 * PASS_TOKENS;

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

/// A part of the answer, about the prompt with this index. For each prompt they come in this order.
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
    queue: mpsc::Sender<Job>,
}

struct Job {
    question: Question,
    events: mpsc::UnboundedSender<Event>,
}

impl Worker {
    /// Starts the thread. It ends when the worker is dropped and what waited is answered.
    pub(crate) fn start(
        model: CausalLm,
        adapters: Vec<Lora>,
        tokenizer: Tokenizer,
        queue: usize,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, jobs) = mpsc::channel(queue);
        let desk = Desk {
            model,
            adapters,
            tokenizer,
        };
        let thread = std::thread::Builder::new().name("model".to_owned());
        let thread = thread.spawn(move || desk.work(jobs))?;
        Ok((Self { queue: sender }, thread))
    }

    /// Puts a question into the queue. Who drops the receiver no longer wants the answer; if it ends
    /// before every prompt is done, the model has failed.
    pub(super) fn ask(
        &self,
        question: Question,
    ) -> Result<mpsc::UnboundedReceiver<Event>, ApiError> {
        let (events, answer) = mpsc::unbounded_channel();
        let job = Job { question, events };
        self.queue.try_send(job).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => ApiError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => ApiError::Gone,
        })?;
        Ok(answer)
    }

    /// Waits for the thread's end, which only a failure brings about while the worker is there.
    pub(crate) async fn failed(&self) {
        self.queue.closed().await;
    }
}

impl Question {
    /// Tokens that it may take: prompts and answers.
    fn tokens(&self) -> usize {
        let prompts = self.prompts.iter().map(Vec::len).sum::<usize>();
        prompts.saturating_add(self.prompts.len().saturating_mul(self.max_tokens))
    }

    /// Whether the only token to write follows from the pass that scores the prompt.
    fn is_one_pass(&self) -> bool {
        self.max_tokens <= 1 && self.sampling == Sampling::Greedy
    }
}

impl Job {
    fn send(&self, event: Event) {
        // Nobody waits for it any more; the next look at the channel ends the work.
        let _ = self.events.send(event);
    }
}

struct Desk {
    model: CausalLm,
    adapters: Vec<Lora>,
    tokenizer: Tokenizer,
}

impl Desk {
    fn work(&self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut tokens = first.question.tokens();
            let mut taken = vec![first];
            while tokens < TAKEN_TOKENS
                && let Ok(job) = jobs.try_recv()
            {
                tokens += job.question.tokens();
                taken.push(job);
            }
            self.score(&taken);
            for job in &taken {
                if let Err(error) = self.write(job) {
                    job.send(Event::Failed(error.to_string()));
                }
            }
        }
    }

    fn lora(&self, question: &Question) -> Option<&Lora> {
        question.adapter.and_then(|index| self.adapters.get(index))
    }

    /// Scores the prompts of all jobs that want it, an adapter after another.
    fn score(&self, jobs: &[Job]) {
        let wanted = |job: &&Job| job.question.score_prompts || job.question.is_one_pass();
        let mut rows: Vec<(&Job, usize)> = jobs
            .iter()
            .filter(wanted)
            .flat_map(|job| (0..job.question.prompts.len()).map(move |index| (job, index)))
            .collect();
        rows.sort_by_key(|(job, _)| job.question.adapter);
        for pass in passes(&rows) {
            self.score_pass(&rows[pass]);
        }
    }

    /// Scores prompts that one adapter answers.
    fn score_pass(&self, rows: &[(&Job, usize)]) {
        let rows: Vec<_> = rows
            .iter()
            .filter(|(job, _)| !job.events.is_closed())
            .collect();
        let mut batch = Batch::default();
        for (job, index) in &rows {
            let question = &job.question;
            batch.push(&question.prompts[*index], |_| question.score_prompts);
            if question.is_one_pass() {
                // What follows the prompt is not known yet: only the most probable token counts, so
                // any target will do.
                batch.predicting.push(batch.tokens() - 1);
                batch.targets.push(0);
            }
        }
        let top = rows.iter().filter_map(|(job, _)| job.question.top).max();
        let Some((first, _)) = rows.first() else {
            return;
        };
        let lora = self.lora(&first.question);
        let mut said = self
            .model
            .token_log_probs(&batch, lora, top.unwrap_or(0).max(1))
            .into_iter();
        for ((job, index), labels) in rows.into_iter().zip(batch.row_labels()) {
            self.tell_row(job, *index, said.by_ref().take(labels.len()).collect());
        }
    }

    /// Tells what a pass said of one prompt, and of the token after it if that is all to be written.
    fn tell_row(&self, job: &Job, index: usize, mut said: Vec<TokenLogProbs>) {
        let question = &job.question;
        let next = match question.is_one_pass() {
            true => said.pop(),
            false => None,
        };
        if question.score_prompts {
            for said in &mut said {
                said.top.truncate(question.top.unwrap_or(0));
            }
            job.send(Event::Prompt { index, said });
        }
        let mut answer = Answer::new(&self.tokenizer, &question.stops);
        let mut ended = false;
        if let Some(mut next) = next.filter(|_| question.max_tokens > 0)
            && let Some(&(token, log_prob)) = next.top.first()
        {
            next.log_prob = log_prob;
            next.top.truncate(question.top.unwrap_or(0));
            let said = question.top.map(|_| next);
            match self.tell_token(job, index, &mut answer, token, said) {
                Ok(last) => ended = last,
                Err(error) => return job.send(Event::Failed(error.to_string())),
            }
        }
        if question.is_one_pass() {
            tell_end(job, index, answer, ended);
        }
    }

    /// Writes the answers of a job that needs more than a pass.
    fn write(&self, job: &Job) -> Result<(), TokenizerError> {
        let question = &job.question;
        if question.is_one_pass() {
            return Ok(());
        }
        for (index, prompt) in question.prompts.iter().enumerate() {
            self.write_one(job, index, prompt)?;
        }
        Ok(())
    }

    fn write_one(&self, job: &Job, index: usize, prompt: &[u32]) -> Result<(), TokenizerError> {
        let question = &job.question;
        let mut generator =
            Generator::new(&self.model, self.lora(question), prompt, question.sampling);
        let mut answer = Answer::new(&self.tokenizer, &question.stops);
        let mut ended = false;
        // The last token is written after the context is full: nothing need follow it.
        let room = (self.model.config().max_positions + 1).saturating_sub(prompt.len());
        for _ in 0..question.max_tokens.min(room) {
            if job.events.is_closed() {
                return Ok(());
            }
            let next = match question.top {
                Some(top) => generator
                    .next_with_log_probs(top)
                    .map(|(token, said)| (token, Some(said))),
                None => generator.next().map(|token| (token, None)),
            };
            let Some((token, said)) = next else { break };
            ended = self.tell_token(job, index, &mut answer, token, said)?;
            if ended {
                break;
            }
        }
        tell_end(job, index, answer, ended);
        Ok(())
    }

    /// Tells a token; whether it is the last one, because it ends a text or completes a stop.
    fn tell_token(
        &self,
        job: &Job,
        index: usize,
        answer: &mut Answer<'_>,
        token: u32,
        said: Option<TokenLogProbs>,
    ) -> Result<bool, TokenizerError> {
        let ends = self.tokenizer.special().stop.contains(&token);
        let text = match ends {
            true => String::new(),
            false => answer.push(token)?,
        };
        job.send(Event::Token {
            index,
            token,
            text,
            said,
        });
        Ok(ends || answer.stopped())
    }
}

fn tell_end(job: &Job, index: usize, answer: Answer<'_>, ended: bool) {
    job.send(match answer.finish() {
        Ok((text, stopped)) => Event::Done {
            index,
            text,
            ended: ended || stopped,
        },
        Err(error) => Event::Failed(error.to_string()),
    });
}

/// Runs of rows that have one adapter and fit into a pass; a longer row is one by itself.
fn passes(rows: &[(&Job, usize)]) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (number, (job, index)) in rows.iter().enumerate() {
        let len = job.question.prompts[*index].len();
        let same = |pass: &&mut Range<usize>| {
            let (first, _) = rows[pass.start];
            first.question.adapter == job.question.adapter && tokens + len <= PASS_TOKENS
        };
        match passes.last_mut().filter(same) {
            Some(pass) => {
                pass.end = number + 1;
                tokens += len;
            }
            None => {
                passes.push(number..number + 1);
                tokens = len;
            }
        }
    }
    passes
}
