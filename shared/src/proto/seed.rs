//! Random numbers that follow from a seed and a purpose.

/// 32 bytes for one purpose: the same for the same arguments, and unrelated otherwise.
pub(super) fn derive(seed: u64, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("fedllm 1 seeds");
    hasher.update(&seed.to_le_bytes());
    for part in [purpose.as_bytes()].iter().chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// The first eight of those bytes.
pub(super) fn derive_u64(seed: u64, purpose: &str, parts: &[&[u8]]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = derive(seed, purpose, parts);
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
