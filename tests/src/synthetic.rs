//! Weights, adapters and token ids from one formula, so that tests need no weight file.
//!
//! Element `i` of the tensor `name` depends on nothing but the two and a seed. The golden
//! values under `golden/tiny` were made by PyTorch from the same formula.

/// The seed of every tensor under `golden/tiny`.
pub const TINY_SEED: u64 = 4242;

/// Values from `-bound` to `bound` for the tensor `name` of `len` elements, row-major.
///
/// Element `i` is `bound * (2 * u - 1)`, computed in `f64` and rounded once, where `u`
/// has 24 random bits.
pub fn uniform(name: &str, len: usize, bound: f64) -> Vec<f32> {
    uniform_seeded(name, len, bound, TINY_SEED)
}

/// [`uniform`] with another seed.
pub fn uniform_seeded(name: &str, len: usize, bound: f64, seed: u64) -> Vec<f32> {
    words(name, len, seed)
        .map(|x| (bound * (2.0 * (x as f64 / (1u64 << 24) as f64) - 1.0)) as f32)
        .collect()
}

/// `len` token ids from 3 up to `vocab`: no special token.
pub fn ids(name: &str, len: usize, vocab: u32) -> Vec<u32> {
    words(name, len, TINY_SEED)
        .map(|x| 3 + ((x * u64::from(vocab - 3)) >> 24) as u32)
        .collect()
}

/// The weights of the tensor `name`, `[rows, cols]`, of a tiny model.
///
/// `gemma` models store norms less one and have smaller embeddings. Vectors have one row.
pub fn weight(name: &str, rows: usize, cols: usize, gemma: bool) -> Vec<f32> {
    let len = rows * cols;
    if name.ends_with("norm.weight") {
        let offset = if gemma { 0.0 } else { 1.0 };
        let values = uniform(name, len, 0.1);
        return values.into_iter().map(|v| v + offset).collect();
    }
    let bound = if name.ends_with(".bias") {
        0.5
    } else if name.contains("embed_tokens") {
        if gemma { 0.1 } else { 0.2 }
    } else {
        2.0 / (cols as f64).sqrt()
    };
    uniform(name, len, bound)
}

/// The factor A `[rank, input]` under the PEFT key `key`.
pub fn lora_a(key: &str, rank: usize, input: usize) -> Vec<f32> {
    uniform(key, rank * input, 1.0 / (input as f64).sqrt())
}

/// The factor B `[output, rank]` under the PEFT key `key`. It is not zero.
pub fn lora_b(key: &str, output: usize, rank: usize) -> Vec<f32> {
    uniform(&format!("B:{key}"), output * rank, 0.2)
}

/// 24-bit words of a SplitMix64 sequence that starts at the hash of the name.
fn words(name: &str, len: usize, seed: u64) -> impl Iterator<Item = u64> {
    let start = fnv1a(name.as_bytes()) ^ seed;
    (1..=len as u64).map(move |i| {
        let z = start.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 40
    })
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_test_vector_holds() {
        let bits: Vec<u64> = words("quant.weight", 4, TINY_SEED).collect();
        assert_eq!(bits, [13_461_264, 13_096_310, 1_617_560, 2_217_559]);
        let values = uniform("quant.weight", 64 * 96, 0.5);
        let first = [0.302_353_86f32, 0.280_600_9, -0.403_585_9];
        for (got, expected) in values.iter().zip(first) {
            assert!((got - expected).abs() < 1e-7, "{got} for {expected}");
        }
        let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
        assert!((sum - 3.994_695_365_4).abs() < 1e-8, "{sum}");
    }

    #[test]
    fn ids_stay_in_the_vocabulary() {
        let ids = ids("ids:0", 24, 384);
        assert!(ids.iter().all(|id| (3..384).contains(id)));
    }
}
