//! TensorBoard event files.
//!
//! A file is records one after the other, each framed as TFRecord: the length as eight bytes, its
//! checksum, the data, and its checksum, all little-endian. A checksum is the CRC-32C, rotated and
//! offset. The data is a protocol buffer `Event`; of the few fields in use, numbers and types are
//! written here by hand.
//!
//! Source: TensorFlow, `core/lib/io/record_writer.h`, `core/util/event.proto` and
//! `core/framework/summary.proto`.

use std::io::{self, Write};

use super::metrics::RoundMetrics;

/// The format that readers expect to be told of first.
const FILE_VERSION: &str = "brain.Event:2";

/// `SessionLog.SessionStatus.START`.
const START: u64 = 1;

/// Writes scalars for TensorBoard.
///
/// Each process writes a file of its own, named by [`event_file_name`]: what a killed one left
/// half-written at the end of its file is ignored by readers.
#[derive(Debug)]
pub struct EventWriter<W> {
    out: W,
}

impl<W: Write> EventWriter<W> {
    /// Begins a file. `wall_time` is in seconds since 1970, here and below.
    ///
    /// # Errors
    ///
    /// That of `out`, here and below.
    pub fn new(out: W, wall_time: f64) -> io::Result<Self> {
        let mut writer = Self { out };
        let mut event = Message::event(wall_time, 0);
        event.bytes(3, FILE_VERSION.as_bytes());
        writer.record(&event.0)?;
        Ok(writer)
    }

    /// Begins a file that goes on where an earlier one of the same folder is to end: readers
    /// forget what that one has of `step` and later steps.
    ///
    /// # Errors
    ///
    /// That of `out`.
    pub fn resume(out: W, wall_time: f64, step: u64) -> io::Result<Self> {
        let mut writer = Self::new(out, wall_time)?;
        let mut log = Message::default();
        log.number(1, START);
        let mut event = Message::event(wall_time, step);
        event.bytes(7, &log.0);
        writer.record(&event.0)?;
        Ok(writer)
    }

    /// Writes values of one step. Tags with a common `part/` are shown together; characters that
    /// not every reader takes become `_`.
    ///
    /// # Errors
    ///
    /// That of `out`.
    pub fn scalars(
        &mut self,
        step: u64,
        wall_time: f64,
        values: &[(String, f64)],
    ) -> io::Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut scalar = Message::default();
            scalar.bytes(1, clean(tag).as_bytes());
            scalar.float(2, *value as f32);
            summary.bytes(1, &scalar.0);
        }
        let mut event = Message::event(wall_time, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    /// Writes the figures of one round, whose step is its number from 1.
    ///
    /// # Errors
    ///
    /// That of `out`.
    pub fn round(&mut self, wall_time: f64, round: &RoundMetrics) -> io::Result<()> {
        self.scalars(round.round + 1, wall_time, &scalars(round))?;
        self.out.flush()
    }

    fn record(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        self.out.write_all(&record)
    }
}

/// The name of an event file that is begun at `wall_time`, in seconds since 1970. Readers take the
/// files of a folder in the order of their names.
pub fn event_file_name(wall_time: u64) -> String {
    format!("events.out.tfevents.{wall_time:010}.fedllm")
}

/// A round as TensorBoard shows it.
fn scalars(round: &RoundMetrics) -> Vec<(String, f64)> {
    let mut scalars: Vec<(String, f64)> = [
        ("train/loss", round.loss),
        ("train/learning_rate", round.lr.into()),
        ("update/delta_norm", round.delta_norm),
        ("update/step_norm", round.step_norm),
        ("update/drift", round.drift),
        ("clients/cohort", round.cohort.into()),
        ("clients/updates", round.updates.into()),
        ("clients/dropped", round.dropped.into()),
        ("clients/late", round.late.into()),
        ("bytes/up", round.bytes_up as f64),
        ("bytes/down", round.bytes_down as f64),
        ("seconds/round", round.seconds),
        ("seconds/training", round.train_seconds),
        ("seconds/virtual", round.virtual_seconds),
    ]
    .map(|(tag, value)| (tag.to_owned(), value))
    .to_vec();
    let mut optional = |tag: String, value: Option<f64>| {
        scalars.extend(value.map(|value| (tag, value)));
    };
    optional("update/gap".into(), round.gap);
    optional("update/discarded".into(), round.discarded);
    let held_out = round.held_out;
    optional(
        "clients/held_out_loss".into(),
        held_out.map(|score| score.loss),
    );
    optional(
        "clients/held_out_accuracy".into(),
        held_out.map(|score| score.accuracy),
    );
    for evaluation in &round.evaluations {
        let arm = evaluation.arm.replace('/', "_");
        optional(format!("loss/{arm}"), Some(evaluation.loss));
        optional(format!("accuracy/{arm}"), evaluation.accuracy);
        optional(format!("margin/{arm}"), evaluation.margin);
    }
    for evaluation in &round.tasks {
        let (arm, score) = (evaluation.arm.replace('/', "_"), &evaluation.score);
        let tag = format!("{}_{}/{arm}", score.task, score.metric);
        optional(tag, score.value);
    }
    scalars
}

fn clean(tag: &str) -> String {
    let clean = |character: char| match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '/' | '-' => character,
        _ => '_',
    };
    tag.chars().map(clean).collect()
}

/// A protocol buffer message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// An `Event` with its time and step.
    fn event(wall_time: f64, step: u64) -> Self {
        let mut event = Self::default();
        event.varint(1 << 3 | 1);
        event.0.extend(wall_time.to_le_bytes());
        if step > 0 {
            event.number(2, step);
        }
        event
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    /// A text, or a message within.
    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A checksum as TFRecord has it: data that holds checksums of its own is told apart.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C, RFC 3720 appendix B.4: polynomial 0x1edc6f41, reflected.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8;
    !data.iter().fold(!0, step)
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;
    use crate::simulate::metrics::tests::round;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, appendix B.4, and the usual check value.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The bytes are those of the package tensorboard 2.21: `RecordWriter.write` of an `event_pb2`
    /// event with the same fields, once for each record.
    #[test]
    fn records_are_those_that_tensorboard_writes() {
        let version = "1800000000000000a37f4b22\
                       0900002040fc54d9411a0d627261696e2e4576656e743a32\
                       2b353110";
        let mut file = Vec::new();
        let mut writer = EventWriter::new(&mut file, 1_700_000_000.5).unwrap();
        let values = [("train/loss".into(), 1.5), ("lr".into(), -0.25)];
        writer.scalars(300, 1_700_000_001.25, &values).unwrap();
        let scalars = "2c00000000000000f4aecc45\
                       0900005040fc54d94110ac02\
                       2a1e0a110a0a747261696e2f6c6f7373150000c03f0a090a026c7215000080be\
                       613109ad";
        assert_eq!(HEXLOWER.encode(&file), [version, scalars].concat());

        let mut file = Vec::new();
        EventWriter::resume(&mut file, 1_700_000_002.0, 300).unwrap();
        let start = "100000000000000095fbfe18\
                     0900008040fc54d94110ac023a020801\
                     a4523644";
        assert!(HEXLOWER.encode(&file).ends_with(start));
    }

    #[test]
    fn a_round_has_its_figures_and_evaluations() {
        let mut round = round(4);
        round.evaluations[0].arm = "local mean/é".into();
        let scalars = scalars(&round);
        let value = |tag: &str| {
            scalars
                .iter()
                .find(|(name, _)| name == tag)
                .map(|(_, v)| *v)
        };
        assert_eq!(value("train/loss"), Some(1.5));
        assert_eq!(value("update/gap"), Some(0.125));
        assert_eq!(value("update/discarded"), None);
        assert_eq!(value("clients/held_out_loss"), Some(1.25));
        assert_eq!(value("loss/local mean_é"), Some(1.5));
        assert_eq!(value("mmlu_acc/global"), Some(0.375));
        let mut file = Vec::new();
        let mut writer = EventWriter::new(&mut file, 0.0).unwrap();
        writer.round(1.0, &round).unwrap();
        let tag = b"loss/local_mean__";
        assert!(file.windows(tag.len()).any(|window| window == tag));
    }

    #[test]
    fn names_sort_by_time() {
        let name = event_file_name(1_700_000_000);
        assert_eq!(name, "events.out.tfevents.1700000000.fedllm");
        assert!(event_file_name(999_999_999) < name);
    }
}
