use std::io::Write;

use proptest::prelude::*;

use super::container::HEADER_BYTES;
use super::*;
use crate::adapter::TensorSpec;

const CODECS: [Codec; 3] = [Codec::F32, Codec::Bf16, Codec::Int8Rows];

fn layout(shapes: &[(u32, u32)]) -> Arc<Layout> {
    let specs = shapes
        .iter()
        .enumerate()
        .map(|(index, (rows, cols))| TensorSpec {
            name: format!("t{index}"),
            rows: *rows,
            cols: *cols,
        });
    Arc::new(Layout::new(specs.collect()).unwrap())
}

fn small() -> (Arc<Layout>, Delta) {
    let layout = layout(&[(2, 3), (1, 4)]);
    let values = vec![1.0, -2.0, 0.5, 0.0, 0.0, 0.0, 127.0, -64.0, 3.0, 1.0];
    let delta = Delta::new(layout.clone(), values).unwrap();
    (layout, delta)
}

/// The container around other raw bytes than an encoder writes.
fn forge(layout: &Layout, codec: Codec, raw: &[u8]) -> Vec<u8> {
    let mut bytes = b"FDL1".to_vec();
    bytes.push(codec as u8);
    bytes.extend_from_slice(&layout.digest().0);
    bytes.extend_from_slice(&(raw.len() as u64).to_le_bytes());
    let mut encoder = zstd::stream::write::Encoder::new(bytes, 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder
        .set_pledged_src_size(Some(raw.len() as u64))
        .unwrap();
    encoder.write_all(raw).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn raw_bytes_are_as_documented() {
    let layout = layout(&[(1, 2)]);
    let delta = Delta::new(layout.clone(), vec![1.0, -254.0]).unwrap();
    let raw = |codec| {
        let mut raw = Vec::new();
        values::write::<CodecError>(&layout, delta.values(), codec, |piece| {
            raw.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        raw
    };
    // 1.0 is 3f800000 and -254.0 is c37e0000; planes go from low to high.
    assert_eq!(raw(Codec::F32), [0, 0, 0, 0, 0x80, 0x7e, 0x3f, 0xc3]);
    assert_eq!(raw(Codec::Bf16), [0x80, 0x7e, 0x3f, 0xc3]);
    // The scale is 254 / 127 = 2.0, and 1 / 2 rounds to the even 0.
    assert_eq!(raw(Codec::Int8Rows), [0, 0, 0, 0x40, 0, 0x81]);
}

#[test]
fn f32_is_exact_and_the_others_are_close() {
    let (layout, delta) = small();
    for codec in CODECS {
        let bytes = encode_delta(&delta, codec).unwrap();
        assert!(bytes.len() as u64 <= codec.max_encoded_len(&layout));
        let decoded = decode_delta(&bytes, &layout, codec).unwrap();
        let tolerance = match codec {
            Codec::F32 => 0.0,
            Codec::Bf16 => 1.0 / 256.0,
            Codec::Int8Rows => 0.5,
        };
        for (index, (got, value)) in decoded.values().iter().zip(delta.values()).enumerate() {
            assert!(
                (got - value).abs() <= tolerance,
                "{codec} {index}: {got} {value}"
            );
        }
    }
    let adapter = Adapter::new(layout.clone(), delta.values().to_vec()).unwrap();
    let bytes = encode_adapter(&adapter, Codec::F32).unwrap();
    assert_eq!(decode_adapter(&bytes, &layout), Ok(adapter));
    assert_eq!(
        decode_delta(&bytes, &layout, Codec::F32),
        Err(CodecError::Magic)
    );
}

#[test]
fn another_layout_codec_or_length_is_refused_by_the_header() {
    let (layout, delta) = small();
    let bytes = encode_delta(&delta, Codec::F32).unwrap();
    let other = self::layout(&[(3, 2), (1, 4)]);
    assert!(matches!(
        decode_delta(&bytes, &other, Codec::F32),
        Err(CodecError::WrongLayout { .. })
    ));
    assert!(matches!(
        decode_delta(&bytes, &layout, Codec::Bf16),
        Err(CodecError::WrongCodec { .. })
    ));
    let mut unknown = bytes.clone();
    unknown[4] = 3;
    assert_eq!(
        decode_delta(&unknown, &layout, Codec::F32),
        Err(CodecError::UnknownCodec(3))
    );
    let mut longer = bytes;
    longer[37] += 1;
    assert_eq!(
        decode_delta(&longer, &layout, Codec::F32),
        Err(CodecError::RawLength {
            expected: 40,
            got: 41
        })
    );
}

#[test]
fn every_cut_and_every_addition_is_refused() {
    let (layout, delta) = small();
    for codec in CODECS {
        let mut bytes = encode_delta(&delta, codec).unwrap();
        for cut in 0..bytes.len() {
            assert!(
                decode_delta(&bytes[..cut], &layout, codec).is_err(),
                "{codec} {cut}"
            );
        }
        bytes.push(0);
        assert_eq!(
            decode_delta(&bytes, &layout, codec),
            Err(CodecError::Trailing)
        );
        bytes.pop();
        // A second frame, and a skippable one.
        let frame = bytes[HEADER_BYTES..].to_vec();
        for tail in [&frame[..], &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]] {
            let two = [&bytes[..], tail].concat();
            assert_eq!(
                decode_delta(&two, &layout, codec),
                Err(CodecError::Trailing)
            );
        }
    }
}

#[test]
fn every_changed_byte_is_refused() {
    let (layout, delta) = small();
    for codec in CODECS {
        let bytes = encode_delta(&delta, codec).unwrap();
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[place] ^= 1 << bit;
                if let Ok(decoded) = decode_delta(&bytes, &layout, codec) {
                    // Bits of the frame that mean nothing may change.
                    let sound = decode_delta(&encode_delta(&delta, codec).unwrap(), &layout, codec);
                    assert_eq!(Ok(decoded), sound, "{codec} {place} {bit}");
                }
            }
        }
    }
}

#[test]
fn a_bomb_is_refused_before_it_grows() {
    let (layout, _) = small();
    let zeros = vec![0; 64 << 20];
    let bomb = forge(&layout, Codec::F32, &zeros);
    assert!(bomb.len() < 10_000);
    assert_eq!(
        decode_delta(&bomb, &layout, Codec::F32),
        Err(CodecError::RawLength {
            expected: 40,
            got: 64 << 20
        })
    );
    // The same with a header that lies about it.
    let mut lying = bomb.clone();
    lying[37..45].copy_from_slice(&40u64.to_le_bytes());
    assert_eq!(
        decode_delta(&lying, &layout, Codec::F32),
        Err(CodecError::RawLength {
            expected: 40,
            got: 64 << 20
        })
    );
    // And with a frame that does not say how long it is.
    let mut silent = bomb[..HEADER_BYTES].to_vec();
    silent[37..45].copy_from_slice(&40u64.to_le_bytes());
    let mut encoder = zstd::stream::write::Encoder::new(silent, 1).unwrap();
    encoder.write_all(&zeros).unwrap();
    assert_eq!(
        decode_delta(&encoder.finish().unwrap(), &layout, Codec::F32),
        Err(CodecError::RawLength {
            expected: 40,
            got: 0
        })
    );
}

#[test]
fn a_large_window_is_refused() {
    // 40 MiB of values, so that a window of 2^25 has its use.
    let layout = layout(&[(10, 1 << 20)]);
    let mut bytes = forge(&layout, Codec::F32, &[]);
    bytes.truncate(HEADER_BYTES);
    bytes[37..45].copy_from_slice(&(40u64 << 20).to_le_bytes());
    let mut encoder = zstd::stream::write::Encoder::new(bytes, 1).unwrap();
    encoder.window_log(25).unwrap();
    encoder.set_pledged_src_size(Some(40 << 20)).unwrap();
    encoder.write_all(&vec![0; 40 << 20]).unwrap();
    let error = decode_delta(&encoder.finish().unwrap(), &layout, Codec::F32).unwrap_err();
    assert!(matches!(error, CodecError::Compressed(_)), "{error}");
}

#[test]
fn special_values_are_refused_at_each_place() {
    let (layout, delta) = small();
    let planes = |values: &[f32], width: usize| {
        let bytes: Vec<_> = values.iter().map(|value| value.to_le_bytes()).collect();
        let plane = |plane: usize| bytes.iter().map(move |value| value[4 - width + plane]);
        (0..width).flat_map(plane).collect::<Vec<u8>>()
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in 0..layout.len() {
            let mut values = delta.values().to_vec();
            values[place] = bad;
            for (codec, width) in [(Codec::F32, 4), (Codec::Bf16, 2)] {
                let bytes = forge(&layout, codec, &planes(&values, width));
                let error = decode_delta(&bytes, &layout, codec).unwrap_err();
                let (tensor, index) = if place < 6 {
                    ("t0", place)
                } else {
                    ("t1", place - 6)
                };
                let tensor = tensor.to_owned();
                assert_eq!(error, AdapterError::NonFinite { tensor, index }.into());
            }
        }
    }
}

#[test]
fn int8_rows_have_sound_scales_and_values() {
    let layout = layout(&[(1, 2)]);
    let row = |scale: f32, steps: [u8; 2]| {
        let raw = [&scale.to_le_bytes()[..], &steps].concat();
        decode_delta(
            &forge(&layout, Codec::Int8Rows, &raw),
            &layout,
            Codec::Int8Rows,
        )
    };
    assert!(row(0.5, [0x7f, 0x81]).is_ok());
    assert!(row(0.0, [0, 0]).is_ok());
    let scales = [
        f32::NAN,
        f32::INFINITY,
        -0.5,
        f32::NEG_INFINITY,
        1e-45,
        -0.0,
    ];
    for (scale, steps) in scales
        .map(|scale| (scale, [1, 2]))
        .into_iter()
        .chain([(0.0, [0, 1]), (0.5, [0x80, 0])])
    {
        assert!(
            matches!(row(scale, steps), Err(CodecError::Row { row: 0, .. })),
            "{scale}"
        );
    }
    assert!(matches!(row(f32::MAX, [1, 2]), Err(CodecError::Value(_))));
}

#[test]
fn the_largest_values_do_not_round_to_infinity() {
    let layout = layout(&[(1, 3)]);
    let delta = Delta::new(layout.clone(), vec![0.0, f32::MAX, 0.0]).unwrap();
    let (tensor, index) = ("t0".to_owned(), 1);
    assert_eq!(
        encode_delta(&delta, Codec::Bf16),
        Err(AdapterError::NonFinite { tensor, index }.into())
    );
    let bytes = encode_delta(&delta, Codec::Int8Rows).unwrap();
    assert!(decode_delta(&bytes, &layout, Codec::Int8Rows).is_ok());
}

#[test]
fn rows_too_small_to_scale_become_zero() {
    let layout = layout(&[(1, 2)]);
    let delta = Delta::new(layout.clone(), vec![1e-40, -1e-44]).unwrap();
    let bytes = encode_delta(&delta, Codec::Int8Rows).unwrap();
    let decoded = decode_delta(&bytes, &layout, Codec::Int8Rows).unwrap();
    assert_eq!(decoded.values(), [0.0, 0.0]);
}

proptest! {
    #[test]
    fn blocks_of_any_size_give_the_same_values(
        shapes in proptest::collection::vec((1u32..40, 1u32..900), 1..4),
        block in 1usize..70_000,
        seed in any::<u32>(),
    ) {
        let layout = layout(&shapes);
        let value = |index| (index as u32 ^ seed).wrapping_mul(2_654_435_761) as f32 / 1e9 - 2.0;
        let delta = Delta::new(layout.clone(), (0..layout.len()).map(value).collect()).unwrap();
        for codec in CODECS {
            let bytes = encode_delta(&delta, codec).unwrap();
            prop_assert!(bytes.len() as u64 <= codec.max_encoded_len(&layout));
            let whole = decode_delta(&bytes, &layout, codec).unwrap();
            let mut decoder = DeltaDecoder::new(layout.clone(), codec, bytes.as_slice()).unwrap();
            let mut pieces = Vec::new();
            let mut buffer = vec![0.0; block];
            loop {
                prop_assert_eq!(decoder.position(), pieces.len());
                match decoder.next_block(&mut buffer).unwrap() {
                    0 => break,
                    count => pieces.extend_from_slice(&buffer[..count]),
                }
            }
            prop_assert_eq!(&pieces, whole.values());
            // What was decoded once is encoded to the same values again.
            let again = encode_delta(&whole, codec).unwrap();
            let again = decode_delta(&again, &layout, codec).unwrap();
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs();
            prop_assert!(again.values().iter().zip(whole.values()).all(close));
        }
    }

    #[test]
    fn any_bytes_give_an_error(
        header in proptest::bool::ANY,
        tail in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let (layout, delta) = small();
        let sound = encode_delta(&delta, Codec::F32).unwrap();
        let begin = if header { &sound[..HEADER_BYTES] } else { &[] };
        let bytes = [begin, &tail].concat();
        prop_assume!(bytes != sound);
        prop_assert!(decode_delta(&bytes, &layout, Codec::F32).is_err());
    }
}
