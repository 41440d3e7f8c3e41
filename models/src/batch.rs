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
        let mut batches: Vec<Self> = Vec::new();
        let mut next = 0;
        for segment in &self.segments {
            let until = self.predicting[next..]
                .iter()
                .take_while(|&&p| p < segment.end)
                .count()
                + next;
            let fits = batches
                .last()
                .is_some_and(|batch| batch.tokens() + segment.len() <= tokens);
            if !fits {
                batches.push(Self::default());
            }
            // There is a last batch: one was just added if there was none that fits.
            let Some(batch) = batches.last_mut() else {
                continue;
            };
            let start = batch.tokens();
            batch.ids.extend_from_slice(&self.ids[segment.clone()]);
            batch.segments.push(start..start + segment.len());
            batch.predicting.extend(
                self.predicting[next..until]
                    .iter()
                    .map(|p| p - segment.start + start),
            );
            batch.targets.extend_from_slice(&self.targets[next..until]);
            next = until;
        }
        batches
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
}
