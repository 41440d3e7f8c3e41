//! Looks at every value of an update before anybody counts it.

use std::io::Read;

use fedllm_shared::{AdapterError, CodecError, DeltaDecoder, RefuseReason};

use super::Expected;

/// An update longer than this many times the limit is refused. Up to there it is scaled down when
/// it is averaged: clients clip before they encode, so what is longer was not made by our client.
const HARD_CAP: f64 = 10.0;
const BLOCK: usize = 1 << 16;

/// Confirms that `bytes` are an update as `expected`, all finite and not too long, and returns the
/// norm (L2) of the adapter's delta in it.
///
/// # Errors
///
/// The reason to tell the client. An update is refused as a whole, never repaired.
pub(crate) fn check_update(bytes: impl Read, expected: &Expected) -> Result<f64, RefuseReason> {
    let norm = norm(bytes, expected).map_err(|error| match error {
        CodecError::Value(AdapterError::NonFinite { .. }) => RefuseReason::NonFinite,
        _ => RefuseReason::Malformed,
    })?;
    match expected.max_norm {
        Some(max) if norm > f64::from(max) * HARD_CAP => Err(RefuseReason::NormTooLarge),
        _ => Ok(norm),
    }
}

fn norm(bytes: impl Read, expected: &Expected) -> Result<f64, CodecError> {
    let mut decoder = DeltaDecoder::new(expected.layout.clone(), expected.codec, bytes)?;
    let mut block = vec![0.0; BLOCK];
    let mut squares = 0.0f64;
    loop {
        let count = decoder.next_block(&mut block)?;
        if count == 0 {
            return Ok(squares.sqrt());
        }
        let start = decoder.position() - count;
        // Behind the delta lies a control variate's, which has no limit.
        let counted = expected.split.saturating_sub(start).min(count);
        let sum: f64 = block[..counted].iter().map(|v| f64::from(*v).powi(2)).sum();
        squares += sum;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fedllm_shared::{Codec, Delta, Layout, TensorSpec, encode_delta};

    use super::*;

    fn expected(codec: Codec, max_norm: Option<f32>) -> Expected {
        let spec = TensorSpec {
            name: "a".into(),
            rows: 300,
            cols: 400,
        };
        let layout = Arc::new(Layout::new(vec![spec]).unwrap());
        Expected {
            split: layout.len(),
            layout,
            codec,
            max_norm,
        }
    }

    fn encoded(expected: &Expected, value: f32) -> Vec<u8> {
        let values = vec![value; expected.layout.len()];
        let delta = Delta::new(expected.layout.clone(), values).unwrap();
        encode_delta(&delta, expected.codec).unwrap()
    }

    #[test]
    fn a_sound_update_has_a_norm() {
        for codec in [Codec::F32, Codec::Bf16, Codec::Int8Rows] {
            let expected = expected(codec, None);
            let norm = check_update(encoded(&expected, 0.5).as_slice(), &expected).unwrap();
            assert!(
                (norm - 0.5 * (120_000f64).sqrt()).abs() < 1e-3,
                "{codec}: {norm}"
            );
        }
    }

    #[test]
    fn what_lies_behind_the_delta_is_not_in_its_norm() {
        let whole = expected(Codec::F32, None);
        let half = Expected {
            split: whole.layout.len() / 2,
            ..whole.clone()
        };
        let bytes = encoded(&whole, 0.5);
        let norm = check_update(bytes.as_slice(), &half).unwrap();
        assert!((norm - 0.5 * (60_000f64).sqrt()).abs() < 1e-3, "{norm}");
    }

    #[test]
    fn a_norm_far_beyond_the_limit_is_refused() {
        let limit = expected(Codec::F32, Some(0.05 * (120_000f32).sqrt()));
        assert!(check_update(encoded(&limit, 0.499).as_slice(), &limit).is_ok());
        let bytes = encoded(&limit, 0.501);
        let refused = check_update(bytes.as_slice(), &limit);
        assert_eq!(refused, Err(RefuseReason::NormTooLarge));
    }

    #[test]
    fn cut_and_foreign_bytes_are_malformed() {
        let expected = expected(Codec::Bf16, None);
        let bytes = encoded(&expected, 0.25);
        for cut in [0, 10, 60, bytes.len() - 1] {
            let refused = check_update(&bytes[..cut], &expected);
            assert_eq!(refused, Err(RefuseReason::Malformed), "{cut}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        let refused = check_update(longer.as_slice(), &expected);
        assert_eq!(refused, Err(RefuseReason::Malformed));
        let other = super::tests::expected(Codec::F32, None);
        let refused = check_update(bytes.as_slice(), &other);
        assert_eq!(refused, Err(RefuseReason::Malformed));
    }
}
