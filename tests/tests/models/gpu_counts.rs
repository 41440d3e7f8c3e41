//! What one training step asks of a GPU: dispatches, submissions, transfers, memory. Runs where
//! `FEDLLM_TEST_GPU` is set.
//!
//! They are counted from the lines that wgpu logs of every call, so nothing that burn or cubecl do
//! is missed.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Device;
use fedllm_models::train::{Memory, Trainer};
use fedllm_models::{BasePrecision, device};
use log::{LevelFilter, Log, Metadata, Record};

use super::golden::{Golden, settings};
use super::gpu::gpu;

/// The calls of wgpu that matter, as it names them in its log.
const CALLS: [&str; 4] = [
    "ComputePass::dispatch",
    "Queue::submit",
    "Queue::write_buffer",
    "CommandEncoder::copy_buffer_to_buffer",
];

/// Most submissions of a step of the tiny model: one for every 32 dispatches, and one before
/// whatever the host writes.
const SUBMISSIONS: u64 = 16;
/// Most memory that its tensors take at once, in bytes.
const PEAK_BYTES: u64 = 1 << 20;
/// A page of the pool for the smallest buffers.
const PAGE_BYTES: u64 = 8 << 10;
/// How often each of [`CALLS`] was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Calls {
    dispatches: u64,
    submissions: u64,
    writes: u64,
    /// cubecl copies from buffer to buffer only what the host will read.
    reads: u64,
}

static COUNTS: [AtomicU64; CALLS.len()] = [const { AtomicU64::new(0) }; CALLS.len()];

struct Counter;

impl Log for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("wgpu_core")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = record.args().to_string();
        for (call, count) in CALLS.iter().zip(&COUNTS) {
            // Some calls log a second line with their result.
            if line.starts_with(call) && !line.contains(" returned ") {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn flush(&self) {}
}

/// What wgpu was asked for by `work`, from an idle device to an idle device.
fn calls(gpu: &Device, work: impl FnOnce()) -> Calls {
    // Refused from the second time on.
    let _ = log::set_logger(&Counter);
    device::sync_checked(gpu).unwrap();
    COUNTS.iter().for_each(|c| c.store(0, Ordering::Relaxed));
    log::set_max_level(LevelFilter::Trace);
    work();
    device::sync_checked(gpu).unwrap();
    log::set_max_level(LevelFilter::Off);
    let [dispatches, submissions, writes, reads] =
        [0, 1, 2, 3].map(|i: usize| COUNTS[i].load(Ordering::Relaxed));
    Calls {
        dispatches,
        submissions,
        writes,
        reads,
    }
}

#[test]
fn gpu_steps_are_few_dispatches_and_hold_their_memory() {
    let Some((_turn, gpu)) = gpu() else {
        return;
    };
    for (precision, dispatches) in [(BasePrecision::F32, 180), (BasePrecision::Nf4, 205)] {
        let golden = Golden::load_as("llama", precision, &gpu);
        let batch = golden.batch();
        let mut trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
        let mut step = || {
            trainer.step(&batch, &settings()).unwrap();
        };
        // Autotuning, and what is made only once.
        (0..3).for_each(|_| step());
        let calls = calls(&gpu, &mut step);
        let ((), usage) = device::usage(&gpu, &mut step);
        println!("{precision:?}: {calls:?}, at most {:?}", usage.peak);
        for (kernel, count) in &usage.launches {
            println!("{count:6} {kernel}");
        }
        assert_eq!(usage.dispatches(), calls.dispatches);
        assert!(calls.dispatches <= dispatches, "{calls:?}");
        assert!(calls.submissions <= SUBMISSIONS, "{calls:?}");
        assert_eq!(calls.reads, 1, "a step reads its loss and norm, at once");
        assert!(usage.peak.in_use <= PEAK_BYTES, "{:?}", usage.peak);

        (0..20).for_each(|_| step());
        let before = device::memory(&gpu).unwrap();
        (0..80).for_each(|_| step());
        let after = device::memory(&gpu).unwrap();
        println!("{before:?}, 80 steps later {after:?}");
        // A page for small buffers may come late, when two of them happen to live at once.
        let grown = after.reserved.saturating_sub(before.reserved);
        assert!(grown <= PAGE_BYTES, "memory grows by steps: {grown} bytes");
    }
}
