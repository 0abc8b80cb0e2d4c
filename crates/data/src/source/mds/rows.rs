//! The samples of a shard, read from its beginning to its end.
//!
//! A shard is the number of its samples, where each begins and the last one ends, the columns once more in JSON, and the
//! samples. A sample is the sizes of those values that have no fixed one, then the values, columns in the index's order.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::encoding::Encoding;
use super::{Shard, damaged};
use crate::error::DataError;
use crate::source::bytes_at_once;
use crate::source::files::DataFile;
use crate::source::json_lines::{LONGEST_ROW, too_long};
use crate::source::record::{Content, Found, RecordReader, Unit};
use crate::source::stream::Stream;
use crate::source::value::Fields;

/// Bytes of a count, an offset or a size.
const WORD: usize = 4;

/// Offsets that are read at a time.
const WORDS: usize = 1 << 16;

/// A column, and how it is read if it is wanted.
struct Field {
    name: String,
    encoding: Option<Encoding>,
    size: Option<usize>,
}

/// Reads samples.
pub(crate) struct Reader {
    stream: Stream,
    path: PathBuf,
    fields: Vec<Field>,
    /// Where samples begin, and where the last one ends.
    offsets: Vec<u32>,
    behind: usize,
}

impl Reader {
    /// Opens a shard to read the columns that are `wanted`, or all. `Err` of a column that cannot be read says why not.
    pub(crate) fn open(
        file: &DataFile,
        shard: &Shard,
        wanted: Option<&[&str]>,
        refuse: impl Fn(String) -> DataError,
    ) -> Result<Self, DataError> {
        let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted.contains(&name));
        let field = |column: &super::Column| {
            let encoding = Encoding::named(&column.encoding);
            if encoding.is_none() && is_wanted(&column.name) {
                return Err(refuse(format!(
                    "an MDS shard whose column `{}` is encoded as `{}`, of which no text is made; `columns` says which \
                     columns are read",
                    column.name, column.encoding
                )));
            }
            let encoding = encoding.filter(|_| is_wanted(&column.name));
            Ok(Field { name: column.name.clone(), encoding, size: column.size })
        };
        let fields = shard.columns.iter().map(field).collect::<Result<_, _>>()?;
        let mut stream = Stream::unpacked(&file.path, file.compression)?;
        let offsets = offsets(&mut stream, &file.path, shard)?;
        Ok(Self { stream, path: file.path.clone(), fields, offsets, behind: 0 })
    }

    /// Where the next sample begins and ends, if there is one.
    fn next(&self) -> Option<(u32, u32)> {
        Some((*self.offsets.get(self.behind)?, *self.offsets.get(self.behind + 1)?))
    }
}

/// The offsets of a shard, each held against the one before as it is read, so that a shard which claims to have a great many is
/// refused before they fill the memory. The stream is then at the first sample.
fn offsets(stream: &mut Stream, path: &Path, shard: &Shard) -> Result<Vec<u32>, DataError> {
    let beginning = || "its beginning".to_owned();
    let begins = |problem: String| damaged(path, &beginning(), problem);
    let count = words(stream, 1)?.first().copied().unwrap_or_default() as usize;
    if count != shard.samples {
        return Err(begins(format!("it has {count} samples, but index.json says {}", shard.samples)));
    }
    let header = WORD as u64 * (count as u64 + 2);
    let mut offsets = Vec::new();
    while offsets.len() <= count {
        for end in words(stream, (count + 1 - offsets.len()).min(WORDS))? {
            let place = u64::from(end);
            match offsets.last() {
                None if place < header || place > shard.bytes => {
                    return Err(begins(format!("row 1 is said to begin at byte {end}")));
                }
                Some(&begin) if begin > end || place > shard.bytes => {
                    let number = offsets.len();
                    let problem = format!("row {number} is said to be from byte {begin} to {end}");
                    return Err(damaged(path, &format!("row {}", number - 1), problem));
                }
                _ => offsets.push(end),
            }
        }
    }
    let (first, end) = (
        offsets.first().map_or(0, |&first| u64::from(first)),
        offsets.last().map_or(0, |&end| u64::from(end)),
    );
    if end != shard.bytes {
        let problem = format!("it is said to end at byte {end}, but index.json says {}", shard.bytes);
        return Err(damaged(path, &format!("row {count}"), problem));
    }
    let columns = usize::try_from(first - header).ok().filter(|&columns| columns <= LONGEST_ROW);
    let columns = columns.ok_or_else(|| begins(format!("row 1 is said to begin at byte {first}")))?;
    exactly(stream, columns, beginning)?;
    Ok(offsets)
}

/// The next `count` numbers.
fn words(stream: &mut Stream, count: usize) -> Result<Vec<u32>, DataError> {
    let bytes = exactly(stream, count * WORD, || "its beginning".to_owned())?;
    Ok(bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect())
}

/// The next `size` bytes.
fn exactly(stream: &mut Stream, size: usize, place: impl Fn() -> String) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let read = stream.read_onto(&mut bytes, size, |_| place())?;
    if read < size {
        return Err(damaged(stream.path(), &place(), "the file ends there".to_owned()));
    }
    Ok(bytes)
}

/// The values of a sample. `Err`: its sizes contradict its own.
fn content(fields: &[Field], sample: &[u8]) -> Result<Content, String> {
    let mut words = sample;
    let mut sizes = Vec::with_capacity(fields.len());
    for field in fields {
        sizes.push(match field.size {
            Some(size) => size,
            None => {
                let (word, rest) = words.split_first_chunk().ok_or("its sizes do not fit into it")?;
                words = rest;
                u32::from_le_bytes(*word) as usize
            }
        });
    }
    let mut bodies = words;
    let (mut values, mut held) = (Fields::default(), 0);
    let mut broken = None;
    for (field, size) in fields.iter().zip(sizes) {
        let (body, rest) = bodies
            .split_at_checked(size)
            .ok_or_else(|| format!("`{}` is said to have {size} bytes, of {}", field.name, sample.len()))?;
        bodies = rest;
        let Some(encoding) = field.encoding else { continue };
        match encoding.value(body) {
            Ok(value) => {
                held += body.len();
                values.push(Cow::Owned(field.name.clone()), value);
            }
            Err(problem) => broken = broken.or(Some(format!("column `{}`: {problem}", field.name))),
        }
    }
    if !bodies.is_empty() {
        return Err(format!("{} of its bytes belong to no column", bodies.len()));
    }
    Ok(broken.map_or(Content::Row { values, size: held }, Content::Broken))
}

impl RecordReader for Reader {
    fn next_records(&mut self) -> Result<Vec<Found>, DataError> {
        let (mut samples, mut taken) = (Vec::new(), 0);
        let first = self.behind + 1;
        while taken < bytes_at_once()
            && let Some((begin, end)) = self.next()
        {
            let (number, size) = (self.behind + 1, (end - begin) as usize);
            if size > LONGEST_ROW {
                return Err(too_long(&self.path, Unit::Row, number));
            }
            samples.push(exactly(&mut self.stream, size, || format!("row {}", number - 1))?);
            taken += size + 1;
            self.behind = number;
        }
        if samples.is_empty() {
            let mut rest = Vec::new();
            let place = || format!("row {}", self.behind);
            if self.stream.read_onto(&mut rest, 1, |_| place())? > 0 {
                return Err(damaged(
                    &self.path,
                    &place(),
                    "more bytes follow than index.json says".to_owned(),
                ));
            }
        }
        let (fields, path) = (&self.fields, &self.path);
        let found = samples.into_par_iter().enumerate().map(|(index, sample)| {
            let number = first + index;
            let content = content(fields, &sample).map_err(|problem| {
                damaged(path, &format!("row {}", number - 1), format!("row {number}: {problem}"))
            })?;
            Ok(Found { unit: Unit::Row, number, content })
        });
        found.collect()
    }

    fn bytes_read(&self) -> u64 {
        self.stream.bytes_read()
    }
}
