//! Rows of tokens, packed for the model.

use std::ops::Range;

/// Rows laid one after another without padding, and the tokens that carry a loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids of all rows.
    pub ids: Vec<u32>,
    /// Where each row lies in `ids`.
    pub segments: Vec<Range<usize>>,
    /// Places in `ids` whose hidden state predicts a labelled token.
    pub predicting: Vec<usize>,
    /// The labelled tokens, in the order of `predicting`.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Adds a row; `is_label(i)` tells whether token `i` is a label. The first token has
    /// nothing before it that could predict it, so it never counts.
    pub fn push(&mut self, ids: &[u32], is_label: impl Fn(usize) -> bool) {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.segments.push(start..self.ids.len());
        for i in (1..ids.len()).filter(|&i| is_label(i)) {
            self.predicting.push(start + i - 1);
            self.targets.push(ids[i]);
        }
    }

    /// The rows in batches of at most `tokens` tokens each, or of one longer row.
    pub fn split(&self, tokens: usize) -> Vec<Self> {
        self.split_groups(tokens, 1)
    }

    /// As [`Self::split`], but groups of `rows` consecutive rows stay whole: two for pairs.
    ///
    /// # Panics
    ///
    /// If `rows` is 0.
    pub fn split_groups(&self, tokens: usize, rows: usize) -> Vec<Self> {
        let labels = self.row_labels();
        let mut batches: Vec<Self> = Vec::new();
        for (group, labels) in self.segments.chunks(rows).zip(labels.chunks(rows)) {
            let len: usize = group.iter().map(Range::len).sum();
            match batches.last_mut() {
                Some(batch) if batch.tokens() + len <= tokens => {
                    batch.append(self, group, labels);
                }
                _ => {
                    let mut batch = Self::default();
                    batch.append(self, group, labels);
                    batches.push(batch);
                }
            }
        }
        batches
    }

    /// The rows in at most `most` batches of about as many tokens each, in order; groups of `rows`
    /// consecutive rows stay whole.
    ///
    /// # Panics
    ///
    /// If `most` or `rows` is 0.
    pub fn share_out(&self, most: usize, rows: usize) -> Vec<Self> {
        let labels = self.row_labels();
        let mut batches = vec![Self::default()];
        let mut taken = 0;
        for (group, labels) in self.segments.chunks(rows).zip(labels.chunks(rows)) {
            let len: usize = group.iter().map(Range::len).sum();
            // A group begins the next batch if more than half of it lies behind that one's share.
            let behind = (2 * taken + len) * most > 2 * batches.len() * self.tokens();
            if taken > 0 && behind && batches.len() < most {
                batches.push(Self::default());
            }
            if let Some(batch) = batches.last_mut() {
                batch.append(self, group, labels);
            }
            taken += len;
        }
        batches
    }

    /// Where the labels of each row lie in `targets`.
    pub fn row_labels(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let row = |segment: &Range<usize>| {
            let labels = self.predicting[end..].iter();
            let start = end;
            end += labels.take_while(|&&place| place < segment.end).count();
            start..end
        };
        self.segments.iter().map(row).collect()
    }

    /// Adds rows of another batch.
    fn append(&mut self, other: &Self, rows: &[Range<usize>], labels: &[Range<usize>]) {
        for (segment, labels) in rows.iter().zip(labels) {
            let start = self.tokens();
            self.ids.extend_from_slice(&other.ids[segment.clone()]);
            self.segments.push(start..start + segment.len());
            let places = other.predicting[labels.clone()].iter();
            self.predicting
                .extend(places.map(|place| place - segment.start + start));
            self.targets
                .extend_from_slice(&other.targets[labels.clone()]);
        }
    }

    /// Each row's positions, counted from its own start.
    pub fn positions(&self) -> Vec<u32> {
        self.segments
            .iter()
            .flat_map(|segment| 0..segment.len() as u32)
            .collect()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of tokens that carry a loss.
    pub fn loss_tokens(&self) -> usize {
        self.targets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_predicted_by_the_token_before() {
        let mut batch = Batch::default();
        batch.push(&[5, 6, 7], |i| i >= 2);
        batch.push(&[8, 9], |_| true);
        assert_eq!(batch.ids, [5, 6, 7, 8, 9]);
        assert_eq!(batch.segments, [0..3, 3..5]);
        assert_eq!(batch.predicting, [1, 3]);
        assert_eq!(batch.targets, [7, 9]);
        assert_eq!(batch.positions(), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn splitting_keeps_rows_whole_and_labels_with_them() {
        let mut batch = Batch::default();
        batch.push(&[1, 2, 3], |_| true);
        batch.push(&[4, 5], |_| false);
        batch.push(&[6, 7, 8, 9], |i| i == 3);
        let parts = batch.split(5);
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].segments, [0..3, 3..5]);
        assert_eq!(parts[0].targets, [2, 3]);
        assert_eq!(
            (parts[1].ids.as_slice(), parts[1].predicting.as_slice()),
            (&[6, 7, 8, 9][..], &[2][..])
        );
        assert_eq!(parts[1].targets, [9]);
        assert_eq!(batch.split(1).len(), 3);
        assert_eq!(batch.split(100), [batch.clone()]);
    }

    #[test]
    fn shares_are_even_and_in_order() {
        let shares = |lens: &[usize], most, rows| -> Vec<Vec<usize>> {
            let mut batch = Batch::default();
            for len in lens {
                batch.push(&vec![7; *len], |i| i == 1);
            }
            let parts = batch.share_out(most, rows);
            assert_eq!(
                parts.iter().map(Batch::loss_tokens).sum::<usize>(),
                lens.len()
            );
            let lens = |part: &Batch| part.segments.iter().map(Range::len).collect();
            parts.iter().map(lens).collect()
        };
        assert_eq!(shares(&[4, 4, 4, 4], 2, 1), [[4, 4], [4, 4]]);
        assert_eq!(shares(&[9, 2, 2, 2], 2, 1), [vec![9], vec![2, 2, 2]]);
        assert_eq!(shares(&[2, 2, 2, 9], 2, 1), [vec![2, 2, 2], vec![9]]);
        assert_eq!(shares(&[5, 5, 5, 5], 2, 4), [[5; 4]]);
        assert_eq!(shares(&[3], 8, 1), [[3]]);
        assert_eq!(shares(&[3, 3, 3], 8, 1), [[3], [3], [3]]);
    }

    #[test]
    fn pairs_stay_together() {
        let mut batch = Batch::default();
        for len in [3, 2, 4, 1, 2, 2] {
            batch.push(&vec![7; len], |i| i == 1);
        }
        assert_eq!(batch.row_labels(), [0..1, 1..2, 2..3, 3..3, 3..4, 4..5]);
        let parts = batch.split_groups(6, 2);
        let rows: Vec<_> = parts.iter().map(|part| part.segments.clone()).collect();
        assert_eq!(rows, [[0..3, 3..5], [0..4, 4..5], [0..2, 2..4]]);
        assert_eq!(parts[1].row_labels(), [0..1, 1..1]);
        assert_eq!(batch.split_groups(10, 2).len(), 2);
    }
}
