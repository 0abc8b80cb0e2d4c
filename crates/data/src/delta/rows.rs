//! The rows of a data file of a table, a bounded number at a time: without those that are deleted, its columns called and
//! completed as the table's log says.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use delta_kernel::engine::arrow_data::ArrowEngineData;
use delta_kernel::engine::arrow_utils::{ReorderIndex, fixup_parquet_read, parquet_read_plan};
use delta_kernel::engine::reader_options;
use delta_kernel::error::KernelError;
use delta_kernel::scan::state::transform_to_logical;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use roaring::RoaringTreemap;
use tessera_files::IoContext;

use super::Table;
use super::table::said;
use crate::error::DataError;
use crate::source::{Found, RecordReader, damaged, found_rows, guarded, rows_at_once};

/// Reads batches of rows.
pub(crate) struct Reader {
    table: Arc<Table>,
    /// Which file of the table.
    file: usize,
    path: PathBuf,
    size: u64,
    batches: ParquetRecordBatchReader,
    /// How the file's columns become those that were asked for.
    order: Vec<ReorderIndex>,
    /// The numbers of the rows that are no longer there.
    deleted: RoaringTreemap,
    rows: u64,
    behind: u64,
}

impl Reader {
    /// Opens a file of the table, which is at `path` and has `size` bytes.
    pub(crate) fn open(table: &Arc<Table>, file: usize, path: &Path, size: u64) -> Result<Self, DataError> {
        let wrong = |problem: String| damaged(path, 0, problem);
        let opened = File::open(path).context("open", path)?;
        let metadata = guarded(|| ArrowReaderMetadata::load(&opened, reader_options())).map_err(wrong)?;
        let metadata = metadata.map_err(|error| wrong(error.to_string()))?;
        let schema = table.scan.physical_schema();
        let plan = guarded(|| parquet_read_plan(schema, &metadata)).map_err(wrong)?;
        let (order, mask) = plan.map_err(|error| wrong(said(&error)))?;
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(opened, metadata);
        let mask = mask.unwrap_or_else(ProjectionMask::all);
        let (rows, at_once) = rows_at_once(builder.metadata(), &mask);
        builder = builder.with_projection(mask);
        let batches = guarded(|| builder.with_batch_size(at_once).build()).map_err(wrong)?;
        let batches = batches.map_err(|error| wrong(error.to_string()))?;
        let deleted = Self::deleted(table, file, rows).map_err(wrong)?;
        Ok(Self {
            table: table.clone(),
            file,
            path: path.to_owned(),
            size,
            batches,
            order,
            deleted,
            rows,
            behind: 0,
        })
    }

    /// The rows that the log deletes. They stay packed: a vector of a few bytes may name a row that would take more than all memory
    /// to write out.
    fn deleted(table: &Table, file: usize, rows: u64) -> Result<RoaringTreemap, String> {
        let Some(deleted) = table.files.get(file).and_then(|file| file.deleted.as_ref()) else {
            return Ok(RoaringTreemap::new());
        };
        let deleted = guarded(|| deleted.read(table.engine.storage_handler(), &table.root))?;
        let deleted = deleted
            .map_err(|error| format!("which of its rows are deleted cannot be read: {}", said(&error)))?;
        match deleted.max() {
            Some(last) if last >= rows => {
                Err(format!("the log deletes row {} of its {rows}", last.saturating_add(1)))
            }
            _ => Ok(deleted),
        }
    }

    /// A batch as the table's log means it.
    fn logical(&self, batch: RecordBatch) -> Result<RecordBatch, KernelError> {
        let (engine, scan) = (self.table.engine.as_ref(), &self.table.scan);
        let schema = scan.physical_schema();
        let batch = fixup_parquet_read(batch, &self.order, None, self.path.to_str(), Some(schema))?;
        let transform = self.table.files.get(self.file).and_then(|file| file.scan.transform.clone());
        let batch = transform_to_logical(engine, Box::new(batch), schema, scan.logical_schema(), transform)?;
        Ok((*ArrowEngineData::try_from_engine_data(batch)?).into())
    }
}

impl RecordReader for Reader {
    fn next_records(&mut self) -> Result<Vec<Found>, DataError> {
        loop {
            let wrong = |problem: String| damaged(&self.path, self.behind, problem);
            let Some(batch) = guarded(|| self.batches.next()).map_err(wrong)? else {
                return match self.behind < self.rows {
                    true => Err(wrong(format!("{} rows are missing", self.rows - self.behind))),
                    false => Ok(Vec::new()),
                };
            };
            let batch = batch.map_err(|error| wrong(error.to_string()))?;
            let before = self.behind as usize;
            let logical = guarded(|| self.logical(batch)).map_err(wrong)?;
            let batch = logical.map_err(|error| wrong(said(&error)))?;
            self.behind += batch.num_rows() as u64;
            let deleted = &self.deleted;
            let rows = found_rows(batch, before, |row| !deleted.contains(row as u64));
            // None would mean the end.
            if !rows.is_empty() {
                return Ok(rows);
            }
        }
    }

    fn bytes_read(&self) -> u64 {
        (u128::from(self.size) * u128::from(self.behind) / u128::from(self.rows.max(1))) as u64
    }
}
