//! Writing a checkpoint folder: every rank streams its own shard, rank 0 then writes `.metadata`.
//!
//! A rank holds a flat range of each tensor, which is a few rectangles; each becomes one chunk, so nothing is
//! gathered and nothing is held twice. Whether the chunks of all ranks make up the tensors is checked before
//! `.metadata`, which makes the folder a checkpoint, is written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use tessera_files::{IoContext, write_atomic};

use super::archive::{Serial, write_object, write_tensor};
use super::element::ElementType;
use super::error::{DcpError, WriteFault};
use super::metadata::{self, Place, Plan, Tensor};
use super::path::StatePath;
use super::pickle::Value;
use super::rectangle::{Rectangle, check_cover, rectangles};
use super::save_id::SaveId;

/// Elements converted at a time, and bytes written at a time: large enough for the disk, small enough that the
/// checksum and the copy meet the same bytes in the cache.
const PIECE: usize = 1 << 18;

/// The name of a rank's shard.
pub fn shard_file(rank: usize) -> String {
    format!("__{rank}_0.distcp")
}

/// Writes one rank's shard, `__<rank>_0.distcp`.
#[derive(Debug)]
pub struct RankWriter {
    out: Counted,
    path: PathBuf,
    metadata: RankMetadata,
}

/// What a rank has written: what rank 0 needs to write `.metadata`. It can be sent through serde.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RankMetadata {
    save: SaveId,
    file: String,
    tensors: Vec<(StatePath, WrittenTensor)>,
    objects: Vec<(StatePath, Written)>,
}

impl RankMetadata {
    fn tensor(&mut self, path: &StatePath) -> Option<&mut WrittenTensor> {
        // Chunks of a tensor and its alias are written one after another: the last entries come first.
        self.tensors.iter_mut().rev().find(|(known, _)| known == path).map(|(_, tensor)| tensor)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct WrittenTensor {
    dtype: ElementType,
    shape: Vec<usize>,
    chunks: Vec<(Rectangle, Written)>,
}

/// Where in the shard an item lies.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Written {
    offset: u64,
    length: u64,
}

impl RankWriter {
    /// Starts the shard of `rank`, for one save, in a folder that is being filled.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(folder: &Path, rank: usize, save: SaveId) -> Result<Self, DcpError> {
        let file = shard_file(rank);
        let path = folder.join(&file);
        let out = File::create(&path).context("create", &path)?;
        let out = Counted { out: BufWriter::with_capacity(1 << 20, out), position: 0 };
        Ok(Self {
            out,
            path,
            metadata: RankMetadata { save, file, tensors: Vec::new(), objects: Vec::new() },
        })
    }

    /// Writes the elements `start..start + elements.len()` of the tensor at `path`, whose global shape is `shape`,
    /// converted to `dtype` (to the nearest, ties to even). An empty range writes nothing.
    ///
    /// # Errors
    /// When the range passes the tensor's end, `dtype` is not a type that weights have, or writing fails.
    pub fn write_elements(
        &mut self,
        path: &StatePath,
        dtype: ElementType,
        shape: &[usize],
        start: usize,
        elements: &[f32],
    ) -> Result<(), DcpError> {
        if dtype.weight_type().is_none() {
            return Err(write_fault(path, WriteFault::Conversion(dtype)));
        }
        let mut rest = elements;
        for part in parts(path, shape, start, elements.len())? {
            let (elements, after) = rest.split_at(part.elements());
            rest = after;
            self.chunk(path, dtype, shape, part, |out| encode(out, dtype, elements))?;
        }
        Ok(())
    }

    /// Writes the elements from `start` on of a tensor of any type, given as their little-endian bytes.
    ///
    /// # Errors
    /// As [`Self::write_elements`]; the bytes must be whole elements.
    pub fn write_bytes(
        &mut self,
        path: &StatePath,
        dtype: ElementType,
        shape: &[usize],
        start: usize,
        bytes: &[u8],
    ) -> Result<(), DcpError> {
        if !bytes.len().is_multiple_of(dtype.size()) {
            return Err(write_fault(path, WriteFault::PartialElement { length: bytes.len(), dtype }));
        }
        let mut rest = bytes;
        for part in parts(path, shape, start, bytes.len() / dtype.size())? {
            let (bytes, after) = rest.split_at(part.elements() * dtype.size());
            rest = after;
            self.chunk(path, dtype, shape, part, |out| {
                bytes.chunks(PIECE).try_for_each(|piece| out.write_all(piece))
            })?;
        }
        Ok(())
    }

    /// Writes an object without tensors in it. Each object is written by one rank only.
    ///
    /// # Errors
    /// When this rank wrote it already, or writing fails.
    pub fn write_object(&mut self, path: &StatePath, value: &Value) -> Result<(), DcpError> {
        let serial = self.serial();
        write_object(&mut self.out, serial, value).context("write", &self.path)?;
        let written = Written { offset: serial.offset, length: self.out.position - serial.offset };
        self.metadata.objects.push((path.clone(), written));
        Ok(())
    }

    /// Makes `path` a second name of what this rank has written of the tensor `of`: tied weights are stored once.
    ///
    /// # Errors
    /// When this rank has written nothing of `of`.
    pub fn alias(&mut self, path: &StatePath, of: &StatePath) -> Result<(), DcpError> {
        match self.metadata.tensor(of).cloned() {
            Some(tensor) => self.metadata.tensors.push((path.clone(), tensor)),
            None => return Err(write_fault(path, WriteFault::NoTarget(of.to_string()))),
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.out.position
    }

    /// Flushes and syncs the shard.
    ///
    /// # Errors
    /// When the last bytes cannot be written.
    pub fn finish(self) -> Result<RankMetadata, DcpError> {
        let file = self.out.out.into_inner().map_err(io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).context("write", &self.path)?;
        Ok(self.metadata)
    }

    /// What the archive that is written next carries.
    fn serial(&self) -> Serial {
        Serial { save: self.metadata.save, offset: self.out.position }
    }

    fn chunk(
        &mut self,
        path: &StatePath,
        dtype: ElementType,
        shape: &[usize],
        part: Rectangle,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), DcpError> {
        let serial = self.serial();
        write_tensor(&mut self.out, serial, dtype, &part.sizes, fill).context("write", &self.path)?;
        let written = Written { offset: serial.offset, length: self.out.position - serial.offset };
        let chunk = (part, written);
        match self.metadata.tensor(path) {
            Some(tensor) => {
                same_tensor(path, (tensor.dtype, &tensor.shape), (dtype, shape))?;
                tensor.chunks.push(chunk);
            }
            None => {
                let tensor = WrittenTensor { dtype, shape: shape.to_vec(), chunks: vec![chunk] };
                self.metadata.tensors.push((path.clone(), tensor));
            }
        }
        Ok(())
    }
}

/// Joins what all ranks have written and writes `.metadata`, last of all files.
///
/// # Errors
/// When ranks disagree about a tensor or wrote for different saves, there is no rank, an object was written twice, the chunks do not make up a tensor, or the
/// file cannot be written.
pub fn write_metadata(folder: &Path, ranks: Vec<RankMetadata>) -> Result<(), DcpError> {
    let Some(save) = ranks.first().map(|rank| rank.save) else {
        return Err(DcpError::Write { name: metadata::FILE_NAME.to_owned(), fault: WriteFault::NoShard });
    };
    let mut plan = Plan { save, tensors: BTreeMap::new(), objects: BTreeMap::new() };
    for rank in ranks {
        if rank.save != save {
            return Err(DcpError::Write { name: rank.file, fault: WriteFault::OtherSave });
        }
        let file: Arc<str> = rank.file.into();
        let place =
            |written: Written| Place { file: file.clone(), offset: written.offset, length: written.length };
        for (path, object) in rank.objects {
            if plan.objects.contains_key(&path) {
                return Err(write_fault(&path, WriteFault::Twice));
            }
            plan.objects.insert(path, place(object));
        }
        for (path, written) in rank.tensors {
            let chunks = written.chunks.into_iter().map(|(part, chunk)| (part, place(chunk)));
            match plan.tensors.get_mut(&path) {
                Some(tensor) => {
                    same_tensor(&path, (tensor.dtype, &tensor.shape), (written.dtype, &written.shape))?;
                    tensor.chunks.extend(chunks);
                }
                None => {
                    let tensor =
                        Tensor { dtype: written.dtype, shape: written.shape, chunks: chunks.collect() };
                    plan.tensors.insert(path, tensor);
                }
            }
        }
    }
    check_plan(&plan)?;
    Ok(write_atomic(&folder.join(metadata::FILE_NAME), &metadata::serialise(&plan))?)
}

fn check_plan(plan: &Plan) -> Result<(), DcpError> {
    let mut names: BTreeMap<String, &StatePath> = BTreeMap::new();
    for path in plan.objects.keys().chain(plan.tensors.keys()) {
        if names.insert(path.to_string(), path).is_some() {
            return Err(write_fault(path, WriteFault::Twice));
        }
    }
    for (path, tensor) in &plan.tensors {
        let parts: Vec<_> = tensor.chunks.iter().map(|(part, _)| part).collect();
        check_cover(&tensor.shape, &parts)
            .map_err(|fault| write_fault(path, WriteFault::Cover { shape: tensor.shape.clone(), fault }))?;
    }
    Ok(())
}

fn write_fault(path: &StatePath, fault: WriteFault) -> DcpError {
    DcpError::Write { name: path.to_string(), fault }
}

fn parts(path: &StatePath, shape: &[usize], start: usize, length: usize) -> Result<Vec<Rectangle>, DcpError> {
    let end = start.saturating_add(length);
    rectangles(shape, start, length)
        .ok_or_else(|| write_fault(path, WriteFault::Range { start, end, shape: shape.to_vec() }))
}

fn same_tensor(
    path: &StatePath,
    (dtype, shape): (ElementType, &[usize]),
    (found_dtype, found_shape): (ElementType, &[usize]),
) -> Result<(), DcpError> {
    if dtype == found_dtype && shape == found_shape {
        return Ok(());
    }
    let (shape, found_shape) = (shape.to_vec(), found_shape.to_vec());
    Err(write_fault(path, WriteFault::Disagreement { dtype, shape, found_dtype, found_shape }))
}

/// Writes fp32 values as little-endian elements of a type that weights have.
fn encode(out: &mut dyn Write, dtype: ElementType, elements: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(PIECE.min(elements.len()) * dtype.size());
    for piece in elements.chunks(PIECE) {
        bytes.clear();
        match dtype {
            ElementType::Bf16 => {
                bytes.extend(piece.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()))
            }
            ElementType::F16 => {
                bytes.extend(piece.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()))
            }
            _ if cfg!(target_endian = "little") => {
                out.write_all(bytemuck::cast_slice(piece))?;
                continue;
            }
            _ => bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes())),
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// A buffered file that knows how far it is.
#[derive(Debug)]
struct Counted {
    out: BufWriter<File>,
    position: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
