//! Checkpoint folders in the format of PyTorch's distributed checkpoints (DCP), with Composer's layout of keys:
//! written by every rank for itself, read for any number of ranks, and read where Composer wrote them.
//!
//! On disk a folder `ep#-ba#` has one file a rank, `__<rank>_0.distcp`, in which `torch.save` archives follow
//! one another, and `.metadata`, a pickle that says which archive is which part of which tensor. The modules
//! follow these layers: [`pickle`] → archives → metadata → [`DcpReader`] and [`RankWriter`].

mod archive;
mod composer;
mod element;
mod error;
mod folder;
mod metadata;
mod monolith;
mod path;
pub mod pickle;
mod reader;
mod rectangle;
mod save_id;
mod writer;

pub use composer::ComposerWeights;
pub use element::ElementType;
pub use error::{DcpError, ItemFault, MetadataFault, WriteFault};
pub use folder::{
    CheckpointName, CheckpointNameError, LATEST_LINK, LATEST_TEXT, list_checkpoints, point_latest,
    remove_leftovers, retain, set_aside,
};
pub use path::{PathElement, StatePath};
pub use reader::{DcpReader, ShardedTensor};
pub use rectangle::{CoverFault, Rectangle, rectangles};
pub use save_id::SaveId;
pub use writer::{RankMetadata, RankWriter, shard_file, write_metadata};
