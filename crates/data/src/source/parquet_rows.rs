//! `.parquet`: rows of a columnar file, read a bounded number at a time. Columns that nobody wants are not read.
//!
//! A null is taken for a value that is not there: writers fill what a row lacks with nulls, in structs too.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{ArrowError, DataType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ParquetMetaData;
use rayon::prelude::*;
use serde_json::{Map, Value};
use tessera_files::IoContext;

use super::bytes_at_once;
use super::record::{Content, Found, RecordReader, Unit};
use crate::error::DataError;

/// More rows are not read at once, however short they seem.
const MOST_ROWS: usize = 1 << 14;

/// Reads batches of rows.
pub(super) struct Reader {
    batches: ParquetRecordBatchReader,
    path: PathBuf,
    size: u64,
    rows: u64,
    behind: u64,
}

impl Reader {
    /// Opens a file of `size` bytes to read the columns that are `wanted`, or all.
    pub(super) fn open(path: &Path, size: u64, wanted: Option<Vec<&str>>) -> Result<Self, DataError> {
        let damaged = |problem: String| damaged(path, 0, problem);
        let file = File::open(path).context("open", path)?;
        // Without the writer's own schema every text has one type, dictionaries included.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new_with_options(file, options))
            .map_err(damaged)?
            .map_err(|error| damaged(error.to_string()))?;
        let (rows, at_once) = rows_at_once(builder.metadata());
        let mask = match wanted {
            None => ProjectionMask::all(),
            Some(wanted) => {
                let schema = builder.parquet_schema();
                let fields = schema.root_schema().get_fields().iter().enumerate();
                let roots = fields.filter(|(_, field)| wanted.contains(&field.name())).map(|(root, _)| root);
                ProjectionMask::roots(schema, roots.collect::<Vec<_>>())
            }
        };
        let builder = builder.with_projection(mask).with_batch_size(at_once);
        let batches =
            guarded(|| builder.build()).map_err(damaged)?.map_err(|error| damaged(error.to_string()))?;
        Ok(Self { batches, path: path.to_owned(), size, rows, behind: 0 })
    }
}

/// How many rows a file has, and how many of them are read at once.
pub(crate) fn rows_at_once(metadata: &ParquetMetaData) -> (u64, usize) {
    let groups = metadata.row_groups();
    let rows: u64 = groups.iter().map(|group| group.num_rows().max(0) as u64).sum();
    let unpacked: u64 = groups.iter().map(|group| group.total_byte_size().max(0) as u64).sum();
    let fitting = bytes_at_once() as u64 / (unpacked / rows.max(1)).max(1);
    (rows, (fitting as usize).clamp(1, MOST_ROWS))
}

/// The parquet crate trusts some of what a file says of itself: what a damaged one makes it do ends here.
pub(crate) fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| "its content contradicts itself".to_owned())
}

pub(crate) fn damaged(path: &Path, rows: u64, problem: String) -> DataError {
    let place = if rows == 0 { "its beginning".to_owned() } else { format!("row {rows}") };
    DataError::Damaged { path: path.to_owned(), place, problem }
}

impl RecordReader for Reader {
    fn next_records(&mut self) -> Result<Vec<Found>, DataError> {
        let next = guarded(|| self.batches.next())
            .unwrap_or_else(|problem| Some(Err(ArrowError::ParquetError(problem))));
        let batch = match next {
            None if self.behind < self.rows => {
                let missing = self.rows - self.behind;
                return Err(damaged(&self.path, self.behind, format!("{missing} rows are missing")));
            }
            None => return Ok(Vec::new()),
            Some(batch) => batch.map_err(|error| damaged(&self.path, self.behind, error.to_string()))?,
        };
        let before = self.behind as usize;
        self.behind += batch.num_rows() as u64;
        Ok(found_rows(&batch, before, |_| true))
    }

    fn bytes_read(&self) -> u64 {
        (u128::from(self.size) * u128::from(self.behind) / u128::from(self.rows.max(1))) as u64
    }
}

/// The rows of a batch, `before` which there are so many, of which some are `kept`.
pub(crate) fn found_rows(
    batch: &RecordBatch,
    before: usize,
    kept: impl Fn(usize) -> bool + Sync,
) -> Vec<Found> {
    let rows = (0..batch.num_rows()).into_par_iter().filter(|row| kept(before + row));
    rows.map(|row| Found { unit: Unit::Row, number: before + row + 1, content: content(batch, row) })
        .collect()
}

fn content(batch: &RecordBatch, row: usize) -> Content {
    let (mut values, mut size) = (Map::new(), 0);
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        match value(column, row, &mut size) {
            Ok(Value::Null) => {}
            Ok(value) => {
                values.insert(field.name().clone(), value);
            }
            Err(problem) => return Content::Broken(format!("column `{}`: {problem}", field.name())),
        }
    }
    Content::Row { values, size }
}

/// One value; `size` grows by its bytes.
fn value(array: &dyn Array, row: usize, size: &mut usize) -> Result<Value, String> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    let mut text = |text: &str| {
        *size += text.len();
        Value::String(text.to_owned())
    };
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Utf8 => text(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => text(array.as_string::<i64>().value(row)),
        DataType::Utf8View => text(array.as_string_view().value(row)),
        DataType::Binary => text(utf8(array.as_binary::<i32>().value(row))?),
        DataType::LargeBinary => text(utf8(array.as_binary::<i64>().value(row))?),
        DataType::BinaryView => text(utf8(array.as_binary_view().value(row))?),
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::List(_) => list(&array.as_list::<i32>().value(row), size)?,
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row), size)?,
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row), size)?,
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            let mut object = Map::new();
            for (field, column) in columns {
                match value(column, row, size)? {
                    Value::Null => {}
                    value => {
                        object.insert(field.name().clone(), value);
                    }
                }
            }
            Value::Object(object)
        }
        other => return Err(format!("values of type {other} cannot be used")),
    })
}

fn list(items: &dyn Array, size: &mut usize) -> Result<Value, String> {
    (0..items.len()).map(|item| value(items, item, size)).collect::<Result<_, _>>().map(Value::Array)
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "bytes that are not UTF-8".to_owned())
}
