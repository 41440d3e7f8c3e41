//! The name that somebody probably meant.

/// The candidate with the least edits from `name` (Levenshtein distance); the
/// first of several. Empty if there is no candidate.
///
/// ```
/// assert_eq!(fedllm_shared::nearest("fedadgrad", ["fedavg", "fedadagrad"]), "fedadagrad");
/// ```
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> &'a str {
    // What nobody would have typed by mistake need not be compared to its end.
    let name: Vec<char> = name.chars().take(80).collect();
    let candidates = candidates.into_iter();
    candidates
        .min_by_key(|candidate| edits(&name, candidate))
        .unwrap_or("")
}

fn edits(from: &[char], to: &str) -> usize {
    let mut row: Vec<usize> = (0..=from.len()).collect();
    for (i, wanted) in to.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, got) in from.iter().enumerate() {
            let replaced = diagonal + usize::from(*got != wanted);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[from.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        assert_eq!(edits(&chars("kitten"), "sitting"), 3);
        assert_eq!(edits(&chars(""), "abc"), 3);
        assert_eq!(edits(&chars("abc"), ""), 3);
        assert_eq!(edits(&chars("same"), "same"), 0);
        assert_eq!(nearest("cohrt", ["count", "cohort", "quorum"]), "cohort");
    }
}
