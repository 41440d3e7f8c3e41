//! Scores continuations and writes answers on a model.

mod tokens;
mod write;

use fedllm_shared::Digest;

use super::ContinuationScore;
use crate::arch::CausalLm;
use crate::generate::Sampling;
use crate::lora::Lora;
use crate::scoring::{Row, Scorer};
use crate::tokenizer::{Tokenizer, TokenizerError};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The text, without what ended it.
    pub text: String,
    /// Tokens that were written.
    pub tokens: usize,
    /// Whether it stopped by itself or at a stop, not by its limit.
    pub stopped: bool,
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
    /// Pairs that begin alike share their beginning, whatever their order; the more pairs are given at
    /// once, the more they share. Context and continuation become tokens together, and what the context alone becomes is taken
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
        let rows: Result<Vec<Row>, _> = pairs.iter().map(|pair| self.pair(pair)).collect();
        self.score_rows(rows?, &mut done);
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
            let mut whole = ContinuationScore::CERTAIN;
            self.score_rows(windows, &mut |_, score| {
                whole.log_prob += score.log_prob;
                whole.tokens += score.tokens;
                whole.greedy &= score.greedy;
            });
            done(number, whole);
        }
        Ok(())
    }

    fn score_rows(&self, rows: Vec<Row>, done: &mut dyn FnMut(usize, ContinuationScore)) {
        let mut scorer = Scorer::new(self.model, self.lora, rows, 1);
        while let Some(scored) = scorer.advance() {
            for (number, said) in scored {
                let targets = scorer.rows()[number].targets();
                let mut score = ContinuationScore::CERTAIN;
                score.tokens = targets.len();
                for (target, said) in targets.iter().zip(&said) {
                    score.log_prob += f64::from(said.log_prob);
                    score.greedy &= said.top.first().is_some_and(|(top, _)| top == target);
                }
                done(number, score);
            }
        }
    }
}
