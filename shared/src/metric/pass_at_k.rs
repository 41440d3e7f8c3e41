//! How often one of several programs is right.

/// The chance that one of `k` programs is right, drawn without replacement from `samples` of which
/// `right` are: unbiased, unlike `1 - (1 - right / samples)^k`. None if `k` is 0 or there are fewer
/// than `k` samples, or fewer samples than right ones.
///
/// Source: Chen et al. 2021, arXiv 2107.03374, equation 1, in the form that does not overflow.
///
/// ```
/// use fedllm_shared::pass_at_k;
///
/// assert_eq!(pass_at_k(10, 3, 1), Some(1.0 - 0.7));
/// assert_eq!(pass_at_k(10, 8, 3), Some(1.0));
/// ```
pub fn pass_at_k(samples: u64, right: u64, k: u64) -> Option<f64> {
    if k == 0 || k > samples || right > samples {
        return None;
    }
    let wrong = samples - right;
    if wrong < k {
        return Some(1.0);
    }
    let all_wrong: f64 = (wrong + 1..=samples)
        .map(|n| 1.0 - k as f64 / n as f64)
        .product();
    Some(1.0 - all_wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The paper's figure 3: `1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))`.
    #[test]
    fn the_estimator_is_the_papers() {
        let cases = [
            ((200, 13, 1), 0.065),
            ((200, 13, 10), 0.497_551_114_730_606_1),
            ((200, 13, 100), 0.999_919_497_198_805_5),
            ((5, 0, 5), 0.0),
            ((5, 2, 4), 1.0),
        ];
        for ((samples, right, k), expected) in cases {
            let got = pass_at_k(samples, right, k).unwrap();
            assert!(
                (got - expected).abs() < 1e-12,
                "{samples} {right} {k}: {got}"
            );
        }
    }

    #[test]
    fn what_cannot_be_drawn_has_no_chance() {
        assert_eq!(pass_at_k(0, 0, 1), None);
        assert_eq!(pass_at_k(5, 1, 6), None);
        assert_eq!(pass_at_k(5, 6, 1), None);
        assert_eq!(pass_at_k(5, 5, 0), None);
    }
}
