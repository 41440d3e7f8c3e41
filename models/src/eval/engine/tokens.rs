//! From texts to rows of tokens.

use super::{Engine, Job, Pair};
use crate::scoring::Row;
use crate::tokenizer::TokenizerError;

impl Engine<'_> {
    /// Context and continuation as one row.
    pub(super) fn pair(&self, pair: &Pair<'_>) -> Result<Row, TokenizerError> {
        // Space at the end of the context belongs to the token that follows it.
        let context = pair.context.trim_end();
        let whole = format!("{}{}", pair.context, pair.continuation);
        if context.is_empty() {
            let continuation = self.tokenizer.encode(&whole, false)?;
            return Ok(self.fit(self.after_start(continuation), 1));
        }
        let ids = self.tokenizer.encode(&whole, true)?;
        let from = self.tokenizer.encode(context, true)?.len().min(ids.len());
        Ok(self.fit(ids, from.max(1)))
    }

    /// A text in rows of as many tokens as the model was made for. Each row begins with the last
    /// token of the one before it, and scores all others.
    pub(super) fn windows(&self, text: &str) -> Result<Vec<Row>, TokenizerError> {
        let ids = self.after_start(self.tokenizer.encode(text, false)?);
        let starts = (0..ids.len().saturating_sub(1)).step_by(self.context - 1);
        let row = |start: usize| ids[start..ids.len().min(start + self.context)].to_vec();
        Ok(starts.map(|start| Row::new(row(start), 1)).collect())
    }

    /// A prompt that leaves room for its answer, or for one of half a text if that is less.
    pub(super) fn prompt(&self, job: &Job<'_>) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.tokenizer.encode(job.prompt, job.add_special)?;
        if ids.is_empty() {
            ids = self.after_start(ids);
        }
        let room = self.context - job.max_tokens.min(self.context / 2);
        ids.drain(..ids.len().saturating_sub(room));
        Ok(ids)
    }

    /// Tokens that the answer to a prompt may have: no text is longer than the model was made for.
    pub(super) fn limit(&self, job: &Job<'_>, prompt: &[u32]) -> usize {
        job.max_tokens.min(self.context - prompt.len())
    }

    /// With the token that begins a text in front.
    fn after_start(&self, mut ids: Vec<u32>) -> Vec<u32> {
        let start = self.tokenizer.bos().or(self.tokenizer.eos()).unwrap_or(0);
        if ids.first() != Some(&start) {
            ids.insert(0, start);
        }
        ids
    }

    /// The end of a row that is too long.
    fn fit(&self, mut ids: Vec<u32>, from: usize) -> Row {
        let cut = ids.len().saturating_sub(self.context);
        ids.drain(..cut);
        Row::new(ids, from.saturating_sub(cut))
    }
}
