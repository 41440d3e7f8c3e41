//! The operations of a step, timed one by one beside whole steps.

use std::slice;
use std::time::Instant;

use fedllm_shared::RowKind;

use super::step::group;
use super::{Cost, MeasureError, SETTINGS, StepTimes, cost, median, time_steps};
use crate::arch::{Gradients, Operation, Piece, StepMode, uniform};
use crate::batch::Batch;
use crate::device::{run_checked, sync_checked};
use crate::ops::{is_cpu, tensor_on};
use crate::train::{Lane, Trainer, side_by_side};

/// What one operation takes of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OperationTime {
    /// Which.
    pub operation: Operation,
    /// How often it runs in a step; a run in several lanes at once counts once.
    pub runs: usize,
    /// What all its runs cost.
    pub cost: Cost,
    /// The median of how long they take together, in seconds.
    pub seconds: f64,
}

/// Times a step over `batch` and each of its operations by itself, in turns, so that a machine that
/// gets slower or busier does so for both: one round to warm up, then `repeats` that count. `progress`
/// is told what comes next.
///
/// # Errors
///
/// [`MeasureError`] if a step is refused or the device fails.
pub fn time_operations(
    trainer: &mut Trainer<'_>,
    batch: &Batch,
    kind: RowKind,
    repeats: usize,
    progress: &mut dyn FnMut(&'static str),
) -> Result<(StepTimes, Vec<OperationTime>), MeasureError> {
    let micro_batches = micro_batches(trainer, batch, kind);
    let operations = Operation::of_step(kind);
    let mut rounds = Vec::with_capacity(repeats);
    let mut steps = StepTimes::default();
    for round in 0..=repeats {
        progress("step");
        let step = time_steps(trainer, slice::from_ref(batch), kind, (0, 1), &mut || {})?;
        let mut of_round = Vec::with_capacity(operations.len());
        for &operation in &operations {
            progress(operation.name());
            of_round.push(match operation {
                Operation::Optimizer => time_optimizer(trainer, batch)?,
                _ => time_operation(operation, trainer, &micro_batches)?,
            });
        }
        if round > 0 {
            steps.seconds.extend(step.seconds);
            steps.loss = step.loss;
            rounds.push(of_round);
        }
    }
    let middle = |index: usize, first: &OperationTime| {
        let seconds = rounds
            .iter()
            .map(|round: &Vec<OperationTime>| round[index].seconds);
        OperationTime {
            seconds: median(&seconds.collect::<Vec<_>>()),
            ..*first
        }
    };
    let first = rounds.iter().take(1).flatten().enumerate();
    let operations = first.map(|(index, first)| middle(index, first)).collect();
    Ok((steps, operations))
}

/// The lanes of each micro-batch, and how each runs.
type MicroBatches = Vec<Vec<(StepMode, Lane)>>;

fn micro_batches(trainer: &Trainer<'_>, batch: &Batch, kind: RowKind) -> MicroBatches {
    let weight = 1.0 / batch.loss_tokens() as f32;
    let with_mode = |lane: Lane| (trainer.mode(&SETTINGS, &lane, weight), lane);
    let micro_batches = trainer.lanes(batch, group(kind)).into_iter();
    micro_batches
        .map(|lanes| lanes.into_iter().map(with_mode).collect())
        .collect()
}

/// Runs one operation as a step does: one micro-batch after the other, the lanes of each side by side.
fn time_operation(
    operation: Operation,
    trainer: &Trainer<'_>,
    micro_batches: &MicroBatches,
) -> Result<OperationTime, MeasureError> {
    let device = trainer.model().device();
    let pieces = micro_batches.iter();
    let mut pieces: Vec<Vec<Piece<'_>>> = pieces
        .map(|lanes| pieces_of(operation, trainer, lanes))
        .collect();
    // What was prepared is there before the clock starts.
    sync_checked(device)?;
    let started = Instant::now();
    run_checked(device, || {
        for lanes in &mut pieces {
            side_by_side(lanes.iter_mut().collect(), is_cpu(device), Piece::run);
        }
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let of_first_lane = |lanes: &Vec<Piece<'_>>| lanes.first().map_or(0, |piece| piece.runs);
    Ok(OperationTime {
        operation,
        runs: pieces.iter().map(of_first_lane).sum(),
        cost: pieces.iter().flatten().map(|piece| piece.cost).sum(),
        seconds,
    })
}

/// One piece for each lane.
fn pieces_of<'a>(
    operation: Operation,
    trainer: &'a Trainer<'_>,
    lanes: &'a [(StepMode, Lane)],
) -> Vec<Piece<'a>> {
    let (model, lora) = (trainer.model(), trainer.lora());
    let lanes = lanes.iter();
    lanes
        .map(|(mode, lane)| model.piece(operation, &lane.batch, lora, mode))
        .collect()
}

/// The end of a step, against a made-up gradient.
fn time_optimizer(trainer: &mut Trainer<'_>, batch: &Batch) -> Result<OperationTime, MeasureError> {
    let device = trainer.model().device();
    let params = trainer.lora().values().dims()[0];
    let gradients = Gradients {
        loss_sum: tensor_on(vec![1.0], [1], device),
        flat: tensor_on(uniform("gradient", params, 1e-3), [params], device),
    };
    sync_checked(device)?;
    let started = Instant::now();
    run_checked(device, || trainer.advance(gradients, 1, batch, &SETTINGS))??;
    Ok(OperationTime {
        operation: Operation::Optimizer,
        runs: 1,
        cost: cost::optimizer(params),
        seconds: started.elapsed().as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{BasePrecision, CausalLm, shape};
    use crate::device::gpu_for_tests;
    use crate::measure::{Workload, measure_peaks, new_adapter, time_generation};
    use crate::train::Memory;
    use burn::tensor::Device;

    /// A step of two micro-batches on a device.
    fn measure(device: &Device, kind: RowKind) -> (StepTimes, Vec<OperationTime>) {
        let config = shape("tiny").unwrap();
        let model = CausalLm::random(&config, BasePrecision::F32, device).unwrap();
        let memory = Memory {
            micro_batch_tokens: 64,
            recompute: false,
            ..Memory::default()
        };
        let mut trainer = Trainer::new(&model, new_adapter(&model, 4).unwrap(), memory);
        let work = Workload {
            kind,
            rows: 4,
            tokens: 32,
        };
        let batch = work.batch(config.vocab);
        let before = trainer.lora().values().clone();
        let measured = time_operations(&mut trainer, &batch, kind, 2, &mut |_| {}).unwrap();
        let moved = crate::lora::read_back(trainer.lora().values().clone() - before);
        assert!(moved.iter().any(|v| *v != 0.0) && moved.iter().all(|v| v.is_finite()));
        measured
    }

    fn are_plausible(steps: &StepTimes, operations: &[OperationTime], kind: RowKind) {
        assert_eq!(steps.seconds.len(), 2);
        assert!(
            steps.min() > 0.0 && steps.min() <= steps.median() && steps.median() <= steps.max()
        );
        let names = operations.iter().map(|time| time.operation);
        assert_eq!(names.collect::<Vec<_>>(), Operation::of_step(kind));
        for time in operations {
            let micro_batches = if time.operation == Operation::Optimizer {
                1
            } else {
                2
            };
            let pairs = if kind == RowKind::Preferences { 2 } else { 1 };
            assert!(time.seconds > 0.0 && time.cost.bytes > 0, "{time:?}");
            assert!(
                time.runs % (micro_batches * pairs) == 0 || time.runs == 1,
                "{time:?}"
            );
        }
    }

    #[test]
    fn every_operation_of_a_step_is_timed() {
        for kind in [RowKind::Examples, RowKind::Preferences] {
            let (steps, operations) = measure(&Device::flex(), kind);
            are_plausible(&steps, &operations, kind);
        }
    }

    #[test]
    fn gpu_steps_generation_and_peaks_are_measured() {
        let Some((_, device)) = gpu_for_tests() else {
            return;
        };
        let (steps, operations) = measure(&device, RowKind::Examples);
        are_plausible(&steps, &operations, RowKind::Examples);
        let on_cpu = measure(&Device::flex(), RowKind::Examples).1;
        let flops = |times: &[OperationTime]| times.iter().map(|time| time.cost.flops).sum::<u64>();
        assert_eq!(flops(&operations), flops(&on_cpu));
        let config = shape("tiny").unwrap();
        let model = CausalLm::random(&config, BasePrecision::Int8, &device).unwrap();
        let times = time_generation(&model, &[1, 2, 3], 2, 1, &mut || {}).unwrap();
        assert!(times.decode[0] > 0.0);
        // Software adapters would take minutes for matrices that make a real one work.
        let peaks = measure_peaks(&device, 1 << 20).unwrap();
        assert!(peaks.f32_flops_per_second > 0.0 && peaks.bytes_per_second > 0.0);
    }
}
