use super::*;
use crate::ops::frozen::HostMatrix;
use crate::quant::{BlockFormat, Int8Rows, Nf4Matrix, QuantMatrix, RowOrder};
use std::sync::Arc;

/// Small whole numbers, so that every order of summation gives the same.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as f32 - 8.0
    };
    (0..len).map(|_| next()).collect()
}

/// `[rows, inner] · [inner, width]`, written out.
fn written_out(a: &[f32], b: &[f32], [rows, inner, width]: [usize; 3]) -> Vec<f32> {
    let mut c = vec![0.0; rows * width];
    for i in 0..rows {
        for k in 0..inner {
            for j in 0..width {
                c[i * width + j] += a[i * inner + k] * b[k * width + j];
            }
        }
    }
    c
}

fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let at = |i: usize| values[(i % rows) * cols + i / rows];
    (0..rows * cols).map(at).collect()
}

/// Every way of holding `[rows, cols]` small whole numbers without rounding them.
fn held(rows: usize, cols: usize) -> Vec<(&'static str, HostMatrix, Vec<f32>)> {
    let values = numbers(rows * cols, 3);
    let plain = QuantMatrix::from_f32(rows, cols, &values).unwrap();
    let order = RowOrder::LlamaRope {
        heads: 2,
        head_dim: rows / 2,
    };
    let ordered = plain.clone().with_order(order).unwrap();
    let int8 = Int8Rows::from_matrix(&plain);
    let nf4 = Nf4Matrix::from_matrix(&plain);
    let (of_order, of_int8, of_nf4) = (ordered.to_f32(), int8.to_f32(), nf4.to_f32());
    vec![
        ("f32", HostMatrix::Stored(plain), values),
        ("reordered", HostMatrix::Stored(ordered), of_order),
        ("int8", HostMatrix::Int8(Arc::new(int8)), of_int8),
        ("nf4", HostMatrix::Nf4(Arc::new(nf4)), of_nf4),
    ]
}

fn close(what: &str, a: &[f32], b: &[f32]) {
    let scale = b.iter().fold(1.0f32, |max, v| max.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= 1e-6 * scale, "{what}[{i}]: {a}, not {b}");
    }
}

#[test]
fn both_directions_are_the_product_written_out() {
    for (out, features, rows) in [(8, 10, 1), (64, 96, 5), (36, 700, 29), (532, 40, 130)] {
        for (name, matrix, values) in held(out, features) {
            let (x, g) = (numbers(rows * features, 5), numbers(rows * out, 7));
            let what = format!("{name} [{out}, {features}] with {rows} rows");
            let mut y = vec![f32::NAN; rows * out];
            let term = Term {
                a: Mat::new(&x, rows, features),
                b: &Transposed(&matrix),
            };
            product(&mut y, out, out, Write::Set, &[term]);
            let of_t = transposed(&values, out, features);
            let expected = written_out(&x, &of_t, [rows, features, out]);
            close(&what, &y, &expected);
            if rows < 8 {
                y.fill(f32::NAN);
                few_rows(&[&matrix], Mat::new(&x, rows, features), &mut y, out);
                close(&what, &y, &expected);
                // Two side by side, and room after them.
                let stride = 2 * out + 3;
                let mut both = vec![f32::NAN; rows * stride];
                let x = Mat::new(&x, rows, features);
                few_rows(&[&matrix, &matrix], x, &mut both, stride);
                for (both, expected) in both.chunks(stride).zip(expected.chunks(out)) {
                    close(&what, &both[..out], expected);
                    close(&what, &both[out..2 * out], expected);
                }
            }
            let mut dx = vec![1.0; rows * features];
            let term = Term {
                a: Mat::new(&g, rows, out),
                b: &Straight(&matrix),
            };
            product(&mut dx, features, features, Write::Add, &[term]);
            let sum = written_out(&g, &values, [rows, out, features]);
            let sum: Vec<f32> = sum.iter().map(|v| v + 1.0).collect();
            close(&what, &dx, &sum);
        }
    }
}

#[test]
fn blocks_are_unpacked_where_they_begin() {
    // 512 values are two blocks of the formats with the longest ones.
    for format in BlockFormat::ALL {
        let (out, features, rows) = (20, 512, 7);
        let bytes = out * format.row_bytes(features).unwrap();
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // No byte above 0x3b: no scale of any format is then infinite or NaN.
            (state >> 24) as u8 % 0x3c
        };
        let bytes: Vec<u8> = (0..bytes).map(|_| byte()).collect();
        let matrix = QuantMatrix::new(out, features, format, bytes).unwrap();
        let values = matrix.to_f32();
        let matrix = HostMatrix::Stored(matrix);
        let x = numbers(rows * features, 5);
        let mut y = vec![0.0; rows * out];
        let term = Term {
            a: Mat::new(&x, rows, features),
            b: &Transposed(&matrix),
        };
        product(&mut y, out, out, Write::Set, &[term]);
        let of_t = transposed(&values, out, features);
        let sum = written_out(&x, &of_t, [rows, features, out]);
        close(&format.to_string(), &y, &sum);
    }
}

#[test]
fn terms_are_added_inside_wider_rows() {
    let (rows, width, stride) = (13, 21, 30);
    let (a, b) = (numbers(rows * 40, 1), numbers(40 * width, 2));
    let (u, v) = (numbers(rows * 3, 3), numbers(width * 3, 4));
    let matrix = HostMatrix::Stored(QuantMatrix::from_f32(40, width, &b).unwrap());
    let mut c = vec![9.0; rows * stride];
    let terms = [
        Term {
            a: Mat::new(&a, rows, 40),
            b: &Straight(&matrix),
        },
        Term {
            a: Mat::new(&u, rows, 3),
            b: &Scaled(Mat::new(&v, width, 3).t(), 2.0),
        },
    ];
    product(&mut c, stride, width, Write::Set, &terms);
    let first = written_out(&a, &b, [rows, 40, width]);
    let second = written_out(&u, &transposed(&v, width, 3), [rows, 3, width]);
    for i in 0..rows {
        for j in 0..stride {
            let expected = match j < width {
                true => first[i * width + j] + 2.0 * second[i * width + j],
                false => 9.0,
            };
            assert_eq!(c[i * stride + j], expected, "({i}, {j})");
        }
    }
}
