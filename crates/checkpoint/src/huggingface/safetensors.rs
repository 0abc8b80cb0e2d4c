//! The weights of a Hugging Face folder: `model.safetensors`, or shards named by `model.safetensors.index.json`.
//!
//! Files are memory-mapped and converted piece by piece as they are read, so that loading a model costs no second
//! copy of it. Headers, sizes and the index are checked when the source is opened: a read can then fail only on a
//! wrong name or range.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use tessera_files::{IoContext, MappedFile};

use super::HuggingFaceError;
use crate::{StoredDType, TensorInfo, WeightSource};

/// The file that holds all weights of a small model.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// The file that says which shard holds which tensor.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Where a tensor's bytes lie.
#[derive(Debug)]
struct Extent {
    file: usize,
    start: usize,
    end: usize,
}

/// The weights of a folder in Hugging Face's layout, memory-mapped.
#[derive(Debug)]
pub struct SafetensorsSource {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, TensorInfo>,
    extents: BTreeMap<String, Extent>,
}

/// `model.safetensors.index.json`, as far as it matters here.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsSource {
    /// Opens the weights in `folder`. Like `transformers`, `model.safetensors` goes before an index.
    ///
    /// # Errors
    /// If there are none, a file is damaged or truncated, the index names a file or tensor that is not there, a
    /// tensor is stored twice, or an element type is not F32, BF16 or F16.
    pub fn open(folder: &Path) -> Result<Self, HuggingFaceError> {
        let single = folder.join(SINGLE_FILE);
        if single.exists() {
            return Self::open_files(&[single]);
        }
        let index_path = folder.join(INDEX_FILE);
        if !index_path.exists() {
            return Err(HuggingFaceError::missing(folder, no_weights(&file_names(folder)?)));
        }
        let weight_map = read_index(&index_path)?;
        let paths = shard_paths(folder, &index_path, &weight_map)?;
        let source = Self::open_files(&paths)?;
        source.check_index(&index_path, &weight_map)?;
        Ok(source)
    }

    /// Maps the files and collects their headers.
    fn open_files(paths: &[PathBuf]) -> Result<Self, HuggingFaceError> {
        let mut source = Self { files: Vec::new(), tensors: BTreeMap::new(), extents: BTreeMap::new() };
        for path in paths {
            source.add_file(path)?;
        }
        Ok(source)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), HuggingFaceError> {
        let map = MappedFile::open(path)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| damaged_file(path, &map, &error))?;
        let data = size_of::<u64>() + header;
        for (name, stored) in metadata.tensors() {
            let dtype = stored_dtype(stored.dtype).ok_or_else(|| {
                HuggingFaceError::unsupported(
                    path,
                    format!(
                        "tensor {name:?} is stored as {}, which is not read; use a checkpoint in F32, BF16 \
                        or F16",
                        stored.dtype
                    ),
                )
            })?;
            if let Some(first) = self.extents.get(&name).and_then(|extent| self.files.get(extent.file)) {
                let first = first.path().display();
                let problem = format!(
                    "tensor {name:?} lies in this file and in {first}; one of them is a stale shard, remove it"
                );
                return Err(HuggingFaceError::damaged(path, problem));
            }
            let (start, end) = stored.data_offsets;
            let extent = Extent { file: self.files.len(), start: data + start, end: data + end };
            self.extents.insert(name.clone(), extent);
            self.tensors.insert(name, TensorInfo { shape: stored.shape.clone(), dtype });
        }
        self.files.push(map);
        Ok(())
    }

    /// Every tensor must be in the file that the index names.
    fn check_index(
        &self,
        index: &Path,
        weight_map: &BTreeMap<String, String>,
    ) -> Result<(), HuggingFaceError> {
        for (tensor, shard) in weight_map {
            let holder = self.extents.get(tensor).and_then(|extent| self.files.get(extent.file));
            let found = holder.and_then(|file| file.path().file_name());
            if found.is_none_or(|name| name != shard.as_str()) {
                let problem = format!(
                    "says that {shard} holds tensor {tensor:?}, which is not there; the shards belong to \
                    another model or download, get all files anew"
                );
                return Err(HuggingFaceError::damaged(index, problem));
            }
        }
        Ok(())
    }

    /// The bytes of the elements `start..start + count` of a tensor.
    fn bytes(
        &self,
        name: &str,
        start: usize,
        count: usize,
    ) -> Result<(&[u8], StoredDType), HuggingFaceError> {
        let place = || self.files.first().map_or_else(String::new, |file| file.path().display().to_string());
        let (Some(info), Some(extent)) = (self.tensors.get(name), self.extents.get(name)) else {
            return Err(HuggingFaceError::UnknownTensor { place: place(), tensor: name.to_owned() });
        };
        let end = start.saturating_add(count);
        let width = if info.dtype == StoredDType::F32 { 4 } else { 2 };
        let all = self.files.get(extent.file).and_then(|file| file.get(extent.start..extent.end));
        let wanted =
            all.filter(|_| end <= info.elements()).and_then(|all| all.get(start * width..end * width));
        let bytes = wanted.ok_or_else(|| HuggingFaceError::Range {
            place: place(),
            tensor: name.to_owned(),
            start,
            end,
            elements: info.elements(),
        })?;
        Ok((bytes, info.dtype))
    }
}

impl WeightSource for SafetensorsSource {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let (bytes, dtype) = self.bytes(name, start, out.len())?;
        match dtype {
            StoredDType::Bf16 => widen::<bf16>(bytes, out),
            StoredDType::F16 => widen::<f16>(bytes, out),
            StoredDType::F32 | StoredDType::Quantised => bytemuck::cast_slice_mut(out).copy_from_slice(bytes),
        }
        Ok(())
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path().to_owned()).collect()
    }
}

/// Converts half-precision bytes to fp32, in blocks that stay in the cache: the bytes of an old file need not be
/// aligned to two, so they pass through an aligned block.
fn widen<T: bytemuck::Pod>(bytes: &[u8], out: &mut [f32])
where
    [T]: HalfFloatSliceExt,
{
    const BLOCK: usize = 4096;
    let mut block = [T::zeroed(); BLOCK];
    for (from, to) in bytes.chunks(BLOCK * size_of::<T>()).zip(out.chunks_mut(BLOCK)) {
        let block = &mut block[..to.len()];
        bytemuck::cast_slice_mut::<T, u8>(block).copy_from_slice(from);
        block.convert_to_f32_slice(to);
    }
}

fn stored_dtype(dtype: Dtype) -> Option<StoredDType> {
    match dtype {
        Dtype::F32 => Some(StoredDType::F32),
        Dtype::BF16 => Some(StoredDType::Bf16),
        Dtype::F16 => Some(StoredDType::F16),
        _ => None,
    }
}

fn damaged_file(path: &Path, map: &MappedFile, error: &SafeTensorError) -> HuggingFaceError {
    let problem = match error {
        SafeTensorError::MetadataIncompleteBuffer
        | SafeTensorError::InvalidHeaderLength
        | SafeTensorError::HeaderTooSmall => {
            format!(
                "its {} bytes are not as many as its header says: it is truncated or not finished, get it \
                again",
                map.len()
            )
        }
        other => format!("not a safetensors file or damaged ({other}), get it again"),
    };
    HuggingFaceError::damaged(path, problem)
}

/// Reads which shard holds which tensor.
pub(super) fn read_index(path: &Path) -> Result<BTreeMap<String, String>, HuggingFaceError> {
    let bytes = std::fs::read(path).context("read", path)?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|source| HuggingFaceError::Json { path: path.to_owned(), source })?;
    Ok(index.weight_map)
}

/// The files that an index names, each once. A name with a folder in it is refused: an index must not reach outside.
fn shard_paths(
    folder: &Path,
    index: &Path,
    weight_map: &BTreeMap<String, String>,
) -> Result<Vec<PathBuf>, HuggingFaceError> {
    let mut names: Vec<&String> = weight_map.values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(HuggingFaceError::damaged(index, "its weight_map is empty; get it again"));
    }
    let mut paths = Vec::with_capacity(names.len());
    for name in names {
        let path = folder.join(name);
        if path.file_name().is_none_or(|last| last != name.as_str()) {
            return Err(HuggingFaceError::damaged(
                index,
                format!("names the shard {name:?}, which is not a plain file name"),
            ));
        }
        if !path.exists() {
            let problem = format!(
                "names the shard {name}, which is not in the folder; put it there (an interrupted download \
                is the usual cause)"
            );
            return Err(HuggingFaceError::damaged(index, problem));
        }
        paths.push(path);
    }
    Ok(paths)
}

/// The names of the files directly in a folder, sorted.
pub(super) fn file_names(folder: &Path) -> Result<Vec<String>, HuggingFaceError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).context("list", folder)? {
        names.push(entry.context("list", folder)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Why there are no weights among these files, with the fix.
pub(super) fn no_weights(names: &[String]) -> String {
    let pickled = names.iter().find(|name| {
        [".bin", ".pth", ".pt"].iter().any(|suffix| name.ends_with(suffix)) && !name.contains("training_args")
    });
    match pickled {
        Some(name) => format!(
            "the weights are there only as {name}, a pickle, which is not read because loading one can run \
             any code; convert it once with transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
        ),
        None => format!(
            "neither {SINGLE_FILE} nor {INDEX_FILE} is there; put the weights there, or set `init: random`"
        ),
    }
}
