//! Values as raw bytes, before compression, and back.
//!
//! `f32` and `bf16` values go in groups of [`GROUP`]; a group is written as
//! byte planes, all lowest bytes first, since bytes of one significance
//! compress better together. `int8` goes row by row: the row's `f32` scale,
//! then one byte a value.

use std::io::{self, Read};
use std::sync::Arc;

use half::bf16;

use super::{Codec, CodecError};
use crate::adapter::{Layout, check_finite};

/// How many values share a group of byte planes.
const GROUP: usize = 16 * 1024;
/// The highest magnitude of an `int8` value; -128 is not used.
const INT8_MAX: f32 = 127.0;

/// The length of all values of `layout` in raw bytes.
pub(super) fn raw_len(layout: &Layout, codec: Codec) -> u64 {
    match codec {
        Codec::F32 => 4 * layout.len() as u64,
        Codec::Bf16 => 2 * layout.len() as u64,
        Codec::Int8Rows => {
            let rows = layout.tensors().iter().map(|spec| u64::from(spec.rows));
            layout.len() as u64 + 4 * rows.sum::<u64>()
        }
    }
}

/// Writes all `values` of `layout`, piece by piece.
pub(super) fn write<E: From<CodecError>>(
    layout: &Layout,
    values: &[f32],
    codec: Codec,
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    match codec {
        Codec::F32 => write_planes(values, f32::to_le_bytes, sink),
        Codec::Bf16 => {
            check_bf16(layout, values)?;
            write_planes(values, |value| bf16::from_f32(value).to_le_bytes(), sink)
        }
        Codec::Int8Rows => {
            for (index, spec) in layout.tensors().iter().enumerate() {
                for row in values[layout.range(index)].chunks(spec.cols as usize) {
                    sink(&quantize_row(row))?;
                }
            }
            Ok(())
        }
    }
}

fn write_planes<const WIDTH: usize, E>(
    values: &[f32],
    bytes: impl Fn(f32) -> [u8; WIDTH],
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut planes = Vec::with_capacity(WIDTH * GROUP);
    for group in values.chunks(GROUP) {
        planes.resize(WIDTH * group.len(), 0);
        for (place, value) in group.iter().enumerate() {
            for (plane, byte) in bytes(*value).into_iter().enumerate() {
                planes[plane * group.len() + place] = byte;
            }
        }
        sink(&planes)?;
    }
    Ok(())
}

/// The largest `f32`s round to infinity.
fn check_bf16(layout: &Layout, values: &[f32]) -> Result<(), CodecError> {
    let lost = |value: &f32| !bf16::from_f32(*value).is_finite();
    match values.iter().position(lost) {
        Some(place) => Ok(check_finite(layout, place, &[f32::INFINITY])?),
        None => Ok(()),
    }
}

fn quantize_row(row: &[f32]) -> Vec<u8> {
    let absmax = row.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let mut scale = absmax / INT8_MAX;
    if !(scale * INT8_MAX).is_finite() {
        // Rounding took the very largest values beyond `f32::MAX`.
        scale = scale.next_down();
    }
    // A row this small is zero: dividing by its scale would give nothing of use.
    let scale = if scale.is_normal() { scale } else { 0.0 };
    let mut bytes = Vec::with_capacity(4 + row.len());
    bytes.extend_from_slice(&scale.to_le_bytes());
    bytes.extend(row.iter().map(|value| quantize(*value, scale) as u8));
    bytes
}

fn quantize(value: f32, scale: f32) -> i8 {
    if scale == 0.0 {
        return 0;
    }
    let steps = (value / scale).round_ties_even();
    steps.clamp(-INT8_MAX, INT8_MAX) as i8
}

/// Reads values back, as many at a time as are asked for.
#[derive(Debug)]
pub(super) struct ValueReader {
    layout: Arc<Layout>,
    codec: Codec,
    /// How many values were given out.
    position: usize,
    /// The group or row that is being given out.
    decoded: Vec<f32>,
    /// Its part that was given out.
    taken: usize,
    raw: Vec<u8>,
    /// The tensor and the row that come next (`int8` only).
    row: (usize, u32),
}

impl ValueReader {
    pub(super) fn new(layout: Arc<Layout>, codec: Codec) -> Self {
        Self {
            layout,
            codec,
            position: 0,
            decoded: Vec::new(),
            taken: 0,
            raw: Vec::new(),
            row: (0, 0),
        }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn is_done(&self) -> bool {
        self.position == self.layout.len()
    }

    /// Fills `block` as far as there are values and says how far that is.
    pub(super) fn read(
        &mut self,
        source: &mut impl Read,
        block: &mut [f32],
    ) -> Result<usize, CodecError> {
        let mut filled = 0;
        while filled < block.len() && !self.is_done() {
            if self.taken == self.decoded.len() {
                self.refill(source)?;
            }
            let count = (block.len() - filled).min(self.decoded.len() - self.taken);
            block[filled..filled + count]
                .copy_from_slice(&self.decoded[self.taken..self.taken + count]);
            self.taken += count;
            self.position += count;
            filled += count;
        }
        Ok(filled)
    }

    fn refill(&mut self, source: &mut impl Read) -> Result<(), CodecError> {
        self.decoded.clear();
        self.taken = 0;
        let left = self.layout.len() - self.position;
        match self.codec {
            Codec::F32 => self.read_planes(source, left.min(GROUP), f32::from_le_bytes)?,
            Codec::Bf16 => self.read_planes(source, left.min(GROUP), |bytes| {
                bf16::from_le_bytes(bytes).to_f32()
            })?,
            Codec::Int8Rows => self.read_row(source)?,
        }
        Ok(check_finite(&self.layout, self.position, &self.decoded)?)
    }

    fn read_planes<const WIDTH: usize>(
        &mut self,
        source: &mut impl Read,
        count: usize,
        value: impl Fn([u8; WIDTH]) -> f32,
    ) -> Result<(), CodecError> {
        self.fetch(source, WIDTH * count)?;
        let raw = &self.raw;
        let at = |place| std::array::from_fn(|plane| raw[plane * count + place]);
        self.decoded
            .extend((0..count).map(|place| value(at(place))));
        Ok(())
    }

    fn read_row(&mut self, source: &mut impl Read) -> Result<(), CodecError> {
        let (tensor, row) = self.row;
        let layout = self.layout.clone();
        let spec = &layout.tensors()[tensor];
        let (rows, cols) = (spec.rows, spec.cols as usize);
        self.fetch(source, 4 + cols)?;
        let (scale, steps) = self.raw.split_at(4);
        let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
        let plain = scale == 0.0 && scale.is_sign_positive() && steps.iter().all(|step| *step == 0);
        let scaled = scale.is_normal() && scale > 0.0 && !steps.contains(&(i8::MIN as u8));
        if !plain && !scaled {
            let tensor = spec.name.clone();
            return Err(CodecError::Row { tensor, row });
        }
        let values = steps.iter().map(|step| f32::from(*step as i8) * scale);
        self.decoded.extend(values);
        self.row = if row + 1 < rows {
            (tensor, row + 1)
        } else {
            (tensor + 1, 0)
        };
        Ok(())
    }

    fn fetch(&mut self, source: &mut impl Read, count: usize) -> Result<(), CodecError> {
        self.raw.resize(count, 0);
        source
            .read_exact(&mut self.raw)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => CodecError::Truncated,
                _ => CodecError::Compressed(error.to_string()),
            })
    }
}
