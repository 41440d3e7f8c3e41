//! How skewed a split is, in figures.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{Categories, Split};
use crate::simulate::seed::generator;

/// Labels that are told apart; the rest are one.
const LABELS: usize = 24;

/// A split in figures: for `--dry-run`, as text or JSON, and for the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitTable {
    /// How the rows were dealt.
    pub partition: String,
    /// Rows of all owners.
    pub rows: u64,
    /// Tokens of all owners.
    pub tokens: u64,
    /// The labels, commonest first. If there are many, the rare ones are counted together as the
    /// last. Empty if rows have no labels.
    pub labels: Vec<String>,
    /// The owners, in the order of the split.
    pub owners: Vec<OwnerShare>,
    /// How unequal they are.
    pub skew: Skew,
    /// Owners that were left out, because they have too few rows.
    pub dropped_owners: u64,
    /// Their rows.
    pub dropped_rows: u64,
}

/// One owner's share of the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnerShare {
    /// Its name.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Their tokens.
    pub tokens: u64,
    /// How many of them have each of the table's labels.
    pub labels: Vec<u64>,
}

/// How unequal owners are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skew {
    /// Rows of the smallest owner.
    pub min_rows: u64,
    /// Rows of the largest owner.
    pub max_rows: u64,
    /// Gini coefficient of the owners' numbers of rows: 0 if they are equal, near 1 if one owner
    /// has nearly all.
    pub gini: f64,
    /// Mean over owners of the total variation distance between the owner's labels and all labels:
    /// 0 if the mixtures are equal, near 1 if they have nothing in common. None without labels.
    pub label_distance: Option<f64>,
    /// What that distance would be by chance alone, had the same rows been dealt at random to
    /// owners of the same sizes: small owners differ anyway.
    pub label_distance_iid: Option<f64>,
}

impl SplitTable {
    /// The figures of `split`, whose rows have `labels` and `tokens`.
    ///
    /// # Panics
    ///
    /// If a row of the split has no label or no number of tokens.
    pub fn new(
        partition: impl Into<String>,
        split: &Split,
        labels: &Categories,
        tokens: &[u32],
    ) -> Self {
        let labelled = labels.names().len() > 1;
        let ranks = if labelled {
            Ranks::of(split, labels)
        } else {
            Ranks::default()
        };
        let owners: Vec<OwnerShare> = split
            .owners
            .iter()
            .map(|owner| OwnerShare {
                name: owner.name.clone(),
                rows: owner.rows.len() as u64,
                tokens: owner
                    .rows
                    .iter()
                    .map(|r| u64::from(tokens[*r as usize]))
                    .sum(),
                labels: ranks.count(&owner.rows, labels),
            })
            .collect();
        Self {
            partition: partition.into(),
            rows: owners.iter().map(|owner| owner.rows).sum(),
            tokens: owners.iter().map(|owner| owner.tokens).sum(),
            labels: ranks.names,
            skew: Skew::of(split, labelled.then_some(labels)),
            owners,
            dropped_owners: split.dropped.len() as u64,
            dropped_rows: split.dropped.iter().map(|(_, rows)| *rows as u64).sum(),
        }
    }

    /// Rows of each of the labels.
    pub fn label_rows(&self) -> Vec<u64> {
        let of = |label: usize| self.owners.iter().map(|owner| owner.labels[label]).sum();
        (0..self.labels.len()).map(of).collect()
    }
}

impl OwnerShare {
    /// The label that most of its rows have: its index in the table, and how many rows have it.
    pub fn commonest_label(&self) -> Option<(usize, u64)> {
        let counts = self.labels.iter().copied().enumerate();
        // Of equally common labels, the one that is commoner elsewhere.
        counts.rev().max_by_key(|(_, rows)| *rows)
    }
}

impl Skew {
    fn of(split: &Split, labels: Option<&Categories>) -> Self {
        let mut sizes: Vec<u64> = split.owners.iter().map(|o| o.rows.len() as u64).collect();
        sizes.sort_unstable();
        let distances = labels.map(|labels| {
            let hands = || split.owners.iter().map(|owner| owner.rows.as_slice());
            let mut shuffled = hands().collect::<Vec<_>>().concat();
            let all = Counts::of(&shuffled, labels);
            shuffled.shuffle(&mut generator(0, "split by chance", &[]));
            let mut rest = shuffled.as_slice();
            let by_chance = hands().map(|hand| {
                let (dealt, remaining) = rest.split_at(hand.len());
                rest = remaining;
                dealt
            });
            let by_chance = all.mean_distance(by_chance, labels);
            (all.mean_distance(hands(), labels), by_chance)
        });
        Self {
            min_rows: sizes.first().copied().unwrap_or(0),
            max_rows: sizes.last().copied().unwrap_or(0),
            gini: gini(&sizes),
            label_distance: distances.map(|(distance, _)| distance),
            label_distance_iid: distances.map(|(_, by_chance)| by_chance),
        }
    }
}

/// Rows by category; categories without a row are absent.
struct Counts {
    of: BTreeMap<u32, u64>,
    rows: u64,
}

impl Counts {
    fn of(rows: &[u32], labels: &Categories) -> Self {
        let mut of = BTreeMap::new();
        for row in rows {
            *of.entry(labels.rows()[*row as usize]).or_default() += 1;
        }
        let rows = rows.len() as u64;
        Self { of, rows }
    }

    /// Half the sum of the differences of shares: over the categories that `part` has, and what
    /// the whole has of all others.
    fn distance(&self, part: &Self) -> f64 {
        let (mut sum, mut others) = (0.0, 1.0);
        for (label, count) in &part.of {
            let whole = self.of.get(label).copied().unwrap_or(0) as f64 / self.rows as f64;
            sum += (*count as f64 / part.rows as f64 - whole).abs();
            others -= whole;
        }
        (sum + f64::max(others, 0.0)) / 2.0
    }

    fn mean_distance<'a>(
        &self,
        parts: impl Iterator<Item = &'a [u32]>,
        labels: &Categories,
    ) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        for part in parts {
            sum += self.distance(&Counts::of(part, labels));
            count += 1.0;
        }
        sum / f64::max(count, 1.0)
    }
}

/// Where each category is in a table whose commonest labels come first.
#[derive(Default)]
struct Ranks {
    names: Vec<String>,
    ranks: Vec<usize>,
}

impl Ranks {
    fn of(split: &Split, labels: &Categories) -> Self {
        let mut counts = vec![0_u64; labels.names().len()];
        for row in split.owners.iter().flat_map(|owner| &owner.rows) {
            counts[labels.rows()[*row as usize] as usize] += 1;
        }
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by_key(|label| std::cmp::Reverse(counts[*label]));
        let shown = if order.len() > LABELS {
            LABELS - 1
        } else {
            LABELS
        };
        let named = order.iter().take(shown);
        let mut names: Vec<String> = named.map(|label| labels.names()[*label].clone()).collect();
        if order.len() > shown {
            names.push(format!("{} others", order.len() - shown));
        }
        let mut ranks = vec![shown; order.len()];
        for (rank, label) in order.into_iter().take(shown).enumerate() {
            ranks[label] = rank;
        }
        Self { names, ranks }
    }

    fn count(&self, rows: &[u32], labels: &Categories) -> Vec<u64> {
        let mut counts = vec![0; self.names.len()];
        if !counts.is_empty() {
            for row in rows {
                counts[self.ranks[labels.rows()[*row as usize] as usize]] += 1;
            }
        }
        counts
    }
}

/// The Gini coefficient of sorted sizes.
fn gini(sizes: &[u64]) -> f64 {
    let n = sizes.len() as f64;
    let sum: u64 = sizes.iter().sum();
    if sum == 0 {
        return 0.0;
    }
    let ranked = (1..)
        .zip(sizes)
        .map(|(rank, size)| f64::from(rank) * *size as f64);
    2.0 * ranked.sum::<f64>() / (n * sum as f64) - (n + 1.0) / n
}

#[cfg(test)]
mod tests {
    use super::super::{Partition, split};
    use super::*;

    fn natural(owners: &[&str], labels: &[&str]) -> SplitTable {
        let natural = Partition::Natural { drop_small: false };
        let owners = Categories::intern(owners.iter().copied());
        let split = split(&owners, natural, 0, 1, 0).unwrap();
        let tokens: Vec<u32> = (1..=labels.len() as u32).collect();
        SplitTable::new(
            "test",
            &split,
            &Categories::intern(labels.iter().copied()),
            &tokens,
        )
    }

    #[test]
    fn owners_and_labels_are_counted() {
        let table = natural(&["b", "a", "b", "b"], &["y", "x", "x", "x"]);
        assert_eq!((table.rows, table.tokens), (4, 10));
        assert_eq!(table.labels, ["x", "y"]);
        assert_eq!(table.label_rows(), [3, 1]);
        let b = &table.owners[1];
        assert_eq!(
            (b.rows, b.tokens, b.labels.as_slice()),
            (3, 8, [2, 1].as_slice())
        );
        assert_eq!(b.commonest_label(), Some((0, 2)));
    }

    #[test]
    fn the_label_distance_is_the_mean_total_variation() {
        // All: x 3/4, y 1/4. Owner a: x only, 1/4 away. Owner b: x 2/3, y 1/3, 1/12 away.
        let table = natural(&["b", "a", "b", "b"], &["y", "x", "x", "x"]);
        let distance = table.skew.label_distance.unwrap();
        assert!(
            (distance - (0.25 + 1.0 / 12.0) / 2.0).abs() < 1e-12,
            "{distance}"
        );
        let apart = natural(&["a", "a", "b", "b"], &["x", "x", "y", "y"]);
        assert_eq!(apart.skew.label_distance, Some(0.5));
    }

    #[test]
    fn chance_alone_explains_an_iid_split_and_not_a_skewed_one() {
        let names: Vec<String> = (0..10).map(|label| label.to_string()).collect();
        let labels = Categories::intern((0..2000).map(|row| names[row % 10].as_str()));
        let skew = |partition| {
            let split = split(&labels, partition, 50, 1, 1).unwrap();
            SplitTable::new("", &split, &labels, &[1; 2000]).skew
        };
        let iid = skew(Partition::Iid);
        let (distance, by_chance) = (iid.label_distance.unwrap(), iid.label_distance_iid.unwrap());
        assert!(
            by_chance > 0.1,
            "40 rows cannot show 10 labels evenly: {by_chance}"
        );
        assert!(
            (distance / by_chance - 1.0).abs() < 0.1,
            "{distance} {by_chance}"
        );
        let skewed = skew(Partition::Dirichlet { alpha: 0.2 });
        assert!(skewed.label_distance.unwrap() > 2.0 * skewed.label_distance_iid.unwrap());
    }

    #[test]
    fn gini_is_nought_for_equals_and_near_one_for_a_monopoly() {
        assert_eq!(gini(&[5, 5, 5]), 0.0);
        assert_eq!(gini(&[0, 0, 0, 8]), 0.75);
        assert_eq!(gini(&[1, 3]), 0.25);
        assert_eq!(gini(&[]), 0.0);
    }

    #[test]
    fn rare_labels_are_one() {
        let names: Vec<String> = (0..60).map(|label| format!("label {label}")).collect();
        let rows = (0..60).flat_map(|label| std::iter::repeat_n(label, 60 - label));
        let labels: Vec<&str> = rows.map(|label| names[label].as_str()).collect();
        let table = natural(&vec!["one"; labels.len()], &labels);
        assert_eq!(table.labels.len(), LABELS);
        assert_eq!(table.labels[0], "label 0");
        assert_eq!(table.labels[23], "37 others");
        assert_eq!(table.label_rows()[23], 37 * 38 / 2);
        assert_eq!(table.label_rows().iter().sum::<u64>(), table.rows);
    }

    #[test]
    fn one_label_is_no_label() {
        let table = natural(&["a", "b"], &["x", "x"]);
        assert!(table.labels.is_empty() && table.owners[0].labels.is_empty());
        assert_eq!(table.owners[0].commonest_label(), None);
        assert_eq!(table.skew.label_distance, None);
    }

    #[test]
    fn a_table_survives_json() {
        let table = natural(&["b", "a", "b", "b"], &["y", "x", "x", "x"]);
        let json = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<SplitTable>(&json).unwrap(), table);
    }
}
