//! The best pairing of rows with columns.

/// The greatest sum of scores over pairings in which no row and no column comes twice; 0 of an empty
/// table.
///
/// Source: the Hungarian algorithm (Kuhn 1955) with shortest augmenting paths (Jonker and Volgenant
/// 1987): in the order of `short² · long`.
pub(super) fn best_assignment(scores: &[Vec<f64>]) -> f64 {
    let columns = scores.first().map_or(0, Vec::len);
    let score = |row: usize, column: usize| match scores.len() <= columns {
        true => scores[row][column],
        false => scores[column][row],
    };
    let short = scores.len().min(columns);
    let long = scores.len().max(columns);

    // Potentials of rows and columns; row and column 0 stand for none.
    let mut of_row = vec![0.0; short + 1];
    let mut of_column = vec![0.0; long + 1];
    let mut row_of = vec![0; long + 1];
    for row in 1..=short {
        row_of[0] = row;
        let mut slack = vec![f64::INFINITY; long + 1];
        let mut before = vec![0; long + 1];
        let mut seen = vec![false; long + 1];
        let mut column = 0;
        // Reach columns in the order of their cost until one is free.
        while row_of[column] != 0 {
            seen[column] = true;
            let from = row_of[column];
            let (mut step, mut next) = (f64::INFINITY, 0);
            for other in (1..=long).filter(|other| !seen[*other]) {
                let cost = -score(from - 1, other - 1) - of_row[from] - of_column[other];
                if cost < slack[other] {
                    (slack[other], before[other]) = (cost, column);
                }
                if slack[other] < step {
                    (step, next) = (slack[other], other);
                }
            }
            for other in 0..=long {
                if seen[other] {
                    of_row[row_of[other]] += step;
                    of_column[other] -= step;
                } else {
                    slack[other] -= step;
                }
            }
            column = next;
        }
        // Along the path back, each row moves on to the next column.
        while column != 0 {
            row_of[column] = row_of[before[column]];
            column = before[column];
        }
    }
    (1..=long)
        .filter(|column| row_of[*column] != 0)
        .map(|column| score(row_of[column] - 1, column - 1))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By trying all.
    fn brute(scores: &[Vec<f64>], row: usize, used: &mut Vec<bool>) -> f64 {
        if row == scores.len() {
            return 0.0;
        }
        // The row may stay alone, for tables with more rows than columns; scores are positive.
        let mut best = brute(scores, row + 1, used);
        for column in 0..used.len() {
            if !used[column] {
                used[column] = true;
                best = best.max(scores[row][column] + brute(scores, row + 1, used));
                used[column] = false;
            }
        }
        best
    }

    #[test]
    fn no_pairing_is_better() {
        let mut state = 1u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 60) as f64 / 16.0
        };
        for rows in 0..6 {
            for columns in 1..6 {
                let table: Vec<Vec<f64>> = (0..rows)
                    .map(|_| (0..columns).map(|_| random()).collect())
                    .collect();
                let expected = brute(&table, 0, &mut vec![false; columns]);
                assert!(
                    (best_assignment(&table) - expected).abs() < 1e-12,
                    "{table:?}"
                );
            }
        }
        assert_eq!(best_assignment(&[vec![], vec![]]), 0.0);
    }
}
