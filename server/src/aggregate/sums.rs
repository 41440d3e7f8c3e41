//! Where a sum of updates grows: in memory, or block by block on a device.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use fedllm_models::device::run_checked;
use fedllm_models::ops::is_cpu;
use rayon::prelude::*;

use super::AggregateError;

/// Values in a block that a device gets: 4 MiB of `f32`, enough for a GPU.
const DEVICE_BLOCK: usize = 1 << 20;
/// Values in a block on the CPU: the blocks of a group of updates stay in its caches together.
const HOST_BLOCK: usize = 1 << 16;
/// Values that one thread sums before it takes others.
const CHUNK: usize = 1 << 13;

/// Values that are summed at once, all on one side of the split.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block {
    /// Their place in the sum.
    pub(super) range: Range<usize>,
    /// 0 before the split, 1 from there on.
    pub(super) half: usize,
    /// The number of the block.
    index: usize,
}

/// Cuts `len` values into blocks of at most `size` that do not reach across `split`.
pub(super) fn blocks(len: usize, split: usize, size: usize) -> Vec<Block> {
    let split = split.min(len);
    let halves = [(0, 0..split), (1, split..len)];
    let ranges = halves.into_iter().flat_map(|(half, all)| {
        let starts = all.clone().step_by(size);
        starts.map(move |start| (half, start..all.end.min(start + size)))
    });
    ranges
        .enumerate()
        .map(|(index, (half, range))| Block { range, half, index })
        .collect()
}

/// A sum that grows.
pub(super) struct Sums {
    blocks: Vec<Block>,
    place: Place,
}

enum Place {
    Host(Vec<f32>),
    Device {
        device: Device,
        sums: Vec<Option<Tensor<1>>>,
    },
}

impl Sums {
    /// A sum of nothing yet, of `len` values.
    pub(super) fn new(len: usize, split: usize, device: &Device) -> Self {
        if is_cpu(device) {
            let blocks = blocks(len, split, HOST_BLOCK);
            let place = Place::Host(vec![0.0; len]);
            return Self { blocks, place };
        }
        let blocks = blocks(len, split, DEVICE_BLOCK);
        let place = Place::Device {
            device: device.clone(),
            sums: vec![None; blocks.len()],
        };
        Self { blocks, place }
    }

    /// The blocks in which values must be added.
    pub(super) fn blocks(&self) -> Vec<Block> {
        self.blocks.clone()
    }

    /// Adds to a block each part times its share, in the order given.
    pub(super) fn add(
        &mut self,
        block: &Block,
        parts: &[(&[f32], f32)],
    ) -> Result<(), AggregateError> {
        match &mut self.place {
            Place::Host(sums) => accumulate(&mut sums[block.range.clone()], parts),
            Place::Device { device, sums } => {
                let sum = sums[block.index].take();
                // Each block is waited for, so that no more than one block of each part is on its
                // way to the device.
                let sum = run_checked(device, || upload(sum, parts, device));
                sums[block.index] = sum.map_err(|error| AggregateError::device(&error))?;
            }
        }
        Ok(())
    }

    /// All values of the sum.
    pub(super) fn finish(self) -> Result<Vec<f32>, AggregateError> {
        let sums = match self.place {
            Place::Host(sums) => return Ok(sums),
            Place::Device { sums, .. } => sums,
        };
        let len = self.blocks.last().map_or(0, |block| block.range.end);
        let mut values = Vec::with_capacity(len);
        for sum in sums.into_iter().flatten() {
            let data = sum.try_into_data();
            let data = data.map_err(|error| AggregateError::device(&error))?;
            let data = data.as_slice::<f32>();
            values.extend_from_slice(data.map_err(|error| AggregateError::device(&error))?);
        }
        Ok(values)
    }
}

fn upload(
    mut sum: Option<Tensor<1>>,
    parts: &[(&[f32], f32)],
    device: &Device,
) -> Option<Tensor<1>> {
    for (values, share) in parts {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        let part = Tensor::<1>::from_data(data, device) * *share;
        sum = Some(match sum {
            Some(sum) => sum + part,
            None => part,
        });
    }
    sum
}

/// Adds each part times its share to `sums`, in the order given, on all cores.
///
/// Every value is summed by one thread, part after part, so neither the number of threads nor how
/// parts are grouped changes a bit.
pub(super) fn accumulate(sums: &mut [f32], parts: &[(&[f32], f32)]) {
    let chunks = sums.par_chunks_mut(CHUNK).enumerate();
    chunks.for_each(|(index, sums)| {
        let range = index * CHUNK..index * CHUNK + sums.len();
        // Four at a time: a sum is loaded and stored once for all of them.
        let (fours, rest) = parts.as_chunks::<4>();
        for four in fours {
            add_parts(
                sums,
                four.map(|(part, share)| (&part[range.clone()], share)),
            );
        }
        for (part, share) in rest {
            add_parts(sums, [(&part[range.clone()], *share)]);
        }
    });
}

/// The innermost loop; the compiler turns it into vector instructions.
fn add_parts<const N: usize>(sums: &mut [f32], parts: [(&[f32], f32); N]) {
    let parts = parts.map(|(part, share)| (&part[..sums.len()], share));
    for (place, sum) in sums.iter_mut().enumerate() {
        for (part, share) in &parts {
            *sum += share * part[place];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_at_the_split() {
        let ranges = |len, split, size| {
            let blocks = blocks(len, split, size);
            let index: Vec<_> = blocks.iter().map(|block| block.index).collect();
            assert_eq!(index, (0..blocks.len()).collect::<Vec<_>>());
            let parts = blocks.into_iter().map(|block| (block.half, block.range));
            parts.collect::<Vec<_>>()
        };
        assert_eq!(ranges(10, 10, 4), [(0, 0..4), (0, 4..8), (0, 8..10)]);
        assert_eq!(
            ranges(10, 5, 4),
            [(0, 0..4), (0, 4..5), (1, 5..9), (1, 9..10)]
        );
        assert_eq!(ranges(6, 0, 4), [(1, 0..4), (1, 4..6)]);
        assert_eq!(ranges(3, 99, 4), [(0, 0..3)]);
    }
}
