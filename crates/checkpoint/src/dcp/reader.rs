//! Reading a checkpoint folder: tensors by ranges of elements, however they were sharded, and objects.
//!
//! Shards are mapped, so a rank that reads its own slice touches only the chunks that it meets. A chunk's
//! checksums are compared when it is touched first.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tessera_files::{IoContext, MappedFile};

use super::archive::{Archive, Record};
use super::element::{ElementType, decode, decode_and_sum};
use super::error::{DcpError, ItemFault};
use super::metadata::{self, Place};
use super::pickle::Value;
use super::rectangle::{Rectangle, stretches};
use super::save_id::SaveId;
use crate::StoredDType;

/// An open checkpoint folder, written by us, by Composer, or by `torch.distributed.checkpoint`.
#[derive(Debug)]
pub struct DcpReader {
    folder: PathBuf,
    /// `None`: another program wrote it.
    save: Option<SaveId>,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, ShardedTensor>,
    objects: BTreeMap<String, Item>,
}

/// A tensor of a checkpoint.
#[derive(Debug)]
pub struct ShardedTensor {
    dtype: ElementType,
    shape: Vec<usize>,
    chunks: Vec<Chunk>,
}

impl ShardedTensor {
    /// The type of the elements.
    pub fn dtype(&self) -> ElementType {
        self.dtype
    }

    /// Extents, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// One `torch.save` archive within a file.
#[derive(Debug)]
struct Item {
    file: usize,
    range: Range<usize>,
}

#[derive(Debug)]
struct Chunk {
    part: Rectangle,
    item: Item,
    /// Where its elements lie in the file; set once they have been checked.
    elements: OnceLock<Range<usize>>,
}

impl DcpReader {
    /// Opens a folder that has a `.metadata`, and checks that everything it names is there.
    ///
    /// # Errors
    /// When `.metadata` is missing, damaged or names types outside the accepted list; when a tensor has holes or
    /// overlaps; when a shard is missing or too short.
    pub fn open(folder: &Path) -> Result<Self, DcpError> {
        let path = folder.join(metadata::FILE_NAME);
        let bytes = fs::read(&path).context("read", &path)?;
        let metadata = metadata::parse(&bytes).map_err(|fault| DcpError::Metadata { path, fault })?;
        let mut files = Files { folder, opened: Vec::new(), numbers: HashMap::new() };
        let mut tensors = BTreeMap::new();
        for (name, tensor) in metadata.tensors {
            let chunks: Result<Vec<_>, DcpError> = tensor
                .chunks
                .into_iter()
                .map(|(part, place)| {
                    Ok(Chunk { part, item: files.item(&name, &place)?, elements: OnceLock::new() })
                })
                .collect();
            tensors.insert(name, ShardedTensor { dtype: tensor.dtype, shape: tensor.shape, chunks: chunks? });
        }
        let mut objects = BTreeMap::new();
        for (name, place) in metadata.objects {
            let item = files.item(&name, &place)?;
            objects.insert(name, item);
        }
        Ok(Self { folder: folder.to_owned(), save: metadata.save, files: files.opened, tensors, objects })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every tensor, by DCP's name of it.
    pub fn tensors(&self) -> &BTreeMap<String, ShardedTensor> {
        &self.tensors
    }

    /// The names of all objects.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        self.objects.keys().map(String::as_str)
    }

    /// The optimizer whose state is kept, as Composer names it: the `X` of `state.optimizers.X.…`.
    pub fn optimizer(&self) -> Option<&str> {
        let names = self.tensors.keys().map(String::as_str).chain(self.objects());
        names.filter_map(|name| name.strip_prefix("state.optimizers.")?.split('.').next()).next()
    }

    /// Reads an object.
    ///
    /// # Errors
    /// When there is none of that name, or its bytes are damaged, or it is of a type that is not accepted.
    pub fn object(&self, name: &str) -> Result<Value, DcpError> {
        let item = self.objects.get(name).ok_or_else(|| self.unknown("object", name))?;
        let read = || checked(self.bytes(item), self.save)?.value();
        read().map_err(|fault| self.damaged(name, item, fault))
    }

    /// Fills `out` with the elements `start..start + out.len()` of a tensor in row-major order, as fp32.
    ///
    /// # Errors
    /// When there is no such tensor, it is not of a floating type that weights have, the range passes its end, or
    /// a chunk that is met is damaged; `out` then holds anything.
    pub fn read_elements(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), DcpError> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.unknown("tensor", name))?;
        let end = start.saturating_add(out.len());
        if end > tensor.elements() {
            return Err(DcpError::Range { name: name.to_owned(), start, end, elements: tensor.elements() });
        }
        let Some(dtype) = tensor.dtype.weight_type() else {
            return Err(DcpError::NotFloating { name: name.to_owned(), dtype: tensor.dtype });
        };
        let size = tensor.dtype.size();
        for chunk in &tensor.chunks {
            let mut met = stretches(&tensor.shape, &chunk.part, start, end).peekable();
            match met.peek() {
                None => continue,
                // The most usual case by far: a rank reads what one of its kind wrote.
                Some(whole) if whole.length == chunk.part.elements() && chunk.elements.get().is_none() => {
                    let at = whole.in_tensor - start;
                    let out = &mut out[at..at + whole.length];
                    if self.read_whole(name, (tensor.dtype, dtype), chunk, out)? {
                        continue;
                    }
                }
                Some(_) => {}
            }
            let elements = self.elements(name, tensor.dtype, chunk)?;
            for piece in met {
                let bytes = &elements[piece.in_part * size..(piece.in_part + piece.length) * size];
                let at = piece.in_tensor - start;
                decode(dtype, bytes, &mut out[at..at + piece.length]);
            }
        }
        Ok(())
    }

    /// Compares every checksum of every tensor and object.
    ///
    /// # Errors
    /// For the first item that is damaged.
    pub fn verify(&self) -> Result<(), DcpError> {
        for (name, tensor) in &self.tensors {
            for chunk in &tensor.chunks {
                self.elements(name, tensor.dtype, chunk)?;
            }
        }
        self.objects.keys().try_for_each(|name| self.object(name).map(drop))
    }

    fn bytes(&self, item: &Item) -> &[u8] {
        // The range was checked against the file's length when it was opened.
        &self.files[item.file][item.range.clone()]
    }

    /// Fills `out` with all elements of a chunk, which are checked as they are read; false if its archive holds more of them,
    /// so that they cannot be.
    fn read_whole(
        &self,
        name: &str,
        (stored, dtype): (ElementType, StoredDType),
        chunk: &Chunk,
        out: &mut [f32],
    ) -> Result<bool, DcpError> {
        let bytes = self.bytes(&chunk.item);
        let mut read = || {
            let Located { record, elements } = locate(bytes, self.save, stored, &chunk.part.sizes)?;
            if record.range != elements {
                return Ok(false);
            }
            record.compare(decode_and_sum(dtype, &bytes[elements.clone()], out))?;
            // Another thread that has checked them meanwhile has found the same.
            let _ = chunk.elements.set(elements);
            Ok(true)
        };
        read().map_err(|fault| self.damaged(name, &chunk.item, fault))
    }

    /// The bytes of a chunk's elements, checked.
    fn elements(&self, name: &str, dtype: ElementType, chunk: &Chunk) -> Result<&[u8], DcpError> {
        let range = match chunk.elements.get() {
            Some(range) => range,
            None => {
                let bytes = self.bytes(&chunk.item);
                let find = || {
                    let Located { record, elements } = locate(bytes, self.save, dtype, &chunk.part.sizes)?;
                    record.check(bytes).map(|()| elements)
                };
                let found = find().map_err(|fault| self.damaged(name, &chunk.item, fault))?;
                chunk.elements.get_or_init(|| found)
            }
        };
        Ok(&self.bytes(&chunk.item)[range.clone()])
    }

    fn unknown(&self, kind: &'static str, name: &str) -> DcpError {
        DcpError::Unknown { path: self.folder.clone(), kind, name: name.to_owned() }
    }

    fn damaged(&self, name: &str, item: &Item, fault: ItemFault) -> DcpError {
        DcpError::Item {
            path: self.files[item.file].path().to_owned(),
            name: name.to_owned(),
            offset: item.range.start as u64,
            fault,
        }
    }
}

/// An item's archive: its checksums, and whether it is of the same save as `.metadata`.
fn checked(bytes: &[u8], save: Option<SaveId>) -> Result<Archive<'_>, ItemFault> {
    let archive = Archive::open(bytes)?;
    archive.check()?;
    save.map_or(Ok(()), |save| archive.check_save(save))?;
    Ok(archive)
}

/// The elements of a chunk in an archive of which all but they has been checked.
struct Located {
    /// What they are part of.
    record: Record,
    elements: Range<usize>,
}

/// Checks an item that holds a chunk, up to its elements, and finds them.
fn locate(
    bytes: &[u8],
    save: Option<SaveId>,
    dtype: ElementType,
    shape: &[usize],
) -> Result<Located, ItemFault> {
    let archive = Archive::open(bytes)?;
    match archive.value()? {
        Value::Tensor(tensor) if tensor.storage.dtype == dtype && tensor.shape == shape => {
            let (record, elements) = archive.elements(&tensor)?;
            archive.check_all_but(record)?;
            save.map_or(Ok(()), |save| archive.check_save(save))?;
            Ok(Located { record: record.clone(), elements })
        }
        other => Err(ItemFault::Content {
            found: other.kind(),
            expected: format!("a {dtype:?} tensor of shape {shape:?}, as .metadata says"),
        }),
    }
}

/// The shards opened so far.
struct Files<'a> {
    folder: &'a Path,
    opened: Vec<MappedFile>,
    numbers: HashMap<Arc<str>, usize>,
}

impl Files<'_> {
    fn item(&mut self, name: &str, place: &Place) -> Result<Item, DcpError> {
        let file = match self.numbers.get(&place.file) {
            Some(&number) => number,
            None => {
                let number = self.opened.len();
                self.opened.push(MappedFile::open(&self.folder.join(&*place.file))?);
                self.numbers.insert(place.file.clone(), number);
                number
            }
        };
        let shard = &self.opened[file];
        let needed = place.offset.saturating_add(place.length);
        if needed > shard.len() as u64 {
            let found = shard.len() as u64;
            return Err(DcpError::Truncated {
                path: shard.path().to_owned(),
                name: name.to_owned(),
                needed,
                found,
            });
        }
        // Both are within the file's length, which is a usize.
        Ok(Item { file, range: place.offset as usize..needed as usize })
    }
}
