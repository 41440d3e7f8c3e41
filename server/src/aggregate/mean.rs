//! Weighted sums of a round's updates, streamed from their encoded bytes.

use std::io::Read;
use std::sync::Arc;

use burn::tensor::Device;
use fedllm_shared::{ClientId, Codec, Delta, DeltaDecoder, Layout};
use rayon::prelude::*;

use super::AggregateError;
use super::sums::{Sums, accumulate, blocks};

/// How many updates are open at a time. Their blocks are decoded side by side and summed in one
/// pass; more would only cost memory.
const GROUP: usize = 8;

/// Where one update of a round comes from; it is not read yet.
pub struct Source<O> {
    /// Whose it is.
    pub client: ClientId,
    /// What its values are multiplied with: those before the split, and those from there on.
    pub shares: [f64; 2],
    /// Opens the encoded delta.
    pub open: O,
}

/// One update of a round that is in memory already.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Whose it is.
    pub client: ClientId,
    /// What its values are multiplied with: those before the split, and those from there on.
    pub shares: [f64; 2],
    /// Its values in layout order.
    pub values: &'a [f32],
}

/// The sum of `updates`, each multiplied with its shares.
///
/// Value `j` of the result is `Σ_i shares[i][0] · value_i[j]` before `split`, and `shares[i][1]`
/// counts from there on: SCAFFOLD's updates carry the adapter's delta and after it the control
/// variate's. Where an update is one vector, `split` is the layout's length.
///
/// Clients are added in the order of their identities, so the result does not depend, not even in
/// its last bit, on the order in which they came. In memory are the sum, and of a handful of
/// updates one block and the decoder each, however many there are. Sums are `f32`: with n updates
/// the error is below n times 6e-8 of the largest value. The CPU decodes and adds on all cores; on
/// another device each block is a tensor, and the sums come back when all are added.
///
/// # Errors
///
/// [`AggregateError`]; then nothing was summed.
pub fn weighted_sum<R, E>(
    layout: &Arc<Layout>,
    split: usize,
    codec: Codec,
    mut updates: Vec<Source<impl FnOnce() -> Result<R, E>>>,
    device: &Device,
) -> Result<Delta, AggregateError>
where
    R: Read + Send,
    E: std::error::Error + Send + Sync + 'static,
{
    updates.sort_by_key(|update| update.client);
    let shares = updates.iter().map(|update| (update.client, update.shares));
    check_shares(shares)?;
    let mut sums = Sums::new(layout.len(), split, device);
    let mut updates = updates.into_iter();
    loop {
        let opened = updates.by_ref().take(GROUP);
        let mut group = opened
            .map(|update| Open::new(layout, codec, update))
            .collect::<Result<Vec<_>, _>>()?;
        if group.is_empty() {
            break;
        }
        for block in sums.blocks() {
            fill(&mut group, block.range.len())?;
            let parts: Vec<_> = group
                .iter()
                .map(|open| (open.block.as_slice(), open.shares[block.half] as f32))
                .collect();
            sums.add(&block, &parts)?;
        }
    }
    Ok(Delta::new(layout.clone(), sums.finish()?)?)
}

/// The sum of [`weighted_sum`], of updates that are in memory, on the CPU.
///
/// # Errors
///
/// [`AggregateError`]; then nothing was summed.
pub fn weighted_sum_held(
    layout: &Arc<Layout>,
    split: usize,
    updates: &[Held<'_>],
) -> Result<Delta, AggregateError> {
    let mut updates: Vec<_> = updates.iter().collect();
    updates.sort_by_key(|update| update.client);
    check_shares(updates.iter().map(|update| (update.client, update.shares)))?;
    for update in &updates {
        let (expected, got) = (layout.len(), update.values.len());
        if expected != got {
            let error = fedllm_shared::AdapterError::Length { expected, got };
            return Err(AggregateError::update(update.client, error));
        }
    }
    let mut sums = vec![0.0; layout.len()];
    for block in blocks(layout.len(), split, layout.len()) {
        let parts: Vec<_> = updates
            .iter()
            .map(|update| {
                let values = &update.values[block.range.clone()];
                (values, update.shares[block.half] as f32)
            })
            .collect();
        accumulate(&mut sums[block.range.clone()], &parts);
    }
    Ok(Delta::new(layout.clone(), sums)?)
}

fn check_shares(updates: impl Iterator<Item = (ClientId, [f64; 2])>) -> Result<(), AggregateError> {
    let mut none = true;
    for (client, shares) in updates {
        none = false;
        if let Some(share) = shares.into_iter().find(|share| !share.is_finite()) {
            return Err(AggregateError::Share { client, share });
        }
    }
    match none {
        true => Err(AggregateError::NoWeight(0.0)),
        false => Ok(()),
    }
}

/// An update that is being read, and its block.
struct Open<R: Read> {
    client: ClientId,
    shares: [f64; 2],
    decoder: DeltaDecoder<R>,
    block: Vec<f32>,
}

impl<R: Read> Open<R> {
    fn new<E: std::error::Error + Send + Sync + 'static>(
        layout: &Arc<Layout>,
        codec: Codec,
        update: Source<impl FnOnce() -> Result<R, E>>,
    ) -> Result<Self, AggregateError> {
        let client = update.client;
        let reader = (update.open)().map_err(|error| AggregateError::update(client, error))?;
        let decoder = DeltaDecoder::new(layout.clone(), codec, reader)
            .map_err(|error| AggregateError::update(client, error))?;
        Ok(Self {
            client,
            shares: update.shares,
            decoder,
            block: Vec::new(),
        })
    }
}

/// Reads the next `len` values of each update. Of several that fail, the first one is named.
fn fill<R: Read + Send>(group: &mut [Open<R>], len: usize) -> Result<(), AggregateError> {
    let read = |open: &mut Open<R>| {
        open.block.resize(len, 0.0);
        let read = open.decoder.next_block(&mut open.block);
        read.map_err(|error| AggregateError::update(open.client, error))
    };
    let read: Vec<_> = group.par_iter_mut().map(read).collect();
    read.into_iter().try_for_each(|read| read.map(drop))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use fedllm_models::device::{self, DeviceChoice};
    use fedllm_shared::{TensorSpec, WeightedMean, encode_delta};
    use proptest::prelude::*;

    use super::*;

    /// More than one block on any device, in three tensors.
    fn layout() -> Arc<Layout> {
        let spec = |name: &str, rows| TensorSpec {
            name: name.into(),
            rows,
            cols: 1024,
        };
        let specs = vec![spec("a", 900), spec("b", 1200), spec("c", 7)];
        Arc::new(Layout::new(specs).unwrap())
    }

    struct Made {
        client: ClientId,
        weight: f64,
        delta: Delta,
        bytes: Vec<u8>,
    }

    fn made(layout: &Arc<Layout>, count: u8, codec: Codec) -> Vec<Made> {
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
            let bytes = encode_delta(&delta, codec).unwrap();
            Made {
                client: ClientId([index; 32]),
                weight: f64::from(index) * 37.0 + 5.0,
                delta: fedllm_shared::decode_delta(&bytes, layout, codec).unwrap(),
                bytes,
            }
        };
        (0..count).map(make).collect()
    }

    fn source<'a>(
        made: &'a Made,
        shares: [f64; 2],
    ) -> Source<impl FnOnce() -> Result<&'a [u8], Infallible>> {
        Source {
            client: made.client,
            shares,
            open: || Ok(made.bytes.as_slice()),
        }
    }

    /// The shares of a weighted mean, and the mean.
    fn mean(
        layout: &Arc<Layout>,
        codec: Codec,
        made: &[Made],
        device: &Device,
    ) -> Result<Delta, AggregateError> {
        let total: f64 = made.iter().map(|made| made.weight).sum();
        let sources = made
            .iter()
            .map(|made| source(made, [made.weight / total; 2]));
        weighted_sum(layout, layout.len(), codec, sources.collect(), device)
    }

    /// Shares that differ between clients and halves, some of them negative.
    fn shares(index: usize) -> [f64; 2] {
        let index = index as f64;
        [0.1 + index / 50.0, 0.3 - index / 20.0]
    }

    fn worst(left: &Delta, right: &[f64]) -> f64 {
        let pairs = left.values().iter().zip(right);
        pairs
            .map(|(left, right)| (f64::from(*left) - right).abs())
            .fold(0.0, f64::max)
    }

    /// The sum of two shares in `f64`, written out.
    fn reference(made: &[Made], split: usize) -> Vec<f64> {
        let len = made[0].delta.values().len();
        let value = |place: usize| {
            let half = usize::from(place >= split);
            let terms = made.iter().enumerate();
            terms
                .map(|(index, made)| shares(index)[half] * f64::from(made.delta.values()[place]))
                .sum()
        };
        (0..len).map(value).collect()
    }

    #[test]
    fn the_mean_is_that_of_the_scalar_reference() {
        let layout = layout();
        for codec in [Codec::F32, Codec::Bf16, Codec::Int8Rows] {
            let made = made(&layout, 7, codec);
            let mut reference = WeightedMean::new(layout.clone());
            for made in &made {
                reference.begin(made.client, made.weight, 1.0).unwrap();
                reference.add(made.delta.values()).unwrap();
            }
            let expected = reference.finish().unwrap();
            let expected: Vec<_> = expected.values().iter().map(|v| f64::from(*v)).collect();
            let mean = mean(&layout, codec, &made, &Device::flex()).unwrap();
            let worst = worst(&mean, &expected);
            assert!(worst < 7.0 * 6e-8 * 5e-4, "{codec}: {worst}");
        }
    }

    #[test]
    fn each_half_has_its_own_shares() {
        let layout = layout();
        // More than one group; the split is inside a block and inside a tensor.
        let made = made(&layout, 11, Codec::Bf16);
        for split in [0, 1_000_003, layout.len()] {
            let expected = reference(&made, split);
            let sources = made.iter().enumerate();
            let sources = sources.map(|(index, made)| source(made, shares(index)));
            let device = Device::flex();
            let sources = sources.collect();
            let sum = weighted_sum(&layout, split, Codec::Bf16, sources, &device).unwrap();
            let worst = worst(&sum, &expected);
            assert!(worst < 11.0 * 6e-8 * 5e-4, "{split}: {worst}");
        }
    }

    #[test]
    fn held_updates_give_the_same_bits() {
        let layout = layout();
        let made = made(&layout, 11, Codec::F32);
        let held = |(index, made): (usize, &Made)| {
            let held = Held {
                client: made.client,
                shares: shares(index),
                values: &[],
            };
            (held, made.delta.clone())
        };
        let held: Vec<_> = made.iter().enumerate().map(held).collect();
        let mut held: Vec<_> = held
            .iter()
            .map(|(held, delta)| Held {
                values: delta.values(),
                ..*held
            })
            .collect();
        held.reverse();
        let split = 1_000_003;
        let sources = made.iter().enumerate();
        let sources = sources.map(|(index, made)| source(made, shares(index)));
        let sources = sources.collect();
        let device = Device::flex();
        let streamed = weighted_sum(&layout, split, Codec::F32, sources, &device).unwrap();
        assert_eq!(weighted_sum_held(&layout, split, &held).unwrap(), streamed);
        held[3].values = &held[3].values[1..];
        let short = weighted_sum_held(&layout, split, &held);
        let Err(AggregateError::Update { client, .. }) = short else {
            panic!("too few values were accepted");
        };
        assert_eq!(client, held[3].client);
    }

    #[test]
    fn the_order_of_arrival_changes_no_bit() {
        let layout = layout();
        let mut made = made(&layout, 9, Codec::Bf16);
        let device = Device::flex();
        let mut in_another_order = || {
            let mean = mean(&layout, Codec::Bf16, &made, &device).unwrap();
            made.rotate_left(3);
            made.swap(0, 5);
            mean
        };
        let first = in_another_order();
        assert_eq!(first, in_another_order());
        assert_eq!(first, in_another_order());
    }

    #[test]
    fn what_cannot_be_averaged_is_named() {
        let layout = layout();
        let made = made(&layout, 3, Codec::Bf16);
        let device = Device::flex();
        let none = made[..0]
            .iter()
            .map(|made| source(made, [1.0; 2]))
            .collect();
        let empty = weighted_sum(&layout, 0, Codec::Bf16, none, &device);
        assert!(matches!(empty, Err(AggregateError::NoWeight(_))));
        let sources = vec![source(&made[1], [1.0, f64::NAN])];
        let wrong = weighted_sum(&layout, 0, Codec::Bf16, sources, &device);
        assert!(
            matches!(wrong, Err(AggregateError::Share { client, .. }) if client == made[1].client)
        );
    }

    #[test]
    fn a_damaged_update_is_named() {
        let layout = layout();
        let mut made = made(&layout, 3, Codec::Bf16);
        let device = Device::flex();
        let wrong = mean(&layout, Codec::F32, &made, &device);
        assert!(
            matches!(wrong, Err(AggregateError::Update { client, .. }) if client == made[0].client)
        );
        let cut = made[2].bytes.len() - 1;
        made[2].bytes.truncate(cut);
        let cut = mean(&layout, Codec::Bf16, &made, &device);
        assert!(
            matches!(cut, Err(AggregateError::Update { client, .. }) if client == made[2].client)
        );
    }

    #[test]
    fn a_gpu_gives_the_same_sum() {
        let Some(wish) = std::env::var_os("FEDLLM_TEST_GPU") else {
            eprintln!("skipped: set FEDLLM_TEST_GPU=1 to test the GPU");
            return;
        };
        let Ok(choice) = wish.to_string_lossy().parse::<DeviceChoice>();
        let devices = device::list();
        let gpu = device::open(choice.order(&devices).unwrap()[0]).unwrap();
        let layout = layout();
        let made = made(&layout, 11, Codec::Bf16);
        let split = 1_000_003;
        let sum = |order: &mut dyn Iterator<Item = usize>| {
            let sources = order.map(|index| source(&made[index], shares(index)));
            let sources = sources.collect();
            weighted_sum(&layout, split, Codec::Bf16, sources, &gpu).unwrap()
        };
        let first = sum(&mut (0..made.len()));
        assert_eq!(first, sum(&mut (0..made.len()).rev()));
        let worst = worst(&first, &reference(&made, split));
        assert!(worst < 11.0 * 6e-8 * 5e-4, "{worst}");
    }

    proptest! {
        #[test]
        fn any_number_of_any_length_is_summed(
            lens in proptest::collection::vec(1u32..200, 1..4),
            count in 1u8..20,
            split in 0usize..700,
        ) {
            let spec = |(index, cols): (usize, &u32)| TensorSpec {
                name: index.to_string(),
                rows: 1,
                cols: *cols,
            };
            let specs = lens.iter().enumerate().map(spec).collect();
            let layout = Arc::new(Layout::new(specs).unwrap());
            let made = made(&layout, count, Codec::F32);
            let sources = made.iter().enumerate().rev();
            let sources = sources.map(|(index, made)| source(made, shares(index)));
            let device = Device::flex();
            let sources = sources.collect();
            let sum = weighted_sum(&layout, split, Codec::F32, sources, &device).unwrap();
            let worst = worst(&sum, &reference(&made, split));
            prop_assert!(worst < f64::from(count) * 6e-8 * 5e-4, "{worst}");
        }
    }
}
