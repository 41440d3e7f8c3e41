//! What became of the rows, counted in memory that does not grow with them.

use std::collections::BTreeMap;
use std::time::Instant;

use fedllm_shared::RowKind;

use super::{FileReport, PrepareReport};
use crate::template::{TemplateName, Tokens};

/// Counts of everything that a [`PrepareReport`] says.
#[derive(Debug, Default)]
pub(super) struct Counts {
    kind: RowKind,
    units: u64,
    rows: u64,
    tokens: u64,
    loss_tokens: u64,
    /// How many rows have so many tokens.
    lengths: Histogram,
    /// How many rows have so many labels.
    labels: Histogram,
    truncated: u64,
    dropped: BTreeMap<&'static str, u64>,
    bad: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Examples or pairs so far.
    pub(super) fn units(&self) -> u64 {
        self.units
    }

    /// Rows so far.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn add_unit(&mut self, kind: RowKind, rows: &[&Tokens]) {
        self.kind = kind;
        self.units += 1;
        self.truncated += u64::from(rows.iter().any(|row| row.truncated));
        for row in rows {
            let labels = row.loss.iter().filter(|&&mark| mark == 1).count();
            self.rows += 1;
            self.tokens += row.ids.len() as u64;
            self.loss_tokens += labels as u64;
            self.lengths.add(row.ids.len());
            self.labels.add(labels);
        }
    }

    pub(super) fn add_dropped(&mut self, reason: &'static str) {
        *self.dropped.entry(reason).or_default() += 1;
    }

    pub(super) fn add_bad(&mut self, reason: &'static str) {
        *self.bad.entry(reason).or_default() += 1;
    }

    /// Why rows are not in the shard, for people.
    pub(super) fn reasons(&self) -> String {
        let reasons: Vec<String> = self
            .dropped
            .iter()
            .chain(&self.bad)
            .map(|(reason, count)| format!("{count} × {reason}"))
            .collect();
        match reasons.is_empty() {
            true => String::new(),
            false => format!(" ({})", reasons.join(", ")),
        }
    }

    pub(super) fn report(
        self,
        files: Vec<FileReport>,
        template: TemplateName,
        max_tokens: u32,
        started: Instant,
    ) -> PrepareReport {
        PrepareReport {
            files,
            template,
            max_tokens,
            kind: self.kind,
            units: self.units,
            rows: self.rows,
            tokens: self.tokens,
            loss_tokens: self.loss_tokens,
            longest: self.lengths.0.len().saturating_sub(1) as u64,
            median: self.lengths.median(),
            median_loss: self.labels.median(),
            truncated: self.truncated,
            dropped: self.dropped,
            bad: self.bad,
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// How often each number came; numbers are as small as rows are short.
#[derive(Debug, Default)]
struct Histogram(Vec<u64>);

impl Histogram {
    fn add(&mut self, number: usize) {
        if self.0.len() <= number {
            self.0.resize(number + 1, 0);
        }
        self.0[number] += 1;
    }

    /// The number in the middle; of two the smaller one.
    fn median(&self) -> u64 {
        let middle = self.0.iter().sum::<u64>().div_ceil(2);
        let mut below = 0;
        for (number, count) in self.0.iter().enumerate() {
            below += count;
            if below >= middle && below > 0 {
                return number as u64;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        for (numbers, median) in [
            (&[][..], 0),
            (&[5], 5),
            (&[5, 7], 5),
            (&[9, 1, 5], 5),
            (&[0, 0, 8], 0),
        ] {
            let mut histogram = Histogram::default();
            numbers.iter().for_each(|&number| histogram.add(number));
            assert_eq!(histogram.median(), median, "{numbers:?}");
        }
    }
}
