//! The run's metrics as TensorBoard reads them: event files in `tensorboard`, one for each process that worked on the run.
//!
//! A record is its length, the content, and a checksum after each (<https://www.tensorflow.org/tutorials/load_data/tfrecord>);
//! the content is the protocol buffer `tensorflow.Event`, of which four fields are needed. A file begins by saying from which
//! step on it replaces what earlier files have.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tessera_files::IoContext;

use crate::error::TrackError;
use crate::metrics::{MetricsLine, Number, Record, names, read_metrics};

/// The folder below the run's.
const FOLDER: &str = "tensorboard";

/// Appends to an event file.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Begins a file in the run's folder whose points replace those of earlier files from step `batch` on. What
    /// `metrics.jsonl` keeps of that step is repeated.
    pub fn create(run_folder: &Path, batch: u64) -> Result<Self, TrackError> {
        let folder = run_folder.join(FOLDER);
        fs::create_dir_all(&folder).context("create", &folder)?;
        let now = Timestamp::now();
        // TensorBoard reads the files of a folder in the order of their names.
        let name = format!("events.out.tfevents.{:020}.{}", now.as_microsecond(), std::process::id());
        let path = folder.join(name);
        let file = File::create(&path).context("create", &path)?;
        let mut events = Self { file, path };
        events.write(&event(now, 0, 3, b"brain.Event:2"))?;
        // The status START is 1.
        events.write(&event(now, batch, 7, &[0x08, 1]))?;
        for line in read_metrics(run_folder)? {
            let line: MetricsLine = line?;
            if let Some(step) = line.batch().filter(|step| *step >= batch) {
                let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
                events.append(step, line.values().map(|(name, value)| (name, number(value))))?;
            }
        }
        Ok(events)
    }

    /// Writes one line's metrics.
    pub fn record(&mut self, record: &Record) -> Result<(), TrackError> {
        let value = |number| match number {
            Number::Whole(value) => value as f64,
            Number::Single(value) => f64::from(value),
            Number::Double(value) => value,
        };
        let shown = |(name, _): &(&str, Number)| record.is_training() || *name != names::BATCH;
        let values = record.entries().filter(shown).map(|(name, number)| (name, value(number)));
        self.append(record.batch(), values)
    }

    fn append<'a>(
        &mut self,
        step: u64,
        values: impl Iterator<Item = (&'a str, f64)>,
    ) -> Result<(), TrackError> {
        let mut summary = Vec::new();
        for (name, value) in values {
            let mut entry = Vec::new();
            field_of_bytes(&mut entry, 1, name.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend((value as f32).to_le_bytes());
            field_of_bytes(&mut summary, 1, &entry);
        }
        self.write(&event(Timestamp::now(), step, 5, &summary))
    }

    fn write(&mut self, content: &[u8]) -> Result<(), TrackError> {
        let length = (content.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_checksum(&length).to_le_bytes());
        record.extend(content);
        record.extend(masked_checksum(content).to_le_bytes());
        Ok(self.file.write_all(&record).context("append to", &self.path)?)
    }
}

/// A `tensorflow.Event`: when, at which step, and one field of bytes that says what.
fn event(time: Timestamp, step: u64, field: u8, content: &[u8]) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend((time.as_microsecond() as f64 / 1e6).to_le_bytes());
    event.push(2 << 3);
    variable_length(&mut event, step);
    field_of_bytes(&mut event, field, content);
    event
}

fn field_of_bytes(message: &mut Vec<u8>, field: u8, content: &[u8]) {
    message.push(field << 3 | 2);
    variable_length(message, content.len() as u64);
    message.extend(content);
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn variable_length(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// CRC-32C, turned and shifted so that a checksum over a text that holds checksums is none of them.
fn masked_checksum(bytes: &[u8]) -> u32 {
    let checksum = !bytes
        .iter()
        .fold(u32::MAX, |checksum, byte| CHECKSUMS[usize::from(checksum as u8 ^ byte)] ^ checksum >> 8);
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The checksum of each byte, by the Castagnoli polynomial.
const CHECKSUMS: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut checksum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            checksum = if checksum & 1 == 1 { checksum >> 1 ^ 0x82f6_3b78 } else { checksum >> 1 };
            bit += 1;
        }
        table[byte] = checksum;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::metrics::MetricsLog;

    #[test]
    fn checksums_are_castagnolis() {
        let unmasked = |bytes: &[u8]| masked_checksum(bytes).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked(b"123456789"), 0xe306_9283);
        assert_eq!(unmasked(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn numbers_of_many_bytes_are_written_lowest_first() {
        let mut message = Vec::new();
        variable_length(&mut message, 300);
        variable_length(&mut message, 1);
        assert_eq!(message, [0xac, 0x02, 0x01]);
    }

    /// The contents of a file's records.
    fn contents(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let (mut at, mut contents) = (0, Vec::new());
        while at < bytes.len() {
            let length = usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap();
            let content = bytes[at + 12..at + 12 + length].to_vec();
            let checksum = &bytes[at + 12 + length..at + 16 + length];
            assert_eq!(checksum, masked_checksum(&content).to_le_bytes());
            contents.push(content);
            at += 16 + length;
        }
        contents
    }

    #[test]
    fn a_file_begins_with_what_is_kept_of_its_first_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(folder.path(), None).unwrap();
        log.append(&Record::training(0, 3.0)).unwrap();
        log.append(&Record::at(1).with(names::EVAL_ACCURACY, 0.5)).unwrap();
        let mut events = EventFile::create(folder.path(), 1).unwrap();
        events.record(&Record::training(1, 2.0)).unwrap();
        let contents = contents(&events.path);
        assert_eq!(contents.len(), 4);
        assert!(contents[0].ends_with(b"brain.Event:2"));
        assert_eq!(contents[1][9..], [2 << 3, 1, 7 << 3 | 2, 2, 8, 1]);
        let text = |content: &[u8]| String::from_utf8_lossy(content).into_owned();
        assert!(text(&contents[2]).contains(names::EVAL_ACCURACY));
        assert!(text(&contents[3]).contains(names::LOSS));
    }
}
