//! Scores rows of tokens: how probable each is after those before it. What rows have in common is
//! read once.

mod plan;

use std::collections::BTreeMap;

use crate::arch::{CausalLm, KvCache, RunId};
use crate::lora::Lora;
use crate::ops::TokenLogProbs;
pub(crate) use plan::common;
use plan::{Pass, Step};

/// Tokens that go through the model at once.
pub(crate) const PASS_TOKENS: usize = 1024;

/// A row of tokens, of which those from a place on are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    ids: Vec<u32>,
    /// The first that is scored; never the first of the row.
    from: usize,
}

impl Row {
    /// A row that is scored from token `from` on. Nothing predicts the first one, so it never is.
    pub fn new(ids: Vec<u32>, from: usize) -> Self {
        let from = from.max(1);
        Self { ids, from }
    }

    /// What goes through the model: all but the last token, which is only predicted.
    fn inputs(&self) -> &[u32] {
        &self.ids[..self.ids.len().saturating_sub(1)]
    }

    /// How many tokens it has.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// What is predicted.
    pub fn targets(&self) -> &[u32] {
        &self.ids[self.from.min(self.ids.len())..]
    }
}

/// Rows that are being scored, a pass after the other.
pub struct Scorer<'a> {
    model: &'a CausalLm,
    lora: Option<&'a Lora>,
    rows: Vec<Row>,
    top: usize,
    /// Rows without anything to score, until they were told.
    empty: Vec<usize>,
    steps: std::vec::IntoIter<Step>,
    cache: KvCache,
    open: Vec<RunId>,
}

impl<'a> Scorer<'a> {
    /// Plans the passes over some rows. The `top` most probable tokens in each place are told.
    pub fn new(model: &'a CausalLm, lora: Option<&'a Lora>, rows: Vec<Row>, top: usize) -> Self {
        let empty = (0..rows.len()).filter(|&row| rows[row].targets().is_empty());
        Self {
            model,
            lora,
            top,
            empty: empty.collect(),
            steps: plan::plan(&rows, PASS_TOKENS).into_iter(),
            rows,
            cache: KvCache::default(),
            open: Vec::new(),
        }
    }

    /// The rows, in the order in which they were given.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Does a pass, and returns what the model said of the targets of those rows that are done with
    /// it, with their numbers, in any order; nothing when all are done.
    pub fn advance(&mut self) -> Option<Vec<(usize, Vec<TokenLogProbs>)>> {
        if !self.empty.is_empty() {
            let empty = std::mem::take(&mut self.empty).into_iter();
            return Some(empty.map(|row| (row, Vec::new())).collect());
        }
        loop {
            match self.steps.next()? {
                Step::Open(part) => {
                    let run = self.cache.branch(self.open.last().copied());
                    let new = [(run, &self.rows[part.row].ids[part.tokens])];
                    self.model
                        .score_cached(&new, &mut self.cache, self.lora, &[], &[], 0);
                    self.open.push(run);
                    return Some(Vec::new());
                }
                Step::Pass(pass) => return Some(self.pass(&pass)),
                Step::Close => {
                    if let Some(run) = self.open.pop() {
                        self.cache.release(run);
                    }
                }
            }
        }
    }

    fn pass(&mut self, pass: &Pass) -> Vec<(usize, Vec<TokenLogProbs>)> {
        let open = self.open.last().copied();
        let mut runs: Vec<RunId> = Vec::with_capacity(pass.nodes.len());
        // Where each node's tokens begin among those of the pass.
        let (mut starts, mut tokens) = (Vec::with_capacity(pass.nodes.len()), 0);
        for node in &pass.nodes {
            let before = node.before.map(|before| runs[before]).or(open);
            runs.push(self.cache.branch(before));
            starts.push(tokens);
            tokens += node.part.tokens.len();
        }
        let rows = &self.rows;
        let new = pass.nodes.iter().zip(&runs);
        let new = new.map(|(node, run)| (*run, &rows[node.part.row].ids[node.part.tokens.clone()]));
        let new: Vec<(RunId, &[u32])> = new.collect();
        // Rows that share a place and its target are told the same.
        let mut asked: BTreeMap<(usize, u32), usize> = BTreeMap::new();
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        let mut of_rows: Vec<(usize, Vec<usize>)> = Vec::with_capacity(pass.rows.len());
        for &(row, node) in &pass.rows {
            let of_row = pass.places(node, &starts);
            let of_row = &of_row[of_row.len() - rows[row].targets().len()..];
            let asked = of_row
                .iter()
                .zip(rows[row].targets())
                .map(|(&place, &target)| {
                    *asked.entry((place, target)).or_insert_with(|| {
                        places.push(place);
                        targets.push(target);
                        places.len() - 1
                    })
                });
            of_rows.push((row, asked.collect()));
        }
        let cache = &mut self.cache;
        let said = self
            .model
            .score_cached(&new, cache, self.lora, &places, &targets, self.top);
        for run in runs.into_iter().rev() {
            self.cache.release(run);
        }
        let said = |asked: Vec<usize>| asked.into_iter().map(|asked| said[asked].clone()).collect();
        let of_rows = of_rows.into_iter();
        of_rows.map(|(row, asked)| (row, said(asked))).collect()
    }
}
