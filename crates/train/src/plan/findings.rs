//! What rank 0 has found at the places that a run file names and that may change: the other ranks read the same, and do not look
//! for themselves what is there by then. Nor does evaluation of what training has found: a place is one version to the whole run.
//!
//! Files by url and of volumes lie below `save_folder`, which all processes see. The hub's cache may be each machine's own: there a
//! commit is what all agree on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tessera_data::{Contents, Fetched};

/// What was found, as far as it is not on this machine by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// The model: a folder or file in the cache, or `entity/name@commit`.
    pub(super) model: Option<String>,
    /// The weights to start from, in the cache.
    pub(super) weights: Option<PathBuf>,
    /// The sources of data, by the names that the run file gives them.
    pub(super) sources: Vec<(String, Fetched)>,
}

impl Findings {
    /// The files of a source, where they can be seen from here.
    pub(super) fn source(&self, name: &str) -> Option<&Fetched> {
        let (_, fetched) = self.sources.iter().find(|(known, _)| known == name)?;
        let is_here = match &fetched.contents {
            Contents::Files(files) => files.iter().all(|file| file.exists()),
            Contents::Table(_) => fetched.folder.exists(),
        };
        is_here.then_some(fetched)
    }

    /// Takes note of a source, in place of what was known of it.
    pub(super) fn add(&mut self, name: &str, fetched: &Fetched) {
        match self.sources.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => known.clone_from(fetched),
            None => self.sources.push((name.to_owned(), fetched.clone())),
        }
    }

    /// The version of a source, wherever its files are.
    pub(super) fn version(&self, name: &str) -> Option<&str> {
        let (_, fetched) = self.sources.iter().find(|(known, _)| known == name)?;
        fetched.version.as_deref()
    }

    /// The weights to start from, where they can be seen from here.
    pub(super) fn weights(&self) -> Option<&Path> {
        self.weights.as_deref().filter(|path| path.exists())
    }
}
