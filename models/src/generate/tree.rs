//! What was read and written, as a tree: texts that begin alike share their beginning, and what no
//! text has any more stays until its room is needed.

use std::collections::{BTreeMap, BTreeSet};

use crate::arch::{KvCache, RunId};
use crate::scoring::common;

/// Common tokens that are worth a run of their own.
const WORTH: usize = 32;

/// Runs of tokens, each after the one that it continues.
#[derive(Default)]
pub(super) struct Tree {
    cache: KvCache,
    runs: BTreeMap<RunId, Run>,
    /// Counts what was opened and closed.
    clock: u64,
}

struct Run {
    before: Option<RunId>,
    adapter: Option<usize>,
    ids: Vec<u32>,
    /// How many of them are in the cache.
    read: usize,
    /// Open texts that have the run.
    texts: usize,
    /// Whether it is the end of an open text: only that text may add to it.
    grows: bool,
    /// When a text with it was opened or closed last.
    used: u64,
}

impl Tree {
    /// Opens a text of at least one token, and returns its end. The last token is its own even if
    /// another text has the same, because what follows it is asked for.
    pub(super) fn open(&mut self, adapter: Option<usize>, ids: &[u32]) -> RunId {
        let (mut before, mut known) = (None, 0);
        let others = ids.len().saturating_sub(1);
        while let Some((run, alike)) = self.longest(adapter, before, &ids[known..others]) {
            known += alike;
            let whole = self.runs[&run].ids.len() == alike;
            before = Some(if whole { run } else { self.split(run, alike) });
            if !whole {
                break;
            }
        }
        let end = self.cache.branch(before);
        let run = Run {
            before,
            adapter,
            ids: ids[known..].to_vec(),
            read: 0,
            texts: 0,
            grows: true,
            used: 0,
        };
        self.runs.insert(end, run);
        self.clock += 1;
        for run in self.chain(end) {
            if let Some(run) = self.runs.get_mut(&run) {
                run.texts += 1;
                run.used = self.clock;
            }
        }
        end
    }

    /// Closes a text; what was read of it stays until its room is needed.
    pub(super) fn close(&mut self, end: RunId) {
        self.clock += 1;
        for id in self.chain(end).into_iter().rev() {
            let Some(run) = self.runs.get_mut(&id) else {
                continue;
            };
            run.texts -= 1;
            run.used = self.clock;
            run.grows &= id != end;
            if run.texts > 0 {
                continue;
            }
            // Nobody reads the rest; what would come after it is gone already.
            run.ids.truncate(run.read);
            if run.read == 0 {
                self.forget(id);
            }
        }
    }

    /// All tokens of an open text.
    pub(super) fn text(&self, end: RunId) -> Vec<u32> {
        let chain = self.chain(end).into_iter();
        chain.flat_map(|run| self.runs[&run].ids.clone()).collect()
    }

    /// Adds a token to an open text.
    pub(super) fn push(&mut self, end: RunId, token: u32) {
        if let Some(run) = self.runs.get_mut(&end) {
            run.ids.push(token);
        }
    }

    /// Tokens in the cache.
    pub(super) fn tokens(&self) -> usize {
        self.runs.values().map(|run| run.read).sum()
    }

    /// Tokens of open texts, read or not; what they share counts once.
    pub(super) fn open_tokens(&self) -> usize {
        let open = self.runs.values().filter(|run| run.texts > 0);
        open.map(|run| run.ids.len()).sum()
    }

    /// Forgets the run that was not used for the longest time, but none that an open text has; whether
    /// there was one.
    pub(super) fn evict(&mut self) -> bool {
        let continued = self.runs.values().filter_map(|run| run.before);
        let continued: BTreeSet<RunId> = continued.collect();
        let ends = self.runs.iter().filter(|(id, _)| !continued.contains(id));
        let closed = ends.filter(|(_, run)| run.texts == 0);
        let oldest = closed.min_by_key(|(_, run)| run.used).map(|(id, _)| *id);
        if let Some(oldest) = oldest {
            self.forget(oldest);
        }
        oldest.is_some()
    }

    /// What of some open texts goes through the model in a pass of about `budget` tokens: how many
    /// tokens of which runs, each run after the one that it continues. Each text has its share, and
    /// one that needs less leaves the rest of it to others.
    pub(super) fn share_out(&self, ends: &[RunId], budget: usize) -> Vec<(RunId, usize)> {
        let unread = |end: RunId| -> usize {
            let chain = self.chain(end).into_iter();
            chain.map(|run| self.unread(run)).sum()
        };
        let mut order: Vec<(usize, RunId)> = ends.iter().map(|end| (unread(*end), *end)).collect();
        order.sort_by_key(|(unread, _)| *unread);
        let mut parts: Vec<(RunId, usize)> = Vec::new();
        let mut left = budget;
        for (place, (_, end)) in order.iter().enumerate() {
            let mut share = (left / (order.len() - place)).max(1);
            for id in self.chain(*end) {
                let known = parts.iter().position(|(run, _)| *run == id);
                let taken = known.map_or(0, |known| parts[known].1);
                let rest = self.unread(id) - taken;
                let more = rest.min(share);
                share -= more;
                left = left.saturating_sub(more);
                match known {
                    Some(known) => parts[known].1 += more,
                    None if more > 0 => parts.push((id, more)),
                    None => {}
                }
                if more < rest {
                    break;
                }
            }
        }
        parts
    }

    /// Tokens of a run that are not in the cache yet.
    pub(super) fn unread(&self, id: RunId) -> usize {
        let run = &self.runs[&id];
        run.ids.len() - run.read
    }

    /// Puts parts of runs through the model.
    pub(super) fn read<R>(
        &mut self,
        parts: &[(RunId, usize)],
        pass: impl FnOnce(&[(RunId, &[u32])], &mut KvCache) -> R,
    ) -> R {
        let new = parts.iter().map(|(id, tokens)| {
            let run = &self.runs[id];
            (*id, &run.ids[run.read..run.read + tokens])
        });
        let new: Vec<(RunId, &[u32])> = new.collect();
        let result = pass(&new, &mut self.cache);
        for (id, tokens) in parts {
            if let Some(run) = self.runs.get_mut(id) {
                run.read += tokens;
            }
        }
        result
    }

    /// The run after another that begins most like some tokens, if that is worth something, and how
    /// many of its tokens they have.
    fn longest(
        &self,
        adapter: Option<usize>,
        before: Option<RunId>,
        ids: &[u32],
    ) -> Option<(RunId, usize)> {
        let after = self.runs.iter();
        let after = after.filter(|(_, run)| run.before == before && run.adapter == adapter);
        let alike = after.map(|(id, run)| {
            // What grows is never whole.
            let most = run.ids.len() - usize::from(run.grows);
            let alike = common(&run.ids[..most], ids);
            (*id, alike, alike == run.ids.len() || alike >= WORTH)
        });
        let worth = alike.filter(|(_, _, is_worth)| *is_worth);
        let longest = worth.max_by_key(|(_, alike, _)| *alike);
        longest.map(|(id, alike, _)| (id, alike))
    }

    /// Makes the first tokens of a run one of their own.
    fn split(&mut self, id: RunId, tokens: usize) -> RunId {
        let Some(run) = self.runs.get_mut(&id) else {
            return id;
        };
        let read = run.read.min(tokens);
        let first = self.cache.split(id, read);
        let rest = run.ids.split_off(tokens);
        let whole = Run {
            before: run.before,
            adapter: run.adapter,
            ids: std::mem::replace(&mut run.ids, rest),
            read,
            texts: run.texts,
            grows: false,
            used: run.used,
        };
        run.before = Some(first);
        run.read -= read;
        self.runs.insert(first, whole);
        first
    }

    fn forget(&mut self, id: RunId) {
        self.runs.remove(&id);
        self.cache.release(id);
    }

    /// The runs of a text, from its beginning on.
    fn chain(&self, end: RunId) -> Vec<RunId> {
        let before = |id: &RunId| self.runs.get(id).and_then(|run| run.before);
        let mut chain: Vec<RunId> = std::iter::successors(Some(end), before).collect();
        chain.reverse();
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads all of some texts, and returns how many tokens went through the model.
    fn read(tree: &mut Tree, ends: &[RunId], budget: usize) -> usize {
        let mut all = 0;
        while ends.iter().any(|end| tree.unread(*end) > 0) {
            let parts = tree.share_out(ends, budget);
            let mut whole: Vec<RunId> = Vec::new();
            for (id, tokens) in &parts {
                assert!(*tokens > 0 && !whole.contains(id));
                if let Some(before) = tree.runs[id].before {
                    assert!(whole.contains(&before) || tree.unread(before) == 0);
                }
                if tree.unread(*id) == *tokens {
                    whole.push(*id);
                }
            }
            let tokens: usize = parts.iter().map(|(_, tokens)| tokens).sum();
            assert!(tokens > 0 && tokens <= budget.max(ends.len()));
            tree.read(&parts, |new, _| assert_eq!(new.len(), parts.len()));
            all += tokens;
        }
        all
    }

    fn ids(shared: usize, own: u32) -> Vec<u32> {
        let own = (0..20).map(|i| 1000 + 100 * own + i);
        (0..shared as u32).chain(own).collect()
    }

    #[test]
    fn what_texts_share_is_read_once() {
        let mut tree = Tree::default();
        let texts: Vec<Vec<u32>> = (0..5).map(|own| ids(300, own)).collect();
        let ends: Vec<RunId> = texts.iter().map(|ids| tree.open(None, ids)).collect();
        assert_eq!(read(&mut tree, &ends, 64), 300 + 5 * 20);
        for (end, ids) in ends.iter().zip(&texts) {
            assert_eq!(tree.text(*end), *ids);
        }
        // Half of the beginning, with the run that others have in the middle of their texts.
        let half = tree.open(None, &ids(150, 9));
        assert_eq!(read(&mut tree, &[half], 64), 20);
        assert_eq!(tree.text(ends[3]), texts[3]);
        // Another adapter's keys and values are others.
        let other = tree.open(Some(0), &texts[0]);
        assert_eq!(read(&mut tree, &[other], 64), 320);
        assert_eq!((tree.tokens(), tree.open_tokens()), (740, 740));
    }

    #[test]
    fn the_same_text_shares_all_but_its_last_token() {
        let mut tree = Tree::default();
        let text = ids(100, 0);
        let first = tree.open(None, &text);
        assert_eq!(read(&mut tree, &[first], 1000), 120);
        tree.push(first, 7);
        let second = tree.open(None, &text);
        assert_eq!(read(&mut tree, &[second], 1000), 1);
        tree.push(second, 8);
        assert_eq!(tree.text(first), [&text[..], &[7]].concat());
        assert_eq!(tree.text(second), [&text[..], &[8]].concat());
        // What goes on from a closed text has all of it.
        read(&mut tree, &[first], 1000);
        tree.close(first);
        let chat = [&text[..], &[7, 50, 51]].concat();
        let third = tree.open(None, &chat);
        assert_eq!(read(&mut tree, &[third], 1000), 2);
        assert_eq!(tree.text(third), chat);
    }

    #[test]
    fn an_open_text_is_shared_before_it_is_read() {
        let mut tree = Tree::default();
        let (a, b) = (ids(200, 0), ids(200, 1));
        let first = tree.open(None, &a);
        let parts = tree.share_out(&[first], 50);
        tree.read(&parts, |_, _| ());
        let second = tree.open(None, &b);
        assert_eq!(read(&mut tree, &[first, second], 50), 220 - 50 + 20);
        assert_eq!((tree.text(first), tree.text(second)), (a, b));
    }

    #[test]
    fn only_what_was_read_of_closed_texts_stays_and_the_oldest_goes_first() {
        let mut tree = Tree::default();
        let (a, b) = (tree.open(None, &ids(100, 0)), tree.open(None, &ids(100, 1)));
        let parts = tree.share_out(&[a], 60);
        tree.read(&parts, |_, _| ());
        tree.close(b);
        assert_eq!(tree.open_tokens(), 120);
        tree.close(a);
        assert_eq!((tree.tokens(), tree.open_tokens()), (60, 0));
        let c = tree.open(None, &ids(0, 2));
        read(&mut tree, &[c], 100);
        assert!(tree.evict(), "the beginning of the closed ones");
        assert_eq!(tree.tokens(), 20);
        assert!(!tree.evict(), "the rest is open");
        tree.close(c);
        assert!(tree.evict() && !tree.evict());
        assert_eq!(tree.tokens(), 0);
    }

    #[test]
    fn a_long_text_leaves_others_their_share() {
        let mut tree = Tree::default();
        let long: Vec<u32> = (0..1000).collect();
        let (long, short) = (tree.open(None, &long), tree.open(None, &ids(0, 1)));
        let writing = tree.open(None, &[5000]);
        let parts = tree.share_out(&[long, short, writing], 100);
        assert_eq!(parts, [(writing, 1), (short, 20), (long, 79)]);
        let parts = tree.share_out(&[long, short, writing], 2);
        assert_eq!(parts, [(writing, 1), (short, 1), (long, 1)], "at least one");
    }
}
