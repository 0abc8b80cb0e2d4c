//! What lasts of a run: the weights it starts from, its position, its checkpoints and exports.
//!
//! A checkpoint's keys are Composer's; what Composer has no place for lies under `state.tessera`.

pub mod checkpoints;
mod exporting;
mod first_weights;
mod position;
mod resuming;
mod same_weights;
mod saving;
mod shards;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use tessera_checkpoint::dcp::pickle::Value;
use tessera_checkpoint::dcp::{DcpError, DcpReader, StatePath};

pub(crate) use exporting::export;
pub(crate) use first_weights::{check, check_values, load, load_from, names, spelled_as, weights_identity};
pub use position::Position;
pub use resuming::Attempt;
pub(crate) use resuming::{Resumed, newest, resume};
pub(crate) use saving::{Moment, Saved, Saver, SaverSettings};
pub(crate) use shards::{Patience, exchange};

/// Keys of our own part of the state: what was due when the run was asked to stop.
const EVALUATION_OWED: &str = "evaluation_owed";
const ANSWERS_OWED: &str = "answers_owed";
const EXPORT_OWED: &str = "export_owed";
/// The key of the number of ranks that trained so far.
const RANKS: &str = "ranks";

/// What was due when a run was asked to stop, and is made up for when it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Owed {
    /// The evaluation.
    pub evaluation: bool,
    /// The answers to the eval prompts.
    pub answers: bool,
    /// The export in Hugging Face layout.
    pub export: bool,
}

/// Where the checkpoints of the run in `folder` are.
pub(crate) fn checkpoints_in(folder: &Path) -> PathBuf {
    folder.join("checkpoints")
}

/// A place in our own part of the state.
fn own(key: &str) -> StatePath {
    StatePath::keys(&["state", "tessera", key])
}

/// The object at `path`, if there is one.
fn object(reader: &DcpReader, path: &StatePath) -> Result<Option<Value>, DcpError> {
    let name = path.to_string();
    if reader.objects().any(|known| known == name) { reader.object(&name).map(Some) } else { Ok(None) }
}
