//! Reads the header. Nothing is allocated before its length is known to fit the file.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Gguf, GgufFault, MAGIC, MetaKind, MetaValue, TensorInfo,
};
use crate::{BlockFormat, MappedBytes};

const MAX_KEYS: u64 = 65_536;
const MAX_TENSORS: u64 = 262_144;
const MAX_NAME_BYTES: u64 = 65_535;
const MAX_DIMS: u64 = 4;
const MAX_ARRAY_DEPTH: usize = 4;

pub(super) fn parse(path: &Path, bytes: MappedBytes) -> Result<Gguf, GgufFault> {
    let mut cursor = Cursor {
        bytes: &bytes,
        at: 0,
    };
    let version = version(&mut cursor)?;
    let tensor_count = cursor.count("a tensor count", MAX_TENSORS)?;
    let key_count = cursor.count("a metadata key count", MAX_KEYS)?;
    let metadata = metadata(&mut cursor, key_count)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = (0..tensor_count)
        .map(|index| tensor(&mut cursor, index, alignment))
        .collect::<Result<Vec<_>, _>>()?;
    let header_len = cursor.at;
    place(&mut tensors, header_len, alignment, bytes.len())?;
    let by_name = index(&tensors)?;
    Ok(Gguf {
        path: path.to_owned(),
        bytes,
        version,
        metadata,
        tensors,
        by_name,
        header_len,
    })
}

fn version(cursor: &mut Cursor<'_>) -> Result<u32, GgufFault> {
    let magic = cursor.array::<4>("the magic number")?;
    if magic != MAGIC {
        let text = String::from_utf8_lossy(&magic).into_owned();
        return Err(GgufFault::NotGguf(text));
    }
    match cursor.u32("the version")? {
        version @ 2..=3 => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => Err(GgufFault::BigEndian),
        version => Err(GgufFault::UnsupportedVersion(version)),
    }
}

fn metadata(
    cursor: &mut Cursor<'_>,
    count: usize,
) -> Result<HashMap<String, MetaValue>, GgufFault> {
    let mut metadata = HashMap::new();
    for index in 0..count {
        let key = cursor.text(&format!("metadata key {index}"), MAX_NAME_BYTES)?;
        let value = value(cursor, &key)?;
        match metadata.entry(key) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(entry) => {
                return Err(GgufFault::Duplicate(format!(
                    "metadata key {:?}",
                    entry.key()
                )));
            }
        };
    }
    Ok(metadata)
}

fn value(cursor: &mut Cursor<'_>, key: &str) -> Result<MetaValue, GgufFault> {
    let kind = kind(cursor, key)?;
    value_of(cursor, key, kind, 0)
}

fn kind(cursor: &mut Cursor<'_>, key: &str) -> Result<MetaKind, GgufFault> {
    let id = cursor.u32(key)?;
    MetaKind::from_id(id).ok_or_else(|| GgufFault::UnknownKind {
        key: key.to_owned(),
        kind: id,
    })
}

fn value_of(
    cursor: &mut Cursor<'_>,
    key: &str,
    kind: MetaKind,
    depth: usize,
) -> Result<MetaValue, GgufFault> {
    Ok(match kind {
        MetaKind::U8 => MetaValue::U8(u8::from_le_bytes(cursor.array(key)?)),
        MetaKind::I8 => MetaValue::I8(i8::from_le_bytes(cursor.array(key)?)),
        MetaKind::U16 => MetaValue::U16(u16::from_le_bytes(cursor.array(key)?)),
        MetaKind::I16 => MetaValue::I16(i16::from_le_bytes(cursor.array(key)?)),
        MetaKind::U32 => MetaValue::U32(u32::from_le_bytes(cursor.array(key)?)),
        MetaKind::I32 => MetaValue::I32(i32::from_le_bytes(cursor.array(key)?)),
        MetaKind::U64 => MetaValue::U64(u64::from_le_bytes(cursor.array(key)?)),
        MetaKind::I64 => MetaValue::I64(i64::from_le_bytes(cursor.array(key)?)),
        MetaKind::F32 => MetaValue::F32(f32::from_le_bytes(cursor.array(key)?)),
        MetaKind::F64 => MetaValue::F64(f64::from_le_bytes(cursor.array(key)?)),
        MetaKind::Bool => MetaValue::Bool(cursor.array::<1>(key)? != [0]),
        MetaKind::Text => MetaValue::Text(cursor.text(key, u64::MAX)?),
        MetaKind::Array => array(cursor, key, depth)?,
    })
}

fn array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<MetaValue, GgufFault> {
    if depth == MAX_ARRAY_DEPTH {
        return Err(GgufFault::TooMany {
            what: format!("arrays inside arrays under metadata key {key:?}"),
            got: depth as u64 + 1,
            limit: MAX_ARRAY_DEPTH as u64,
        });
    }
    let kind = kind(cursor, key)?;
    let len = cursor.u64(key)?;
    let need = len.saturating_mul(kind.least_bytes());
    cursor.check(&format!("the array under metadata key {key:?}"), need)?;
    let values = (0..len)
        .map(|_| value_of(cursor, key, kind, depth + 1))
        .collect::<Result<_, _>>()?;
    Ok(MetaValue::Array(kind, values))
}

fn alignment(metadata: &HashMap<String, MetaValue>) -> Result<u64, GgufFault> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let alignment = value.as_u64().ok_or(GgufFault::WrongKind {
        key: ALIGNMENT_KEY.to_owned(),
        expected: "a whole number",
        got: value.kind(),
    })?;
    if alignment.is_power_of_two() && alignment <= 65_536 {
        Ok(alignment)
    } else {
        Err(GgufFault::WrongAlignment(alignment))
    }
}

/// One entry of the tensor table. Its offset still counts from the data section.
fn tensor(cursor: &mut Cursor<'_>, index: usize, alignment: u64) -> Result<TensorInfo, GgufFault> {
    let name = cursor.text(&format!("the name of tensor {index}"), MAX_NAME_BYTES)?;
    let dims = u64::from(cursor.u32(&name)?);
    if dims > MAX_DIMS {
        return Err(GgufFault::TooMany {
            what: format!("a dimension count of tensor {name:?}"),
            got: dims,
            limit: MAX_DIMS,
        });
    }
    let dims = (0..dims)
        .map(|_| cursor.u64(&name))
        .collect::<Result<Vec<_>, _>>()?;
    let id = cursor.u32(&name)?;
    let format = BlockFormat::from_ggml_id(id).ok_or_else(|| GgufFault::UnsupportedFormat {
        tensor: name.clone(),
        format: format_name(id),
    })?;
    let offset = cursor.u64(&name)?;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufFault::Misaligned {
            tensor: name,
            offset,
            alignment,
        });
    }
    sized(name, dims, format, offset)
}

fn sized(
    name: String,
    dims: Vec<u64>,
    format: BlockFormat,
    offset: u64,
) -> Result<TensorInfo, GgufFault> {
    let wrong = |reason: String| GgufFault::WrongShape {
        tensor: name.clone(),
        dims: dims.clone(),
        reason,
    };
    let too_large = || wrong("is too large for this machine".to_owned());
    let sizes = dims
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect::<Option<Vec<_>>>()
        .ok_or_else(too_large)?;
    let cols = sizes.first().copied().unwrap_or(1);
    let row = format.row_bytes(cols).ok_or_else(|| {
        wrong(format!(
            "is no whole number of {format} blocks of {}",
            format.block_size()
        ))
    })?;
    let rows = sizes
        .iter()
        .skip(1)
        .try_fold(1usize, |product, &size| product.checked_mul(size))
        .ok_or_else(too_large)?;
    let len = rows
        .checked_mul(row)
        .filter(|_| rows.checked_mul(cols).is_some())
        .ok_or_else(too_large)?;
    let offset = usize::try_from(offset).map_err(|_| too_large())?;
    Ok(TensorInfo {
        name,
        dims: sizes,
        format,
        offset,
        len,
    })
}

/// Moves every offset from the data section to the file, and checks that it ends inside.
fn place(
    tensors: &mut [TensorInfo],
    header_len: usize,
    alignment: u64,
    file_len: usize,
) -> Result<(), GgufFault> {
    // The alignment is at most 65536, so the cast and the sum cannot overflow.
    let data = header_len.next_multiple_of(alignment as usize);
    for info in tensors {
        let place = data.checked_add(info.offset).filter(|start| {
            start
                .checked_add(info.len)
                .is_some_and(|end| end <= file_len)
        });
        info.offset = place.ok_or_else(|| GgufFault::Truncated {
            what: format!("tensor {:?}", info.name),
            at: (data as u64).saturating_add(info.offset as u64),
            need: info.len as u64,
            have: file_len as u64,
        })?;
    }
    Ok(())
}

fn index(tensors: &[TensorInfo]) -> Result<HashMap<String, usize>, GgufFault> {
    let mut by_name = HashMap::with_capacity(tensors.len());
    for (index, info) in tensors.iter().enumerate() {
        if by_name.insert(info.name.clone(), index).is_some() {
            return Err(GgufFault::Duplicate(format!("tensor {:?}", info.name)));
        }
    }
    Ok(by_name)
}

/// Names of the formats that people are most likely to meet and we do not read.
fn format_name(id: u32) -> String {
    let known = match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}"),
    };
    known.to_owned()
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, what: &str, len: u64) -> Result<&'a [u8], GgufFault> {
        self.check(what, len)?;
        // `check` says that this many bytes are there, so it fits a usize.
        let taken = &self.bytes[self.at..][..len as usize];
        self.at += taken.len();
        Ok(taken)
    }

    fn check(&self, what: &str, len: u64) -> Result<(), GgufFault> {
        if len <= (self.bytes.len() - self.at) as u64 {
            return Ok(());
        }
        Err(GgufFault::Truncated {
            what: what.to_owned(),
            at: self.at as u64,
            need: len,
            have: self.bytes.len() as u64,
        })
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufFault> {
        let bytes = self.take(what, N as u64)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufFault> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufFault> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<usize, GgufFault> {
        let got = self.u64(what)?;
        if got > limit {
            return Err(GgufFault::TooMany {
                what: what.to_owned(),
                got,
                limit,
            });
        }
        Ok(got as usize)
    }

    fn text(&mut self, what: &str, limit: u64) -> Result<String, GgufFault> {
        let len = self.u64(what)?;
        if len > limit {
            return Err(GgufFault::TooMany {
                what: format!("a length of {what}"),
                got: len,
                limit,
            });
        }
        let bytes = self.take(what, len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| GgufFault::NotUtf8(what.to_owned()))
    }
}
