//! Packed bytes and values against bitsandbytes' rule for NF4 and against llama.cpp.

use std::fs;

use fedllm_models::{BlockFormat, Int8Rows, Nf4Matrix, QuantMatrix, dequantize_row, quantize_row};
use fedllm_tests::synthetic::uniform;
use safetensors::SafeTensors;

use crate::golden;

const MATRICES: [&str; 2] = ["plain", "edge"];
const ROWS: usize = 64;
const COLS: usize = 96;

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Self {
        Self(fs::read(golden("tiny/quant/quant.safetensors")).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().to_vec()
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name);
        let (chunks, _) = bytes.as_chunks::<4>();
        chunks.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

fn assert_same(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        // Equal, or both a zero.
        assert!(got == expected, "{what}[{index}]: {got} for {expected}");
    }
}

#[test]
fn the_sources_come_from_the_formula() {
    let golden = Golden::open();
    let plain = uniform("quant.weight", ROWS * COLS, 0.5);
    assert_same(&golden.values("plain.source"), &plain, "plain");
    let mut edge: Vec<f32> = uniform("quant.edge", ROWS * COLS, 1.0)
        .into_iter()
        .map(|u| (u * u) * u)
        .collect();
    edge[..COLS].fill(0.0);
    edge[COLS..2 * COLS].fill(0.25);
    edge[2 * COLS..3 * COLS]
        .iter_mut()
        .for_each(|v| *v = -v.abs());
    edge[3 * COLS..4 * COLS]
        .iter_mut()
        .for_each(|v| *v /= 8192.0);
    edge[4 * COLS + 10] = 8.0;
    assert_same(&golden.values("edge.source"), &edge, "edge");
}

#[test]
fn ggml_blocks_are_equal_byte_for_byte() {
    let golden = Golden::open();
    for matrix in MATRICES {
        let source = golden.values(&format!("{matrix}.source"));
        for (format, name) in [
            (BlockFormat::Q8_0, "q8_0"),
            (BlockFormat::Q4_0, "q4_0"),
            (BlockFormat::Q4_1, "q4_1"),
        ] {
            let mut packed = Vec::new();
            quantize_row(format, &source, &mut packed).unwrap();
            let expected = golden.bytes(&format!("{matrix}.{name}.packed"));
            assert!(packed == expected, "{matrix} {format}");
        }
    }
}

#[test]
fn ggml_blocks_are_read_exactly() {
    let golden = Golden::open();
    for matrix in MATRICES {
        for (format, name, rows) in [
            (BlockFormat::Q8_0, "q8_0", ROWS),
            (BlockFormat::Q4_0, "q4_0", ROWS),
            (BlockFormat::Q4_1, "q4_1", ROWS),
            (BlockFormat::Q4K, "q4_k", 24),
            (BlockFormat::Q6K, "q6_k", 24),
        ] {
            let packed = golden.bytes(&format!("{matrix}.{name}.packed"));
            let expected = golden.values(&format!("{matrix}.{name}.dequantized"));
            let cols = expected.len() / rows;
            let what = format!("{matrix} {format}");
            let matrix = QuantMatrix::new(rows, cols, format, packed.clone()).unwrap();
            assert_same(&matrix.to_f32(), &expected, &what);
            let mut out = vec![0.0; expected.len()];
            dequantize_row(format, &packed, &mut out).unwrap();
            assert_same(&out, &expected, &what);
        }
    }
}

#[test]
fn nf4_is_exact() {
    let golden = Golden::open();
    for matrix in MATRICES {
        let source = golden.values(&format!("{matrix}.source"));
        let nf4 = Nf4Matrix::quantize(ROWS, COLS, &source).unwrap();
        assert!(nf4.packed() == golden.bytes(&format!("{matrix}.nf4.packed")));
        assert_same(
            nf4.absmax(),
            &golden.values(&format!("{matrix}.nf4.absmax")),
            "absmax",
        );
        let expected = golden.values(&format!("{matrix}.nf4.dequantized"));
        assert_same(&nf4.to_f32(), &expected, matrix);
        let stored = QuantMatrix::from_f32(ROWS, COLS, &source).unwrap();
        assert_eq!(Nf4Matrix::from_matrix(&stored), nf4);
    }
}

#[test]
fn int8_rows_are_exact() {
    let golden = Golden::open();
    for matrix in MATRICES {
        let source = golden.values(&format!("{matrix}.source"));
        let int8 = Int8Rows::quantize(ROWS, COLS, &source).unwrap();
        let packed: Vec<u8> = int8.values().iter().map(|v| v.cast_unsigned()).collect();
        assert!(packed == golden.bytes(&format!("{matrix}.int8_rows.packed")));
        let scales = golden.values(&format!("{matrix}.int8_rows.scale"));
        assert_same(int8.scales(), &scales, "scale");
        let expected = golden.values(&format!("{matrix}.int8_rows.dequantized"));
        assert_same(&int8.to_f32(), &expected, matrix);
    }
}
