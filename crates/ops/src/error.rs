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
