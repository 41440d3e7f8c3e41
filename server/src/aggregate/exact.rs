//! The mean of what clients' adapters do, as one adapter.

use std::io::Read;
use std::sync::Arc;

use fedllm_shared::{Adapter, Codec, FactorPair, Layout, factor_pairs};

use super::AggregateError;
use super::gap::Squares;
use super::pairs::{RankedSource, Stack, each_pair, same_projections};
use super::rows::{complete, seed};
use super::svd::{Svd, product_svd};

/// The length of a row of A.
///
/// It is what PEFT's first A has on average: uniform in ±1/√in, so `in` values of variance
/// `1 / (3·in)`. A direction that nothing is known of, whose column of B is 0, is then like one of
/// a fresh adapter and learns as quickly.
const ROW_LENGTH: f64 = 0.577_350_269_189_625_8;

/// The mean of products, factorised.
#[derive(Clone, Debug, PartialEq)]
pub struct ExactMean {
    /// The factors of the target's rank. Rows of A, and columns of B with them, come in the order
    /// of their weight, so that [`truncate`] gives the best adapter of a lower rank.
    pub adapter: Adapter,
    /// What averaging the factors apart would have lost, as
    /// [`product_gap`](super::product_gap) has it; none if the clients' ranks differ.
    pub gap: Option<f64>,
    /// What the target's rank is too low for: the norm of the part of the mean that is left out
    /// divided by the norm of the mean, over all projections together.
    pub discarded: f64,
}

/// The mean of the products `B_i·A_i`, weighted, as factors of the rank of `target`.
///
/// For each projection, `M = Σ_i p_i·B_i·A_i` with `p_i` the weights divided by their sum, and `A_i`
/// and `B_i` the factors after training: those that client `i` began with plus `scale` times its
/// delta. Clients may have different ranks; what multiplies `B·A` in the model must be the same for
/// all of them. `M = Σ_k σ_k·u_k·v_kᵀ` is cut to the target's rank, which no other adapter of that
/// rank can be closer to, and becomes `A_k = a·v_kᵀ`, `B_k = (σ_k/a)·u_k` with `a = 1/√3`: the
/// length of a row of a new A. Where `M` has a lower rank, further rows of A are orthogonal to the
/// others and drawn by the tensor's name, and their columns of B are 0. The largest entry of each
/// row of A is positive. The result does not depend on the order in which updates came.
///
/// Computed in `f64` on the CPU, several projections side by side: in less than `f64`, which GPUs
/// have none of in WGSL, the last directions of a mean would be noise.
///
/// Source: FlexLoRA, Bai et al. 2024, arXiv 2402.11505, and HLoRA, Liu et al. 2025, arXiv
/// 2503.00813: the weighted sum of the products, decomposed, and cut to the rank that each client
/// has room for. How a singular value is shared between A and B, and what a direction without
/// weight becomes, are ours.
///
/// # Errors
///
/// [`AggregateError`]; then nothing was averaged.
pub fn exact_mean<R, E>(
    target: &Arc<Layout>,
    codec: Codec,
    sources: Vec<RankedSource<'_, impl FnOnce() -> Result<R, E>>>,
) -> Result<ExactMean, AggregateError>
where
    R: Read + Send,
    E: std::error::Error + Send + Sync + 'static,
{
    let mut starts = sources.iter().map(|source| source.start.layout());
    let first = starts.next().cloned();
    let equal = starts.all(|layout| Some(layout) == first.as_ref());
    let products = each_pair(target, codec, sources, |stack| {
        Product::of(target, stack, equal)
    })?;

    let mut values = vec![0.0; target.len()];
    let mut squares = Squares::default();
    let (mut kept, mut dropped) = (0.0, 0.0);
    for product in products {
        values[target.range(product.pair.a)].copy_from_slice(&product.a);
        values[target.range(product.pair.b)].copy_from_slice(&product.b);
        squares = squares.plus(product.squares);
        kept += product.kept;
        dropped += product.dropped;
    }
    Ok(ExactMean {
        adapter: Adapter::new(target.clone(), values)?,
        gap: equal.then(|| squares.gap()),
        discarded: match dropped > 0.0 {
            true => (dropped / (kept + dropped)).sqrt(),
            false => 0.0,
        },
    })
}

/// Cuts an adapter to the rank of `to`: the first rows of each A and the first columns of each B.
///
/// Of an adapter from [`exact_mean`] that keeps what matters most.
///
/// # Errors
///
/// [`AggregateError::Projections`] if `to` differs in more than the rank, and
/// [`AggregateError::Rank`] if a rank of it is higher.
pub fn truncate(adapter: &Adapter, to: &Arc<Layout>) -> Result<Adapter, AggregateError> {
    let targets = factor_pairs(to)?;
    let pairs = same_projections(to, &targets, adapter.layout())?;
    let mut values = vec![0.0; to.len()];
    for (pair, target) in pairs.iter().zip(&targets) {
        if target.rank > pair.rank {
            return Err(AggregateError::Rank {
                tensor: to.tensors()[target.a].name.clone(),
                got: pair.rank,
                wanted: target.rank,
            });
        }
        let a = &adapter.tensor(pair.a)[..target.rank * target.input];
        values[to.range(target.a)].copy_from_slice(a);
        let b = adapter.tensor(pair.b).chunks_exact(pair.rank);
        let cut = values[to.range(target.b)].chunks_exact_mut(target.rank);
        cut.zip(b)
            .for_each(|(cut, row)| cut.copy_from_slice(&row[..target.rank]));
    }
    Ok(Adapter::new(to.clone(), values)?)
}

/// The mean of one projection's products, factorised.
struct Product {
    pair: FactorPair,
    /// `[rank, input]`.
    a: Vec<f32>,
    /// `[output, rank]`.
    b: Vec<f32>,
    /// The sum of the squares of the singular values that were kept.
    kept: f64,
    /// And of those that were not.
    dropped: f64,
    squares: Squares,
}

impl Product {
    fn of(target: &Layout, stack: &Stack<'_>, equal: bool) -> Result<Self, AggregateError> {
        let pair = stack.pair;
        let name = &target.tensors()[pair.a].name;
        let mut b = stack.b_columns();
        let shares = stack
            .parts()
            .flat_map(|(rank, share)| std::iter::repeat_n(share, rank));
        for (at, share) in shares.enumerate() {
            b.column_mut(at)
                .iter_mut()
                .for_each(|value| *value *= share);
        }
        let squares = match equal {
            true => Some(Squares::of(stack)?),
            false => None,
        };
        let square = squares.map(Squares::product);
        let svd = product_svd(b, stack.a_columns(), pair.rank, square)?;
        let (a, b) = factors(&svd, pair, name);
        Ok(Self {
            pair,
            a,
            b,
            kept: svd.sigma.iter().map(|sigma| sigma * sigma).sum(),
            dropped: svd.dropped,
            squares: squares.unwrap_or_default(),
        })
    }
}

/// A `[rank, input]` and B `[output, rank]` of a decomposition.
fn factors(svd: &Svd, pair: FactorPair, name: &str) -> (Vec<f32>, Vec<f32>) {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(pair.rank);
    let mut b = vec![0.0; pair.output * pair.rank];
    for k in 0..svd.known() {
        let sign = sign(svd.v.column(k));
        rows.push(svd.v.column(k).iter().map(|value| sign * value).collect());
        let weight = sign * svd.sigma[k] / ROW_LENGTH;
        for (row, value) in svd.u.column(k).iter().enumerate() {
            b[row * pair.rank + k] = (weight * value) as f32;
        }
    }
    complete(&mut rows, pair.rank, pair.input, seed(name));
    let a = rows
        .iter()
        .flatten()
        .map(|value| (ROW_LENGTH * value) as f32);
    (a.collect(), b)
}

/// -1 if the largest entry is negative; of several, the first one counts.
fn sign(values: &[f64]) -> f64 {
    let largest =
        values
            .iter()
            .copied()
            .reduce(|largest, value| match value.abs() > largest.abs() {
                true => value,
                false => largest,
            });
    match largest.is_some_and(|largest| largest < 0.0) {
        true => -1.0,
        false => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use fedllm_shared::ClientId;
    use proptest::prelude::*;

    use super::super::testing::{
        Dense, Update, culprit, distance, forged, layout, mean_of_products, norm, product_of_means,
        products_of,
    };
    use super::*;

    const SHAPES: [(u32, u32); 3] = [(12, 9), (5, 9), (10, 14)];

    fn updates(ranks: &[u32]) -> Vec<Update> {
        let update =
            |(index, rank): (usize, &u32)| Update::random(index as u8, &layout(&SHAPES, *rank));
        ranks.iter().enumerate().map(update).collect()
    }

    fn exact(rank: u32, updates: &[Update]) -> Result<ExactMean, AggregateError> {
        let sources = updates.iter().map(Update::source).collect();
        exact_mean(&layout(&SHAPES, rank), Codec::F32, sources)
    }

    /// A and B of a pair, A as rows, B as columns.
    fn vectors(adapter: &Adapter, at: usize) -> (Dense, Dense) {
        let pair = factor_pairs(adapter.layout()).unwrap()[at];
        let value = |tensor: usize, place: usize| f64::from(adapter.tensor(tensor)[place]);
        let row = |k: usize| {
            (0..pair.input)
                .map(|j| value(pair.a, k * pair.input + j))
                .collect()
        };
        let column = |k: usize| {
            (0..pair.output)
                .map(|j| value(pair.b, j * pair.rank + k))
                .collect()
        };
        (
            (0..pair.rank).map(row).collect(),
            (0..pair.rank).map(column).collect(),
        )
    }

    fn dot(left: &[f64], right: &[f64]) -> f64 {
        left.iter()
            .zip(right)
            .map(|(left, right)| left * right)
            .sum()
    }

    /// The eigenvalues of MᵀM in falling order, by Jacobi's rotations.
    fn squared_sigmas(m: &Dense) -> Vec<f64> {
        let n = m[0].len();
        let entry = |i: usize, j: usize| m.iter().map(|row| row[i] * row[j]).sum::<f64>();
        let mut s: Dense = (0..n)
            .map(|i| (0..n).map(|j| entry(i, j)).collect())
            .collect();
        for _ in 0..30 {
            for p in 0..n {
                for q in p + 1..n {
                    if s[p][q].abs() < 1e-300 {
                        continue;
                    }
                    let theta = (s[q][q] - s[p][p]) / (2.0 * s[p][q]);
                    let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                    let c = 1.0 / t.hypot(1.0);
                    let rotated = |x: f64, y: f64| (c * x - t * c * y, t * c * x + c * y);
                    for row in &mut s {
                        (row[p], row[q]) = rotated(row[p], row[q]);
                    }
                    let (above, below) = s.split_at_mut(q);
                    for (x, y) in above[p].iter_mut().zip(&mut below[0]) {
                        (*x, *y) = rotated(*x, *y);
                    }
                }
            }
        }
        let mut values: Vec<_> = (0..n).map(|i| s[i][i].max(0.0)).collect();
        values.sort_by(|left, right| right.total_cmp(left));
        values
    }

    #[test]
    fn a_rank_that_is_high_enough_gives_the_mean_itself() {
        // 2 + 4 + 8 = 14; the second projection has no more than 5.
        let mut updates = updates(&[2, 4, 8]);
        updates[1].scale = 0.25;
        let mean = exact(14, &updates).unwrap();
        let expected = mean_of_products(&updates);
        assert!(distance(&products_of(&mean.adapter), &expected) < 1e-6);
        assert_eq!(mean.gap, None);
        assert!(mean.discarded < 1e-12, "{}", mean.discarded);
    }

    #[test]
    fn a_lower_rank_keeps_the_largest_directions() {
        for ranks in [&[2, 4, 8][..], &[3, 3], &[1, 2]] {
            let updates = updates(ranks);
            let expected = mean_of_products(&updates);
            let rank = 2;
            let mean = exact(rank as u32, &updates).unwrap();
            let (mut dropped, mut all) = (0.0, 0.0);
            for (at, m) in expected.iter().enumerate() {
                let squares = squared_sigmas(m);
                let (a, b) = vectors(&mean.adapter, at);
                for k in 0..rank {
                    let sigma = (dot(&a[k], &a[k]) * dot(&b[k], &b[k])).sqrt();
                    assert!((sigma / squares[k].sqrt() - 1.0).abs() < 1e-6, "{at} {k}");
                    // Nothing of what is left out is along what is kept.
                    let product: Dense = m
                        .iter()
                        .enumerate()
                        .map(|(i, row)| {
                            let kept = |j: usize| (0..rank).map(|k| b[k][i] * a[k][j]).sum::<f64>();
                            row.iter()
                                .enumerate()
                                .map(|(j, value)| value - kept(j))
                                .collect()
                        })
                        .collect();
                    let along_v: Vec<_> = product.iter().map(|row| dot(row, &a[k])).collect();
                    assert!(
                        dot(&along_v, &along_v).sqrt() < 1e-6 * squares[0].sqrt(),
                        "{at} {k}"
                    );
                    let column = |j: usize| product.iter().map(|row| row[j]).collect::<Vec<_>>();
                    let along_u: Vec<_> = (0..m[0].len()).map(|j| dot(&column(j), &b[k])).collect();
                    assert!(dot(&along_u, &along_u).sqrt() < 1e-6 * squares[0].sqrt() * sigma);
                }
                dropped += squares[rank..].iter().sum::<f64>();
                all += squares.iter().sum::<f64>();
            }
            let discarded = (dropped / all).sqrt();
            assert!(
                (mean.discarded - discarded).abs() < 1e-7,
                "{} {discarded}",
                mean.discarded
            );
            assert!((distance(&products_of(&mean.adapter), &expected) - discarded).abs() < 1e-6);
        }
    }

    #[test]
    fn rows_of_a_are_orthogonal_and_as_long_as_new_ones() {
        for (rank, updates) in [
            (3, updates(&[2, 4])),
            (8, updates(&[2])),
            (4, updates(&[4, 4, 4])),
        ] {
            let mean = exact(rank, &updates).unwrap();
            for at in 0..SHAPES.len() {
                let (a, b) = vectors(&mean.adapter, at);
                for (k, row) in a.iter().enumerate() {
                    assert!((dot(row, row) - 1.0 / 3.0).abs() < 1e-6);
                    assert!(a[..k].iter().all(|other| dot(row, other).abs() < 1e-6));
                }
                let lengths: Vec<_> = b.iter().map(|column| dot(column, column)).collect();
                assert!(
                    lengths.is_sorted_by(|left, right| left >= right),
                    "{lengths:?}"
                );
                for (row, length) in a.iter().zip(&lengths) {
                    let largest = row
                        .iter()
                        .max_by(|l, r| l.abs().total_cmp(&r.abs()))
                        .unwrap();
                    assert!(*length == 0.0 || *largest > 0.0);
                }
            }
        }
    }

    #[test]
    fn one_client_gets_its_own_product_back() {
        let updates = updates(&[4]);
        let mean = exact(4, &updates).unwrap();
        let expected = mean_of_products(&updates);
        assert!(distance(&products_of(&mean.adapter), &expected) < 1e-6);
        assert_eq!(mean.gap, Some(0.0));
        assert!(mean.discarded < 1e-12);
    }

    #[test]
    fn directions_without_weight_are_like_new_ones() {
        // Nobody has learned anything: B is zero and stays so.
        let start = layout(&SHAPES, 3);
        let still = |index: u8| {
            let mut values = Update::random(index, &start).start.into_values();
            for pair in factor_pairs(&start).unwrap() {
                values[start.range(pair.b)].fill(0.0);
            }
            Update::new(
                index,
                Adapter::new(start.clone(), values).unwrap(),
                vec![0.0; start.len()],
            )
        };
        let updates: Vec<_> = (0..3).map(still).collect();
        let mean = exact(4, &updates).unwrap();
        assert_eq!(norm(&products_of(&mean.adapter)), 0.0);
        assert_eq!((mean.gap, mean.discarded), (Some(0.0), 0.0));
        let (a, b) = vectors(&mean.adapter, 2);
        assert!(b.iter().flatten().all(|value| *value == 0.0));
        assert!(a.iter().all(|row| (dot(row, row) - 1.0 / 3.0).abs() < 1e-6));
        // Other projections begin elsewhere.
        assert_ne!(vectors(&mean.adapter, 0).0, vectors(&mean.adapter, 1).0);
    }

    #[test]
    fn equal_ranks_say_what_averaging_apart_would_lose() {
        let updates = updates(&[3, 3, 3]);
        let expected = distance(&product_of_means(&updates), &mean_of_products(&updates));
        let gap = exact(5, &updates).unwrap().gap.unwrap();
        assert!((gap - expected).abs() < 1e-9, "{gap} {expected}");
        let sources = updates.iter().map(Update::source).collect();
        assert_eq!(super::super::product_gap(Codec::F32, sources).unwrap(), gap);
    }

    #[test]
    fn a_cut_adapter_is_the_best_of_its_rank() {
        let updates = updates(&[2, 4, 8]);
        let whole = exact(8, &updates).unwrap();
        for rank in [8, 5, 1] {
            let to = layout(&SHAPES, rank);
            let cut = truncate(&whole.adapter, &to).unwrap();
            let direct = exact(rank, &updates).unwrap();
            assert_eq!(cut, direct.adapter, "{rank}");
        }
        let higher = truncate(&whole.adapter, &layout(&SHAPES, 9));
        assert!(matches!(
            higher,
            Err(AggregateError::Rank {
                got: 8,
                wanted: 9,
                ..
            })
        ));
        let other = truncate(&whole.adapter, &layout(&[(12, 9), (5, 9), (10, 13)], 2));
        assert!(
            matches!(other, Err(AggregateError::Projections(name)) if name == "2.lora_A.weight")
        );
        let fewer = truncate(&whole.adapter, &layout(&SHAPES[..2], 2));
        assert!(matches!(fewer, Err(AggregateError::Projections(_))));
    }

    #[test]
    fn a_bad_update_is_named() {
        let sound = updates(&[2, 4, 8]);
        let mut cut = sound.clone();
        cut[2].bytes.pop();
        assert_eq!(culprit(exact(4, &cut)), ClientId([2; 32]));
        let mut wild = sound.clone();
        let mut values = wild[1].delta.values().to_vec();
        *values.last_mut().unwrap() = f32::INFINITY;
        wild[1].bytes = forged(wild[1].start.layout(), &values);
        assert_eq!(culprit(exact(4, &wild)), ClientId([1; 32]));
        let mut other = sound.clone();
        other[0] = Update::random(0, &layout(&[(12, 9), (6, 9), (10, 14)], 2));
        assert_eq!(culprit(exact(4, &other)), ClientId([0; 32]));
        assert!(matches!(exact(4, &[]), Err(AggregateError::NoWeight(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_mean_is_right_whatever_the_shapes(
            shapes in proptest::collection::vec((1u32..20, 1u32..20), 1..4),
            ranks in proptest::collection::vec(1u32..6, 1..5),
            rank in 1u32..24,
            shuffle in Just((0..5usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let update = |(index, rank): (usize, &u32)| Update::random(index as u8, &layout(&shapes, *rank));
            let updates: Vec<_> = ranks.iter().enumerate().map(update).collect();
            let target = layout(&shapes, rank);
            let sources = updates.iter().map(Update::source).collect();
            let mean = exact_mean(&target, Codec::F32, sources).unwrap();
            let expected = mean_of_products(&updates);
            let distance = distance(&products_of(&mean.adapter), &expected);
            prop_assert!((distance - mean.discarded).abs() < 1e-5, "{distance} {}", mean.discarded);
            let total: u32 = ranks.iter().sum();
            if rank >= total {
                prop_assert!(distance < 1e-5, "{distance}");
            }
            let shuffled = shuffle.iter().filter_map(|index| updates.get(*index));
            let sources = shuffled.map(Update::source).collect();
            prop_assert_eq!(exact_mean(&target, Codec::F32, sources).unwrap(), mean);
        }
    }
}
