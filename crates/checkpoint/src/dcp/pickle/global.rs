//! The names that a pickle may mention.

use std::fmt;

use crate::dcp::element::ElementType;

/// A class or function, by module and name. Only listed ones exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Global {
    module: &'static str,
    name: &'static str,
}

const METADATA: &str = "torch.distributed.checkpoint.metadata";

impl Global {
    pub(crate) const METADATA: Self = Self::new(METADATA, "Metadata");
    pub(crate) const TENSOR_STORAGE_METADATA: Self = Self::new(METADATA, "TensorStorageMetadata");
    pub(crate) const BYTES_STORAGE_METADATA: Self = Self::new(METADATA, "BytesStorageMetadata");
    pub(crate) const TENSOR_PROPERTIES: Self = Self::new(METADATA, "TensorProperties");
    pub(crate) const CHUNK_STORAGE_METADATA: Self = Self::new(METADATA, "ChunkStorageMetadata");
    pub(crate) const METADATA_INDEX: Self = Self::new(METADATA, "MetadataIndex");
    pub(crate) const MEMORY_FORMAT: Self = Self::new(METADATA, "_MEM_FORMAT_ENCODING");
    pub(crate) const STORAGE_META: Self = Self::new(METADATA, "StorageMeta");
    pub(crate) const STORAGE_INFO: Self =
        Self::new("torch.distributed.checkpoint.filesystem", "_StorageInfo");
    pub(crate) const LAYOUT: Self = Self::new("torch.serialization", "_get_layout");
    pub(crate) const SIZE: Self = Self::new("torch", "Size");
    pub(crate) const REBUILD_TENSOR: Self = Self::new("torch._utils", "_rebuild_tensor_v2");
    pub(crate) const REBUILD_PARAMETER: Self = Self::new("torch._utils", "_rebuild_parameter");
    pub(crate) const ORDERED_DICT: Self = Self::new("collections", "OrderedDict");
    pub(crate) const TIME_DELTA: Self = Self::new("datetime", "timedelta");
    /// How protocol 2 spells `bytes`.
    pub(crate) const ENCODE: Self = Self::new("_codecs", "encode");

    /// What may occur in a checkpoint but means nothing to us; kept as [`super::Object`].
    const OTHERS: [Self; 10] = [
        Self::new("pathlib", "PosixPath"),
        // Python 3.13 pickles the same class under this module.
        Self::new("pathlib._local", "PosixPath"),
        // Composer's `state.metadata.torch_version`.
        Self::new("torch.torch_version", "TorchVersion"),
        // Composer's `rng.*.numpy`, as numpy 1 and numpy 2 spell it.
        Self::new("numpy", "ndarray"),
        Self::new("numpy", "dtype"),
        Self::new("numpy.core.multiarray", "_reconstruct"),
        Self::new("numpy._core.multiarray", "_reconstruct"),
        Self::new("numpy.core.multiarray", "scalar"),
        Self::new("numpy._core.multiarray", "scalar"),
        Self::new("torch", "device"),
    ];

    const INTERPRETED: [Self; 16] = [
        Self::METADATA,
        Self::TENSOR_STORAGE_METADATA,
        Self::BYTES_STORAGE_METADATA,
        Self::TENSOR_PROPERTIES,
        Self::CHUNK_STORAGE_METADATA,
        Self::METADATA_INDEX,
        Self::MEMORY_FORMAT,
        Self::STORAGE_META,
        Self::STORAGE_INFO,
        Self::LAYOUT,
        Self::SIZE,
        Self::REBUILD_TENSOR,
        Self::REBUILD_PARAMETER,
        Self::ORDERED_DICT,
        Self::TIME_DELTA,
        Self::ENCODE,
    ];

    pub(crate) const fn new(module: &'static str, name: &'static str) -> Self {
        Self { module, name }
    }

    /// The listed global of that name.
    pub(crate) fn find(module: &str, name: &str) -> Option<Self> {
        let typed = ElementType::ALL.into_iter().flat_map(|element| [element.dtype(), element.storage()]);
        let mut listed = Self::INTERPRETED.into_iter().chain(Self::OTHERS).chain(typed);
        listed.find(|global| global.module == module && global.name == name)
    }

    /// The module, dotted.
    pub fn module(self) -> &'static str {
        self.module
    }

    /// The name within the module.
    pub fn name(self) -> &'static str {
        self.name
    }
}

impl fmt::Display for Global {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.module, self.name)
    }
}
