//! Writes many answers at once: each pass moves several texts on by a token.

use super::plan::common;
use super::{Engine, Job, PASS_TOKENS, Written};
use crate::arch::{KvCache, RunId};
use crate::generate::Chooser;
use crate::lora::read_back;
use crate::tokenizer::{StreamDecoder, TokenizerError};

/// Texts that are written at once: as many rows as products have that read the weights only once.
const ROWS: usize = 8;
/// Memory for the keys and values of texts that are being written.
const CACHE_BYTES: usize = 96 << 20;
/// Common tokens at the beginning of prompts that are worth being read apart.
const WORTH: usize = 32;

/// Prompts that begin alike.
struct Group {
    /// How many of their tokens they share.
    shared: usize,
    /// The run that holds them, once it was read.
    root: Option<RunId>,
    /// Its jobs that are not done.
    left: usize,
}

/// A text that is being written.
struct Text<'a> {
    number: usize,
    group: usize,
    job: &'a Job<'a>,
    run: RunId,
    /// Tokens that were not put through the model yet.
    pending: Vec<u32>,
    chooser: Chooser,
    decoder: StreamDecoder,
    written: Written,
    /// Tokens that may be written.
    limit: usize,
    /// Tokens that it may have in the cache.
    room: usize,
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
        let prompts: Result<Vec<Vec<u32>>, _> = jobs.iter().map(|job| self.prompt(job)).collect();
        let prompts = prompts?;
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by(|&a, &b| prompts[a].cmp(&prompts[b]));
        let (mut groups, group_of) = group(&order, &prompts);
        let mut cache = KvCache::default();
        let mut waiting = order.into_iter().zip(group_of).peekable();
        let mut texts: Vec<Text<'_>> = Vec::new();
        loop {
            while let Some(&(number, group)) = waiting.peek() {
                let prompt = &prompts[number];
                let limit = self.limit(&jobs[number], prompt);
                let room = prompt.len() - groups[group].shared + limit;
                if !self.admits(&texts, room) {
                    break;
                }
                waiting.next();
                self.open(&mut groups[group], prompt, &mut cache);
                texts.push(Text {
                    number,
                    group,
                    job: &jobs[number],
                    run: cache.branch(groups[group].root),
                    pending: prompt[groups[group].shared..].to_vec(),
                    chooser: Chooser::new(jobs[number].sampling),
                    decoder: self.tokenizer.stream(true),
                    written: Written::default(),
                    limit,
                    room,
                });
            }
            if texts.is_empty() {
                return Ok(());
            }
            self.advance(&mut texts, &mut cache)?;
            let (ended, going) = texts.into_iter().partition(|text| text.written.ended);
            texts = going;
            let ended: Vec<Text<'_>> = ended;
            for text in ended {
                cache.release(text.run);
                let group = &mut groups[text.group];
                group.left -= 1;
                if let Some(root) = group.root.filter(|_| group.left == 0) {
                    cache.release(root);
                }
                done(text.number, text.finish()?);
            }
        }
    }

    /// Whether another text can be written beside these.
    fn admits(&self, texts: &[Text<'_>], room: usize) -> bool {
        let config = self.model.config();
        let token = config.layers * 2 * config.kv_dim() * size_of::<f32>();
        let taken: usize = texts.iter().map(|text| text.room).sum();
        texts.is_empty() || texts.len() < ROWS && (taken + room) * token <= CACHE_BYTES
    }

    /// Reads what a group's prompts share, unless that was done.
    fn open(&self, group: &mut Group, prompt: &[u32], cache: &mut KvCache) {
        if group.shared == 0 || group.root.is_some() {
            return;
        }
        let root = cache.branch(None);
        for ids in prompt[..group.shared].chunks(PASS_TOKENS) {
            self.model
                .score_cached(&[(root, ids)], cache, self.lora, &[], &[]);
        }
        group.root = Some(root);
    }

    /// One pass: texts whose prompt was read go on by a token, others read on.
    fn advance(&self, texts: &mut [Text<'_>], cache: &mut KvCache) -> Result<(), TokenizerError> {
        let mut left = PASS_TOKENS;
        let mut taken = Vec::with_capacity(texts.len());
        for text in texts.iter() {
            let take = text.pending.len().min(left.max(1));
            left = left.saturating_sub(take);
            taken.push(take);
        }
        let new = texts.iter().zip(&taken);
        let new: Vec<(RunId, &[u32])> = new
            .map(|(text, take)| (text.run, &text.pending[..*take]))
            .collect();
        let logits = read_back(self.model.decode(&new, cache, self.lora));
        let rows = logits.chunks_exact(self.model.config().vocab);
        for ((text, take), logits) in texts.iter_mut().zip(taken).zip(rows) {
            text.pending.drain(..take);
            if text.pending.is_empty() {
                let token = text.chooser.choose(logits);
                text.take(token, &self.tokenizer.special().stop)?;
            }
        }
        Ok(())
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
        written.ended = written.stopped || written.tokens >= self.limit;
        self.pending.push(token);
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

/// Groups of prompts, sorted, that share at least [`WORTH`] tokens and half of the shortest, and the
/// group of each.
fn group(order: &[usize], prompts: &[Vec<u32>]) -> (Vec<Group>, Vec<usize>) {
    let mut groups: Vec<Group> = Vec::new();
    let mut group_of = Vec::with_capacity(order.len());
    for (place, &number) in order.iter().enumerate() {
        // A prompt's last token always goes through the model with its own text.
        let own = prompts[number].len().saturating_sub(1);
        let before = place.checked_sub(1).map(|before| &prompts[order[before]]);
        let alike = before
            .map_or(0, |before| common(before, &prompts[number]))
            .min(own);
        match groups.last_mut() {
            Some(group) if alike.min(group.shared) >= WORTH.max(group.shared / 2) => {
                group.shared = group.shared.min(alike);
                group.left += 1;
            }
            _ => groups.push(Group {
                shared: own,
                root: None,
                left: 1,
            }),
        }
        group_of.push(groups.len() - 1);
    }
    for group in groups.iter_mut().filter(|group| group.left == 1) {
        group.shared = 0;
    }
    (groups, group_of)
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
    fn prompts_that_begin_alike_are_grouped() {
        let shots: Vec<u32> = (0..100).collect();
        let with = |tail: &[u32]| [&shots[..], tail].concat();
        let prompts = vec![
            with(&[7, 8]),
            vec![1, 2],
            with(&[7, 9, 9]),
            with(&[]),
            with(&[5]),
        ];
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by(|&a, &b| prompts[a].cmp(&prompts[b]));
        let (groups, group_of) = group(&order, &prompts);
        assert_eq!(order, [3, 4, 0, 2, 1]);
        assert_eq!(group_of, [0, 0, 0, 0, 1]);
        assert_eq!(
            (groups[0].shared, groups[0].left),
            (99, 4),
            "one token is left to each"
        );
        assert_eq!((groups[1].shared, groups[1].left), (0, 1));
    }

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
