//! Reading: records as ranges of bytes, each checked against its CRC-32.

use std::io::Cursor;
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use crate::dcp::element::checksum;
use crate::dcp::error::ItemFault;
use crate::dcp::pickle::{self, TensorReference, Value};
use crate::dcp::save_id::SaveId;

use super::SERIALIZATION_ID;
use super::write::contiguous_strides;

/// The records of one archive, by name without the leading folder.
#[derive(Debug)]
pub(crate) struct Archive<'a> {
    bytes: &'a [u8],
    records: Vec<Record>,
}

/// One record: where it lies in the archive's bytes, and what they must sum to.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    name: String,
    pub(crate) range: Range<usize>,
    checksum: u32,
}

impl Record {
    /// Compares the CRC-32 of the record's bytes, taken out of those of the `archive`, with the stored one.
    pub(crate) fn check(&self, archive: &[u8]) -> Result<(), ItemFault> {
        let bytes = archive.get(self.range.clone()).ok_or_else(|| ItemFault::NotStored(self.name.clone()))?;
        self.compare(checksum(bytes))
    }

    /// Compares a CRC-32 that was `found` with the stored one.
    pub(crate) fn compare(&self, found: u32) -> Result<(), ItemFault> {
        if found != self.checksum {
            return Err(ItemFault::Checksum { record: self.name.clone(), expected: self.checksum, found });
        }
        Ok(())
    }
}

impl<'a> Archive<'a> {
    /// Reads the directory of the archive that `bytes` are.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Self, ItemFault> {
        let mut zip = ZipArchive::new(Cursor::new(bytes))?;
        let mut records = Vec::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index)?;
            let full = entry.name()?.into_owned();
            let name = full.split_once('/').map_or(full.as_str(), |(_, name)| name).to_owned();
            let range = stored_range(&entry, bytes.len()).ok_or(ItemFault::NotStored(full))?;
            records.push(Record { name, range, checksum: entry.crc32() });
        }
        Ok(Self { bytes, records })
    }

    /// The record of that name.
    pub(crate) fn record(&self, name: &str) -> Result<&Record, ItemFault> {
        self.records
            .iter()
            .find(|record| record.name == name)
            .ok_or_else(|| ItemFault::Missing(name.to_owned()))
    }

    /// Checks every record's bytes.
    pub(crate) fn check(&self) -> Result<(), ItemFault> {
        self.records.iter().try_for_each(|record| record.check(self.bytes))
    }

    /// Checks every record's bytes but those of one.
    pub(crate) fn check_all_but(&self, left: &Record) -> Result<(), ItemFault> {
        let mut others = self.records.iter().filter(|record| record.name != left.name);
        others.try_for_each(|record| record.check(self.bytes))
    }

    /// Checks that it is of the save that its `.metadata` names.
    pub(crate) fn check_save(&self, save: SaveId) -> Result<(), ItemFault> {
        let same = self.content(SERIALIZATION_ID).is_ok_and(|id| id.starts_with(save.to_string().as_bytes()));
        if same { Ok(()) } else { Err(ItemFault::OtherSave) }
    }

    /// The content of a record, checked.
    fn content(&self, name: &str) -> Result<&'a [u8], ItemFault> {
        let record = self.record(name)?;
        record.check(self.bytes)?;
        self.bytes.get(record.range.clone()).ok_or_else(|| ItemFault::NotStored(name.to_owned()))
    }

    /// What was saved.
    pub(crate) fn value(&self) -> Result<Value, ItemFault> {
        // PyTorch before 2.0 wrote no mark of the byte order.
        if self.record("byteorder").is_ok() {
            let order = self.content("byteorder")?;
            if order != b"little" {
                return Err(ItemFault::ByteOrder(String::from_utf8_lossy(order).into_owned()));
            }
        }
        Ok(pickle::read(self.content("data.pkl")?)?)
    }

    /// The record in which the elements of `tensor` are, and where they lie within the archive's bytes.
    pub(crate) fn elements(&self, tensor: &TensorReference) -> Result<(&Record, Range<usize>), ItemFault> {
        let record = self.record(&format!("data/{}", tensor.storage.key))?;
        Ok((record, elements_range(tensor, &record.range)?))
    }
}

/// Where a stored record's bytes are; `None` if it is compressed or reaches outside the archive.
fn stored_range<R: std::io::Read>(
    entry: &zip::read::ZipFile<'_, R>,
    archive_length: usize,
) -> Option<Range<usize>> {
    let start = usize::try_from(entry.data_start()?).ok()?;
    let end = start.checked_add(usize::try_from(entry.size()).ok()?)?;
    let stored = entry.compression() == CompressionMethod::Stored && entry.compressed_size() == entry.size();
    (stored && !entry.encrypted() && end <= archive_length).then_some(start..end)
}

/// Where a tensor's elements lie, given where its storage does: they must be consecutive and inside it.
pub(crate) fn elements_range(
    tensor: &TensorReference,
    storage: &Range<usize>,
) -> Result<Range<usize>, ItemFault> {
    let fault = || ItemFault::Strides { shape: tensor.shape.clone(), strides: tensor.strides.clone() };
    let elements = tensor.shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
    let elements = elements.ok_or_else(fault)?;
    let one_piece = tensor.strides.len() == tensor.shape.len()
        && contiguous_strides(&tensor.shape)
            .iter()
            .zip(&tensor.strides)
            .zip(&tensor.shape)
            .all(|((wanted, stride), &extent)| extent <= 1 || wanted == stride);
    if !one_piece && elements > 0 {
        return Err(fault());
    }
    let size = tensor.storage.dtype.size();
    let start = tensor.offset.checked_mul(size).and_then(|offset| offset.checked_add(storage.start));
    let end = start.zip(elements.checked_mul(size)).and_then(|(start, length)| start.checked_add(length));
    match (start, end) {
        (Some(start), Some(end)) if end <= storage.end => Ok(start..end),
        _ => Err(fault()),
    }
}
