//! Writing: the records of `torch.save` in its order, aligned to 64 bytes from the archive's beginning, without
//! ever going back, so that archives can follow one another in a shard.

use std::io::{self, Write};
use std::sync::Arc;

use zip::write::{SimpleFileOptions, StreamWriter, ZipWriter};
use zip::{CompressionMethod, DateTime};

use super::{PREFIX, SERIALIZATION_ID};
use crate::dcp::element::ElementType;
use crate::dcp::error::write_error;
use crate::dcp::pickle::{self, Protocol, StorageReference, TensorReference, Value};
use crate::dcp::save_id::SaveId;

/// Above this a record needs zip64 sizes.
const ZIP64_LENGTH: u64 = u32::MAX as u64;

/// What tells an archive from all others: the save, and where in the shard it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Serial {
    pub(crate) save: SaveId,
    pub(crate) offset: u64,
}

struct Records<'a, W: Write> {
    zip: ZipWriter<StreamWriter<&'a mut W>>,
}

impl<'a, W: Write> Records<'a, W> {
    fn start(&mut self, name: &str, length: u64) -> io::Result<&mut impl Write> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .with_alignment(64)
            .large_file(length >= ZIP64_LENGTH);
        self.zip.start_file(format!("{PREFIX}/{name}"), options).map_err(write_error)?;
        Ok(&mut self.zip)
    }

    fn record(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.start(name, bytes.len() as u64)?.write_all(bytes)
    }

    fn begin(out: &'a mut W, value: &Value) -> io::Result<Self> {
        let mut records = Self { zip: ZipWriter::new_stream(out) };
        records.record("data.pkl", &pickle::write(value, Protocol::Two))?;
        records.record(".format_version", b"1")?;
        records.record(".storage_alignment", b"64")?;
        records.record("byteorder", b"little")?;
        Ok(records)
    }

    fn end(mut self, serial: Serial) -> io::Result<()> {
        let Serial { save, offset } = serial;
        self.record("version", b"3\n")?;
        self.record(SERIALIZATION_ID, format!("{save}{offset:020}").as_bytes())?;
        self.zip.finish().map_err(write_error)?;
        Ok(())
    }
}

/// Writes an object that has no tensors in it.
pub(crate) fn write_object<W: Write>(out: &mut W, serial: Serial, value: &Value) -> io::Result<()> {
    Records::begin(out, value)?.end(serial)
}

/// Writes a tensor whose elements, little-endian and row-major, `fill` writes.
pub(crate) fn write_tensor<W: Write>(
    out: &mut W,
    serial: Serial,
    dtype: ElementType,
    shape: &[usize],
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let elements = shape.iter().product();
    let tensor = Value::Tensor(Arc::new(TensorReference {
        storage: Arc::new(StorageReference { key: "0".into(), dtype, elements }),
        offset: 0,
        shape: shape.to_vec(),
        strides: contiguous_strides(shape),
    }));
    let mut records = Records::begin(out, &tensor)?;
    fill(records.start("data/0", elements as u64 * dtype.size() as u64)?)?;
    records.end(serial)
}

/// The strides, in elements, of a row-major tensor.
pub(crate) fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        // Only the strides of a shape whose elements can be counted are ever compared with.
        strides[dimension - 1] = shape[dimension].wrapping_mul(strides[dimension]);
    }
    strides
}
