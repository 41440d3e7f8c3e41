//! Systems in order over several metrics.

/// Each system's mean rank over metrics, best 1; equals share the mean of their ranks.
///
/// A row of `scores` is a system, a column a metric of which more is better. A metric that some
/// system lacks, or where a score is not a number, does not count; None if none is left.
///
/// ```
/// use fedllm_shared::average_ranks;
///
/// let scores = [vec![Some(4.6), Some(0.1)], vec![Some(4.2), Some(0.1)], vec![Some(4.3), Some(0.0)]];
/// assert_eq!(average_ranks(&scores), Some(vec![1.25, 2.25, 2.5]));
/// ```
pub fn average_ranks(scores: &[Vec<Option<f64>>]) -> Option<Vec<f64>> {
    let score = |system: &Vec<Option<f64>>, metric: usize| {
        system
            .get(metric)
            .copied()
            .flatten()
            .filter(|score| !score.is_nan())
    };
    let metrics = scores.iter().map(Vec::len).min()?;
    let columns = (0..metrics)
        .map(|metric| scores.iter().map(|system| score(system, metric)).collect())
        .collect::<Vec<Option<Vec<f64>>>>();
    let complete: Vec<Vec<f64>> = columns.into_iter().flatten().collect();
    let mean = |system: usize| {
        let ranks: f64 = complete
            .iter()
            .map(|column| rank(column[system], column))
            .sum();
        ranks / complete.len() as f64
    };
    (!complete.is_empty()).then(|| (0..scores.len()).map(mean).collect())
}

/// The rank of one of the scores of a column.
fn rank(own: f64, column: &[f64]) -> f64 {
    let better = column.iter().filter(|score| **score > own).count();
    let equal = column.iter().filter(|score| **score == own).count();
    better as f64 + (equal as f64 + 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    // `scipy.stats.rankdata(-scores, axis=0).mean(axis=1)`.
    #[test]
    fn ranks_are_those_of_scipy() {
        let scores = [
            [4.288, 0.061, 0.134, 0.220],
            [4.213, 0.153, 0.134, 0.420],
            [4.100, 0.052, 0.165, 0.511],
            [2.213, 0.055, 0.122, 0.834],
            [4.600, 0.111, 0.134, 0.805],
        ];
        let scores = scores.map(|system| system.map(Some).to_vec());
        assert_eq!(
            average_ranks(&scores),
            Some(vec![3.25, 2.75, 3.25, 3.75, 2.0])
        );
    }

    #[test]
    fn only_metrics_that_all_have_count() {
        let scores = [
            vec![Some(1.0), None, Some(f64::NAN), Some(1.0)],
            vec![Some(2.0), Some(1.0), Some(1.0)],
        ];
        assert_eq!(average_ranks(&scores), Some(vec![2.0, 1.0]));
        assert_eq!(average_ranks(&[vec![None], vec![Some(1.0)]]), None);
        assert_eq!(average_ranks(&[vec![], vec![Some(1.0)]]), None);
        assert_eq!(average_ranks(&[]), None);
    }
}
