//! Writes many answers at once.

use super::{Engine, Job, Written};
use crate::generate::{TextId, Writer};
use crate::tokenizer::{StreamDecoder, TokenizerError};

/// Memory for the keys and values of texts that are being written.
const CACHE_BYTES: usize = 96 << 20;

/// A text that is being written.
struct Text<'a> {
    id: TextId,
    number: usize,
    job: &'a Job<'a>,
    decoder: StreamDecoder,
    written: Written,
}

impl Engine<'_> {
    /// Continues each prompt. `done` is told each answer with its number as soon as it is known, in
    /// any order. Several are written at once, and prompts that begin alike share their beginning. Of
    /// a prompt that leaves no room for its answer the beginning is left out, but not so much that
    /// less than half of the text is prompt: then the answer is shorter.
    ///
    /// # Errors
    ///
    /// [`TokenizerError`] if a text cannot become tokens, or tokens no text.
    pub fn write(
        &self,
        jobs: &[Job<'_>],
        mut done: impl FnMut(usize, Written),
    ) -> Result<(), TokenizerError> {
        let prompts = jobs.iter().zip(0..);
        let prompts = prompts.map(|(job, number)| self.prompt(job).map(|ids| (ids, number)));
        let mut prompts: Vec<(Vec<u32>, usize)> = prompts.collect::<Result<_, _>>()?;
        // What begins alike is written one after the other, while its beginning is in the cache.
        prompts.sort();
        let mut waiting = prompts.into_iter();
        let adapters = self.lora.map_or(&[][..], std::slice::from_ref);
        let adapter = self.lora.map(|_| 0);
        let mut writer = Writer::new(self.model, adapters, CACHE_BYTES);
        let mut texts: Vec<Text<'_>> = Vec::new();
        loop {
            for (prompt, number) in waiting.by_ref().take(Writer::TEXTS - texts.len()) {
                let job = &jobs[number];
                let limit = self.limit(job, &prompt);
                texts.push(Text {
                    id: writer.admit(prompt, adapter, job.sampling, None, limit),
                    number,
                    job,
                    decoder: self.tokenizer.stream(true),
                    written: Written::default(),
                });
            }
            if texts.is_empty() {
                return Ok(());
            }
            for next in writer.advance() {
                let Some(place) = texts.iter().position(|text| text.id == next.text) else {
                    continue;
                };
                let text = &mut texts[place];
                text.take(next.token, &self.tokenizer.special().stop)?;
                if text.written.stopped || next.is_last {
                    writer.end(next.text);
                    let text = texts.swap_remove(place);
                    done(text.number, text.finish()?);
                }
            }
        }
    }
}

impl Text<'_> {
    /// Adds a token.
    fn take(&mut self, token: u32, ends: &[u32]) -> Result<(), TokenizerError> {
        let written = &mut self.written;
        written.tokens += 1;
        if ends.contains(&token) {
            written.stopped = true;
        } else {
            let before = written.text.len();
            written.text.push_str(&self.decoder.push(token)?);
            written.stopped = cut_at_stop(&mut written.text, before, self.job.stop);
        }
        Ok(())
    }

    /// The answer, with the end of it that was held back.
    fn finish(mut self) -> Result<Written, TokenizerError> {
        if !self.written.stopped {
            let before = self.written.text.len();
            self.written.text.push_str(&self.decoder.finish()?);
            cut_at_stop(&mut self.written.text, before, self.job.stop);
        }
        Ok(self.written)
    }
}

/// Cuts a text before the first of some stops; whether there was one. Before place `from` there is
/// none, unless one begins there and ends after it.
fn cut_at_stop(text: &mut String, from: usize, stops: &[&str]) -> bool {
    let longest = stops.iter().map(|stop| stop.len()).max().unwrap_or(0);
    let mut from = from.saturating_sub(longest);
    while !text.is_char_boundary(from) {
        from -= 1;
    }
    let stops = stops.iter().filter(|stop| !stop.is_empty());
    let first = stops.filter_map(|stop| text[from..].find(stop)).min();
    if let Some(at) = first {
        text.truncate(from + at);
    }
    first.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_found_where_it_crosses_pieces() {
        let mut text = "an answer\n".to_owned();
        assert!(!cut_at_stop(&mut text, 0, &["\n\n", "###"]));
        let before = text.len();
        text.push_str("\nmore ###");
        assert!(cut_at_stop(&mut text, before, &["\n\n", "###", ""]));
        assert_eq!(text, "an answer");
        let mut text = "é".to_owned();
        assert!(!cut_at_stop(&mut text, 2, &["x"]));
        assert!(!cut_at_stop(&mut text, 0, &[]));
    }
}
