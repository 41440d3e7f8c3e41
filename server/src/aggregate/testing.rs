//! Small low-rank updates for tests, and what they come to in dense `f64`.

use std::convert::Infallible;
use std::sync::Arc;

use fedllm_shared::{
    Adapter, ClientId, Codec, Delta, Layout, TensorSpec, encode_delta, factor_pairs,
};

use super::{AggregateError, RankedSource};

/// A matrix as rows.
pub(super) type Dense = Vec<Vec<f64>>;

/// One client's part in a round.
#[derive(Clone)]
pub(super) struct Update {
    pub(super) client: ClientId,
    pub(super) weight: f64,
    pub(super) scale: f64,
    pub(super) start: Adapter,
    pub(super) delta: Delta,
    pub(super) bytes: Vec<u8>,
}

impl Update {
    pub(super) fn new(index: u8, start: Adapter, delta: Vec<f32>) -> Self {
        let delta = Delta::new(start.layout().clone(), delta).unwrap();
        Self {
            client: ClientId([index; 32]),
            weight: f64::from(index) * 3.0 + 1.0,
            scale: 1.0,
            start,
            bytes: encode_delta(&delta, Codec::F32).unwrap(),
            delta,
        }
    }

    /// Random factors: A of a usual length, B and the delta smaller.
    pub(super) fn random(index: u8, layout: &Arc<Layout>) -> Self {
        let mut random = random(u64::from(index) + 1);
        let mut values = |size: f32| {
            let of_b = layout.tensors().iter().flat_map(|spec| {
                let is_b = spec.name.ends_with("lora_B.weight");
                std::iter::repeat_n(is_b, (spec.rows * spec.cols) as usize)
            });
            let size = |is_b| if is_b { 0.1 * size } else { size };
            of_b.map(|is_b| size(is_b) * random()).collect::<Vec<f32>>()
        };
        let start = Adapter::new(layout.clone(), values(1.0)).unwrap();
        Self::new(index, start, values(0.3))
    }

    pub(super) fn source<'a>(
        &'a self,
    ) -> RankedSource<'a, impl FnOnce() -> Result<&'a [u8], Infallible>> {
        RankedSource {
            client: self.client,
            weight: self.weight,
            scale: self.scale,
            start: &self.start,
            layout: self.delta.layout(),
            open: || Ok(self.bytes.as_slice()),
        }
    }

    /// The adapter after training, in `f64`.
    fn local(&self) -> Vec<f64> {
        let pairs = self.start.values().iter().zip(self.delta.values());
        pairs
            .map(|(start, delta)| f64::from(*start) + self.scale * f64::from(*delta))
            .collect()
    }
}

/// A layout of projections given as `(output, input)`: the first two share their input as a group
/// of a model does, A A B B, the others follow as A B.
pub(super) fn layout(shapes: &[(u32, u32)], rank: u32) -> Arc<Layout> {
    let a = |at: usize| TensorSpec {
        name: format!("{at}.lora_A.weight"),
        rows: rank,
        cols: shapes[at].1,
    };
    let b = |at: usize| TensorSpec {
        name: format!("{at}.lora_B.weight"),
        rows: shapes[at].0,
        cols: rank,
    };
    let mut tensors = Vec::new();
    let group = 2.min(shapes.len());
    tensors.extend((0..group).map(a));
    tensors.extend((0..group).map(b));
    for at in group..shapes.len() {
        tensors.extend([a(at), b(at)]);
    }
    Arc::new(Layout::new(tensors).unwrap())
}

/// `B·A` of every projection, `[output, input]`.
pub(super) fn products(layout: &Layout, values: &[f64]) -> Vec<Dense> {
    let pairs = factor_pairs(layout).unwrap();
    let product = |pair: &fedllm_shared::FactorPair| {
        let (a, b) = (&values[layout.range(pair.a)], &values[layout.range(pair.b)]);
        let entry = |row: usize, column: usize| {
            (0..pair.rank)
                .map(|k| b[row * pair.rank + k] * a[k * pair.input + column])
                .sum()
        };
        (0..pair.output)
            .map(|row| (0..pair.input).map(|column| entry(row, column)).collect())
            .collect()
    };
    pairs.iter().map(product).collect()
}

/// The products of an adapter.
pub(super) fn products_of(adapter: &Adapter) -> Vec<Dense> {
    let values: Vec<_> = adapter
        .values()
        .iter()
        .map(|value| f64::from(*value))
        .collect();
    products(adapter.layout(), &values)
}

/// `Σ_i p_i·B_i·A_i` of every projection, written out.
pub(super) fn mean_of_products(updates: &[Update]) -> Vec<Dense> {
    let each = updates
        .iter()
        .map(|update| products(update.start.layout(), &update.local()));
    mean(updates, each.collect())
}

/// `B̄·Ā` of every projection; all updates have one layout.
pub(super) fn product_of_means(updates: &[Update]) -> Vec<Dense> {
    let locals: Vec<_> = updates
        .iter()
        .map(|update| vec![vec![update.local()]])
        .collect();
    let mean = mean(updates, locals);
    products(updates[0].start.layout(), &mean[0][0])
}

fn mean(updates: &[Update], each: Vec<Vec<Dense>>) -> Vec<Dense> {
    let total: f64 = updates.iter().map(|update| update.weight).sum();
    let mut sum: Vec<Dense> = each[0].clone();
    sum.iter_mut()
        .flatten()
        .flatten()
        .for_each(|value| *value = 0.0);
    for (update, values) in updates.iter().zip(&each) {
        let share = update.weight / total;
        let places = sum.iter_mut().flatten().flatten();
        let values = values.iter().flatten().flatten();
        places
            .zip(values)
            .for_each(|(sum, value)| *sum += share * value);
    }
    sum
}

/// The Frobenius norm of some matrices together.
pub(super) fn norm(matrices: &[Dense]) -> f64 {
    let values = matrices.iter().flatten().flatten();
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The norm of the difference divided by the norm of the right side.
pub(super) fn distance(left: &[Dense], right: &[Dense]) -> f64 {
    let pairs = left
        .iter()
        .flatten()
        .flatten()
        .zip(right.iter().flatten().flatten());
    let squares: f64 = pairs.map(|(left, right)| (left - right).powi(2)).sum();
    squares.sqrt() / norm(right)
}

/// Uniform in ±0.5.
pub(super) fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    }
}

/// A delta that no encoder writes: any `f32`, in a zstd frame of one uncompressed block.
pub(super) fn forged(layout: &Layout, values: &[f32]) -> Vec<u8> {
    let planes = (0..4).flat_map(|plane| values.iter().map(move |v| v.to_le_bytes()[plane]));
    let raw: Vec<u8> = planes.collect();
    let mut bytes = b"FDL1\x00".to_vec();
    bytes.extend_from_slice(&layout.digest().0);
    bytes.extend_from_slice(&(raw.len() as u64).to_le_bytes());
    // Magic, a descriptor of one segment with a size of four bytes, the size; then one last block.
    bytes.extend_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 0xa0]);
    bytes.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&((raw.len() as u32) << 3 | 1).to_le_bytes()[..3]);
    bytes.extend_from_slice(&raw);
    bytes
}

/// The client whose update an error is about.
pub(super) fn culprit<T: std::fmt::Debug>(result: Result<T, AggregateError>) -> ClientId {
    match result {
        Err(AggregateError::Update { client, .. }) => client,
        other => panic!("expected a bad update, got {other:?}"),
    }
}
