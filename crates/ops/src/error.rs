//! What can be wrong with an operator's arguments. These are mistakes of the calling code, found at the boundary.

use crate::attention::Heads;
use crate::dtype::DType;

/// An operator refused its arguments, or a buffer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// A view has another shape than the operator needs.
    #[error("{operator}: `{argument}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The operator.
        operator: &'static str,
        /// The name of the argument.
        argument: &'static str,
        /// The shape it has.
        found: Vec<usize>,
        /// The shape it should have.
        expected: String,
    },
    /// A view holds another element type than the operator needs.
    #[error("{operator}: `{argument}` holds {found}, expected {expected}")]
    DType {
        /// The operator.
        operator: &'static str,
        /// The name of the argument.
        argument: &'static str,
        /// The dtype it has.
        found: DType,
        /// The dtype it should have.
        expected: &'static str,
    },
    /// An index is not below its bound: a token id and the vocabulary, a row and the number of rows.
    #[error("{operator}: index {index} is not below {bound}")]
    Index {
        /// The operator.
        operator: &'static str,
        /// The offending index.
        index: usize,
        /// The bound.
        bound: usize,
    },
    /// Attention heads that no layer can have.
    #[error(
        "{operator}: {found:?} is impossible: each number must be at least 1 and `key_value` must divide `query`"
    )]
    Heads {
        /// The operator.
        operator: &'static str,
        /// The heads.
        found: Heads,
    },
    /// Heads that cannot be dealt out to so many ranks.
    #[error(
        "{} query heads and {} key-value heads cannot be split over {ranks} ranks: the ranks must divide the query heads, \
         and divide the key-value heads or be divided by them",
        heads.query, heads.key_value
    )]
    HeadSplit {
        /// The heads of the layer.
        heads: Heads,
        /// The ranks.
        ranks: usize,
    },
    /// A step in which other ranks take part failed. The source is the error of whoever moves data between them.
    #[error(transparent)]
    Exchange(Box<dyn std::error::Error + Send + Sync>),
    /// A value was to be read by the host, or worked on by an operator of the host, that lies on a device.
    #[error("a view of CUDA device {ordinal}'s memory was used as one of host memory")]
    NotOnHost {
        /// The device.
        ordinal: usize,
    },
    /// An operator of a device was given memory that it cannot reach.
    #[error("{operator}: `{argument}` does not lie in the memory of CUDA device {ordinal}")]
    NotOnDevice {
        /// The operator.
        operator: &'static str,
        /// The name of the argument.
        argument: &'static str,
        /// The device.
        ordinal: usize,
    },
    /// A number is larger than a kernel can take.
    #[error("{operator}: {value} is more than a kernel can take")]
    Extent {
        /// The operator.
        operator: &'static str,
        /// The number.
        value: usize,
    },
    /// This build has no CUDA kernels, or the machine has no driver, no library or no device for them.
    #[error("{0}")]
    NoCuda(String),
    /// The driver or a library of CUDA failed. Errors of kernels are told by whatever call comes after them.
    #[error("CUDA device {ordinal}: {doing} failed: {message}")]
    Cuda {
        /// The device.
        ordinal: usize,
        /// What was being done.
        doing: &'static str,
        /// What CUDA says.
        message: String,
    },
    /// A device has no memory for a buffer.
    #[error("CUDA device {ordinal} has no room for {bytes} bytes: {free} of its {total} bytes are free")]
    OutOfDeviceMemory {
        /// The device.
        ordinal: usize,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that are free.
        free: usize,
        /// Bytes of its memory.
        total: usize,
    },
    /// An arena was planned too small: the plan and the code disagree.
    #[error("a scratch arena of {capacity} bytes cannot give {wanted} more bytes after {used}")]
    ArenaExhausted {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes already given.
        used: usize,
        /// Bytes in all.
        capacity: usize,
    },
    /// The machine has no memory for a buffer.
    #[error("cannot allocate {bytes} bytes of host memory")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}
