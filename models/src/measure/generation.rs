//! Greedy generation: reading a prompt, then one token after the other.

use std::time::Instant;

use super::MeasureError;
use crate::arch::CausalLm;
use crate::device::run_checked;
use crate::generate::{Generator, Sampling};

/// How long a prompt and its continuation took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationTimes {
    /// Seconds from the prompt to the first new token, of each repetition.
    pub prefill: Vec<f64>,
    /// Seconds of the tokens after it.
    pub decode: Vec<f64>,
}

/// Continues `prompt` by a first token and `tokens` more, the most probable ones, without an adapter:
/// once to warm up and `repeats` times to measure. `progress` is called after each.
///
/// # Errors
///
/// [`MeasureError`] if the device fails.
pub fn time_generation(
    model: &CausalLm,
    prompt: &[u32],
    tokens: usize,
    repeats: usize,
    progress: &mut dyn FnMut(),
) -> Result<GenerationTimes, MeasureError> {
    let mut times = GenerationTimes::default();
    for repeat in 0..=repeats {
        let (prefill, decode) = run_checked(model.device(), || {
            let started = Instant::now();
            // Each token is read back, so each waits for the device.
            let mut generator = Generator::new(model, None, prompt, Sampling::Greedy);
            generator.next();
            let first = Instant::now();
            generator.take(tokens).for_each(drop);
            (first - started, first.elapsed())
        })?;
        if repeat > 0 {
            times.prefill.push(prefill.as_secs_f64());
            times.decode.push(decode.as_secs_f64());
        }
        progress();
    }
    Ok(times)
}
