//! Cross-entropy of rows of logits, and its gradient in their place: one cube for each row, which
//! it reads once for largest value and sum and once more for the gradient.

use burn::tensor::{Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::cube::{cube, empty, tensor};
use super::{Team, Walk, cube_max, cube_sum, tanh, writable};

/// The loss of each row `[n]`, and the gradient of `weight` times each by the logits, which are
/// written over.
pub(in crate::ops) fn losses(
    logits: Tensor<2>,
    targets: &Tensor<1, Int>,
    weight: f32,
    soft_cap: Option<f32>,
) -> Result<(Tensor<1>, Tensor<2>), Tensor<2>> {
    let [rows, vocabulary] = logits.dims();
    let Some(targets) = cube(targets) else {
        return Err(logits);
    };
    let logits = writable(logits)?;
    let row = Row {
        rows,
        vocabulary,
        soft_cap,
    };
    let losses = row.launch(logits.clone(), targets, Some(weight));
    Ok((tensor(losses), tensor(logits)))
}

/// The logarithm of the target's probability in each row `[n]`.
pub(in crate::ops) fn log_probs(
    logits: &Tensor<2>,
    targets: &Tensor<1, Int>,
    soft_cap: Option<f32>,
) -> Option<Tensor<1>> {
    let [rows, vocabulary] = logits.dims();
    let row = Row {
        rows,
        vocabulary,
        soft_cap,
    };
    let losses = row.launch(cube(logits)?, cube(targets)?, None);
    Some(tensor::<1>(losses).neg())
}

/// What all rows have in common.
struct Row {
    rows: usize,
    vocabulary: usize,
    soft_cap: Option<f32>,
}

impl Row {
    fn launch(&self, logits: CubeTensor, targets: CubeTensor, weight: Option<f32>) -> CubeTensor {
        let losses = empty(&logits, [self.rows]);
        let walk = Walk::along([self.rows, self.vocabulary]);
        let team = walk.team(&logits);
        loss_kernel::launch(
            &logits.client.clone(),
            walk.cubes(),
            walk.units(),
            walk.lanes,
            logits.into_buffer_arg(),
            targets.into_buffer_arg(),
            losses.clone().into_buffer_arg(),
            walk.rows,
            walk.width,
            weight.unwrap_or_default(),
            self.soft_cap.unwrap_or(1.0),
            team,
            self.soft_cap.is_some(),
            weight.is_some(),
        );
        losses
    }
}

/// Lower than any logit; WGSL has no infinity.
const LOWEST: f32 = f32::MIN;

#[cube(launch)]
fn loss_kernel<N: Size>(
    logits: &mut [Vector<f32, N>],
    targets: &[i32],
    losses: &mut [f32],
    rows: usize,
    width: usize,
    weight: f32,
    cap: f32,
    #[comptime] team: Team,
    #[comptime] capped: bool,
    #[comptime] gradient: bool,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * width;
    // Every lane keeps the largest value so far and the sum of exponentials below it.
    let mut largest = Vector::<f32, N>::new(LOWEST);
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < width {
        let logit = soft_capped(logits[start + i], cap, capped);
        let now = max(largest, logit);
        sum = sum * (largest - now).exp() + (logit - now).exp();
        largest = now;
        i += team.units;
    }
    let mut of_unit = largest.extract(0usize);
    #[unroll]
    for lane in 1..N::value() {
        of_unit = max(of_unit, largest.extract(lane));
    }
    let of_row = cube_max(of_unit, team);
    let below = sum * (largest - Vector::new(of_row)).exp();
    let total = cube_sum(below.vector_sum(), team);

    let target = targets[row] as usize;
    let (holder, lane) = (target / N::value(), target % N::value());
    if UNIT_POS == 0 {
        let at_target = soft_capped(logits[start + holder], cap, capped).extract_dynamic(lane);
        losses[row] = of_row + total.ln() - at_target;
    }
    if comptime!(gradient) {
        // The first unit has read what another writes over now.
        sync_cube();
        let factor = Vector::<f32, N>::new(weight / total);
        let mut i = UNIT_POS as usize;
        while i < width {
            let logit = soft_capped(logits[start + i], cap, capped);
            let mut slope = (logit - Vector::new(of_row)).exp() * factor;
            if i == holder {
                let of_target = slope.extract_dynamic(lane) - weight;
                slope.insert_dynamic(lane, of_target);
            }
            if comptime!(capped) {
                let t = logit / Vector::new(cap);
                slope *= Vector::new(1.0) - t * t;
            }
            logits[start + i] = slope;
            i += team.units;
        }
    }
}

#[cube]
fn soft_capped<N: Size>(
    logit: Vector<f32, N>,
    cap: f32,
    #[comptime] capped: bool,
) -> Vector<f32, N> {
    if comptime!(capped) {
        let cap = Vector::<f32, N>::new(cap);
        cap * tanh(logit / cap)
    } else {
        logit
    }
}
