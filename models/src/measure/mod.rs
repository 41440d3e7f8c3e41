//! Measuring a device: how fast a training step is there, what it spends its time on, and how far
//! that is from what the device can do. Nothing here prints.
//!
//! [`time_steps`] times whole steps. [`time_operations`] times steps and, in turns with them, each
//! [`Operation`] of a step by itself, as often as a step does it and at the same shapes, until the
//! device has done it. On the CPU a step trains rows in lanes, a thread each, so an operation runs in
//! as many lanes at once, each with its own rows; on a GPU operations follow one another through the
//! one queue. Nothing is traced inside a step, so nothing slows it, and the same works on every device.
//! What differs from a step: an operation's inputs are still in the caches from its last run, where it
//! has several; its weights change from layer to layer, as in a step. The sum of all operations comes
//! within a few percent of the step; the difference is what a step does between them.
//!
//! [`Peaks`] are what the device reaches at best, and a [`Cost`] is what an operation must do at
//! least; the two give the time that it could take ([`Peaks::shortest`]).

pub(crate) mod cost;
mod generation;
mod memory;
mod operations;
mod roofline;
mod step;

pub use crate::arch::Operation;
pub use cost::Cost;
pub use generation::{GenerationTimes, time_generation};
pub use memory::{Resident, base_estimate, kept_bytes, resident, training_estimate};
pub use operations::{OperationTime, time_operations};
pub use roofline::{Peaks, measure_peaks};
pub use step::{SETTINGS, StepTimes, Workload, new_adapter, time_steps};

use crate::device::DeviceError;
use crate::train::StepError;

/// A measurement that came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The device failed, for example for want of memory.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A step was refused.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// The middle value, or the mean of the two middle ones; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => 0.0,
        (half, 0) => (sorted[half - 1] + sorted[half]) / 2.0,
        (half, _) => sorted[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
