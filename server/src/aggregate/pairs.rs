//! A round's updates as low-rank products, read pair of factors by pair of factors.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use fedllm_shared::{
    Adapter, AdapterError, ClientId, Codec, DeltaDecoder, FactorPair, Layout, factor_pairs,
};
use rayon::prelude::*;

use super::AggregateError;
use super::matrix::Mat;

/// Values of stacked factors that are in memory before they are worked on: 64 MiB.
const BATCH: usize = 1 << 24;

/// Where the update of a client comes from whose adapter has a rank of its own; it is not read yet.
pub struct RankedSource<'a, O> {
    /// Whose it is.
    pub client: ClientId,
    /// What it counts; only the ratio to the others matters.
    pub weight: f64,
    /// What its values are multiplied with: 1, or less for a delta that is too long.
    pub scale: f64,
    /// The adapter that the client began with; its layout says the rank.
    pub start: &'a Adapter,
    /// The layout of the encoded delta: that of `start`, and whatever else the update carries
    /// behind it, which is not read.
    pub layout: &'a Arc<Layout>,
    /// Opens the encoded delta.
    pub open: O,
}

/// The factors of one projection of all clients, in the order of their identities.
pub(super) struct Stack<'a> {
    /// The pair in the layout that was asked for.
    pub(super) pair: FactorPair,
    parts: Vec<Part<'a>>,
    /// The deltas of A, `[rank, input]` each, client after client.
    a: Vec<f32>,
    /// The deltas of B, `[output, rank]` each, client after client.
    b: Vec<f32>,
}

/// One client's part of a stack.
#[derive(Clone, Copy)]
struct Part<'a> {
    share: f64,
    scale: f64,
    rank: usize,
    start_a: &'a [f32],
    start_b: &'a [f32],
}

impl Stack<'_> {
    /// The rank of each client with its share of the mean; shares sum to 1.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, f64)> {
        self.parts.iter().map(|part| (part.rank, part.share))
    }

    /// The ranks of all clients together.
    pub(super) fn rank(&self) -> usize {
        self.parts.iter().map(|part| part.rank).sum()
    }

    /// All A side by side, transposed: `[input, rank]`, column `k` being row `k` of the stack.
    pub(super) fn a_columns(&self) -> Mat {
        let input = self.pair.input;
        let mut columns = Mat::zeros(input, self.rank());
        let mut at = 0;
        for part in &self.parts {
            for row in 0..part.rank {
                let delta = &self.a[at * input..(at + 1) * input];
                let start = &part.start_a[row * input..(row + 1) * input];
                let local = start
                    .iter()
                    .zip(delta)
                    .map(|(start, delta)| part.local(start, delta));
                fill(columns.column_mut(at), local);
                at += 1;
            }
        }
        columns
    }

    /// All B side by side: `[output, rank]`.
    pub(super) fn b_columns(&self) -> Mat {
        let output = self.pair.output;
        let mut columns = Mat::zeros(output, self.rank());
        let mut at = 0;
        for part in &self.parts {
            let delta = &self.b[at * output..(at + part.rank) * output];
            for column in 0..part.rank {
                let [start, delta] =
                    [part.start_b, delta].map(|b| b[column..].iter().step_by(part.rank));
                let local = start
                    .zip(delta)
                    .map(|(start, delta)| part.local(start, delta));
                fill(columns.column_mut(at + column), local);
            }
            at += part.rank;
        }
        columns
    }
}

impl Part<'_> {
    /// What the client's value is after its training.
    fn local(&self, start: &f32, delta: &f32) -> f64 {
        f64::from(*start) + self.scale * f64::from(*delta)
    }
}

fn fill(column: &mut [f64], values: impl Iterator<Item = f64>) {
    for (place, value) in column.iter_mut().zip(values) {
        *place = value;
    }
}

/// Does `work` for each pair of factors of `target`, for a few pairs at a time on all cores, and
/// returns the results in an order that depends on the layout only.
///
/// Of every update a decoder is open, with its file and its compression window; of their values
/// those of a few pairs are in memory.
pub(super) fn each_pair<'a, R, E, T>(
    target: &Layout,
    codec: Codec,
    mut sources: Vec<RankedSource<'a, impl FnOnce() -> Result<R, E>>>,
    work: impl Fn(&Stack<'a>) -> Result<T, AggregateError> + Sync,
) -> Result<Vec<T>, AggregateError>
where
    R: Read + Send,
    E: std::error::Error + Send + Sync + 'static,
    T: Send,
{
    let pairs = factor_pairs(target)?;
    sources.sort_by_key(|source| source.client);
    let total = total_weight(sources.iter().map(|source| source.weight))?;
    let streams = sources.into_iter().map(|source| {
        let client = source.client;
        Stream::open(target, &pairs, codec, source, total)
            .map_err(|source| AggregateError::Update { client, source })
    });
    let mut streams = streams.collect::<Result<Vec<_>, _>>()?;

    let mut results = Vec::with_capacity(pairs.len());
    let mut waiting = HashMap::new();
    let mut ready: Vec<Stack<'a>> = Vec::new();
    for tensor in 0..target.tensors().len() {
        waiting.insert(tensor, read(&mut streams, tensor)?);
        if let Some(index) = pairs.iter().position(|pair| pair.a.max(pair.b) == tensor) {
            let pair = pairs[index];
            if let (Some(a), Some(b)) = (waiting.remove(&pair.a), waiting.remove(&pair.b)) {
                let parts = streams.iter().map(|stream| stream.part(index)).collect();
                ready.push(Stack { pair, parts, a, b });
            }
        }
        let held: usize = ready
            .iter()
            .map(|stack| stack.a.len() + stack.b.len())
            .sum();
        if held >= BATCH || tensor + 1 == target.tensors().len() {
            let done: Vec<_> = ready.par_iter().map(&work).collect();
            ready.clear();
            for result in done {
                results.push(result?);
            }
        }
    }
    Ok(results)
}

/// An update that is being read.
struct Stream<'a, R: Read> {
    client: ClientId,
    share: f64,
    scale: f64,
    start: &'a Adapter,
    pairs: Vec<FactorPair>,
    decoder: DeltaDecoder<R>,
}

impl<'a, R: Read> Stream<'a, R> {
    fn open<E: std::error::Error + Send + Sync + 'static>(
        target: &Layout,
        pairs: &[FactorPair],
        codec: Codec,
        source: RankedSource<'a, impl FnOnce() -> Result<R, E>>,
        total: f64,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let layout = source.start.layout();
        if !source.layout.tensors().starts_with(layout.tensors()) {
            return Err(Box::new(AdapterError::LayoutMismatch {
                expected: layout.digest(),
                got: source.layout.digest(),
            }));
        }
        Ok(Self {
            client: source.client,
            share: source.weight / total,
            scale: source.scale,
            start: source.start,
            pairs: same_projections(target, pairs, layout)?,
            decoder: DeltaDecoder::new(source.layout.clone(), codec, (source.open)()?)?,
        })
    }

    fn part(&self, index: usize) -> Part<'a> {
        let pair = &self.pairs[index];
        Part {
            share: self.share,
            scale: self.scale,
            rank: pair.rank,
            start_a: self.start.tensor(pair.a),
            start_b: self.start.tensor(pair.b),
        }
    }
}

/// The pairs of `layout`, which must be those of `target` in everything but the rank.
///
/// # Errors
///
/// [`AggregateError::Projections`] names the first tensor that differs.
pub(super) fn same_projections(
    target: &Layout,
    pairs: &[FactorPair],
    layout: &Layout,
) -> Result<Vec<FactorPair>, AggregateError> {
    let differs = |index: usize| AggregateError::Projections(target.tensors()[index].name.clone());
    let count = target.tensors().len().max(layout.tensors().len());
    for index in 0..count {
        let of = |layout: &Layout| layout.tensors().get(index).map(|spec| spec.name.clone());
        if of(target) != of(layout) {
            return Err(differs(index.min(target.tensors().len() - 1)));
        }
    }
    let others = factor_pairs(layout)?;
    let same = |(left, right): (&FactorPair, &FactorPair)| {
        (left.input, left.output) == (right.input, right.output)
    };
    match pairs.iter().zip(&others).position(|pairs| !same(pairs)) {
        Some(index) => Err(differs(pairs[index].a)),
        None => Ok(others),
    }
}

/// Reads one tensor of every update, client after client.
fn read<R: Read + Send>(
    streams: &mut [Stream<'_, R>],
    tensor: usize,
) -> Result<Vec<f32>, AggregateError> {
    let len = |stream: &Stream<'_, R>| stream.start.layout().range(tensor).len();
    let mut values = vec![0.0; streams.iter().map(len).sum()];
    let mut rest = values.as_mut_slice();
    let mut jobs = Vec::with_capacity(streams.len());
    for stream in streams {
        let (part, others) = rest.split_at_mut(len(stream));
        rest = others;
        jobs.push((stream, part));
    }
    let read = jobs.into_par_iter().map(|(stream, part)| {
        let read = stream.decoder.next_block(part);
        read.map_err(|error| AggregateError::update(stream.client, error))
    });
    let read: Vec<_> = read.collect();
    read.into_iter().try_for_each(|read| read.map(drop))?;
    Ok(values)
}

/// The sum of `weights`, which must come in the order of the clients' identities.
///
/// # Errors
///
/// [`AggregateError::NoWeight`] unless it is a positive number.
fn total_weight(weights: impl Iterator<Item = f64>) -> Result<f64, AggregateError> {
    let total: f64 = weights.sum();
    match total > 0.0 && total.is_finite() {
        true => Ok(total),
        false => Err(AggregateError::NoWeight(total)),
    }
}
