//! The weights of a Composer checkpoint, by their Hugging Face names, whatever form the checkpoint has.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use tessera_files::IoContext;

use super::element::ElementType;
use super::error::DcpError;
use super::folder::follow_text;
use super::metadata;
use super::monolith::Monolith;
use super::path::WEIGHTS;
use super::reader::DcpReader;
use crate::{StoredDType, TensorInfo, WeightSource};

/// The weights in a sharded checkpoint (ours or Composer's) or in a monolithic Composer `.pt`.
#[derive(Debug)]
pub struct ComposerWeights {
    tensors: BTreeMap<String, TensorInfo>,
    source: Source,
    /// The archive, or the folder's `.metadata`.
    file: PathBuf,
}

#[derive(Debug)]
enum Source {
    Sharded(DcpReader),
    Monolithic(Monolith),
}

impl ComposerWeights {
    /// Opens a folder `ep#-ba#`, a link to one, a text file `….symlink` that names one, or a `.pt` file.
    ///
    /// # Errors
    /// When the path is none of these, or what it leads to is damaged or has no weights.
    pub fn open(path: &Path) -> Result<Self, DcpError> {
        let kind = fs::metadata(path).context("open", path)?;
        if kind.is_dir() {
            return Self::sharded(path);
        }
        let mut beginning = Vec::new();
        File::open(path)
            .and_then(|file| file.take(4096).read_to_end(&mut beginning))
            .context("read", path)?;
        if beginning.starts_with(b"PK") {
            return Self::monolithic(path);
        }
        let not = |found: String| DcpError::NotACheckpoint { path: path.to_owned(), found };
        let text = std::str::from_utf8(&beginning).ok().filter(|_| kind.len() < 4096);
        let text =
            text.ok_or_else(|| not("a file that is neither a torch.save archive nor a path".into()))?;
        let folder = follow_text(path, text).ok_or_else(|| {
            not(format!("a text that names '{}', which is no whole checkpoint here", text.trim()))
        })?;
        Self::sharded(&folder)
    }

    fn sharded(folder: &Path) -> Result<Self, DcpError> {
        if !folder.join(metadata::FILE_NAME).is_file() {
            let found =
                "a folder without .metadata, which is written last: not a checkpoint, or an unfinished one";
            return Err(DcpError::NotACheckpoint { path: folder.to_owned(), found: found.into() });
        }
        let reader = DcpReader::open(folder)?;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in reader.tensors() {
            let Some(name) = name.strip_prefix(WEIGHTS) else { continue };
            if let Some(dtype) = stored_dtype(folder, name, tensor.dtype())? {
                tensors.insert(name.to_owned(), TensorInfo { shape: tensor.shape().to_vec(), dtype });
            }
        }
        Self::with_weights(folder, tensors, Source::Sharded(reader))
    }

    fn monolithic(path: &Path) -> Result<Self, DcpError> {
        let monolith = Monolith::open(path)?;
        Self::with_weights(path, monolith.tensors(), Source::Monolithic(monolith))
    }

    fn with_weights(
        path: &Path,
        tensors: BTreeMap<String, TensorInfo>,
        source: Source,
    ) -> Result<Self, DcpError> {
        if tensors.is_empty() {
            let found = format!("no tensors under {WEIGHTS}");
            return Err(DcpError::NotACheckpoint { path: path.to_owned(), found });
        }
        let file = match source {
            Source::Sharded(_) => path.join(metadata::FILE_NAME),
            Source::Monolithic(_) => path.to_owned(),
        };
        Ok(Self { tensors, source, file })
    }
}

/// The type of the tensor `name` of the model in the checkpoint `path`; `None` for integers and bools, which are
/// buffers, such as position ids, not weights.
pub(super) fn stored_dtype(
    path: &Path,
    name: &str,
    dtype: ElementType,
) -> Result<Option<StoredDType>, DcpError> {
    match dtype {
        ElementType::F64 => Err(DcpError::DoublePrecision { path: path.to_owned(), name: name.to_owned() }),
        other => Ok(other.weight_type()),
    }
}

impl WeightSource for ComposerWeights {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> {
        match &self.source {
            Source::Sharded(reader) => reader.read_elements(&format!("{WEIGHTS}{name}"), start, out)?,
            Source::Monolithic(monolith) => monolith.read_elements(name, start, out)?,
        }
        Ok(())
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }
}
