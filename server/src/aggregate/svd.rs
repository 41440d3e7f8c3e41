//! The singular value decomposition of a matrix that is given as a product of narrow ones.

use super::AggregateError;
use super::matrix::{Mat, Operand, dot};
use super::rows::Random;

/// Up to this many directions are decomposed at once.
const WHOLE: usize = 48;
/// Iterations end when no singular value moves by more than this, relative to the largest.
const SETTLED: f64 = 1e-12;
const MAX_PASSES: usize = 100;
/// What is left of a column after others are taken from it, relative to its length, is rounding
/// below this.
const DEPENDENT: f64 = 1e-12;

/// `Σ_k sigma[k] · u[:, k] · v[:, k]ᵀ`, with `sigma` falling and positive.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Svd {
    /// Orthonormal columns `[rows, n]`.
    pub(super) u: Mat,
    /// The largest singular values, no more than were asked for.
    pub(super) sigma: Vec<f64>,
    /// Orthonormal columns `[columns, n]`.
    pub(super) v: Mat,
    /// The sum of the squares of all other singular values.
    pub(super) dropped: f64,
}

/// Decomposes `left · rightᵀ` and keeps the first `keep` directions, or all if there are fewer.
///
/// `left` is `[rows, rank]`, `right` is `[columns, rank]`; `square` is the product's squared norm,
/// if it is known. The product itself is never formed. Where
/// rank, rows or columns are few, the decomposition is direct. Where they are many, it is found by
/// subspace iteration on twice as many directions as are kept, and some more: what a low-rank
/// adapter keeps stands out, so a few passes do. Halko et al. 2011, arXiv 0909.4061, section 4.
pub(super) fn product_svd(
    left: Mat,
    right: Mat,
    keep: usize,
    square: Option<f64>,
) -> Result<Svd, AggregateError> {
    let (rows, columns, rank) = (left.rows(), right.rows(), left.columns());
    if columns < rows.min(rank) {
        let mut svd = product_svd(right, left, keep, square)?;
        std::mem::swap(&mut svd.u, &mut svd.v);
        return Ok(svd);
    }
    let wide = 2 * keep + 16;
    let whole = rows.min(rank) <= WHOLE.max(wide);
    let range = match (whole, rows <= rank) {
        (true, true) => Some(identity(rows)),
        (true, false) => Some(orthonormal(&left).0),
        (false, _) => None,
    };
    let product = Product {
        left: Operand::new(left),
        right: Operand::new(right),
    };
    let mut svd = match range {
        Some(range) => product.ritz(range)?,
        None => product.iterate(random(columns, wide), keep)?,
    };
    let keep = keep.min(svd.sigma.len());
    let (kept, rest) = svd.sigma.split_at(keep);
    svd.dropped = match whole {
        true => squares(rest),
        false => product.dropped(squares(kept), square)?,
    };
    svd.sigma.truncate(keep);
    svd.u.truncate(keep);
    svd.v.truncate(keep);
    Ok(svd)
}

impl Svd {
    /// How many directions are more than rounding.
    pub(super) fn known(&self) -> usize {
        let size = self.u.rows().max(self.v.rows()) as f64;
        let noise = self
            .sigma
            .first()
            .map_or(0.0, |sigma| sigma * size * f64::EPSILON);
        self.sigma
            .iter()
            .take_while(|sigma| **sigma > noise)
            .count()
    }
}

/// `left · rightᵀ`, not multiplied out.
struct Product {
    left: Operand,
    right: Operand,
}

impl Product {
    fn times(&self, other: Mat) -> Result<Mat, AggregateError> {
        self.left.times(self.right.transposed_times(other)?)
    }

    fn transposed_times(&self, other: Mat) -> Result<Mat, AggregateError> {
        self.right.times(self.left.transposed_times(other)?)
    }

    /// Turns random directions until the first `keep` are the product's.
    fn iterate(&self, start: Mat, keep: usize) -> Result<Svd, AggregateError> {
        let mut range = orthonormal(&self.times(start)?).0;
        let mut svd = self.ritz(range)?;
        for _ in 1..MAX_PASSES {
            if svd.sigma.is_empty() {
                break;
            }
            range = orthonormal(&self.times(svd.v.clone())?).0;
            let next = self.ritz(range)?;
            let pairs = svd.sigma.iter().zip(&next.sigma).take(keep);
            let moved = pairs.map(|(before, after)| (before - after).abs());
            let moved = moved.fold(0.0, f64::max);
            let largest = next.sigma.first().copied().unwrap_or(0.0);
            svd = next;
            if moved <= SETTLED * largest {
                break;
            }
        }
        Ok(svd)
    }

    /// The decomposition of what of the product lies in `range`, whose columns are orthonormal: all
    /// of it if they span everything that the product reaches.
    fn ritz(&self, range: Mat) -> Result<Svd, AggregateError> {
        if range.columns() == 0 {
            return Ok(Svd::default());
        }
        // The part is range · Wᵀ with W = Q · R, so range · Rᵀ · Qᵀ.
        let (q, r) = orthonormal(&self.transposed_times(range.clone())?);
        let core = jacobi(r);
        if core.sigma.is_empty() {
            return Ok(Svd::default());
        }
        Ok(Svd {
            u: Operand::new(range).times(core.u)?,
            v: Operand::new(q).times(core.v)?,
            ..core
        })
    }

    /// What is left of the product's squared norm without `kept` of it.
    fn dropped(&self, kept: f64, square: Option<f64>) -> Result<f64, AggregateError> {
        let all = match square {
            Some(square) => square,
            None => {
                let (left, right) = (self.left.gram()?, self.right.gram()?);
                let columns = 0..left.columns();
                columns
                    .map(|at| dot(left.column(at), right.column(at)))
                    .sum()
            }
        };
        // What is no more than the rounding of the sum is nothing.
        Ok(match all - kept > 1e-14 * all {
            true => all - kept,
            false => 0.0,
        })
    }
}

fn squares(sigma: &[f64]) -> f64 {
    sigma.iter().map(|sigma| sigma * sigma).sum()
}

fn identity(size: usize) -> Mat {
    let mut out = Mat::zeros(size, size);
    (0..size).for_each(|at| out.column_mut(at)[at] = 1.0);
    out
}

/// Directions to begin with, always the same ones.
fn random(rows: usize, columns: usize) -> Mat {
    let mut random = Random(0);
    let columns = (0..columns).map(|_| (0..rows).map(|_| random.next()).collect());
    Mat::of(rows, columns)
}

/// An orthonormal basis `Q` of the columns of a matrix, and `Rᵀ` such that the matrix is `Q·R`.
///
/// Gram-Schmidt, each column twice, which leaves no more than rounding. Columns that others span
/// add nothing to the basis, so it may have fewer.
fn orthonormal(matrix: &Mat) -> (Mat, Mat) {
    let (mut basis, mut r) = (
        Mat::zeros(matrix.rows(), 0),
        Mat::zeros(matrix.columns(), 0),
    );
    for at in 0..matrix.columns() {
        let mut column = matrix.column(at).to_vec();
        let length = dot(&column, &column).sqrt();
        for _ in 0..2 {
            for other in 0..basis.columns() {
                let along = dot(basis.column(other), &column);
                add(&mut column, -along, basis.column(other));
                r.column_mut(other)[at] += along;
            }
        }
        let rest = dot(&column, &column).sqrt();
        if rest > DEPENDENT * length {
            column.iter_mut().for_each(|value| *value /= rest);
            basis.push(&column);
            let mut row = vec![0.0; matrix.columns()];
            row[at] = rest;
            r.push(&row);
        }
    }
    (basis, r)
}

fn add(to: &mut [f64], factor: f64, values: &[f64]) {
    to.iter_mut()
        .zip(values)
        .for_each(|(to, value)| *to += factor * value);
}

/// The decomposition of a small matrix with independent columns, by Hestenes' one-sided Jacobi
/// rotations: Golub and Van Loan, Matrix Computations, 4th edition, section 8.6.3.
fn jacobi(mut matrix: Mat) -> Svd {
    const MAX_SWEEPS: usize = 60;
    let size = matrix.columns();
    let mut v = identity(size);
    for _ in 0..MAX_SWEEPS {
        let mut turned = false;
        for first in 0..size {
            for second in first + 1..size {
                if let Some((cos, sin)) = rotation(&matrix, first, second) {
                    turned = true;
                    rotate(matrix.pair_mut(first, second), cos, sin);
                    rotate(v.pair_mut(first, second), cos, sin);
                }
            }
        }
        if !turned {
            break;
        }
    }
    let lengths: Vec<_> = (0..size).map(|at| matrix.square(at).sqrt()).collect();
    let mut order: Vec<_> = (0..size).filter(|at| lengths[*at] > 0.0).collect();
    order.sort_by(|left, right| lengths[*right].total_cmp(&lengths[*left]));
    let unit = |at: &usize| {
        let column = matrix.column(*at).iter();
        column.map(|value| value / lengths[*at]).collect()
    };
    Svd {
        u: Mat::of(matrix.rows(), order.iter().map(unit)),
        sigma: order.iter().map(|at| lengths[*at]).collect(),
        v: Mat::of(size, order.iter().map(|at| v.column(*at).to_vec())),
        dropped: 0.0,
    }
}

/// The rotation that makes two columns orthogonal, or none if they are so already.
fn rotation(matrix: &Mat, first: usize, second: usize) -> Option<(f64, f64)> {
    let (a, b) = (matrix.square(first), matrix.square(second));
    let along = dot(matrix.column(first), matrix.column(second));
    if along.abs() <= f64::EPSILON * (a * b).sqrt() {
        return None;
    }
    let zeta = (b - a) / (2.0 * along);
    let tan = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let cos = 1.0 / tan.hypot(1.0);
    Some((cos, cos * tan))
}

fn rotate((first, second): (&mut [f64], &mut [f64]), cos: f64, sin: f64) {
    for (first, second) in first.iter_mut().zip(second) {
        (*first, *second) = (cos * *first - sin * *second, sin * *first + cos * *second);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::*;

    fn matrix(rows: usize, columns: usize, seed: u64) -> Mat {
        let mut random = testing::random(seed);
        let columns = (0..columns).map(|_| (0..rows).map(|_| f64::from(random())).collect());
        Mat::of(rows, columns)
    }

    /// `left · rightᵀ` multiplied out.
    fn dense(left: &Mat, right: &Mat) -> Mat {
        let mut out = Mat::zeros(left.rows(), right.rows());
        for at in 0..left.columns() {
            for (column, factor) in right.column(at).iter().enumerate() {
                add(out.column_mut(column), *factor, left.column(at));
            }
        }
        out
    }

    fn norm(matrix: &Mat) -> f64 {
        (0..matrix.columns())
            .map(|at| matrix.square(at))
            .sum::<f64>()
            .sqrt()
    }

    /// The product without what was kept of it.
    fn rest(svd: &Svd, left: &Mat, right: &Mat) -> Mat {
        let mut out = dense(left, right);
        for (k, sigma) in svd.sigma.iter().enumerate() {
            for (column, factor) in svd.v.column(k).iter().enumerate() {
                add(out.column_mut(column), -sigma * factor, svd.u.column(k));
            }
        }
        out
    }

    fn check_orthonormal(matrix: &Mat) {
        for at in 0..matrix.columns() {
            for other in 0..=at {
                let expected = f64::from(u8::from(at == other));
                let found = dot(matrix.column(at), matrix.column(other));
                assert!((found - expected).abs() < 1e-10, "{at} {other}: {found}");
            }
        }
    }

    /// What every decomposition must be, and that what it leaves out is what it says.
    fn check(left: &Mat, right: &Mat, keep: usize) -> Svd {
        let svd = product_svd(left.clone(), right.clone(), keep, None).unwrap();
        assert!(svd.sigma.len() <= keep);
        assert!(svd.sigma.is_sorted_by(|left, right| left >= right));
        check_orthonormal(&svd.u);
        check_orthonormal(&svd.v);
        let (whole, rest) = (norm(&dense(left, right)), norm(&rest(&svd, left, right)));
        let off = (rest * rest - svd.dropped).abs();
        assert!(
            off <= 1e-12 * whole * whole,
            "{rest} {}",
            svd.dropped.sqrt()
        );
        svd
    }

    proptest! {
        #[test]
        fn any_product_is_decomposed(
            rows in 1usize..70,
            columns in 1usize..70,
            rank in 1usize..50,
            seed in 0u64..1000,
        ) {
            let (left, right) = (matrix(rows, rank, seed), matrix(columns, rank, seed + 1));
            let svd = check(&left, &right, rank);
            prop_assert_eq!(svd.dropped, 0.0);
            prop_assert!(norm(&rest(&svd, &left, &right)) < 1e-10 * svd.sigma[0]);
            let few = check(&left, &right, rank.div_ceil(3));
            for (few, all) in few.sigma.iter().zip(&svd.sigma) {
                prop_assert!((few - all).abs() < 1e-10 * svd.sigma[0]);
            }
        }
    }

    #[test]
    fn lost_ranks_are_found() {
        for (rows, columns, rank) in [(300, 200, 64), (40, 30, 8), (30, 40, 50), (90, 70, 80)] {
            let (mut left, right) = (matrix(rows, rank, 3), matrix(columns, rank, 4));
            // Nothing, and twice the same.
            left.column_mut(0).fill(0.0);
            let same = left.column(1).to_vec();
            left.column_mut(5).copy_from_slice(&same);
            let svd = check(&left, &right, rank);
            let expected = (rank - 2).min(rows).min(columns);
            assert_eq!(svd.known(), expected, "{rows} {columns} {rank}");
            assert_eq!(check(&left, &right, 3).known(), 3);
        }
    }

    #[test]
    fn nothing_has_no_direction() {
        for rank in [4, 30, 200] {
            let (left, right) = (Mat::zeros(120, rank), matrix(110, rank, 1));
            for (left, right) in [(&left, &right), (&right, &left)] {
                let svd = check(left, right, 4);
                assert_eq!((svd.known(), svd.dropped), (0, 0.0));
            }
        }
    }

    /// Directions of a known size under others that are smaller: `U·Σ·Vᵀ` with U, V orthonormal.
    fn known(rows: usize, columns: usize, sigmas: &[f64]) -> (Mat, Mat) {
        let mut u = orthonormal(&matrix(rows, sigmas.len(), 7)).0;
        let v = orthonormal(&matrix(columns, sigmas.len(), 8)).0;
        for (at, sigma) in sigmas.iter().enumerate() {
            u.column_mut(at)
                .iter_mut()
                .for_each(|value| *value *= sigma);
        }
        (u, v)
    }

    #[test]
    fn iterations_find_what_stands_out_and_what_does_not() {
        // Falling by a tenth, a step after the eighth, and all alike but for a thousandth.
        let tenths: Vec<_> = (0..100).map(|k| 0.9f64.powi(k)).collect();
        let step: Vec<_> = (0..100).map(|k| if k < 8 { 1.0 } else { 1e-3 }).collect();
        let alike: Vec<_> = (0..100).map(|k| 1.0 - 1e-3 * f64::from(k)).collect();
        for (name, sigmas) in [("tenths", tenths), ("step", step), ("alike", alike)] {
            let (left, right) = known(150, 130, &sigmas);
            let svd = check(&left, &right, 8);
            let best = squares(&sigmas[8..]);
            let all = squares(&sigmas);
            let tolerance = if name == "alike" { 1e-3 } else { 1e-9 };
            assert!(svd.dropped >= best - 1e-12 * all, "{name}");
            assert!(
                svd.dropped <= best + tolerance * all,
                "{name}: {} {best}",
                svd.dropped
            );
            if name != "alike" {
                let off = svd.sigma.iter().zip(&sigmas).map(|(l, r)| (l - r).abs());
                assert!(off.fold(0.0, f64::max) < 1e-9, "{name}");
            }
        }
    }

    #[test]
    fn both_ways_agree() {
        let (left, right) = (matrix(90, 40, 5), matrix(80, 40, 6));
        let whole = product_svd(left.clone(), right.clone(), 6, None).unwrap();
        let product = Product {
            left: Operand::new(left.clone()),
            right: Operand::new(right),
        };
        let found = product.iterate(random(80, 28), 6).unwrap();
        for (found, whole) in found.sigma.iter().zip(&whole.sigma) {
            assert!((found - whole).abs() < 1e-9 * whole);
        }
    }
}
