//! How a shard lies in a file. All numbers are little-endian, every section starts at a multiple
//! of eight bytes, so that a memory map of the file can be used as it is.
//!
//! | bytes | what |
//! |---|---|
//! | 192 | header: magic, version, kind of rows, [`ShardFacts`], blake3 of the header itself |
//! | 4 × tokens | token ids of all rows, one row after the other |
//! | tokens | 1 where the token is a label, else 0 |
//! | 8 × (rows + 1) | row index: where each row starts, counted in tokens, and the end |
//!
//! In a shard of preferences row 2k is the chosen answer of pair k and row 2k + 1 the rejected one,
//! each with the prompt in front.
//!
//! A label costs a byte and a token four, which is more than bits and `u16` would need: a row is
//! then two slices of the map, and nothing has to be unpacked while a model trains.

use std::ops::Range;

use fedllm_shared::{Digest, RowKind};
use serde::Serialize;

/// The first bytes of every shard.
pub(super) const MAGIC: [u8; 8] = *b"fedshard";

/// The layout that this program writes, and the only one that it reads.
pub(super) const VERSION: u32 = 2;

/// Length of the header.
pub(super) const HEADER_BYTES: usize = 192;

/// Where the header's own digest lies in it.
const SEAL: Range<usize> = 160..192;

// Sections are used as `[u32]` and `[u64]` without conversion.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "shards are mapped as little-endian numbers"
);

/// What a shard's header says: everything about the rows except the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ShardFacts {
    /// What the rows are.
    pub kind: RowKind,
    /// Fingerprint of the tokenizer that made the ids.
    pub tokenizer: Digest,
    /// Digest of the template that turned texts into tokens and labels.
    pub template: Digest,
    /// Number of rows.
    pub rows: u64,
    /// Number of tokens in all rows.
    pub tokens: u64,
    /// Number of tokens that are labels.
    pub loss_tokens: u64,
    /// Every id is below this: the smallest vocabulary that the rows fit.
    pub ids_below: u32,
    /// The most tokens that a row may have.
    pub max_tokens: u32,
    /// blake3 of the kind and everything after the header; of a
    /// [subset](super::Shard::subset), of the whole shard's and the units that were chosen.
    pub content: Digest,
}

/// What the header says when it cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// The file does not begin with the magic bytes.
    NotAShard,
    /// The file has another layout.
    Version(u32),
    /// The header does not match its own digest, or its counts are impossible.
    Damaged,
}

/// The byte ranges of the three sections, and the length of the whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sections {
    pub(super) ids: Range<usize>,
    pub(super) loss: Range<usize>,
    pub(super) index: Range<usize>,
}

impl Sections {
    /// Where the sections of a shard with these counts lie; `None` if they overflow memory.
    pub(super) fn of(rows: u64, tokens: u64) -> Option<Self> {
        let tokens = usize::try_from(tokens).ok()?;
        let rows = usize::try_from(rows).ok()?;
        let ids = section(HEADER_BYTES, tokens.checked_mul(4)?)?;
        let loss = section(padded(ids.end)?, tokens)?;
        let index = section(padded(loss.end)?, rows.checked_add(1)?.checked_mul(8)?)?;
        Some(Self { ids, loss, index })
    }
}

/// Rounds up to a multiple of eight.
pub(super) fn padded(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(8)
}

/// The header as bytes.
pub(super) fn encode(facts: &ShardFacts) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(8, &VERSION.to_le_bytes());
    put(12, &code(facts.kind).to_le_bytes());
    put(16, &facts.tokenizer.0);
    put(48, &facts.template.0);
    put(80, &facts.rows.to_le_bytes());
    put(88, &facts.tokens.to_le_bytes());
    put(96, &facts.loss_tokens.to_le_bytes());
    put(104, &facts.ids_below.to_le_bytes());
    put(108, &facts.max_tokens.to_le_bytes());
    put(112, &facts.content.0);
    let seal = Digest::of(&header[..SEAL.start]);
    header[SEAL].copy_from_slice(&seal.0);
    header
}

/// Reads a header back.
pub(super) fn decode(header: &[u8; HEADER_BYTES]) -> Result<ShardFacts, BadHeader> {
    if header[..8] != MAGIC {
        return Err(BadHeader::NotAShard);
    }
    let version = u32::from_le_bytes(array(header, 8));
    if version != VERSION {
        return Err(BadHeader::Version(version));
    }
    if Digest::of(&header[..SEAL.start]).0 != header[SEAL] {
        return Err(BadHeader::Damaged);
    }
    let kind = match u32::from_le_bytes(array(header, 12)) {
        EXAMPLES => RowKind::Examples,
        PREFERENCES => RowKind::Preferences,
        _ => return Err(BadHeader::Damaged),
    };
    Ok(ShardFacts {
        kind,
        tokenizer: Digest(array(header, 16)),
        template: Digest(array(header, 48)),
        rows: u64::from_le_bytes(array(header, 80)),
        tokens: u64::from_le_bytes(array(header, 88)),
        loss_tokens: u64::from_le_bytes(array(header, 96)),
        ids_below: u32::from_le_bytes(array(header, 104)),
        max_tokens: u32::from_le_bytes(array(header, 108)),
        content: Digest(array(header, 112)),
    })
}

const EXAMPLES: u32 = 0;
const PREFERENCES: u32 = 1;

fn code(kind: RowKind) -> u32 {
    match kind {
        RowKind::Examples => EXAMPLES,
        RowKind::Preferences => PREFERENCES,
    }
}

/// A hasher of a shard's content that has seen the kind of its rows.
pub(super) fn content_hasher(kind: RowKind) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&code(kind).to_le_bytes());
    hasher
}

fn section(start: usize, bytes: usize) -> Option<Range<usize>> {
    Some(start..start.checked_add(bytes)?)
}

fn array<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| header[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn facts() -> ShardFacts {
        ShardFacts {
            kind: RowKind::Preferences,
            tokenizer: Digest([1; 32]),
            template: Digest([2; 32]),
            rows: 3,
            tokens: 17,
            loss_tokens: 5,
            ids_below: 49152,
            max_tokens: 512,
            content: Digest([3; 32]),
        }
    }

    #[test]
    fn header_round_trips() {
        let header = encode(&facts());
        assert_eq!(decode(&header), Ok(facts()));
        assert_eq!(
            header[..16],
            [
                b'f', b'e', b'd', b's', b'h', b'a', b'r', b'd', // magic
                2, 0, 0, 0, // version
                1, 0, 0, 0, // kind: preferences
            ]
        );
        assert_eq!(
            header[80..96],
            [3, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let header = encode(&facts());
        for byte in 0..HEADER_BYTES {
            let mut broken = header;
            broken[byte] ^= 0x10;
            let expected = match byte {
                0..8 => BadHeader::NotAShard,
                8..12 => BadHeader::Version(u32::from_le_bytes(array(&broken, 8))),
                _ => BadHeader::Damaged,
            };
            assert_eq!(decode(&broken), Err(expected), "byte {byte}");
        }
    }

    #[test]
    fn sections_are_aligned_and_bounded() {
        let sections = Sections::of(3, 17).unwrap();
        assert_eq!(sections.ids, 192..260);
        assert_eq!(sections.loss, 264..281);
        assert_eq!(sections.index, 288..320);
        assert_eq!(Sections::of(1, u64::MAX), None);
        assert_eq!(Sections::of(u64::MAX, 1), None);
    }
}
