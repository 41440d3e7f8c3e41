//! What averaging A and B apart loses.

use std::io::Read;

use fedllm_shared::{AdapterError, Codec};

use super::AggregateError;
use super::matrix::{self, Mat, Operand};
use super::pairs::{RankedSource, Stack, each_pair};

/// How far the product of the averaged factors is from the average of the products.
///
/// It is `‖B̄·Ā − Σ_i p_i·B_i·A_i‖ / ‖Σ_i p_i·B_i·A_i‖` in the Frobenius norm over all projections
/// together, where `p_i` are the weights divided by their sum, and `Ā` and `B̄` the weighted means
/// of the factors after training. 0 says that averaging the factors apart is as good as averaging
/// what they do to the model: one client, one A for all (FFA-LoRA), or nothing learned at all. It
/// is infinite if what the clients learned cancels out and the product of the means does not.
///
/// All adapters have one layout. Memory is that of a few projections' factors of all clients.
///
/// # Errors
///
/// [`AggregateError`] if an update cannot be read or has another layout, or if there is no weight.
pub fn product_gap<R, E>(
    codec: Codec,
    sources: Vec<RankedSource<'_, impl FnOnce() -> Result<R, E>>>,
) -> Result<f64, AggregateError>
where
    R: Read + Send,
    E: std::error::Error + Send + Sync + 'static,
{
    let first = sources.iter().min_by_key(|source| source.client);
    let layout = first
        .ok_or(AggregateError::NoWeight(0.0))?
        .start
        .layout()
        .clone();
    if let Some(other) = sources
        .iter()
        .find(|source| *source.start.layout() != layout)
    {
        let error = AdapterError::LayoutMismatch {
            expected: layout.digest(),
            got: other.start.layout().digest(),
        };
        return Err(AggregateError::update(other.client, error));
    }
    let squares = each_pair(&layout, codec, sources, |stack| Squares::of(stack))?;
    Ok(squares
        .into_iter()
        .fold(Squares::default(), Squares::plus)
        .gap())
}

/// Squared Frobenius norms of some projections together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Squares {
    /// Of the product of means minus the mean of products.
    apart: f64,
    /// Of the mean of products.
    product: f64,
}

impl Squares {
    /// Those of one projection, whose clients all have one rank.
    ///
    /// The mean of products is `B̄·Ā + Σ_i p_i·(B_i − B̄)·(A_i − A_1)`, since the differences of B
    /// from its mean cancel out whatever they are multiplied with. The second term is the gap: it
    /// is computed as it stands, and not as a difference of two large products, so that a small gap
    /// is exact, and none is 0. It and the whole are products of stacked factors, `L·Rᵀ`, whose
    /// squared norm is the sum of `(LᵀL)∘(RᵀR)`: nothing is larger than the stacks' rank squared.
    pub(super) fn of(stack: &Stack<'_>) -> Result<Self, AggregateError> {
        let shares: Vec<_> = stack.parts().map(|(_, share)| share).collect();
        let rank = stack.rank() / shares.len();
        let (mut a, mut b) = (stack.a_columns(), stack.b_columns());
        let (center_a, center_b) = (center(&mut a, rank, &shares), center(&mut b, rank, &shares));
        // From the differences of the first B to the weighted differences of the mean.
        for at in 0..b.columns() {
            let shift = center_b.shift.column(at % rank);
            let values = b.column_mut(at).iter_mut().zip(shift);
            values.for_each(|(value, shift)| *value = shares[at / rank] * (*value - shift));
        }
        let (a, b) = (gram(a, &center_a.mean)?, gram(b, &center_b.mean)?);
        Ok(Self {
            apart: dot(&a, &b, a.columns() - rank),
            product: dot(&a, &b, a.columns()),
        })
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            apart: self.apart + other.apart,
            product: self.product + other.product,
        }
    }

    /// The squared norm of the mean of products.
    pub(super) fn product(self) -> f64 {
        self.product
    }

    /// The relative distance.
    pub(super) fn gap(self) -> f64 {
        match self.apart > 0.0 {
            true => (self.apart / self.product).sqrt(),
            false => 0.0,
        }
    }
}

/// The mean of one factor of all clients.
struct Center {
    mean: Mat,
    /// The mean minus the first client's.
    shift: Mat,
}

/// Takes the first client's columns off everybody's, and says where the mean is.
fn center(columns: &mut Mat, rank: usize, shares: &[f64]) -> Center {
    let mut first = columns.clone();
    first.truncate(rank);
    let mut shift = Mat::zeros(columns.rows(), rank);
    for at in 0..columns.columns() {
        let share = shares[at / rank];
        let first = first.column(at % rank);
        let shift = shift.column_mut(at % rank);
        for ((value, first), shift) in columns.column_mut(at).iter_mut().zip(first).zip(shift) {
            *value -= first;
            *shift += share * *value;
        }
    }
    let mut mean = first;
    for at in 0..rank {
        let shift = shift.column(at);
        mean.column_mut(at)
            .iter_mut()
            .zip(shift)
            .for_each(|(mean, shift)| *mean += shift);
    }
    Center { mean, shift }
}

/// The Gram matrix of the columns of both, side by side.
fn gram(mut differences: Mat, mean: &Mat) -> Result<Mat, AggregateError> {
    (0..mean.columns()).for_each(|at| differences.push(mean.column(at)));
    Operand::new(differences).gram()
}

/// The sum of the products of the entries of two Gram matrices, up to row and column `len`. It is
/// never negative but for rounding.
fn dot(left: &Mat, right: &Mat, len: usize) -> f64 {
    let columns = (0..len).map(|at| (&left.column(at)[..len], &right.column(at)[..len]));
    let products = columns.map(|(left, right)| matrix::dot(left, right));
    products.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use fedllm_shared::{Adapter, ClientId, Delta, Layout, TensorSpec, encode_delta};
    use proptest::prelude::*;

    use super::super::testing::{
        Update, culprit, distance, forged, layout, mean_of_products, product_of_means,
    };
    use super::*;

    fn gap(updates: &[Update]) -> Result<f64, AggregateError> {
        product_gap(Codec::F32, updates.iter().map(Update::source).collect())
    }

    fn expected(updates: &[Update]) -> f64 {
        distance(&product_of_means(updates), &mean_of_products(updates))
    }

    /// Two clients of one weight, rank 1, 2x2. From A = [1, 0] and B = 0 one goes to A = [1, 0],
    /// B = [2, 0]ᵀ, the other to A = [0, 1], B = [0, 2]ᵀ. The mean of products is the identity, the
    /// product of the means [1, 1]ᵀ·[½, ½] is ½ everywhere: √(4·¼) apart, of √2.
    #[test]
    fn the_gap_is_that_computed_by_hand() {
        let layout = layout(&[(2, 2)], 1);
        let start = Adapter::new(layout, vec![1.0, 0.0, 0.0, 0.0]).unwrap();
        let mut updates = [
            Update::new(1, start.clone(), vec![0.0, 0.0, 2.0, 0.0]),
            Update::new(2, start, vec![-1.0, 1.0, 0.0, 2.0]),
        ];
        updates[1].weight = updates[0].weight;
        let found = gap(&updates).unwrap();
        assert!((found - 0.5f64.sqrt()).abs() < 1e-15, "{found}");
    }

    #[test]
    fn factors_that_everybody_shares_leave_no_gap() {
        let layout = layout(&[(6, 5), (4, 5), (5, 7)], 3);
        let shared = |suffix: &str| {
            let updates = (0..4).map(|index| Update::random(index, &layout));
            let mut updates: Vec<_> = updates.collect();
            let first = updates[0].clone();
            for update in &mut updates {
                let mut delta = update.delta.values().to_vec();
                for (tensor, spec) in layout.tensors().iter().enumerate() {
                    if spec.name.ends_with(suffix) {
                        let range = layout.range(tensor);
                        delta[range.clone()].copy_from_slice(&first.delta.values()[range]);
                    }
                }
                *update = Update {
                    weight: update.weight,
                    ..Update::new(update.client.0[0], first.start.clone(), delta)
                };
            }
            updates
        };
        for suffix in ["lora_A.weight", "lora_B.weight"] {
            let updates = shared(suffix);
            assert_eq!(gap(&updates).unwrap(), 0.0, "{suffix}");
        }
        let none = shared("neither");
        assert!(gap(&none).unwrap() > 1e-3);
        assert_eq!(gap(&none[..1]).unwrap(), 0.0);
    }

    #[test]
    fn zeros_have_no_gap_and_what_cancels_out_an_infinite_one() {
        let layout = layout(&[(2, 2)], 1);
        let zero = Adapter::zeros(layout.clone());
        let still: Vec<_> = (0..3)
            .map(|index| Update::new(index, zero.clone(), vec![0.0; 4]))
            .collect();
        assert_eq!(gap(&still).unwrap(), 0.0);
        // 1·1, 1·0 and -1·½ twice: the products sum to nothing, the means do not.
        let one = |index, a: f32, b: f32| Update {
            weight: 1.0,
            ..Update::new(index, zero.clone(), vec![a, 0.0, b, 0.0])
        };
        let updates = [
            one(1, 1.0, 1.0),
            one(2, 1.0, 0.0),
            one(3, -1.0, 0.5),
            one(4, -1.0, 0.5),
        ];
        assert_eq!(gap(&updates).unwrap(), 0.0);
        let updates = [
            one(1, 1.0, 1.0),
            one(2, 2.0, 0.0),
            one(3, -1.0, 0.5),
            one(4, -1.0, 0.5),
        ];
        assert_eq!(gap(&updates).unwrap(), f64::INFINITY);
    }

    #[test]
    fn a_small_gap_is_not_lost_in_rounding() {
        let layout = layout(&[(30, 20), (10, 20)], 4);
        let start = Update::random(9, &layout).start;
        let small = |index: u8| {
            let delta = Update::random(index, &layout).delta.into_values();
            Update::new(
                index,
                start.clone(),
                delta.iter().map(|value| 1e-5 * value).collect(),
            )
        };
        let updates: Vec<_> = (0..5).map(small).collect();
        let (found, expected) = (gap(&updates).unwrap(), expected(&updates));
        assert!(expected < 1e-8, "{expected}");
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
    }

    #[test]
    fn a_bad_update_is_named() {
        let layout = layout(&[(3, 4)], 2);
        let mut updates: Vec<_> = (0..3).map(|index| Update::random(index, &layout)).collect();
        let sound = updates[1].bytes.clone();
        updates[1].bytes.truncate(sound.len() - 1);
        assert_eq!(culprit(gap(&updates)), ClientId([1; 32]));
        let mut values = updates[1].delta.values().to_vec();
        updates[1].bytes = forged(&layout, &values);
        assert!((gap(&updates).unwrap() - expected(&updates)).abs() < 1e-12);
        values[13] = f32::NAN;
        updates[1].bytes = forged(&layout, &values);
        assert_eq!(culprit(gap(&updates)), ClientId([1; 32]));
        let other = super::super::testing::layout(&[(3, 4)], 1);
        updates[1] = Update::random(1, &other);
        assert_eq!(culprit(gap(&updates)), ClientId([1; 32]));
        assert!(matches!(gap(&[]), Err(AggregateError::NoWeight(_))));
    }

    #[test]
    fn what_follows_the_factors_is_not_read() {
        let plain = layout(&[(3, 4)], 2);
        let mut longer = plain.tensors().to_vec();
        longer.extend(plain.tensors().iter().map(|spec| TensorSpec {
            name: format!("variate.{}", spec.name),
            ..spec.clone()
        }));
        let longer = Arc::new(Layout::new(longer).unwrap());
        let updates: Vec<_> = (0..3).map(|index| Update::random(index, &plain)).collect();
        let longer_updates: Vec<_> = updates
            .iter()
            .map(|update| {
                let values = [update.delta.values(), &[7.0; 14]].concat();
                let delta = Delta::new(longer.clone(), values).unwrap();
                let bytes = encode_delta(&delta, Codec::F32).unwrap();
                (update, delta, bytes)
            })
            .collect();
        let found = |layout: &Arc<Layout>| {
            let sources = longer_updates
                .iter()
                .map(|(update, _, bytes)| RankedSource {
                    client: update.client,
                    weight: update.weight,
                    scale: update.scale,
                    start: &update.start,
                    layout,
                    open: || Ok::<_, Infallible>(bytes.as_slice()),
                });
            product_gap(Codec::F32, sources.collect())
        };
        assert_eq!(found(&longer).unwrap(), gap(&updates).unwrap());
        let other = super::super::testing::layout(&[(3, 5)], 2);
        assert_eq!(culprit(found(&other)), ClientId([0; 32]));
    }

    proptest! {
        #[test]
        fn the_gap_is_that_of_dense_products(
            shapes in proptest::collection::vec((1u32..12, 1u32..12), 1..4),
            rank in 1u32..5,
            count in 1u8..6,
            scale in 0.1f64..1.0,
        ) {
            let layout = layout(&shapes, rank);
            let mut updates: Vec<_> = (0..count).map(|index| Update::random(index, &layout)).collect();
            updates[0].scale = scale;
            let found = gap(&updates).unwrap();
            prop_assert!((found - expected(&updates)).abs() < 1e-9 * (1.0 + found));
            updates.reverse();
            prop_assert_eq!(gap(&updates).unwrap(), found);
        }
    }
}
