//! Typed metadata values.

use std::fmt;

/// A metadata value of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MetaValue {
    /// Unsigned, 8 bits.
    U8(u8),
    /// Signed, 8 bits.
    I8(i8),
    /// Unsigned, 16 bits.
    U16(u16),
    /// Signed, 16 bits.
    I16(i16),
    /// Unsigned, 32 bits.
    U32(u32),
    /// Signed, 32 bits.
    I32(i32),
    /// Unsigned, 64 bits.
    U64(u64),
    /// Signed, 64 bits.
    I64(i64),
    /// Single precision.
    F32(f32),
    /// Double precision.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one kind.
    Array(MetaKind, Vec<MetaValue>),
}

/// The kind of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetaKind {
    /// Unsigned, 8 bits.
    U8 = 0,
    /// Signed, 8 bits.
    I8 = 1,
    /// Unsigned, 16 bits.
    U16 = 2,
    /// Signed, 16 bits.
    I16 = 3,
    /// Unsigned, 32 bits.
    U32 = 4,
    /// Signed, 32 bits.
    I32 = 5,
    /// Single precision.
    F32 = 6,
    /// True or false.
    Bool = 7,
    /// UTF-8 text.
    Text = 8,
    /// Values of one kind.
    Array = 9,
    /// Unsigned, 64 bits.
    U64 = 10,
    /// Signed, 64 bits.
    I64 = 11,
    /// Double precision.
    F64 = 12,
}

impl MetaKind {
    pub(super) fn from_id(id: u32) -> Option<Self> {
        const ALL: [MetaKind; 13] = [
            MetaKind::U8,
            MetaKind::I8,
            MetaKind::U16,
            MetaKind::I16,
            MetaKind::U32,
            MetaKind::I32,
            MetaKind::F32,
            MetaKind::Bool,
            MetaKind::Text,
            MetaKind::Array,
            MetaKind::U64,
            MetaKind::I64,
            MetaKind::F64,
        ];
        ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// The fewest bytes that one value of this kind takes.
    pub(super) fn least_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Array => 12,
        }
    }
}

impl fmt::Display for MetaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bool => "true or false",
            Self::Text => "text",
            Self::Array => "an array",
        })
    }
}

impl MetaValue {
    /// An array of texts.
    pub fn strings<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Self {
        let texts = texts.into_iter().map(|t| Self::Text(t.into())).collect();
        Self::Array(MetaKind::Text, texts)
    }

    /// What kind of value this is.
    pub fn kind(&self) -> MetaKind {
        match self {
            Self::U8(_) => MetaKind::U8,
            Self::I8(_) => MetaKind::I8,
            Self::U16(_) => MetaKind::U16,
            Self::I16(_) => MetaKind::I16,
            Self::U32(_) => MetaKind::U32,
            Self::I32(_) => MetaKind::I32,
            Self::U64(_) => MetaKind::U64,
            Self::I64(_) => MetaKind::I64,
            Self::F32(_) => MetaKind::F32,
            Self::F64(_) => MetaKind::F64,
            Self::Bool(_) => MetaKind::Bool,
            Self::Text(_) => MetaKind::Text,
            Self::Array(..) => MetaKind::Array,
        }
    }

    /// The text, if this is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The whole number, if this is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The number, if this is one.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            Self::I8(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::I64(v) => Some(v as f64),
            _ => self.as_u64().map(|v| v as f64),
        }
    }

    /// The truth value, if this is one.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// The values, if this is an array.
    pub fn as_array(&self) -> Option<&[MetaValue]> {
        match self {
            Self::Array(_, values) => Some(values),
            _ => None,
        }
    }

    /// The texts, if this is an array of texts.
    pub fn texts(&self) -> Option<Vec<&str>> {
        self.as_array()?.iter().map(Self::as_str).collect()
    }
}

impl From<&str> for MetaValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
