//! Scalar reductions: the reference that faster ones are tested against.

use std::sync::Arc;

use crate::adapter::{AdapterError, Delta, Layout};
use crate::id::ClientId;

/// The weighted mean of deltas, one after the other, block by block.
///
/// Sums are `f64` and clients come in the order of their names, so the result
/// does not depend on who was first. Memory is one sum for each value and
/// one block, however many clients there are.
///
/// ```
/// # use std::sync::Arc;
/// # use fedllm_shared::{ClientId, Layout, TensorSpec, WeightedMean};
/// # let spec = TensorSpec { name: "a".into(), rows: 1, cols: 2 };
/// # let layout = Arc::new(Layout::new(vec![spec])?);
/// let mut mean = WeightedMean::new(layout);
/// mean.begin(ClientId([1; 32]), 1.0, 1.0)?;
/// mean.add(&[1.0, 2.0])?;
/// mean.begin(ClientId([2; 32]), 3.0, 1.0)?;
/// mean.add(&[5.0])?;
/// mean.add(&[6.0])?;
/// assert_eq!(mean.finish()?.values(), [4.0, 5.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct WeightedMean {
    layout: Arc<Layout>,
    sums: Vec<f64>,
    total: f64,
    client: Option<ClientId>,
    /// What the client's values are multiplied with.
    factor: f64,
    /// Where the client's next block goes.
    offset: usize,
}

/// A reduction that was fed wrongly, or that has no finite result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReduceError {
    /// A client that is not behind the one before.
    #[error("client {got} came after {last}, out of order")]
    Order {
        /// The client before.
        last: ClientId,
        /// The client now.
        got: ClientId,
    },
    /// A weight or scale that is no positive number.
    #[error("the weight or scale of client {client} is {weight}")]
    Weight {
        /// The client.
        client: ClientId,
        /// Its weight.
        weight: f64,
    },
    /// More or fewer values than the layout has.
    #[error("expected {expected} values of a client, got {got}")]
    Length {
        /// What the layout says.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// No client at all.
    #[error("there is nothing to average")]
    Empty,
    /// A result that is not finite.
    #[error(transparent)]
    Value(#[from] AdapterError),
}

impl WeightedMean {
    /// A mean of nothing yet.
    pub fn new(layout: Arc<Layout>) -> Self {
        let sums = vec![0.0; layout.len()];
        let offset = layout.len();
        Self {
            layout,
            sums,
            total: 0.0,
            client: None,
            factor: 0.0,
            offset,
        }
    }

    /// Turns to the next client's delta, which counts `scale` times.
    ///
    /// `scale` is 1 but for a delta that is clipped; see
    /// [`clip_factor`](crate::clip_factor).
    ///
    /// # Errors
    ///
    /// [`ReduceError`] if the one before is not complete, the client is out
    /// of order or its weight or scale is no positive number.
    pub fn begin(&mut self, client: ClientId, weight: f64, scale: f64) -> Result<(), ReduceError> {
        self.check_complete()?;
        if let Some(last) = self.client.filter(|last| *last >= client) {
            return Err(ReduceError::Order { last, got: client });
        }
        for weight in [weight, scale] {
            if !(weight > 0.0 && weight.is_finite()) {
                return Err(ReduceError::Weight { client, weight });
            }
        }
        self.client = Some(client);
        self.factor = weight * scale;
        self.total += weight;
        self.offset = 0;
        Ok(())
    }

    /// Adds the block that comes next.
    ///
    /// # Errors
    ///
    /// [`ReduceError::Length`] if it goes beyond the layout.
    pub fn add(&mut self, block: &[f32]) -> Result<(), ReduceError> {
        let end = self.offset + block.len();
        let sums = self.sums.get_mut(self.offset..end);
        let sums = sums.ok_or(ReduceError::Length {
            expected: self.layout.len(),
            got: end,
        })?;
        for (sum, value) in sums.iter_mut().zip(block) {
            *sum += self.factor * f64::from(*value);
        }
        self.offset = end;
        Ok(())
    }

    /// The sum of all weights so far.
    pub fn total_weight(&self) -> f64 {
        self.total
    }

    /// Divides the sums by the weights.
    ///
    /// # Errors
    ///
    /// [`ReduceError`] if there is no client, the last one is not complete or
    /// a mean is not finite.
    pub fn finish(self) -> Result<Delta, ReduceError> {
        self.check_complete()?;
        if self.client.is_none() {
            return Err(ReduceError::Empty);
        }
        let means = self.sums.iter().map(|sum| (sum / self.total) as f32);
        Ok(Delta::new(self.layout.clone(), means.collect())?)
    }

    fn check_complete(&self) -> Result<(), ReduceError> {
        let (expected, got) = (self.layout.len(), self.offset);
        match got == expected {
            true => Ok(()),
            false => Err(ReduceError::Length { expected, got }),
        }
    }
}

/// The weighted mean of whole deltas, in whatever order they are given.
///
/// # Errors
///
/// [`ReduceError`] if a client comes twice, a weight is wrong or layouts differ.
pub fn weighted_mean(updates: &[(ClientId, f64, &Delta)]) -> Result<Delta, ReduceError> {
    let mut updates: Vec<_> = updates.iter().collect();
    updates.sort_by_key(|(client, ..)| *client);
    let (_, _, first) = updates.first().ok_or(ReduceError::Empty)?;
    let mut mean = WeightedMean::new(first.layout().clone());
    for (client, weight, delta) in &updates {
        crate::adapter::same_layout(first.layout(), delta.layout())?;
        mean.begin(*client, *weight, 1.0)?;
        mean.add(delta.values())?;
    }
    mean.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::adapter::TensorSpec;

    fn layout(len: u32) -> Arc<Layout> {
        let spec = TensorSpec {
            name: "a".to_owned(),
            rows: 1,
            cols: len,
        };
        Arc::new(Layout::new(vec![spec]).unwrap())
    }

    fn client(index: u8) -> ClientId {
        ClientId([index; 32])
    }

    /// Six clients with one outlier; the mean is from NumPy.
    #[test]
    fn the_mean_is_that_of_the_reference() {
        let vectors = [
            [1.0, 2.0, 3.0],
            [1.1, 1.9, 3.2],
            [0.9, 2.1, 2.8],
            [1.05, 2.05, 3.1],
            [0.95, 1.95, 2.9],
            [100.0, -100.0, 1000.0],
        ];
        let deltas = vectors.map(|values| Delta::new(layout(3), values.to_vec()).unwrap());
        let updates: Vec<_> = deltas
            .iter()
            .enumerate()
            .map(|(index, delta)| (client(index as u8), 1.0, delta))
            .collect();
        let mean = weighted_mean(&updates).unwrap();
        let expected = [17.5, -15.0, 169.166_67];
        assert!(
            mean.values()
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-4)
        );
    }

    #[test]
    fn wrong_feeding_is_an_error() {
        let mut mean = WeightedMean::new(layout(2));
        assert_eq!(mean.clone().finish(), Err(ReduceError::Empty));
        let beyond = ReduceError::Length {
            expected: 2,
            got: 3,
        };
        assert_eq!(mean.add(&[1.0]), Err(beyond));
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = mean.begin(client(1), weight, 1.0).unwrap_err();
            assert!(matches!(error, ReduceError::Weight { .. }));
        }
        mean.begin(client(1), 1.0, 1.0).unwrap();
        mean.add(&[1.0]).unwrap();
        let short = ReduceError::Length {
            expected: 2,
            got: 1,
        };
        assert_eq!(mean.begin(client(2), 1.0, 1.0), Err(short.clone()));
        assert_eq!(mean.clone().finish(), Err(short));
        mean.add(&[1.0]).unwrap();
        for late in [client(0), client(1)] {
            let (last, got) = (client(1), late);
            assert_eq!(
                mean.begin(late, 1.0, 1.0),
                Err(ReduceError::Order { last, got })
            );
        }
    }

    #[test]
    fn a_scaled_delta_weighs_as_much_and_moves_less() {
        let mut mean = WeightedMean::new(layout(1));
        mean.begin(client(1), 1.0, 1.0).unwrap();
        mean.add(&[2.0]).unwrap();
        mean.begin(client(2), 3.0, 0.25).unwrap();
        mean.add(&[8.0]).unwrap();
        assert_eq!(mean.total_weight(), 4.0);
        assert_eq!(mean.finish().unwrap().values(), [2.0]);
    }

    #[test]
    fn large_values_do_not_overflow_on_the_way() {
        let delta = Delta::new(layout(1), vec![f32::MAX]).unwrap();
        let updates = [1, 2, 3].map(|index| (client(index), 1e6, &delta));
        assert_eq!(weighted_mean(&updates).unwrap(), delta);
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_does_not_matter(
            values in proptest::collection::vec(-1e3f32..1e3, 24),
            weights in proptest::collection::vec(1u32..1000, 6),
            shuffle in Just((0u8..6).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let deltas: Vec<_> = values
                .chunks(4)
                .map(|values| Delta::new(layout(4), values.to_vec()).unwrap())
                .collect();
            let update = |index: u8| {
                let place = usize::from(index);
                (client(index), f64::from(weights[place]), &deltas[place])
            };
            let sorted: Vec<_> = (0..6).map(update).collect();
            let shuffled: Vec<_> = shuffle.into_iter().map(update).collect();
            prop_assert_eq!(weighted_mean(&sorted), weighted_mean(&shuffled));
        }
    }
}
