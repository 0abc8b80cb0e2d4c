//! What was read of a source, so that a later run can tell whether it still reads the same.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Characters of a digest that messages show.
const SHOWN: usize = 16;

/// A source as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The source as the settings name it.
    pub path: String,
    /// The version of a source that is not on this machine: a data set's commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its files.
    pub files: usize,
    /// Bytes of them, as they lie on disk.
    pub bytes: u64,
    /// Rows or text files in them.
    pub rows: usize,
    /// A digest of their content; not the SHA-256 of a file, but one of those of its pieces.
    pub digest: String,
}

impl Pin {
    /// Whether the same rows are read.
    pub fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, version, files, bytes, rows, digest } = self;
        let digest = digest.get(..SHOWN).unwrap_or(digest);
        let version = version.as_ref().map_or(String::new(), |version| format!("version {version}, "));
        let files = if *files == 1 { String::new() } else { format!("{files} files, ") };
        write!(formatter, "{path} ({version}{files}{rows} rows, {bytes} bytes, digest {digest}…)")
    }
}
