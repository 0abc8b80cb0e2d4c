//! Which save a file is of. Every archive in a shard and the `.metadata` carry the same number, so that a shard that was put
//! in from another save, as long and as whole, is not taken for this one's.
//!
//! In `.metadata` it stands as torch's `storage_meta.save_id`, in an archive as the first half of torch's serialization id:
//! both are there for identifiers, and PyTorch reads them without looking at them.

use std::fmt;

use serde::{Deserialize, Serialize};
use tessera_files::{Digest, Sha256};

/// What our ids begin with in `.metadata`; torch's own are UUIDs.
const SCHEME: &str = "tessera:";

/// The identity of one save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveId(u64);

impl SaveId {
    /// The id of the save that `description` tells from all others. All ranks must give the same.
    pub fn of(description: &str) -> Self {
        let digest = Sha256::digest(description);
        Self(digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// How `.metadata` spells it.
    pub(crate) fn in_metadata(self) -> String {
        format!("{SCHEME}{self}")
    }

    /// The id in a `.metadata`, if we wrote it.
    pub(crate) fn from_metadata(text: &str) -> Option<Self> {
        text.strip_prefix(SCHEME)?.parse().ok().map(Self)
    }
}

impl fmt::Display for SaveId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:020}", self.0)
    }
}
