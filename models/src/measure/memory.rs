//! Memory: what this process holds, and what a step is going to need.

use super::Workload;
use super::step::group;
use crate::arch::BasePrecision;
use crate::config::ModelConfig;
use crate::train::Memory;

/// What this process holds in main memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Now, in KiB.
    pub now_kib: u64,
    /// At most so far, in KiB.
    pub peak_kib: u64,
}

/// Asks the system what this process holds; only Linux says it.
pub fn resident() -> Option<Resident> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |key: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Resident {
        now_kib: kib("VmRSS:")?,
        peak_kib: kib("VmHWM:")?,
    })
}

/// Bytes that the frozen matrices of a model with made-up weights take.
pub fn base_estimate(config: &ModelConfig, precision: BasePrecision) -> u64 {
    let outer = config.vocab * config.hidden * if config.tied { 1 } else { 2 };
    let (query, kv) = (config.query_dim(), config.kv_dim());
    let block = config.hidden * (2 * query + 2 * kv + 3 * config.ffn);
    // A sixteenth of a byte for the scales of blocks of 64.
    let (of_block, of_outer) = match precision {
        BasePrecision::AsStored | BasePrecision::F32 => (4.0, 4.0),
        BasePrecision::F16 => (2.0, 2.0),
        BasePrecision::Int8 => (1.0, 4.0),
        BasePrecision::Nf4 => (0.5 + 1.0 / 16.0, 4.0),
    };
    (of_block * (block * config.layers) as f64 + of_outer * outer as f64) as u64
}

/// Bytes of a token of a step before it is computed with: its number, its place, its label, twice.
const ROW_BYTES: usize = 32;

/// Bytes that the backward pass needs of so many tokens where nothing is computed again, about.
pub fn kept_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    let values = config.layers * (block_values(config) + config.hidden);
    (values * tokens * size_of::<f32>()) as u64
}

/// Values of a token that a block's backward pass needs besides its input: queries, keys and values;
/// attention's output and sums; the sum after it; gate and up; the norms that some models have besides.
fn block_values(config: &ModelConfig) -> usize {
    let (query, kv, hidden) = (config.query_dim(), config.kv_dim(), config.hidden);
    let mut values = 2 * query + 2 * kv + config.heads + hidden + 2 * config.ffn;
    values += if config.post_norms { 2 * hidden } else { 0 };
    values += if config.qk_norm { query + kv } else { 0 };
    values
}

/// Bytes that a training step needs beside the frozen matrices, about: the rows, what the forward pass
/// keeps of a micro-batch, logits, and the adapter with its gradients and moments.
pub fn training_estimate(config: &ModelConfig, rank: u32, work: &Workload, memory: &Memory) -> u64 {
    let rank = rank as usize;
    let (hidden, query, kv, ffn) = (
        config.hidden,
        config.query_dim(),
        config.kv_dim(),
        config.ffn,
    );
    let groups = [
        (hidden, query + 2 * kv, 3),
        (query, hidden, 1),
        (hidden, 2 * ffn, 2),
        (ffn, hidden, 1),
    ];
    let of_group = |(input, output, parts): (usize, usize, usize)| rank * (parts * input + output);
    let adapter = config.layers * groups.into_iter().map(of_group).sum::<usize>();
    let rows = work.rows * group(work.kind);
    let longest = work.tokens * group(work.kind);
    let tokens = (rows * work.tokens).min(memory.micro_batch_tokens.max(longest));
    // And the inputs of the adapters' second factors.
    let block = block_values(config) + 7 * rank;
    let kept = match memory.recompute {
        true => block + config.layers * hidden,
        false => config.layers * (block + hidden),
    };
    // A few tensors of a block's width come and go.
    let passing = 4 * hidden + 4 * ffn;
    let logits = (tokens * config.vocab).min(12 << 20);
    let values = tokens * (kept + passing) + logits + 5 * adapter;
    (4 * values + ROW_BYTES * rows * work.tokens) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::shape;
    use fedllm_shared::RowKind;

    #[test]
    fn estimates_are_near_what_was_measured() {
        let config = shape("smollm2-135m").unwrap();
        let base = base_estimate(&config, BasePrecision::F32);
        assert!((510..=515).contains(&(base >> 20)), "{base}");
        let work = Workload {
            kind: RowKind::Examples,
            rows: 4,
            tokens: 128,
        };
        let keeping = training_estimate(&config, 8, &work, &Memory::default()) >> 20;
        // 1,038 MiB with a base of 513: see benches/README.md.
        assert!((400..=600).contains(&keeping), "{keeping}");
        let memory = Memory {
            recompute: true,
            ..Memory::default()
        };
        let recomputing = training_estimate(&config, 8, &work, &memory) >> 20;
        assert!(recomputing < keeping / 2, "{recomputing}");
    }

    #[test]
    fn this_process_holds_something() {
        if let Some(resident) = resident() {
            assert!(0 < resident.now_kib && resident.now_kib <= resident.peak_kib);
        }
    }
}
