//! `.parquet`: rows of a columnar file, read a bounded number at a time. Columns that nobody wants are not read.
//!
//! A null is taken for a value that is not there: writers fill what a row lacks with nulls, in structs too.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchReader};
use arrow_schema::{ArrowError, DataType, Fields as Columns};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ParquetMetaData;
use tessera_files::IoContext;

use super::BYTES_PER_THREAD;
use super::record::{Content, Found, RecordReader, Unit};
use super::value::{Fields, Value};
use crate::error::DataError;

/// More rows are not read at once, however short they seem.
const MOST_ROWS: usize = 1 << 10;

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
        let mask = match wanted {
            None => ProjectionMask::all(),
            Some(wanted) => {
                let schema = builder.parquet_schema();
                let fields = schema.root_schema().get_fields().iter().enumerate();
                let roots = fields.filter(|(_, field)| wanted.contains(&field.name())).map(|(root, _)| root);
                ProjectionMask::roots(schema, roots.collect::<Vec<_>>())
            }
        };
        let (rows, at_once) = rows_at_once(builder.metadata(), &mask);
        let builder = builder.with_projection(mask).with_batch_size(at_once);
        let batches =
            guarded(|| builder.build()).map_err(damaged)?.map_err(|error| damaged(error.to_string()))?;
        if let Some(name) = repeated(batches.schema().fields()) {
            return Err(damaged(format!("two columns are called `{name}`")));
        }
        Ok(Self { batches, path: path.to_owned(), size, rows, behind: 0 })
    }
}

/// A name that two columns have, of the table or of a struct in it.
fn repeated(columns: &Columns) -> Option<&str> {
    let mut seen = HashSet::new();
    columns.iter().find_map(|field| match field.data_type() {
        _ if !seen.insert(field.name()) => Some(field.name().as_str()),
        DataType::Struct(inner) => repeated(inner),
        DataType::List(item) => match item.data_type() {
            DataType::Struct(inner) => repeated(inner),
            _ => None,
        },
        _ => None,
    })
}

/// How many rows a file has, and how many of them are read at once: about [`BYTES_PER_THREAD`] of the columns that are.
pub(crate) fn rows_at_once(metadata: &ParquetMetaData, mask: &ProjectionMask) -> (u64, usize) {
    let groups = metadata.row_groups();
    let rows: u64 = groups.iter().map(|group| group.num_rows().max(0) as u64).sum();
    let columns = groups.iter().flat_map(|group| group.columns().iter().enumerate());
    let read = columns.filter(|(column, _)| mask.leaf_included(*column));
    let unpacked: u64 = read.map(|(_, column)| column.uncompressed_size().max(0) as u64).sum();
    let fitting = BYTES_PER_THREAD as u64 / (unpacked / rows.max(1)).max(1);
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
        Ok(found_rows(batch, before, |_| true))
    }

    fn bytes_read(&self) -> u64 {
        (u128::from(self.size) * u128::from(self.behind) / u128::from(self.rows.max(1))) as u64
    }
}

/// The rows of a batch, `before` which there are so many, of which some are `kept`.
pub(crate) fn found_rows(batch: RecordBatch, before: usize, kept: impl Fn(usize) -> bool) -> Vec<Found> {
    let rows: Vec<_> = (0..batch.num_rows()).filter(|row| kept(before + row)).collect();
    // Few rows that are kept hold the memory of all, and a row without values is not for nothing.
    let size = batch.get_array_memory_size() / rows.len().max(1) + size_of::<Found>();
    let batch = Arc::new(batch);
    let found = |row| {
        let content = Content::TableRow(TableRow { batch: batch.clone(), row, size });
        Found { unit: Unit::Row, number: before + row + 1, content }
    };
    rows.into_iter().map(found).collect()
}

/// A row of a batch.
pub(crate) struct TableRow {
    batch: Arc<RecordBatch>,
    row: usize,
    /// Bytes of memory, as if all rows that are kept had as many.
    size: usize,
}

impl TableRow {
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The values of the row, but for nulls. `Err` says which cannot be used.
    pub(crate) fn fields(&self) -> Result<Fields<'_>, String> {
        let columns = self.batch.schema_ref().fields().iter().zip(self.batch.columns());
        let mut fields = Fields::with_capacity(self.batch.num_columns());
        for (field, column) in columns {
            match value(column, self.row)
                .map_err(|problem| format!("column `{}`: {problem}", field.name()))?
            {
                Value::Null => {}
                value => fields.push(Cow::Borrowed(field.name()), value),
            }
        }
        Ok(fields)
    }
}

/// One value. Long texts, views and lists of one length are types of the writer's own schema, which is not read.
fn value(array: &dyn Array, row: usize) -> Result<Value<'_>, String> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    let text = |text| Value::Text(Cow::Borrowed(text));
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Utf8 => text(array.as_string::<i32>().value(row)),
        DataType::Binary => text(utf8(array.as_binary::<i32>().value(row))?),
        DataType::Boolean => Value::Boolean,
        // Other numbers, such as dates and decimals, are none that JSON has.
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Value::Number,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => Value::Number,
        // NaN is how some programs write a number that is not there.
        DataType::Float32 if array.as_primitive::<Float32Type>().value(row).is_finite() => Value::Number,
        DataType::Float64 if array.as_primitive::<Float64Type>().value(row).is_finite() => Value::Number,
        DataType::Float32 | DataType::Float64 => Value::Null,
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let offsets = lists.value_offsets();
            list(lists.values(), offsets[row] as usize..offsets[row + 1] as usize)?
        }
        DataType::Struct(fields) => {
            let mut object = Fields::with_capacity(fields.len());
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                match value(column, row)? {
                    Value::Null => {}
                    value => object.push(Cow::Borrowed(field.name()), value),
                }
            }
            Value::Object(object)
        }
        other => return Err(format!("values of type {other} cannot be used")),
    })
}

fn list(items: &ArrayRef, range: Range<usize>) -> Result<Value<'_>, String> {
    range.map(|item| value(items, item)).collect::<Result<_, _>>().map(Value::List)
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "bytes that are not UTF-8".to_owned())
}
