//! Proportions: drawn, and made whole.

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Gamma, Open01};

use super::SplitError;

/// One draw from a symmetric Dirichlet distribution, up to a factor.
///
/// Gamma variates over their sum. Their logarithms are drawn, as ln Γ(α + 1) + ln(u) / α, so that
/// a small α underflows to 0 for all but the largest, and not for all.
///
/// Source: Marsaglia and Tsang 2000, "A simple method for generating gamma variables", section 6,
/// for variates of a shape below 1 from those of a shape above.
pub(super) fn dirichlet(
    alpha: f64,
    n: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<f64>, SplitError> {
    let gamma = Gamma::new(alpha + 1.0, 1.0).map_err(|_| SplitError::Alpha(alpha))?;
    let mut shares: Vec<f64> = (0..n)
        .map(|_| {
            let uniform: f64 = Open01.sample(rng);
            gamma.sample(rng).ln() + uniform.ln() / alpha
        })
        .collect();
    let largest = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    shares
        .iter_mut()
        .for_each(|share| *share = (*share - largest).exp());
    Ok(shares)
}

/// Whole numbers that sum to `total`, as near to the proportions of `shares` as can be.
pub(super) fn largest_remainder(total: usize, shares: &[f64]) -> Vec<usize> {
    let sum: f64 = shares.iter().sum();
    let exact: Vec<f64> = shares
        .iter()
        .map(|share| total as f64 * share / sum)
        .collect();
    let mut left = total;
    let mut counts: Vec<usize> = exact
        .iter()
        .map(|exact| {
            let count = (exact.floor() as usize).min(left);
            left -= count;
            count
        })
        .collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|a, b| exact[*b].fract().total_cmp(&exact[*a].fract()));
    for index in order.into_iter().cycle().take(left) {
        counts[index] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::seed::generator;

    #[test]
    fn dirichlet_shares_have_the_right_moments() {
        // Of Dir(α) over n: mean 1/n, variance (n - 1) / (n² (nα + 1)).
        let (n, draws) = (5, 20_000);
        for alpha in [0.05, 0.5, 1.0, 4.0] {
            let mut rng = generator(1, "test", &[]);
            let shares = (0..draws).map(|_| {
                let shares = dirichlet(alpha, n, &mut rng).unwrap();
                shares[2] / shares.iter().sum::<f64>()
            });
            let shares: Vec<f64> = shares.collect();
            let mean = shares.iter().sum::<f64>() / f64::from(draws);
            let variance = shares.iter().map(|share| (share - mean).powi(2));
            let variance = variance.sum::<f64>() / f64::from(draws);
            let expected = 4.0 / (25.0 * (5.0 * alpha + 1.0));
            assert!((mean - 0.2).abs() < 0.01, "{alpha}: {mean}");
            assert!((variance / expected - 1.0).abs() < 0.05, "{alpha}");
        }
    }

    #[test]
    fn remainders_go_to_the_largest() {
        assert_eq!(largest_remainder(10, &[1.0, 1.0, 1.0]), [4, 3, 3]);
        assert_eq!(largest_remainder(7, &[0.5, 0.3, 0.2]), [4, 2, 1]);
        assert_eq!(largest_remainder(1, &[0.2, 0.5, 0.3]), [0, 1, 0]);
        assert_eq!(largest_remainder(0, &[1.0, 2.0]), [0, 0]);
        assert_eq!(largest_remainder(3, &[1e-300, 1.0]), [0, 3]);
    }
}
