//! The results of `bench`, as its JSON has them. Names hold their units.

use fedllm_models::device::{self, Selection};
use fedllm_models::measure::{
    Cost, GenerationTimes, OperationTime, Peaks, StepTimes, median, resident,
};
use fedllm_models::{Batch, CausalLm};
use serde::Serialize;

use super::Args;

const MIB: f64 = (1u64 << 20) as f64;

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Subject {
    version: &'static str,
    pub(super) model: String,
    random_weights: bool,
    pub(super) device: String,
    backend: String,
    /// Of the CPU, where that computes.
    pub(super) threads: Option<usize>,
    pub(super) base_precision: String,
    /// The frozen matrices as they are held; where they are mapped from a file, what of it is read.
    pub(super) base_mib: f64,
}

impl Subject {
    pub(super) fn new(args: &Args, name: String, model: &CausalLm, selection: &Selection) -> Self {
        let on_cpu = selection.info.adapter.is_none();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            model: name,
            random_weights: args.random_weights.is_some(),
            device: selection.info.to_string(),
            backend: selection.info.backend.to_string(),
            threads: on_cpu.then(rayon::current_num_threads),
            base_precision: args.base_precision.to_string(),
            base_mib: model.base_bytes() as f64 / MIB,
        }
    }
}

/// Memory at the end of what was timed.
#[derive(Debug, Serialize)]
pub(super) struct MemoryReport {
    /// The most that this process held in main memory.
    pub(super) peak_rss_mib: Option<f64>,
    /// What a GPU has reserved.
    pub(super) device_memory_mib: Option<f64>,
}

impl MemoryReport {
    pub(super) fn now(model: &CausalLm) -> Self {
        let on_device = device::memory(model.device());
        Self {
            peak_rss_mib: resident().map(|resident| resident.peak_kib as f64 / 1024.0),
            device_memory_mib: on_device.map(|memory| memory.reserved as f64 / MIB),
        }
    }
}

/// A training step.
#[derive(Debug, Serialize)]
pub(super) struct StepReport {
    #[serde(flatten)]
    pub(super) subject: Subject,
    pub(super) objective: &'static str,
    /// Rows, or pairs.
    pub(super) batch: u32,
    pub(super) seq: u32,
    pub(super) rank: u32,
    pub(super) low_memory: bool,
    /// Whether the base was multiplied in half precision, in the end.
    pub(super) mixed_precision: bool,
    pub(super) steps: usize,
    pub(super) tokens_per_step: usize,
    pub(super) tokens_per_second: f64,
    pub(super) step_seconds: f64,
    pub(super) step_seconds_min: f64,
    pub(super) step_seconds_max: f64,
    pub(super) flops_per_step: u64,
    pub(super) flops_per_second: f64,
    #[serde(flatten)]
    pub(super) memory: MemoryReport,
    /// Kernels handed to a GPU in a step.
    pub(super) dispatches: Option<u64>,
    pub(super) operations: Vec<OperationReport>,
    /// The step without its operations; negative where they are faster in it than alone.
    pub(super) other_seconds: f64,
    pub(super) other_share: f64,
    pub(super) roofline: Option<RooflineReport>,
}

/// One operation of a step.
#[derive(Debug, Serialize)]
pub(super) struct OperationReport {
    pub(super) name: &'static str,
    pub(super) runs: usize,
    pub(super) seconds: f64,
    pub(super) share: f64,
    pub(super) flops: u64,
    pub(super) bytes: u64,
    pub(super) flops_per_second: f64,
    pub(super) bytes_per_second: f64,
    pub(super) roof: Option<RoofReport>,
}

/// An operation against the device's best.
#[derive(Debug, Serialize)]
pub(super) struct RoofReport {
    /// What it would take at the device's best, of what it takes.
    pub(super) percent: f64,
    /// `compute` or `memory`: what its best is bounded by.
    pub(super) bound: &'static str,
}

/// The device's best, and what the whole measurement reaches of it.
#[derive(Debug, Serialize)]
pub(super) struct RooflineReport {
    pub(super) peak_f32_flops_per_second: f64,
    pub(super) peak_f16_flops_per_second: Option<f64>,
    pub(super) peak_bytes_per_second: f64,
    pub(super) percent_of_f32_peak: f64,
    pub(super) percent_of_f16_peak: Option<f64>,
    /// What all operations would take at their best, of what the step takes.
    pub(super) percent_of_roof: f64,
}

impl StepReport {
    pub(super) fn new(
        args: &Args,
        subject: Subject,
        model: &CausalLm,
        memory: MemoryReport,
        batch: &Batch,
        times: &StepTimes,
        operations: &[OperationTime],
    ) -> Self {
        let step = times.median();
        let flops = operations.iter().map(|time| time.cost.flops).sum();
        let other = step - operations.iter().map(|time| time.seconds).sum::<f64>();
        let of_step = |time| OperationReport::new(time, step);
        Self {
            subject,
            objective: args.objective.name(),
            batch: args.batch,
            seq: args.seq,
            rank: args.rank,
            low_memory: args.training.low_memory,
            mixed_precision: model.mixed_precision().is_on(),
            steps: times.seconds.len(),
            tokens_per_step: batch.tokens(),
            tokens_per_second: batch.tokens() as f64 / step,
            step_seconds: step,
            step_seconds_min: times.min(),
            step_seconds_max: times.max(),
            flops_per_step: flops,
            flops_per_second: flops as f64 / step,
            memory,
            dispatches: None,
            operations: operations.iter().map(of_step).collect(),
            other_seconds: other,
            other_share: other / step,
            roofline: None,
        }
    }

    /// Compares the operations and the step with the device's best.
    pub(super) fn compare(&mut self, peaks: &Peaks) {
        let mut shortest = 0.0;
        for operation in &mut self.operations {
            let cost = Cost {
                flops: operation.flops,
                bytes: operation.bytes,
            };
            shortest += peaks.shortest(&cost);
            let compute = peaks.is_compute_bound(&cost);
            operation.roof = Some(RoofReport {
                percent: 100.0 * peaks.shortest(&cost) / operation.seconds,
                bound: if compute { "compute" } else { "memory" },
            });
        }
        let of_peak = |peak: f64| 100.0 * self.flops_per_second / peak;
        self.roofline = Some(RooflineReport {
            peak_f32_flops_per_second: peaks.f32_flops_per_second,
            peak_f16_flops_per_second: peaks.f16_flops_per_second,
            peak_bytes_per_second: peaks.bytes_per_second,
            percent_of_f32_peak: of_peak(peaks.f32_flops_per_second),
            percent_of_f16_peak: peaks.f16_flops_per_second.map(of_peak),
            percent_of_roof: 100.0 * shortest / self.step_seconds,
        });
    }
}

impl OperationReport {
    fn new(time: &OperationTime, step_seconds: f64) -> Self {
        Self {
            name: time.operation.name(),
            runs: time.runs,
            seconds: time.seconds,
            share: time.seconds / step_seconds,
            flops: time.cost.flops,
            bytes: time.cost.bytes,
            flops_per_second: time.cost.flops as f64 / time.seconds,
            bytes_per_second: time.cost.bytes as f64 / time.seconds,
            roof: None,
        }
    }
}

/// Greedy generation.
#[derive(Debug, Serialize)]
pub(super) struct GenerationReport {
    #[serde(flatten)]
    pub(super) subject: Subject,
    pub(super) prompt_tokens: usize,
    pub(super) new_tokens: usize,
    pub(super) repeats: usize,
    /// Tokens of the prompt, until the first new one is there.
    pub(super) prefill_tokens_per_second: f64,
    pub(super) prefill_seconds: f64,
    /// New tokens after the first.
    pub(super) decode_tokens_per_second: f64,
    pub(super) decode_seconds: f64,
    /// Weights that decoding reads: all of them for each token.
    pub(super) decode_bytes_per_second: f64,
    #[serde(flatten)]
    pub(super) memory: MemoryReport,
    pub(super) peak_bytes_per_second: Option<f64>,
    pub(super) decode_percent_of_peak: Option<f64>,
}

impl GenerationReport {
    pub(super) fn new(
        subject: Subject,
        (prompt_tokens, new_tokens): (usize, usize),
        times: &GenerationTimes,
        model: &CausalLm,
    ) -> Self {
        let (prefill, decode) = (median(&times.prefill), median(&times.decode));
        let read = (model.base_bytes() * new_tokens) as f64;
        Self {
            subject,
            prompt_tokens,
            new_tokens,
            repeats: times.decode.len(),
            prefill_tokens_per_second: prompt_tokens as f64 / prefill,
            prefill_seconds: prefill,
            decode_tokens_per_second: new_tokens as f64 / decode,
            decode_seconds: decode,
            decode_bytes_per_second: read / decode,
            memory: MemoryReport::now(model),
            peak_bytes_per_second: None,
            decode_percent_of_peak: None,
        }
    }

    /// Compares decoding with the device's best pass over its memory.
    pub(super) fn compare(&mut self, peaks: &Peaks) {
        let peak = peaks.bytes_per_second;
        self.peak_bytes_per_second = Some(peak);
        self.decode_percent_of_peak = Some(100.0 * self.decode_bytes_per_second / peak);
    }
}
