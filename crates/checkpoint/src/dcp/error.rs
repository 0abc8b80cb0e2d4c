//! What can be wrong with a checkpoint, said so that the user knows which file, which tensor, and what to do.

use std::io;
use std::path::PathBuf;

use tessera_files::FileError;

use super::element::ElementType;
use super::pickle::PickleError;
use super::rectangle::CoverFault;

/// A checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DcpError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// `.metadata` does not say what a checkpoint's must.
    #[error("{path}: {fault}; use another checkpoint, or restore this file from a copy", path = path.display())]
    Metadata {
        /// The `.metadata` file.
        path: PathBuf,
        /// What is wrong.
        fault: MetadataFault,
    },
    /// A file is shorter than `.metadata` says.
    #[error(
        "{path} ends at byte {found}, but {name} reaches to byte {needed}: the file is truncated; copy it again or \
         use an older checkpoint",
        path = path.display()
    )]
    Truncated {
        /// The shard.
        path: PathBuf,
        /// The tensor or object that passes its end.
        name: String,
        /// Where that ends.
        needed: u64,
        /// How long the file is.
        found: u64,
    },
    /// The bytes of one tensor or object are damaged.
    #[error("{path}: {name}, in the item at byte {offset}: {fault}; restore the file from a copy or use an older checkpoint", path = path.display())]
    Item {
        /// The file.
        path: PathBuf,
        /// The tensor or object.
        name: String,
        /// Where its item begins.
        offset: u64,
        /// What is wrong.
        fault: ItemFault,
    },
    /// The checkpoint has no such entry.
    #[error("{path} holds no {kind} named {name}", path = path.display())]
    Unknown {
        /// The checkpoint.
        path: PathBuf,
        /// `tensor` or `object`.
        kind: &'static str,
        /// The name asked for.
        name: String,
    },
    /// A range passes the end of a tensor.
    #[error("{name}: elements {start}..{end} were asked for, of {elements}")]
    Range {
        /// The tensor.
        name: String,
        /// First element asked for.
        start: usize,
        /// One past the last.
        end: usize,
        /// How many there are.
        elements: usize,
    },
    /// A tensor is not of a type in which weights are kept.
    #[error("{name} is stored as {dtype:?}; expected F32, Bf16 or F16")]
    NotFloating {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: ElementType,
    },
    /// A weight is stored in a precision that is not read.
    #[error(
        "{path}: the weight {name} is stored in fp64, which is not read; save the model's weights in fp32 \
         (model.float()) and use that checkpoint",
        path = path.display()
    )]
    DoublePrecision {
        /// The checkpoint.
        path: PathBuf,
        /// The weight, by its Hugging Face name.
        name: String,
    },
    /// What is to be written contradicts itself.
    #[error("cannot write {name} into a checkpoint: {fault}")]
    Write {
        /// The tensor or object.
        name: String,
        /// Why.
        fault: WriteFault,
    },
    /// A path is none of the forms of a checkpoint.
    #[error(
        "{path} is not a checkpoint: {found}; expected a folder ep#-ba# with .metadata, a \
         latest-sharded-rank0.symlink, or a Composer .pt file",
        path = path.display()
    )]
    NotACheckpoint {
        /// The path given.
        path: PathBuf,
        /// What was found there.
        found: String,
    },
}

impl DcpError {
    /// Whether the checkpoint itself is damaged, so that another one may serve; not so where the file system refused, or
    /// something else was asked for than it holds.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Metadata { .. } | Self::Truncated { .. } | Self::Item { .. } => true,
            // A shard that `.metadata` names and that is not there.
            Self::File(error) => error.source.kind() == io::ErrorKind::NotFound,
            Self::Unknown { .. }
            | Self::Range { .. }
            | Self::NotFloating { .. }
            | Self::DoublePrecision { .. }
            | Self::Write { .. }
            | Self::NotACheckpoint { .. } => false,
        }
    }

    /// Whether the device has no room left: the user can make room and go on.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, Self::File(error) if error.is_storage_full())
    }
}

/// What is wrong in a `.metadata` file.
#[derive(Debug, thiserror::Error)]
pub enum MetadataFault {
    /// It is not a pickle that is accepted.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// The pickle is another thing than expected at one place.
    #[error("{place} is not {expected}")]
    Kind {
        /// The attribute or tensor.
        place: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A tensor has a type that is not known.
    #[error("{name} has the element type torch.{found}, which is not supported")]
    ElementType {
        /// The tensor.
        name: String,
        /// PyTorch's name of the type.
        found: String,
    },
    /// A chunk or object has no place in the files.
    #[error("storage_data says nothing of {name} (chunk at {offsets:?})")]
    NotStored {
        /// The tensor or object.
        name: String,
        /// The chunk's offsets; `None` for an object.
        offsets: Option<Vec<usize>>,
    },
    /// A file lies outside the folder.
    #[error("the file name '{0}' is not a plain name inside the folder")]
    FileName(String),
    /// The chunks do not make up the tensor.
    #[error("the chunks of {name} do not make up its shape {shape:?}: {fault}")]
    Cover {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Hole, overlap or excess.
        fault: CoverFault,
    },
}

/// What is wrong in one `torch.save` archive.
#[derive(Debug, thiserror::Error)]
pub enum ItemFault {
    /// It is no readable zip archive.
    #[error("not a torch.save archive ({0})")]
    Zip(#[from] zip::result::ZipError),
    /// A record is missing.
    #[error("the record '{0}' is missing")]
    Missing(String),
    /// A record is compressed or reaches outside.
    #[error("the record '{0}' is not a stored record within the archive")]
    NotStored(String),
    /// The content does not match its checksum.
    #[error(
        "the record '{record}' has the CRC-32 {found:08x} instead of {expected:08x}: its bytes have changed"
    )]
    Checksum {
        /// The record.
        record: String,
        /// What the archive says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// It is whole, but of another save than `.metadata`.
    #[error("it is of another save than .metadata: the file was put in from another checkpoint")]
    OtherSave,
    /// Written on a big-endian machine.
    #[error("the byte order is '{0}' instead of 'little'")]
    ByteOrder(String),
    /// The pickle is not accepted.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// The pickle holds something else than expected.
    #[error("found {found} instead of {expected}")]
    Content {
        /// What the pickle holds.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The tensor's elements are not consecutive, or reach outside the storage.
    #[error(
        "the tensor of shape {shape:?} with strides {strides:?} is not laid out in one piece within its storage"
    )]
    Strides {
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides.
        strides: Vec<usize>,
    },
}

/// Why something cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteFault {
    /// A range of elements passes the tensor's end.
    #[error("elements {start}..{end} pass the end of the shape {shape:?}")]
    Range {
        /// First element.
        start: usize,
        /// One past the last.
        end: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// Bytes that end within an element.
    #[error("{length} bytes are no whole number of {dtype:?} elements")]
    PartialElement {
        /// How many bytes were given.
        length: usize,
        /// The type of the elements.
        dtype: ElementType,
    },
    /// fp32 values were given for a type they cannot be converted to.
    #[error("fp32 values cannot be stored as {0:?}; expected F32, Bf16 or F16")]
    Conversion(ElementType),
    /// Calls or ranks disagree about a tensor.
    #[error("it is {found_dtype:?} {found_shape:?} here and {dtype:?} {shape:?} there")]
    Disagreement {
        /// First type.
        dtype: ElementType,
        /// First shape.
        shape: Vec<usize>,
        /// Second type.
        found_dtype: ElementType,
        /// Second shape.
        found_shape: Vec<usize>,
    },
    /// No rank wrote anything.
    #[error("there is no shard")]
    NoShard,
    /// Ranks wrote shards of different saves.
    #[error("the shards of all ranks are not of the same save")]
    OtherSave,
    /// An object was written twice.
    #[error("it was written already; objects are written once, by one rank")]
    Twice,
    /// An alias of something that this rank did not write.
    #[error("it is to stand for {0}, of which this rank has written nothing")]
    NoTarget(String),
    /// The ranks' chunks do not make up the tensor.
    #[error("the chunks of all ranks do not make up its shape {shape:?}: {fault}")]
    Cover {
        /// The tensor's shape.
        shape: Vec<usize>,
        /// Hole, overlap or excess.
        fault: CoverFault,
    },
}

/// The error of a zip writer as one of the file system, which is all that can fail in it here.
pub(crate) fn write_error(error: zip::result::ZipError) -> io::Error {
    match error {
        zip::result::ZipError::Io(error) => error,
        other => io::Error::other(other),
    }
}
