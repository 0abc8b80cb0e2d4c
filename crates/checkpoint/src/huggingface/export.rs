//! A model written as a Hugging Face folder, tensor by tensor or in pieces of tensors, in any order.
//!
//! A safetensors file has its table of contents in front, so the names and shapes are given first: the headers are
//! written, the files take their final lengths, and each piece goes to its place as it comes. Nothing is kept in
//! memory. The folder gets its name only when every element has been written exactly once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo as Header};
use serde_json::{Value as Json, json};
use tessera_files::{AtomicFolder, IoContext};

use super::HuggingFaceError;
use super::safetensors::{INDEX_FILE, SINGLE_FILE};

/// How large a file may be before the next tensor starts a new one: what `save_pretrained` of transformers 4 takes,
/// so that an export is cut like the model it came from.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// The element type of exported weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportDType {
    /// Single precision: the masters as they are.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// Half precision, rounded to nearest even; values beyond ±65504 are refused.
    F16,
}

impl ExportDType {
    fn width(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn stored(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    /// The name that `config.json` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }
}

/// What an export is made of besides its tensors.
#[derive(Debug, Clone, Copy)]
pub struct ExportOptions<'a> {
    /// The element type of all weights.
    pub dtype: ExportDType,
    /// How large a weight file may be; a larger tensor has a file of its own.
    pub max_shard_bytes: u64,
    /// The source's `config.json`. Only its `torch_dtype` (or `dtype`) is changed.
    pub config: &'a Json,
    /// The other files, by name: tokenizer, generation configuration.
    pub side_files: &'a [(String, Vec<u8>)],
}

/// Where a tensor goes, and what has been written of it.
#[derive(Debug)]
struct Target {
    shard: usize,
    offset: u64,
    elements: usize,
    /// Start → end of the written ranges; neighbours are joined.
    written: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Shard {
    file: File,
    path: PathBuf,
}

/// An export being written. Dropped before [`Export::finish`], it leaves nothing.
#[derive(Debug)]
pub struct Export {
    folder: AtomicFolder,
    path: PathBuf,
    dtype: ExportDType,
    shards: Vec<Shard>,
    targets: HashMap<String, Target>,
}

impl Export {
    /// Starts an export to `folder` with these tensors: names and shapes, in the order they are to have in the files. An output
    /// projection that is tied to the embedding is not among them.
    ///
    /// # Errors
    /// If a name comes twice, a side file's name is not a plain one, or the folder cannot be written.
    pub fn create(
        folder: &Path,
        tensors: &[(String, Vec<usize>)],
        options: &ExportOptions,
    ) -> Result<Self, HuggingFaceError> {
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent).context("create", parent)?;
        }
        let mut export = Self {
            folder: AtomicFolder::create(folder)?,
            path: folder.to_owned(),
            dtype: options.dtype,
            shards: Vec::new(),
            targets: HashMap::new(),
        };
        let mut names = HashSet::with_capacity(tensors.len());
        if let Some((name, _)) = tensors.iter().find(|(name, _)| !names.insert(name)) {
            return Err(export.problem(format!("tensor {name:?} was given twice")));
        }
        let groups = group(tensors, options).map_err(|problem| export.problem(problem))?;
        let names = shard_names(groups.len());
        for (group, name) in groups.iter().zip(&names) {
            export.add_shard(name, group)?;
        }
        if names.len() > 1 {
            export.write_index(&groups, &names)?;
        }
        export.write_side_files(options)?;
        Ok(export)
    }

    /// Writes a whole tensor.
    ///
    /// # Errors
    /// As [`Export::write_range`], and if `values` are not as many as the tensor has.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<(), HuggingFaceError> {
        if let Some(target) = self.targets.get(name)
            && target.elements != values.len()
        {
            return Err(self.problem(format!(
                "tensor {name:?} has {} elements, got {}",
                target.elements,
                values.len()
            )));
        }
        self.write_range(name, 0, values)
    }

    /// Writes the elements `start..start + values.len()` of a tensor, counted in row-major order.
    ///
    /// # Errors
    /// If the tensor is unknown, the range passes its end or was written before, a value is not finite in the
    /// export's element type, or the disk is full.
    pub fn write_range(&mut self, name: &str, start: usize, values: &[f32]) -> Result<(), HuggingFaceError> {
        if values.is_empty() {
            return Ok(());
        }
        let end = start.saturating_add(values.len());
        let Some(target) = self.targets.get(name) else {
            return Err(self.problem(format!("there is no tensor {name:?} in it")));
        };
        if end > target.elements {
            let problem = format!(
                "elements {start}..{end} of tensor {name:?} were given, which has {}",
                target.elements
            );
            return Err(self.problem(problem));
        }
        let mut written = target.written.clone();
        if !mark_written(&mut written, start, end) {
            return Err(self
                .problem(format!("elements {start}..{end} of tensor {name:?} overlap some written before")));
        }
        let offset = target.offset + (start * self.dtype.width()) as u64;
        self.write_values(name, target.shard, offset, values)?;
        if let Some(target) = self.targets.get_mut(name) {
            target.written = written;
        }
        Ok(())
    }

    /// Checks that nothing is missing, makes the files durable and gives the folder its name.
    ///
    /// # Errors
    /// If an element was not written, or the file system refuses.
    pub fn finish(self) -> Result<(), HuggingFaceError> {
        let complete =
            |target: &Target| target.elements == 0 || target.written.get(&0) == Some(&target.elements);
        let mut missing: Vec<&str> = self
            .targets
            .iter()
            .filter(|(_, target)| !complete(target))
            .map(|(name, _)| name.as_str())
            .collect();
        missing.sort_unstable();
        if !missing.is_empty() {
            return Err(self.problem(format!("these tensors were not written whole: {}", missing.join(", "))));
        }
        drop(self.shards);
        Ok(self.folder.finish()?)
    }

    fn problem(&self, problem: String) -> HuggingFaceError {
        HuggingFaceError::Export { folder: self.path.clone(), problem }
    }

    /// Creates a file at its final length, with its header.
    fn add_shard(&mut self, name: &str, group: &[(String, Header)]) -> Result<(), HuggingFaceError> {
        let path = self.folder.folder().join(name);
        let file = File::create(&path).context("create", &path)?;
        let header =
            header(group).map_err(|error| self.problem(format!("the header cannot be written: {error}")))?;
        file.write_all_at(&header, 0).context("write", &path)?;
        let data = group.last().map_or(0, |(_, info)| info.data_offsets.1);
        file.set_len((header.len() + data) as u64).context("extend", &path)?;
        for (tensor, info) in group {
            let target = Target {
                shard: self.shards.len(),
                offset: (header.len() + info.data_offsets.0) as u64,
                elements: (info.data_offsets.1 - info.data_offsets.0) / self.dtype.width(),
                written: BTreeMap::new(),
            };
            self.targets.insert(tensor.clone(), target);
        }
        self.shards.push(Shard { file, path });
        Ok(())
    }

    fn write_index(
        &self,
        groups: &[Vec<(String, Header)>],
        names: &[String],
    ) -> Result<(), HuggingFaceError> {
        let total: usize =
            groups.iter().filter_map(|group| group.last()).map(|(_, info)| info.data_offsets.1).sum();
        let places = groups
            .iter()
            .zip(names)
            .flat_map(|(group, file)| group.iter().map(move |(name, _)| (name, file)));
        let places: BTreeMap<&String, &String> = places.collect();
        self.write_json(INDEX_FILE, &json!({"metadata": {"total_size": total}, "weight_map": places}))
    }

    fn write_side_files(&self, options: &ExportOptions) -> Result<(), HuggingFaceError> {
        self.write_json("config.json", &config_with_dtype(options.config, options.dtype))?;
        for (name, bytes) in options.side_files {
            if Path::new(name).file_name().is_none_or(|last| last != name.as_str()) {
                return Err(self.problem(format!("{name:?} is not a plain file name")));
            }
            let path = self.folder.folder().join(name);
            std::fs::write(&path, bytes).context("write", &path)?;
        }
        Ok(())
    }

    fn write_json(&self, name: &str, value: &Json) -> Result<(), HuggingFaceError> {
        let path = self.folder.folder().join(name);
        std::fs::write(&path, format!("{value:#}\n")).context("write", &path)?;
        Ok(())
    }

    /// Converts and writes in blocks, so that a tensor is not held twice.
    fn write_values(
        &self,
        name: &str,
        shard: usize,
        offset: u64,
        values: &[f32],
    ) -> Result<(), HuggingFaceError> {
        const BLOCK: usize = 1 << 16;
        let Some(Shard { file, path }) = self.shards.get(shard) else { return Ok(()) };
        let mut bytes = vec![0_u8; BLOCK.min(values.len()) * self.dtype.width()];
        let mut offset = offset;
        for block in values.chunks(BLOCK) {
            let bytes = &mut bytes[..block.len() * self.dtype.width()];
            if !convert(self.dtype, block, bytes) {
                let problem = format!(
                    "tensor {name:?} has a value that is not finite in {}; such weights are not exported",
                    self.dtype.name()
                );
                return Err(self.problem(problem));
            }
            file.write_all_at(bytes, offset).context("write", path)?;
            offset += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Adds a range to those written, joined with its neighbours. False if part of it was there.
fn mark_written(written: &mut BTreeMap<usize, usize>, start: usize, end: usize) -> bool {
    let before = written.range(..end).next_back().map(|(from, to)| (*from, *to));
    if before.is_some_and(|(_, to)| to > start) {
        return false;
    }
    let from = before.filter(|(_, to)| *to == start).map_or(start, |(from, _)| from);
    let to = written.remove(&end).unwrap_or(end);
    written.insert(from, to);
    true
}

/// Converts values to little-endian bytes. False if one is not finite in that type.
fn convert(dtype: ExportDType, values: &[f32], bytes: &mut [u8]) -> bool {
    match dtype {
        ExportDType::F32 => {
            bytes.copy_from_slice(bytemuck::cast_slice(values));
            values.iter().all(|value| value.is_finite())
        }
        ExportDType::Bf16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            bytes.copy_from_slice(bytemuck::cast_slice(&halves));
            halves.iter().all(|value| value.is_finite())
        }
        ExportDType::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            bytes.copy_from_slice(bytemuck::cast_slice(&halves));
            halves.iter().all(|value| value.is_finite())
        }
    }
}

/// Cuts the tensors into files, in their order.
fn group(
    tensors: &[(String, Vec<usize>)],
    options: &ExportOptions,
) -> Result<Vec<Vec<(String, Header)>>, String> {
    let mut groups: Vec<Vec<(String, Header)>> = vec![Vec::new()];
    let mut start = 0_usize;
    for (name, shape) in tensors {
        let length = shape.iter().try_fold(options.dtype.width(), |bytes, extent| bytes.checked_mul(*extent));
        let Some(end) = length.and_then(|length| start.checked_add(length)) else {
            return Err(format!("tensor {name:?} with the shape {shape:?} is larger than a file can be"));
        };
        let full = end as u64 > options.max_shard_bytes && start > 0;
        if full {
            groups.push(Vec::new());
        }
        let data_offsets = if full { (0, end - start) } else { (start, end) };
        let info = Header { dtype: options.dtype.stored(), shape: shape.clone(), data_offsets };
        if let Some(last) = groups.last_mut() {
            last.push((name.clone(), info));
        }
        start = data_offsets.1;
    }
    Ok(groups)
}

fn shard_names(count: usize) -> Vec<String> {
    if count == 1 {
        return vec![SINGLE_FILE.to_owned()];
    }
    (1..=count).map(|number| format!("model-{number:05}-of-{count:05}.safetensors")).collect()
}

/// Length and table of contents, padded so that the data starts at a multiple of eight bytes.
fn header(group: &[(String, Header)]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut table = serde_json::to_vec(&Metadata::new(Some(format), group.to_vec())?)?;
    table.resize(table.len().next_multiple_of(size_of::<u64>()), b' ');
    let mut header = (table.len() as u64).to_le_bytes().to_vec();
    header.append(&mut table);
    Ok(header)
}

/// The source's configuration with the element type of the export, under the key that the source has for it:
/// transformers 5 writes `dtype`, the hub's models have `torch_dtype`, which both versions read.
fn config_with_dtype(source: &Json, dtype: ExportDType) -> Json {
    let mut config = source.clone();
    if let Some(keys) = config.as_object_mut() {
        let spelling = if keys.contains_key("dtype") && !keys.contains_key("torch_dtype") {
            "dtype"
        } else {
            "torch_dtype"
        };
        keys.insert(spelling.to_owned(), json!(dtype.name()));
        if let Some(other) = keys.get_mut("dtype") {
            *other = json!(dtype.name());
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_ranges_are_joined_and_overlaps_found() {
        let mut written = BTreeMap::new();
        assert!(mark_written(&mut written, 4, 6));
        assert!(mark_written(&mut written, 0, 2));
        assert!(!mark_written(&mut written, 1, 3));
        assert!(!mark_written(&mut written, 3, 5));
        assert!(!mark_written(&mut written, 0, 9));
        assert!(mark_written(&mut written, 2, 4));
        assert_eq!(written, BTreeMap::from([(0, 6)]));
        assert!(!mark_written(&mut written, 5, 6));
    }

    #[test]
    fn only_the_dtype_of_the_configuration_changes() {
        let new = json!({"a": 1, "dtype": "float32"});
        assert_eq!(config_with_dtype(&new, ExportDType::Bf16), json!({"a": 1, "dtype": "bfloat16"}));
        let old = json!({"torch_dtype": "float16", "b": [2]});
        assert_eq!(config_with_dtype(&old, ExportDType::F32), json!({"torch_dtype": "float32", "b": [2]}));
        assert_eq!(config_with_dtype(&json!({}), ExportDType::F32), json!({"torch_dtype": "float32"}));
    }
}
