//! In which order rows go through the model so that what they have in common is read once.
//!
//! Sorted rows form a tree: rows that begin alike share a branch. A branch that is too large for one
//! pass is read first, and stays in the cache while the passes over the rest of it go on; what fits
//! into one pass goes through the model as a tree, each shared part once.

use super::Row;
use std::ops::Range;

/// Common tokens that are worth a pass of their own.
const WORTH: usize = 32;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read tokens of a row into the cache, after those that are open.
    Open(Part),
    /// Put a tree of tokens through the model, after those that are open, and score rows.
    Pass(Pass),
    /// Forget what was opened last.
    Close,
}

/// Some tokens of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) row: usize,
    pub(super) tokens: Range<usize>,
}

/// A tree of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pass {
    /// Each after the one that it continues.
    pub(super) nodes: Vec<Node>,
    /// The rows, and the node that each ends with.
    pub(super) rows: Vec<(usize, usize)>,
}

impl Pass {
    /// Where the tokens that end with a node lie in the pass, given where each node begins.
    pub(super) fn places(&self, node: usize, starts: &[usize]) -> Vec<usize> {
        let path = std::iter::successors(Some(node), |&node| self.nodes[node].before);
        let mut path: Vec<usize> = path.collect();
        path.reverse();
        let of_node = |node: usize| starts[node]..starts[node] + self.nodes[node].part.tokens.len();
        path.into_iter().flat_map(of_node).collect()
    }
}

/// Tokens that continue another node, or what is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) before: Option<usize>,
    pub(super) part: Part,
}

/// A plan for all rows that have something to score, with passes of about `budget` tokens.
pub(super) fn plan(rows: &[Row], budget: usize) -> Vec<Step> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.retain(|&row| !rows[row].targets().is_empty());
    order.sort_by(|&a, &b| rows[a].inputs().cmp(rows[b].inputs()));
    let common = |pair: &[usize]| common(rows[pair[0]].inputs(), rows[pair[1]].inputs());
    let shared = std::iter::once(0).chain(order.windows(2).map(common));
    let mut planner = Planner {
        rows,
        shared: shared.collect(),
        order,
        budget,
        steps: Vec::new(),
    };
    planner.solve(0..planner.order.len(), 0);
    planner.steps
}

/// How many tokens two rows begin with alike.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

struct Planner<'a> {
    rows: &'a [Row],
    /// Rows, sorted by their tokens.
    order: Vec<usize>,
    /// Tokens that each row, in that order, has in common with the one before it.
    shared: Vec<usize>,
    budget: usize,
    steps: Vec<Step>,
}

impl Planner<'_> {
    /// Plans neighbours in the order, of which the first `depth` tokens are open.
    fn solve(&mut self, rows: Range<usize>, depth: usize) {
        let mut pass = rows.start..rows.start;
        let mut tokens = 0;
        for branch in self.branches(rows, depth) {
            let size = self.size(branch.clone(), depth);
            if size > self.budget
                && let Some(end) = self.opening(branch.clone(), depth)
            {
                self.pass(pass, depth);
                let row = self.order[branch.start];
                let opened = Part {
                    row,
                    tokens: depth..end,
                };
                self.steps.push(Step::Open(opened));
                self.solve(branch.clone(), end);
                self.steps.push(Step::Close);
                (pass, tokens) = (branch.end..branch.end, 0);
                continue;
            }
            for row in branch {
                // What the row shares is in the pass already, unless the pass begins with it.
                let own = self.size(row..row + 1, depth);
                let new = match row > pass.start {
                    true => own - self.shared[row].saturating_sub(depth).min(own),
                    false => own,
                };
                if tokens + new > self.budget && !pass.is_empty() {
                    self.pass(pass, depth);
                    (pass, tokens) = (row..row, 0);
                    tokens += own;
                } else {
                    tokens += new;
                }
                pass.end = row + 1;
            }
        }
        self.pass(pass, depth);
    }

    /// Neighbours in groups that have at least [`WORTH`] tokens in common after the open ones.
    fn branches(&self, rows: Range<usize>, depth: usize) -> Vec<Range<usize>> {
        let mut branches: Vec<Range<usize>> = Vec::new();
        for row in rows {
            match branches.last_mut() {
                Some(branch) if self.shared[row] >= depth + WORTH => branch.end = row + 1,
                _ => branches.push(row..row + 1),
            }
        }
        branches
    }

    /// Different tokens of neighbours after the open ones.
    fn size(&self, rows: Range<usize>, depth: usize) -> usize {
        let start = rows.start;
        let of = |row: usize| {
            let known = if row > start { self.shared[row] } else { 0 };
            self.inputs(row).len() - known.max(depth).min(self.inputs(row).len())
        };
        rows.map(of).sum()
    }

    /// Where an opening of a branch would end, if it is worth one: what all rows have in common, but
    /// nothing that predicts a token to score, nor more than a pass.
    fn opening(&self, rows: Range<usize>, depth: usize) -> Option<usize> {
        let unscored = rows.clone().map(|row| self.rows[self.order[row]].from - 1);
        let alike = rows.clone().skip(1).map(|row| self.shared[row]);
        let end = unscored.chain(alike).min()?.min(depth + self.budget);
        (end >= depth + WORTH).then_some(end)
    }

    fn pass(&mut self, rows: Range<usize>, depth: usize) {
        if rows.is_empty() {
            return;
        }
        let mut pass = Pass::default();
        self.grow(&mut pass, rows, depth, None);
        self.steps.push(Step::Pass(pass));
    }

    /// Adds the tree of neighbours that have the same first `depth` tokens.
    fn grow(&self, pass: &mut Pass, rows: Range<usize>, depth: usize, before: Option<usize>) {
        let first = self.inputs(rows.start).len();
        let alike = rows.clone().skip(1).map(|row| self.shared[row]);
        let end = alike.chain([first]).min().unwrap_or(first);
        let node = match end > depth {
            false => before,
            true => {
                let (row, tokens) = (self.order[rows.start], depth..end);
                let part = Part { row, tokens };
                pass.nodes.push(Node { before, part });
                Some(pass.nodes.len() - 1)
            }
        };
        let mut start = rows.start;
        // Rows that end here come first in the order.
        while start < rows.end && self.inputs(start).len() == end {
            pass.rows
                .push((self.order[start], node.unwrap_or_default()));
            start += 1;
        }
        while start < rows.end {
            let others = start + 1..rows.end;
            let next = others.into_iter().find(|&row| self.shared[row] <= end);
            let next = next.unwrap_or(rows.end);
            self.grow(pass, start..next, end, node);
            start = next;
        }
    }

    fn inputs(&self, place: usize) -> &[u32] {
        self.rows[self.order[place]].inputs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: impl IntoIterator<Item = u32>, from: usize) -> Row {
        let ids = ids.into_iter().collect();
        Row { ids, from }
    }

    /// Runs a plan on tokens alone: every row must come out as it is, and the number of tokens that
    /// went through the model is returned.
    fn check(rows: &[Row], budget: usize) -> usize {
        let mut open: Vec<Vec<u32>> = Vec::new();
        let (mut read, mut done) = (0, vec![false; rows.len()]);
        for step in plan(rows, budget) {
            match step {
                Step::Open(part) => {
                    read += part.tokens.len();
                    assert!(part.tokens.len() <= budget);
                    open.push(rows[part.row].ids[part.tokens].to_vec());
                }
                Step::Close => drop(open.pop()),
                Step::Pass(pass) => {
                    let mut texts: Vec<Vec<u32>> = Vec::new();
                    for node in &pass.nodes {
                        let mut text = match node.before {
                            Some(before) => texts[before].clone(),
                            None => open.concat(),
                        };
                        assert!(
                            !node.part.tokens.is_empty() && node.part.tokens.start == text.len()
                        );
                        read += node.part.tokens.len();
                        text.extend(&rows[node.part.row].ids[node.part.tokens.clone()]);
                        texts.push(text);
                    }
                    for (row, node) in pass.rows {
                        assert_eq!(texts[node], rows[row].inputs(), "row {row}");
                        assert!(
                            open.concat().len() < rows[row].from,
                            "a scored place is open"
                        );
                        assert!(!std::mem::replace(&mut done[row], true));
                    }
                }
            }
        }
        assert!(open.is_empty() && done.iter().all(|done| *done));
        read
    }

    #[test]
    fn what_rows_share_is_read_once() {
        // 30 questions of 100 tokens after 500 examples' tokens, with four answers of one token.
        let shots: Vec<u32> = (0..500).collect();
        let mut rows = Vec::new();
        for question in 0..30u32 {
            for answer in 0..4u32 {
                let ids = shots.iter().copied();
                let ids = ids.chain((0..100).map(|i| 1000 + question * 7 + i));
                rows.push(row(ids.chain([5000 + answer]), 600));
            }
        }
        assert_eq!(check(&rows, 1024), 500 + 30 * 100);
        assert_eq!(check(&rows[..4], 1024), 600, "one pass");
    }

    #[test]
    fn answers_of_several_tokens_branch_off() {
        let question: Vec<u32> = (0..60).collect();
        let rows: Vec<Row> = (0..4u32)
            .map(|answer| {
                row(
                    question
                        .iter()
                        .copied()
                        .chain((0..9).map(|i| 100 + answer + i)),
                    60,
                )
            })
            .collect();
        assert_eq!(check(&rows, 1024), 60 + 4 * 8);
        // The question is opened but for its last token, which predicts the answers.
        assert_eq!(check(&rows, 70), 59 + 1 + 4 * 8);
        // Two passes over two answers each, after what fits into an opening.
        assert_eq!(check(&rows, 40), 40 + 2 * (20 + 2 * 8));
    }

    #[test]
    fn odd_rows_are_planned_too() {
        // Beginnings of one another, equal rows, the shortest ones, and one longer than a pass.
        let chain: Vec<Row> = (2..200).map(|len| row(0..len, 1)).collect();
        check(&chain, 50);
        let late: Vec<Row> = (100..300)
            .map(|len| row(0..len, len as usize - 1))
            .collect();
        check(&late, 64);
        check(
            &[
                row([1, 2], 1),
                row([1, 2], 1),
                row([1, 3], 1),
                row([4, 4], 1),
            ],
            1,
        );
        assert_eq!(check(&[row(0..500, 490)], 100), 499);
        check(&[], 10);
    }
}
