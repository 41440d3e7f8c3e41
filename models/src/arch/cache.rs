//! Keys and values of texts, kept so that what was read once is not read again.

use crate::ops::{Continuation, KeyValues};

/// Keys and values of texts. A text is a chain of runs of tokens; texts that begin alike share the
/// runs of their beginning.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    runs: Vec<Run>,
    /// Keys and values of each run, for each layer.
    layers: Vec<Vec<KeyValues>>,
    /// Runs that were given back.
    free: Vec<usize>,
}

/// A run of tokens in a [`KvCache`], as the end of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId(usize);

#[derive(Clone, Copy, Debug)]
struct Run {
    before: Option<usize>,
    tokens: usize,
}

impl KvCache {
    /// A run without tokens that continues another, or begins a text.
    pub fn branch(&mut self, before: Option<RunId>) -> RunId {
        let before = before.map(|run| run.0);
        let run = Run { before, tokens: 0 };
        match self.free.pop() {
            Some(place) => {
                self.runs[place] = run;
                RunId(place)
            }
            None => {
                self.runs.push(run);
                RunId(self.runs.len() - 1)
            }
        }
    }

    /// Makes the first tokens of a run a run of their own, which the rest continues: what continues
    /// the run still does.
    pub fn split(&mut self, run: RunId, tokens: usize) -> RunId {
        let whole = self.runs[run.0];
        let first = self.branch(whole.before.map(RunId));
        for layer in &mut self.layers {
            let Some(values) = layer.get_mut(run.0) else {
                continue;
            };
            let values = values.take_first(tokens, whole.tokens);
            let on_cpu = matches!(values, KeyValues::Host(_));
            layer.resize_with(self.runs.len(), || KeyValues::new(on_cpu));
            layer[first.0] = values;
        }
        self.runs[first.0].tokens = tokens;
        self.runs[run.0] = Run {
            before: Some(first.0),
            tokens: whole.tokens - tokens,
        };
        first
    }

    /// Forgets a run. No other one may continue it.
    pub fn release(&mut self, run: RunId) {
        debug_assert!(self.runs.iter().all(|other| other.before != Some(run.0)));
        for layer in &mut self.layers {
            if let Some(values) = layer.get_mut(run.0) {
                *values = KeyValues::new(matches!(values, KeyValues::Host(_)));
            }
        }
        self.runs[run.0].before = None;
        self.free.push(run.0);
    }

    /// Tokens of the text that ends with a run.
    pub fn tokens(&self, run: RunId) -> usize {
        let runs = self.chain(run);
        runs.into_iter().map(|run| self.runs[run].tokens).sum()
    }

    /// Makes room for new tokens of some runs, and says for each which rows they are, and at which
    /// positions. A run that continues another one of the same pass comes after it.
    pub(super) fn grow(
        &mut self,
        new: &[(RunId, &[u32])],
        layers: usize,
        on_cpu: bool,
    ) -> (Vec<Continuation>, Vec<u32>) {
        self.layers.resize_with(layers, Vec::new);
        for layer in &mut self.layers {
            layer.resize_with(self.runs.len(), || KeyValues::new(on_cpu));
        }
        let (mut positions, mut continuations) = (Vec::new(), Vec::with_capacity(new.len()));
        for (run, ids) in new {
            let past = self.tokens(*run);
            let start = positions.len();
            positions.extend((past..past + ids.len()).map(|position| position as u32));
            self.runs[run.0].tokens += ids.len();
            continuations.push(Continuation {
                rows: start..positions.len(),
                runs: self.chain(*run),
            });
        }
        (continuations, positions)
    }

    /// Keys and values of each layer.
    pub(super) fn layers(&mut self) -> &mut [Vec<KeyValues>] {
        &mut self.layers
    }

    /// The runs of a text, from its beginning on.
    fn chain(&self, run: RunId) -> Vec<usize> {
        let runs = std::iter::successors(Some(run.0), |&run| self.runs[run].before);
        let mut runs: Vec<usize> = runs.collect();
        runs.reverse();
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_share_their_beginning() {
        let mut cache = KvCache::default();
        let root = cache.branch(None);
        cache.grow(&[(root, &[1, 2, 3])], 1, true);
        let (left, right) = (cache.branch(Some(root)), cache.branch(Some(root)));
        let (continuations, positions) = cache.grow(&[(left, &[4]), (right, &[5, 6])], 1, true);
        assert_eq!(positions, [3, 3, 4]);
        assert_eq!(
            (continuations[1].rows.clone(), &continuations[1].runs[..]),
            (1..3, &[0, 2][..])
        );
        assert_eq!(
            (cache.tokens(root), cache.tokens(left), cache.tokens(right)),
            (3, 4, 5)
        );
        cache.release(left);
        let again = cache.branch(Some(right));
        assert_eq!(
            (again, cache.tokens(again)),
            (left, 5),
            "its place is used again"
        );
    }
    #[test]
    fn a_split_run_is_the_same_text() {
        let mut cache = KvCache::default();
        let root = cache.branch(None);
        cache.grow(&[(root, &[1, 2, 3])], 1, true);
        // Two values for each token, as one head of one value has.
        cache.layers()[0][root.0] = KeyValues::Host(vec![1., 1., 2., 2., 3., 3.]);
        let end = cache.branch(Some(root));
        let first = cache.split(root, 2);
        let (continuations, positions) = cache.grow(&[(end, &[4])], 1, true);
        assert_eq!(positions, [3]);
        assert_eq!(continuations[0].runs, [first.0, root.0, end.0]);
        let values = |run: RunId| match &cache.layers[0][run.0] {
            KeyValues::Host(values) => values.clone(),
            KeyValues::Device(_) => Vec::new(),
        };
        assert_eq!(values(first), [1., 1., 2., 2.]);
        assert_eq!(values(root), [3., 3.]);
        assert_eq!(
            (cache.tokens(first), cache.tokens(root), cache.tokens(end)),
            (2, 3, 4)
        );
        // What was not read is split too.
        let nothing = cache.split(end, 1);
        assert_eq!((cache.tokens(nothing), cache.tokens(end)), (4, 4));
    }
}
