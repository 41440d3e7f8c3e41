//! The three owners: what each of them teaches, and the rows that nobody trains on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One owner of private data in the quickstart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    /// The name: of its client, its files and its row in the table.
    pub(super) name: &'static str,
    /// What its rows are about, for people.
    pub(super) about: &'static str,
    /// Rows to train on, as JSON Lines.
    pub(super) train: &'static str,
    /// Rows to measure on, as JSON Lines.
    pub(super) held_out: &'static str,
}

/// Three owners whose tasks have nothing in common, so that no one of them can teach the others' alone.
pub(super) const OWNERS: [Owner; 3] = [
    Owner {
        name: "harbour",
        about: "a harbour office that turns notes into berth records",
        train: include_str!("data/harbour.jsonl"),
        held_out: include_str!("data/harbour.heldout.jsonl"),
    },
    Owner {
        name: "seeds",
        about: "a seed library that fills in cards",
        train: include_str!("data/seeds.jsonl"),
        held_out: include_str!("data/seeds.heldout.jsonl"),
    },
    Owner {
        name: "workshop",
        about: "a bicycle workshop that quotes repairs",
        train: include_str!("data/workshop.jsonl"),
        held_out: include_str!("data/workshop.heldout.jsonl"),
    },
];

impl Owner {
    /// Writes both sets into `dir` and returns their paths: training rows first.
    pub(super) fn write(&self, dir: &Path) -> io::Result<(PathBuf, PathBuf)> {
        let train = dir.join(format!("{}.jsonl", self.name));
        let held_out = dir.join(format!("{}.heldout.jsonl", self.name));
        fs::write(&train, self.train)?;
        fs::write(&held_out, self.held_out)?;
        Ok((train, held_out))
    }

    /// The first held-out row, as a person would type it: the prompt to try the adapter with.
    pub(super) fn example(&self) -> Option<String> {
        let row: serde_json::Value = serde_json::from_str(self.held_out.lines().next()?).ok()?;
        Some(format!(
            "{} {}",
            row["instruction"].as_str()?,
            row["input"].as_str()?
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_complete_and_no_held_out_row_is_trained_on() {
        for owner in OWNERS {
            let mut seen = BTreeSet::new();
            for line in owner.train.lines().chain(owner.held_out.lines()) {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                for field in ["instruction", "input", "output"] {
                    assert!(!row[field].as_str().unwrap().is_empty(), "{line}");
                }
                assert!(seen.insert(row["input"].to_string()), "twice: {line}");
            }
            assert_eq!(owner.train.lines().count(), 60, "{}", owner.name);
            assert_eq!(owner.held_out.lines().count(), 16, "{}", owner.name);
            assert!(owner.example().is_some());
        }
    }
}
