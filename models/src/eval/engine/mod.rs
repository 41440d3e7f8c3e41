//! Scores continuations and writes answers on a model.

mod tokens;

use fedllm_shared::Digest;

use super::ContinuationScore;
use crate::arch::CausalLm;
use crate::batch::Batch;
use crate::generate::{Generator, Sampling};
use crate::lora::Lora;
use crate::tokenizer::{Tokenizer, TokenizerError};
use tokens::Tokens;

/// Tokens that go through the model at once.
const PASS_TOKENS: usize = 1024;

/// A model, with or without an adapter, that answers.
pub struct Engine<'a> {
    model: &'a CausalLm,
    lora: Option<&'a Lora>,
    tokenizer: &'a Tokenizer,
    context: usize,
}

/// A text, and what might follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The text.
    pub context: &'a str,
    /// What might follow it, white space before it included.
    pub continuation: &'a str,
}

/// A text to continue.
#[derive(Clone, Debug, PartialEq)]
pub struct Job<'a> {
    /// The text.
    pub prompt: &'a str,
    /// Whether the tokenizer adds the special tokens that begin a text; a chat template has written
    /// them already.
    pub add_special: bool,
    /// Tokens at most.
    pub max_tokens: usize,
    /// The answer ends before any of these.
    pub stop: &'a [&'a str],
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The text, without what ended it.
    pub text: String,
    /// Tokens that were written.
    pub tokens: usize,
    /// Whether it ended by itself, not by its limit.
    pub ended: bool,
}

impl<'a> Engine<'a> {
    /// An engine on a model whose texts have `context` tokens at most, or as many as the model was
    /// made for if that is less.
    pub fn new(
        model: &'a CausalLm,
        tokenizer: &'a Tokenizer,
        lora: Option<&'a Lora>,
        context: usize,
    ) -> Self {
        let context = context.min(model.config().max_positions).max(2);
        Self {
            model,
            lora,
            tokenizer,
            context,
        }
    }

    /// Tokens that a text may have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// What makes tokens of texts.
    pub fn tokenizer(&self) -> Digest {
        self.tokenizer.fingerprint()
    }

    /// How probable each continuation is after its context. `done` is told each score with its
    /// number as soon as it is known, in any order.
    ///
    /// Context and continuation become tokens together, and what the context alone becomes is taken
    /// off, as EleutherAI's harness does. Of a text that is too long the beginning is left out.
    ///
    /// # Errors
    ///
    /// [`TokenizerError`] if a text cannot become tokens.
    pub fn score(
        &self,
        pairs: &[Pair<'_>],
        mut done: impl FnMut(usize, ContinuationScore),
    ) -> Result<(), TokenizerError> {
        let rows: Result<Vec<Tokens>, _> = pairs.iter().map(|pair| self.pair(pair)).collect();
        self.score_rows(&rows?, &mut done);
        Ok(())
    }

    /// How probable each text is as a whole: the sum over all its tokens, in windows of as many
    /// tokens as the model was made for.
    ///
    /// # Errors
    ///
    /// [`TokenizerError`] if a text cannot become tokens.
    pub fn read(
        &self,
        texts: &[&str],
        mut done: impl FnMut(usize, ContinuationScore),
    ) -> Result<(), TokenizerError> {
        for (number, text) in texts.iter().enumerate() {
            let windows = self.windows(text)?;
            let mut whole = ContinuationScore {
                log_prob: 0.0,
                tokens: 0,
                greedy: true,
            };
            self.score_rows(&windows, &mut |_, score| {
                whole.log_prob += score.log_prob;
                whole.tokens += score.tokens;
                whole.greedy &= score.greedy;
            });
            done(number, whole);
        }
        Ok(())
    }

    /// Continues each prompt. `done` is told each answer with its number as soon as it is known, in
    /// any order. Of a prompt that leaves no room for its answer the beginning is left out.
    ///
    /// # Errors
    ///
    /// [`TokenizerError`] if a text cannot become tokens, or tokens no text.
    pub fn write(
        &self,
        jobs: &[Job<'_>],
        mut done: impl FnMut(usize, Written),
    ) -> Result<(), TokenizerError> {
        for (number, job) in jobs.iter().enumerate() {
            done(number, self.write_one(job)?);
        }
        Ok(())
    }

    fn score_rows(&self, rows: &[Tokens], done: &mut dyn FnMut(usize, ContinuationScore)) {
        let mut start = 0;
        while start < rows.len() {
            let mut tokens = 0;
            let fits = rows[start..].iter().take_while(|row| {
                tokens += row.ids.len();
                tokens <= PASS_TOKENS
            });
            let end = start + fits.count().max(1);
            let mut batch = Batch::default();
            for row in &rows[start..end] {
                batch.push(&row.ids, |i| i >= row.from);
            }
            let mut scores = self.model.score(&batch, self.lora).into_iter();
            for (number, row) in rows.iter().enumerate().take(end).skip(start) {
                let targets = &row.ids[row.from..];
                let scores: Vec<_> = scores.by_ref().take(targets.len()).collect();
                let greedy = scores
                    .iter()
                    .zip(targets)
                    .all(|(s, target)| s.top == *target);
                let log_prob = scores.iter().map(|score| f64::from(score.log_prob)).sum();
                let tokens = targets.len();
                done(
                    number,
                    ContinuationScore {
                        log_prob,
                        tokens,
                        greedy,
                    },
                );
            }
            start = end;
        }
    }

    fn write_one(&self, job: &Job<'_>) -> Result<Written, TokenizerError> {
        let prompt = self.prompt(job)?;
        let ends = &self.tokenizer.special().stop;
        let mut decoder = self.tokenizer.stream(true);
        let mut written = Written {
            text: String::new(),
            tokens: 0,
            ended: false,
        };
        for token in
            Generator::new(self.model, self.lora, &prompt, job.sampling).take(job.max_tokens)
        {
            written.tokens += 1;
            written.ended = ends.contains(&token);
            if !written.ended {
                written.text.push_str(&decoder.push(token)?);
                written.ended = cut_at_stop(&mut written.text, job.stop);
            }
            if written.ended {
                return Ok(written);
            }
        }
        written.text.push_str(&decoder.finish()?);
        cut_at_stop(&mut written.text, job.stop);
        Ok(written)
    }
}

/// Cuts a text before the first of some stops; whether there was one.
fn cut_at_stop(text: &mut String, stops: &[&str]) -> bool {
    let found = stops.iter().filter(|stop| !stop.is_empty());
    let first = found.filter_map(|stop| text.find(stop)).min();
    if let Some(at) = first {
        text.truncate(at);
    }
    first.is_some()
}
