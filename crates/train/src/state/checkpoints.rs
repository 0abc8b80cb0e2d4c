//! What a person does with checkpoints besides going on from them: list, look into, compare with their checksums, and turn
//! one into a model in Hugging Face layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value as Json};
use tessera_checkpoint::dcp::pickle::{TimeDelta, Value};
use tessera_checkpoint::dcp::{
    CheckpointName, ComposerWeights, DcpError, DcpReader, ElementType, StatePath, list_checkpoints,
};
use tessera_checkpoint::huggingface::{DEFAULT_SHARD_BYTES, Export, ExportDType, ExportOptions};
use tessera_checkpoint::{StoredDType, WeightSource};

use crate::elsewhere;
use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::{OpenedModel, file_error};
use crate::spec::HfSavePrecision;
use crate::state::object;
use crate::state::own;
use crate::state::spelled_as;

/// Elements that an export holds in memory at a time.
const PIECE: usize = 1 << 24;

/// A checkpoint of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedCheckpoint {
    /// `ep#-ba#`.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Completed epochs.
    pub epoch: u64,
    /// Completed batches.
    pub batch: u64,
    /// The size of its files.
    pub bytes: u64,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredTensor {
    /// The element type.
    pub dtype: ElementType,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
}

/// What a checkpoint says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckpointDescription {
    /// Its folder.
    pub folder: PathBuf,
    /// The run that saved it.
    pub run_name: Option<String>,
    /// How far the run had come: `epoch`, `batch`, `sample`, `token`, … as Composer's `Timestamp` has them, times in
    /// seconds.
    pub timestamp: Map<String, Json>,
    /// The class of the optimizer whose state is kept.
    pub optimizer: Option<String>,
    /// Updates that were skipped since loss or gradient was not finite.
    pub skipped_updates: Option<u64>,
    /// The run's settings, if this engine wrote the checkpoint.
    pub settings: Option<Json>,
    /// The model's weights, by Hugging Face name.
    pub weights: BTreeMap<String, StoredTensor>,
    /// Every other tensor, by its name in the checkpoint.
    pub other_tensors: BTreeMap<String, StoredTensor>,
}

impl CheckpointDescription {
    /// The number of weights' elements. A tied head counts as the tensor that it is stored as.
    pub fn weight_elements(&self) -> usize {
        self.weights.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }
}

/// What was compared with its checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedCheckpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// Tensors, each whole.
    pub tensors: usize,
    /// Objects.
    pub objects: usize,
}

/// The whole checkpoints of a run's folder, or of a folder `checkpoints`, newest first. As everywhere here a url may stand for the
/// path.
///
/// # Errors
/// When the folder is not there or cannot be listed.
pub fn list(folder: &Path) -> Result<Vec<ListedCheckpoint>, TrainError> {
    if let Some(url) = elsewhere::url_of(folder) {
        return elsewhere::list_checkpoints(url);
    }
    let inner = folder.join("checkpoints");
    let checkpoints = if inner.is_dir() { inner } else { folder.to_owned() };
    if !checkpoints.is_dir() {
        let expected = "a run's folder, or its folder `checkpoints`".into();
        return Err(TrainError::unsupported("folder", folder.display(), expected));
    }
    let listed = |name: CheckpointName| {
        let folder = checkpoints.join(name.to_string());
        let bytes = size_of_files(&folder)?;
        Ok(ListedCheckpoint { name: name.to_string(), folder, epoch: name.epoch, batch: name.batch, bytes })
    };
    list_checkpoints(&checkpoints)?.into_iter().map(listed).collect()
}

/// Reads what a checkpoint, ours or Composer's, says of itself.
///
/// # Errors
/// When the folder is no whole checkpoint, or what is read of it is damaged.
pub fn describe(folder: &Path, observer: &Arc<dyn Observer>) -> Result<CheckpointDescription, TrainError> {
    let reader = open(&here(folder, observer)?)?;
    let text = |path: StatePath| -> Result<Option<String>, DcpError> {
        Ok(object(&reader, &path)?.and_then(|value| value.as_str().map(str::to_owned)))
    };
    let (mut weights, mut other_tensors) = (BTreeMap::new(), BTreeMap::new());
    let root = StatePath::weight("").to_string();
    for (name, tensor) in reader.tensors() {
        let stored = StoredTensor { dtype: tensor.dtype(), shape: tensor.shape().to_vec() };
        match name.strip_prefix(&root) {
            Some(name) => weights.insert(name.to_owned(), stored),
            None => other_tensors.insert(name.clone(), stored),
        };
    }
    Ok(CheckpointDescription {
        run_name: text(StatePath::keys(&["state", "run_name"]))?,
        timestamp: timestamp(&reader)?,
        optimizer: reader.optimizer().map(str::to_owned),
        skipped_updates: object(&reader, &own("skipped"))?
            .and_then(|value| u64::try_from(value.as_int()?).ok()),
        settings: text(own("settings"))?.map(|text| serde_json::from_str(&text)).transpose()?,
        folder: folder.to_owned(),
        weights,
        other_tensors,
    })
}

/// Compares everything in a checkpoint with its checksums.
///
/// # Errors
/// For the first thing that is damaged.
pub fn verify(folder: &Path, observer: &Arc<dyn Observer>) -> Result<VerifiedCheckpoint, TrainError> {
    let reader = open(&here(folder, observer)?)?;
    reader.verify()?;
    let (tensors, objects) = (reader.tensors().len(), reader.objects().count());
    Ok(VerifiedCheckpoint { folder: folder.to_owned(), tensors, objects })
}

/// Writes the weights of `checkpoint` (a folder `ep#-ba#`, a link or text file that names one, or a Composer `.pt`) with
/// the config and tokenizer of `model` to `output`, in Hugging Face layout, a piece of a tensor in memory at a time.
///
/// # Errors
/// When the checkpoint is not the model's, something is damaged, `output` is already there, or the disk is full.
pub fn export(
    checkpoint: &Path,
    model: &str,
    output: &Path,
    precision: HfSavePrecision,
    observer: &Arc<dyn Observer>,
) -> Result<(), TrainError> {
    if output.exists() {
        let expected = "a path at which nothing is yet".into();
        return Err(TrainError::unsupported("output", output.display(), expected));
    }
    let OpenedModel { source, config, .. } =
        OpenedModel::open(model, &elsewhere::cache(elsewhere::DEFAULT_FOLDER), Some(observer.clone()))?;
    let weights = ComposerWeights::open(&here(checkpoint, observer)?)?;
    let model = spelled_as(&config, &weights, &checkpoint.display().to_string())?;
    observer.observe(Update::Exporting(output));
    let tensors = model.tensors();
    let options = ExportOptions {
        dtype: export_dtype(precision, &weights),
        max_shard_bytes: DEFAULT_SHARD_BYTES,
        config: &model.config().exported(&source.config),
        side_files: &source.files,
    };
    let mut export = Export::create(output, &tensors, &options)?;
    let mut piece = Vec::new();
    for (name, shape) in &tensors {
        let elements: usize = shape.iter().product();
        for start in (0..elements).step_by(PIECE) {
            piece.resize(PIECE.min(elements - start), 0.0);
            weights.read(name, start, &mut piece)?;
            export.write_range(name, start, &piece)?;
        }
    }
    export.finish()?;
    observer.observe(Update::Exported(output));
    Ok(())
}

/// `auto` keeps the checkpoint's own type; a mixed one becomes fp32, which holds every other.
fn export_dtype(precision: HfSavePrecision, weights: &ComposerWeights) -> ExportDType {
    let all = |dtype| weights.tensors().values().all(|tensor| tensor.dtype == dtype);
    match precision {
        HfSavePrecision::Fp32 => ExportDType::F32,
        HfSavePrecision::Bf16 => ExportDType::Bf16,
        HfSavePrecision::Auto if all(StoredDType::Bf16) => ExportDType::Bf16,
        HfSavePrecision::Auto if all(StoredDType::F16) => ExportDType::F16,
        HfSavePrecision::Auto => ExportDType::F32,
    }
}

/// Where a checkpoint lies on this machine.
fn here(checkpoint: &Path, observer: &Arc<dyn Observer>) -> Result<PathBuf, TrainError> {
    let cache = elsewhere::cache(elsewhere::DEFAULT_FOLDER);
    elsewhere::checkpoint("the checkpoint", checkpoint, &cache, observer)
}

/// Opens a folder that is a whole checkpoint.
fn open(folder: &Path) -> Result<DcpReader, TrainError> {
    let found = if !folder.exists() {
        "nothing is there"
    } else if !folder.is_dir() {
        "it is no folder"
    } else if !folder.join(".metadata").exists() {
        "it has no .metadata, which is written last: no checkpoint, or an unfinished one"
    } else {
        return Ok(DcpReader::open(folder)?);
    };
    Err(DcpError::NotACheckpoint { path: folder.to_owned(), found: found.into() }.into())
}

/// The counts of Composer's `Timestamp` that are kept, its times in seconds.
fn timestamp(reader: &DcpReader) -> Result<Map<String, Json>, DcpError> {
    let root = StatePath::keys(&["state", "timestamp", "Timestamp"]).to_string() + ".";
    let mut fields = Map::new();
    for name in reader.objects() {
        let Some(field) = name.strip_prefix(&root) else { continue };
        let value = match reader.object(name)? {
            Value::TimeDelta(TimeDelta { days, seconds, microseconds }) => {
                let whole = i64::from(days) * 86_400 + i64::from(seconds);
                Json::from(whole as f64 + f64::from(microseconds) / 1e6)
            }
            value => {
                value.as_int().and_then(|count| u64::try_from(count).ok()).map_or(Json::Null, Json::from)
            }
        };
        fields.insert(field.to_owned(), value);
    }
    Ok(fields)
}

fn size_of_files(folder: &Path) -> Result<u64, TrainError> {
    let list = || -> std::io::Result<u64> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
    };
    list().map_err(|source| file_error("list", folder, source))
}
