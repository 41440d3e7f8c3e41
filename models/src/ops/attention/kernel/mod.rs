//! Attention's kernels for GPUs, in CubeCL.

mod backward;
mod forward;
mod plan;
mod rows;
mod tile;

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::plan::Plan;
use super::{Attended, AttentionSpec, Segments};
use crate::ops::cube::{cube, empty, tensor};

/// [`super::attention`], if the device runs CubeCL's kernels and has room for a tile.
pub(super) fn attention(
    qkv: &Tensor<2>,
    segments: &Segments,
    spec: &AttentionSpec,
) -> Option<Attended> {
    let qkv = cube(qkv)?;
    let plan = Plan::new(spec, &qkv.client)?;
    Some(forward(qkv, segments.bounds()?, spec, plan))
}

/// [`super::attention_backward`], where [`attention`] is some.
pub(super) fn attention_backward(
    dout: &Tensor<2>,
    qkv: &Tensor<2>,
    attended: &Attended,
    segments: &Segments,
    spec: &AttentionSpec,
) -> Option<Tensor<2>> {
    let qkv = cube(qkv)?;
    let plan = Plan::new(spec, &qkv.client)?;
    let saved = Saved {
        qkv,
        dout: cube(dout)?,
        out: cube(&attended.out)?,
        log_sum: cube(&attended.log_sum)?,
        bounds: segments.bounds()?,
    };
    Some(backward(saved, spec, plan))
}

fn forward(qkv: CubeTensor, bounds: CubeTensor, spec: &AttentionSpec, plan: Plan) -> Attended {
    let tokens = tokens(&qkv);
    let out = empty(&qkv, [tokens, spec.out_width()]);
    let log_sum = empty(&qkv, [tokens, spec.heads]);
    let client = qkv.client.clone();
    forward::forward::launch(
        &client,
        cubes(tokens * spec.group(), plan),
        threads(plan),
        qkv.into_buffer_arg(),
        bounds.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        log_sum.clone().into_buffer_arg(),
        tokens as u32,
        window(spec),
        spec.scale,
        spec.soft_cap.unwrap_or(1.0),
        plan,
    );
    Attended {
        out: tensor(out),
        log_sum: tensor(log_sum),
    }
}

/// What the backward pass reads.
struct Saved {
    qkv: CubeTensor,
    dout: CubeTensor,
    out: CubeTensor,
    log_sum: CubeTensor,
    bounds: CubeTensor,
}

fn backward(saved: Saved, spec: &AttentionSpec, plan: Plan) -> Tensor<2> {
    let tokens = tokens(&saved.qkv);
    let dqkv = empty(&saved.qkv, [tokens, spec.qkv_width()]);
    let pull = empty(&saved.qkv, [tokens, spec.heads]);
    let client = saved.qkv.client.clone();
    backward::backward_queries::launch(
        &client,
        cubes(tokens * spec.group(), plan),
        threads(plan),
        saved.qkv.clone().into_buffer_arg(),
        saved.out.into_buffer_arg(),
        saved.dout.clone().into_buffer_arg(),
        saved.log_sum.clone().into_buffer_arg(),
        saved.bounds.clone().into_buffer_arg(),
        dqkv.clone().into_buffer_arg(),
        pull.clone().into_buffer_arg(),
        tokens as u32,
        window(spec),
        spec.scale,
        spec.soft_cap.unwrap_or(1.0),
        plan,
    );
    backward::backward_keys::launch(
        &client,
        cubes(tokens, plan),
        threads(plan),
        saved.qkv.into_buffer_arg(),
        saved.dout.into_buffer_arg(),
        saved.log_sum.into_buffer_arg(),
        pull.into_buffer_arg(),
        saved.bounds.into_buffer_arg(),
        dqkv.clone().into_buffer_arg(),
        tokens as u32,
        window(spec),
        spec.scale,
        spec.soft_cap.unwrap_or(1.0),
        plan,
    );
    tensor(dqkv)
}

fn tokens(qkv: &CubeTensor) -> usize {
    qkv.meta.shape()[0]
}

/// A cube for each tile of rows of each key/value head.
fn cubes(rows: usize, plan: Plan) -> CubeCount {
    CubeCount::Static(rows.div_ceil(plan.tile) as u32, plan.kv_heads as u32, 1)
}

fn threads(plan: Plan) -> CubeDim {
    CubeDim::new_2d(plan.side() as u32, plan.side() as u32)
}

/// The window, or more than any row's length.
fn window(spec: &AttentionSpec) -> u32 {
    spec.window.map_or(u32::MAX, |window| window as u32)
}

#[cfg(test)]
mod tests {
    use super::super::{attention as on_host, attention_backward as back_on_host, composed};
    use super::*;
    use crate::ops::twins::{close, random};
    use burn::tensor::Device;

    fn moved(tensor: &Tensor<2>, device: &Device) -> Tensor<2> {
        Tensor::from_data(tensor.to_data(), device)
    }

    /// Rows shorter and longer than a tile, and with a tile's length.
    fn segments(device: &Device) -> Segments {
        let mut start = 0;
        let ranges = [1, 7, 64, 65, 130].into_iter().map(|len| {
            start += len;
            start - len..start
        });
        Segments::new(ranges.collect(), device)
    }

    fn agrees(tile: usize, spec: AttentionSpec) {
        let Some((_, gpu)) = crate::device::gpu_for_tests() else {
            return;
        };
        let cpu = Device::flex();
        let plan = Plan::with_tile(&spec, tile).unwrap();
        let rows = segments(&cpu);
        let tokens = rows.last().unwrap().end;
        let qkv = random("qkv", [tokens, spec.qkv_width()]).mul_scalar(2.0);
        let dout = random("dout", [tokens, spec.out_width()]);

        let (on_gpu, bounds) = (moved(&qkv, &gpu), segments(&gpu).bounds().unwrap());
        let attended = forward(cube(&on_gpu).unwrap(), bounds.clone(), &spec, plan);
        let saved = Saved {
            qkv: cube(&on_gpu).unwrap(),
            dout: cube(&moved(&dout, &gpu)).unwrap(),
            out: cube(&attended.out).unwrap(),
            log_sum: cube(&attended.log_sum).unwrap(),
            bounds,
        };
        let dqkv = moved(&backward(saved, &spec, plan), &cpu);
        let out = moved(&attended.out, &cpu);
        let log_sum = moved(&attended.log_sum, &cpu);

        let expected = on_host(&qkv, &rows, &spec);
        close("log_sum", &log_sum, &expected.log_sum, 1e-5);
        close("out", &out, &expected.out, 1e-5);
        let twin = composed::attention(&qkv, &rows, &spec).out;
        close("out of the twin", &out, &twin, 1e-5);
        let expected = back_on_host(&dout, &qkv, &expected, &rows, &spec);
        close("dqkv", &dqkv, &expected, 2e-5);
        let twin = composed::attention_backward(&dout, &qkv, &rows, &spec);
        close("dqkv of the twin", &dqkv, &twin, 2e-5);
    }

    const PLAIN: AttentionSpec = AttentionSpec {
        heads: 2,
        kv_heads: 2,
        head_dim: 64,
        scale: 0.125,
        window: None,
        soft_cap: None,
    };

    #[test]
    fn gpu_attention_agrees_for_single_heads() {
        agrees(64, PLAIN);
    }

    #[test]
    fn gpu_attention_is_left_to_the_kernels() {
        let Some((_, gpu)) = crate::device::gpu_for_tests() else {
            return;
        };
        let rows = segments(&gpu);
        let qkv = random("qkv", [rows.last().unwrap().end, PLAIN.qkv_width()]);
        assert!(attention(&moved(&qkv, &gpu), &rows, &PLAIN).is_some());
        assert!(attention(&qkv, &rows, &PLAIN).is_none(), "not on the CPU");
        let odd = AttentionSpec {
            head_dim: 6,
            ..PLAIN
        };
        assert!(Plan::with_tile(&odd, 64).is_none(), "not whole vectors");
    }

    #[test]
    fn gpu_attention_agrees_for_groups_with_a_window_and_a_cap() {
        agrees(
            64,
            AttentionSpec {
                heads: 6,
                window: Some(40),
                soft_cap: Some(1.5),
                ..PLAIN
            },
        );
    }

    #[test]
    fn gpu_attention_agrees_in_small_tiles_with_an_odd_size() {
        agrees(
            32,
            AttentionSpec {
                heads: 3,
                kv_heads: 1,
                head_dim: 80,
                window: Some(7),
                ..PLAIN
            },
        );
    }

    #[test]
    fn gpu_attention_agrees_for_large_and_tiny_heads() {
        for head_dim in [256, 8] {
            agrees(
                64,
                AttentionSpec {
                    heads: 1,
                    kv_heads: 1,
                    head_dim,
                    soft_cap: Some(3.0),
                    ..PLAIN
                },
            );
        }
    }
}
