//! `.metadata`: which tensors and objects a checkpoint has, and where in which file each chunk lies. PyTorch keeps
//! it as a pickle of `torch.distributed.checkpoint.metadata.Metadata`.

mod read;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::element::ElementType;
use super::path::StatePath;
use super::rectangle::Rectangle;
use super::save_id::SaveId;

pub(crate) use read::parse;
pub(crate) use write::serialise;

/// The file's name.
pub(crate) const FILE_NAME: &str = ".metadata";

/// A stretch of a shard that holds one chunk or object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The shard's name within the folder.
    pub(crate) file: Arc<str>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A tensor and its chunks, which make up its shape.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) dtype: ElementType,
    pub(crate) shape: Vec<usize>,
    pub(crate) chunks: Vec<(Rectangle, Place)>,
}

/// What a `.metadata` says, as it is read.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    /// `None`: another program wrote it.
    pub(crate) save: Option<SaveId>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) objects: BTreeMap<String, Place>,
}

/// What a `.metadata` is to say: as it is read, and where in the nested state each entry stands.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) save: SaveId,
    pub(crate) tensors: BTreeMap<StatePath, Tensor>,
    pub(crate) objects: BTreeMap<StatePath, Place>,
}
