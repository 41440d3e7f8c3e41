//! The weighted mean of a round's deltas, on a burn device.

use std::io::Read;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use fedllm_shared::{AdapterError, ClientId, Codec, CodecError, Delta, DeltaDecoder, Layout};
use thiserror::Error;

use super::BLOCK;

/// Where one update of a round comes from; it is not read yet.
pub struct Source<O> {
    /// Whose it is.
    pub client: ClientId,
    /// What it counts; only the ratio to the others matters.
    pub weight: f64,
    /// What its values are multiplied with: 1, or less for a delta that is too long.
    pub scale: f64,
    /// Opens the encoded delta.
    pub open: O,
}

/// Why a round could not be averaged. Updates were checked when they came, so this is our fault.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// No update, or none with a weight.
    #[error("there is nothing to average: the weights sum to {0}")]
    NoWeight(f64),
    /// An update cannot be read back.
    #[error("the update of client {client}: {source}")]
    Update {
        /// Whose it is.
        client: ClientId,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The mean is not finite: the updates are too large.
    #[error("the mean of the updates: {0}")]
    Mean(#[from] AdapterError),
    /// The device failed.
    #[error("the device that averages: {0}")]
    Device(String),
}

/// The mean of `updates`, weighted.
///
/// The flattened vector is cut into blocks, each a tensor on `device`. Updates are added one after
/// the other in the order of their clients' identities, so the result does not depend, not even in
/// its last bit, on the order in which they came. In memory are the mean, and one block of one
/// update. Sums are `f32`: with n updates the error is below n times 6e-8 of the largest value.
///
/// # Errors
///
/// [`AggregateError`]; then nothing was averaged.
pub fn weighted_mean<R: Read, E>(
    layout: &Arc<Layout>,
    codec: Codec,
    mut updates: Vec<Source<impl FnOnce() -> Result<R, E>>>,
    device: &Device,
) -> Result<Delta, AggregateError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    updates.sort_by_key(|update| update.client);
    let total: f64 = updates.iter().map(|update| update.weight).sum();
    if !(total > 0.0 && total.is_finite()) {
        return Err(AggregateError::NoWeight(total));
    }
    let mut sums: Vec<Option<Tensor<1>>> = vec![None; layout.len().div_ceil(BLOCK)];
    for update in updates {
        let client = update.client;
        let failed = |source| AggregateError::Update { client, source };
        let reader = (update.open)().map_err(|error| failed(Box::new(error)))?;
        let share = (update.weight * update.scale / total) as f32;
        add(layout, codec, reader, share, &mut sums, device)
            .map_err(|error| failed(Box::new(error)))?;
    }
    collect(layout, sums)
}

/// Adds `share` times one update, block by block.
fn add(
    layout: &Arc<Layout>,
    codec: Codec,
    reader: impl Read,
    share: f32,
    sums: &mut [Option<Tensor<1>>],
    device: &Device,
) -> Result<(), CodecError> {
    let mut decoder = DeltaDecoder::new(layout.clone(), codec, reader)?;
    for (index, sum) in sums.iter_mut().enumerate() {
        let start = index * BLOCK;
        let mut block = vec![0.0; BLOCK.min(layout.len() - start)];
        decoder.next_block(&mut block)?;
        let len = block.len();
        let part = Tensor::<1>::from_data(TensorData::new(block, [len]), device) * share;
        *sum = Some(match sum.take() {
            Some(sum) => sum + part,
            None => part,
        });
    }
    Ok(())
}

fn collect(layout: &Arc<Layout>, sums: Vec<Option<Tensor<1>>>) -> Result<Delta, AggregateError> {
    let mut values = Vec::with_capacity(layout.len());
    for sum in sums.into_iter().flatten() {
        let device = |error: &dyn std::fmt::Display| AggregateError::Device(error.to_string());
        let data = sum.try_into_data().map_err(|error| device(&error))?;
        values.extend_from_slice(data.as_slice::<f32>().map_err(|error| device(&error))?);
    }
    Ok(Delta::new(layout.clone(), values)?)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use fedllm_shared::{TensorSpec, WeightedMean, encode_delta};

    use super::*;

    /// Two blocks and a bit, in three tensors.
    fn layout() -> Arc<Layout> {
        let spec = |name: &str, rows| TensorSpec {
            name: name.into(),
            rows,
            cols: 1024,
        };
        let specs = vec![spec("a", 900), spec("b", 1200), spec("c", 7)];
        Arc::new(Layout::new(specs).unwrap())
    }

    fn deltas(layout: &Arc<Layout>) -> Vec<(ClientId, f64, Vec<u8>)> {
        let make = |index: u8| {
            let mut state = u64::from(index) + 1;
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 40) as f32 / (1 << 24) as f32 - 0.5
            };
            let values = (0..layout.len()).map(|_| next() * 1e-3).collect();
            let delta = Delta::new(layout.clone(), values).unwrap();
            let bytes = encode_delta(&delta, Codec::Bf16).unwrap();
            (ClientId([index; 32]), f64::from(index) * 37.0 + 5.0, bytes)
        };
        (0..7).map(make).collect()
    }

    fn update<'a>(
        (client, weight, bytes): &'a (ClientId, f64, Vec<u8>),
    ) -> Source<impl FnOnce() -> Result<&'a [u8], Infallible>> {
        Source {
            client: *client,
            weight: *weight,
            scale: 1.0,
            open: || Ok(bytes.as_slice()),
        }
    }

    #[test]
    fn the_mean_is_that_of_the_scalar_reference() {
        let layout = layout();
        let deltas = deltas(&layout);
        let mut reference = WeightedMean::new(layout.clone());
        for (client, weight, bytes) in &deltas {
            reference.begin(*client, *weight, 1.0).unwrap();
            let decoder = DeltaDecoder::new(layout.clone(), Codec::Bf16, bytes.as_slice());
            reference
                .add(&decoder.unwrap().read_all().unwrap())
                .unwrap();
        }
        let expected = reference.finish().unwrap();
        let updates = deltas.iter().map(update).collect();
        let device = Device::flex();
        let mean = weighted_mean(&layout, Codec::Bf16, updates, &device).unwrap();
        let worst = mean
            .values()
            .iter()
            .zip(expected.values())
            .map(|(a, b)| (a - b).abs());
        let worst = worst.fold(0.0, f32::max);
        assert!(worst < 7.0 * 6e-8 * 5e-4, "{worst}");
    }

    #[test]
    fn the_order_of_arrival_changes_no_bit() {
        let layout = layout();
        let mut deltas = deltas(&layout);
        let device = Device::flex();
        let mut mean = || {
            let updates = deltas.iter().map(update).collect();
            let mean = weighted_mean(&layout, Codec::Bf16, updates, &device).unwrap();
            deltas.rotate_left(3);
            deltas.swap(0, 5);
            mean
        };
        let first = mean();
        assert_eq!(first, mean());
        assert_eq!(first, mean());
    }

    #[test]
    fn a_scaled_update_weighs_as_much_and_moves_less() {
        let layout = layout();
        let deltas = deltas(&layout);
        let half = Source {
            scale: 0.5,
            ..update(&deltas[1])
        };
        let device = Device::flex();
        let whole = vec![update(&deltas[1])];
        let whole = weighted_mean(&layout, Codec::Bf16, whole, &device).unwrap();
        let half = weighted_mean(&layout, Codec::Bf16, vec![half], &device).unwrap();
        let ratio = half.l2_norm() / whole.l2_norm();
        assert!((ratio - 0.5).abs() < 1e-6, "{ratio}");
    }

    #[test]
    fn what_cannot_be_averaged_is_named() {
        let layout = layout();
        let deltas = deltas(&layout);
        let device = Device::flex();
        let none = deltas[..0].iter().map(update).collect();
        let empty = weighted_mean(&layout, Codec::Bf16, none, &device);
        assert!(matches!(empty, Err(AggregateError::NoWeight(_))));
        let updates = vec![update(&deltas[2])];
        let wrong = weighted_mean(&layout, Codec::F32, updates, &device);
        let Err(AggregateError::Update { client, .. }) = wrong else {
            panic!("another codec was accepted");
        };
        assert_eq!(client, deltas[2].0);
    }
}
