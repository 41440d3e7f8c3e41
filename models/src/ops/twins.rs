//! Each fused CPU operation against its composition out of burn's operations, and each
//! hand-written gradient against finite differences of its forward pass.

use super::host::{Host, host_tensor};
use super::*;
use crate::config::Activation;
use burn::tensor::{Device, Tensor};

/// Values in [-1, 1) that depend on the name and the position only.
pub(super) fn random<const D: usize>(name: &str, shape: [usize; D]) -> Tensor<D> {
    let mut state = name.bytes().fold(1u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    let values = (0..shape.iter().product())
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    host_tensor(values, shape)
}

pub(super) fn close<const D: usize>(what: &str, a: &Tensor<D>, b: &Tensor<D>, tolerance: f32) {
    let (a, b) = (Host::of(a.clone()), Host::of(b.clone()));
    assert_eq!(a.values().len(), b.values().len(), "{what}");
    let scale = b.values().iter().fold(1.0f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.values().iter().zip(b.values()).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * scale,
            "{what}[{i}]: {a} against {b}"
        );
    }
}

/// Compares `Σ dx·direction` with the central difference of `Σ dy·f(x)` along it.
fn gradient_matches(
    what: &str,
    x: &Tensor<2>,
    dy: &Tensor<2>,
    dx: &Tensor<2>,
    f: impl Fn(&Tensor<2>) -> Tensor<2>,
) {
    let direction = random::<2>(&format!("{what} direction"), x.dims());
    let step = 1e-2;
    let value = |sign: f32| {
        let moved = x.clone() + direction.clone().mul_scalar(sign * step);
        let (y, dy) = (Host::of(f(&moved)), Host::of(dy.clone()));
        y.values()
            .iter()
            .zip(dy.values())
            .map(|(y, g)| f64::from(*y) * f64::from(*g))
            .sum::<f64>()
    };
    let measured = (value(1.0) - value(-1.0)) / f64::from(2.0 * step);
    let (dx, direction) = (Host::of(dx.clone()), Host::of(direction));
    let claimed: f64 = dx
        .values()
        .iter()
        .zip(direction.values())
        .map(|(a, b)| f64::from(a * b))
        .sum();
    assert!(
        (measured - claimed).abs() < 2e-3 * claimed.abs().max(1.0),
        "{what}: {claimed} against {measured}"
    );
}

#[test]
fn rms_norm_is_its_composition() {
    let (x, w, dy) = (
        random("x", [37, 24]),
        random("w", [24]),
        random("dy", [37, 24]),
    );
    let fused = rms_norm(&x, &w, 1e-5);
    let twin = norm::composed::rms_norm(&x, &w, 1e-5);
    close("y", &fused.y, &twin.y, 1e-5);
    close("inv", &fused.inv, &twin.inv, 1e-5);
    let again = rms_norm_again(&x, &w, &fused.inv);
    assert_eq!(Host::of(again).values(), Host::of(fused.y).values());
    let dx = rms_norm_backward(&dy, &x, &w, &fused.inv);
    let onto = random("onto", [37, 24]);
    close(
        "dx added",
        &rms_norm_backward_onto(onto.clone(), &dy, &x, &w, &fused.inv),
        &(onto + dx.clone()),
        1e-6,
    );
    close(
        "dx",
        &dx,
        &norm::composed::rms_norm_backward(&dy, &x, &w, &twin.inv),
        1e-5,
    );
    gradient_matches("rms_norm", &x, &dy, &dx, |x| rms_norm(x, &w, 1e-5).y);
}

#[test]
fn gated_units_are_their_composition() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let (x, dy) = (
            random("x", [19, 40]).mul_scalar(4.0),
            random("dy", [19, 20]),
        );
        close(
            "glu",
            &glu(&x, activation),
            &glu::composed::glu(&x, activation),
            1e-5,
        );
        let dx = glu_backward(&dy, x.clone(), activation);
        close(
            "dglu",
            &dx,
            &glu::composed::glu_backward(&dy, x.clone(), activation),
            1e-5,
        );
        gradient_matches("glu", &x, &dy, &dx, |x| glu(x, activation));
    }
}

#[test]
fn rotation_is_its_composition_and_turns_back() {
    let x = random("x", [5, 40]);
    let device = x.device();
    let rotation = Rotation::new(&[0, 1, 2, 3, 900], &[1.0, 0.1, 0.01, 0.001], &device);
    let turned = rotate(x.clone(), &rotation, 3, Turn::Forward);
    close(
        "rope",
        &turned,
        &rope::composed::rotate(x.clone(), &rotation, 3, Turn::Forward),
        1e-6,
    );
    close(
        "inverse",
        &rotate(turned, &rotation, 3, Turn::Backward),
        &x,
        1e-5,
    );
}

#[test]
fn attention_is_its_composition() {
    let segments = Segments::new(vec![0..70, 70..71, 71..100], &Device::flex());
    let plain = AttentionSpec {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        scale: 0.4,
        window: None,
        soft_cap: None,
    };
    for spec in [
        plain,
        AttentionSpec {
            window: Some(9),
            ..plain
        },
        AttentionSpec {
            soft_cap: Some(1.5),
            ..plain
        },
        AttentionSpec {
            window: Some(20),
            soft_cap: Some(0.7),
            ..plain
        },
    ] {
        let qkv = random("qkv", [100, spec.qkv_width()]);
        let dout = random("dout", [100, spec.out_width()]);
        let fused = attention(&qkv, &segments, &spec);
        close(
            "out",
            &fused.out,
            &attention::composed::attention(&qkv, &segments, &spec).out,
            1e-5,
        );
        let dqkv = attention_backward(&dout, &qkv, &fused, &segments, &spec);
        let twin = attention::composed::attention_backward(&dout, &qkv, &segments, &spec);
        close("dqkv", &dqkv, &twin, 1e-5);
        gradient_matches("attention", &qkv, &dout, &dqkv, |x| {
            attention(x, &segments, &spec).out
        });
    }
}

#[test]
fn cached_attention_continues_texts_that_begin_alike() {
    let plain = AttentionSpec {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        scale: 0.4,
        window: None,
        soft_cap: None,
    };
    let odd = AttentionSpec {
        window: Some(7),
        soft_cap: Some(2.0),
        ..plain
    };
    for spec in [plain, odd] {
        // A beginning of 9 tokens, then 70 more in one text, 2 in another; the first goes on by 5.
        let qkv = random("qkv", [86, spec.qkv_width()]);
        let rows = |rows: std::ops::Range<usize>| qkv.clone().slice([rows, 0..spec.qkv_width()]);
        let whole = |parts: Vec<Tensor<2>>, last: usize| {
            let text = Tensor::cat(parts, 0);
            let tokens = text.dims()[0];
            let segments = Segments::new(std::iter::once(0..tokens).collect(), &Device::flex());
            let out = attention(&text, &segments, &spec).out;
            out.slice([tokens - last..tokens, 0..spec.out_width()])
        };
        let first = whole(vec![rows(0..9), rows(9..79)], 70);
        let second = whole(vec![rows(0..9), rows(79..81)], 2);
        let further = whole(vec![rows(0..9), rows(9..79), rows(81..86)], 5);
        let mut cache = vec![KeyValues::new(true); 4];
        let continuation = |rows, runs| Continuation { rows, runs };
        // The beginning and both texts in one pass, then a run after the first.
        let pass = [
            continuation(0..9, vec![0]),
            continuation(9..79, vec![0, 1]),
            continuation(79..81, vec![0, 2]),
        ];
        let out = attention_cached(&rows(0..81), &mut cache, &pass, &spec);
        let columns = 0..spec.out_width();
        close(
            "first",
            &out.clone().slice([9..79, columns.clone()]),
            &first,
            1e-5,
        );
        close("second", &out.slice([79..81, columns]), &second, 1e-5);
        let pass = [continuation(0..5, vec![0, 1, 3])];
        let out = attention_cached(&rows(81..86), &mut cache, &pass, &spec);
        close("further", &out, &further, 1e-5);
        let (q, k, v) = (
            qkv.clone().slice([0..81, 0..32]),
            qkv.clone().slice([0..81, 32..48]),
            qkv.clone().slice([0..81, 48..64]),
        );
        let tail = q.slice([79..81, 0..32]);
        let twin = attention::composed::attention_cached(
            &tail,
            &Tensor::cat(
                vec![k.clone().slice([0..9, 0..16]), k.slice([79..81, 0..16])],
                0,
            ),
            &Tensor::cat(
                vec![v.clone().slice([0..9, 0..16]), v.slice([79..81, 0..16])],
                0,
            ),
            &spec,
        );
        close("composed", &twin, &second, 1e-5);
    }
}
