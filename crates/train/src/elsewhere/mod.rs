//! What a run has in object stores and on servers, named by urls: data, a model, weights to start from, and its own results.
//!
//! Models and weights on a Databricks workspace, as the service's runs name them, are sorted out here too.
//!
//! A run always reads and writes files of this machine. What it reads by a url is brought into the cache first; where
//! `save_folder` is a url the run works in `runs`, and a mirror carries what appears there to the url, and back to
//! a machine that has less of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::TrainError;
use crate::observe::Observer;

#[cfg(feature = "stores")]
mod fetch;
#[cfg(feature = "stores")]
mod mirror;
#[cfg(not(feature = "stores"))]
mod not_built;
#[cfg(feature = "stores")]
mod runs;
mod workspace;

#[cfg(feature = "stores")]
use fetch::weights;
#[cfg(feature = "stores")]
pub(crate) use fetch::{data, is_expired, model, table};
#[cfg(feature = "stores")]
pub(crate) use mirror::{Mirror, Mirroring};
#[cfg(not(feature = "stores"))]
use not_built::weights;
#[cfg(not(feature = "stores"))]
pub(crate) use not_built::{Mirror, Mirroring, data, is_expired, list_checkpoints, model, table};
#[cfg(not(feature = "stores"))]
pub use not_built::{StoredRun, list_runs, run_file};
#[cfg(feature = "stores")]
pub(crate) use runs::list_checkpoints;
#[cfg(feature = "stores")]
pub use runs::{StoredRun, list_runs, run_file};

/// Where runs are kept that do not say where, and where those work that are kept elsewhere.
pub const DEFAULT_FOLDER: &str = "runs";

/// Whether a text names something by a url rather than a path.
pub fn is_url(text: &str) -> bool {
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The url that a path given to a command is, if it is one.
pub fn url_of(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| is_url(text))
}

/// The folder of this machine in which the runs of a `save_folder` work.
pub fn local_folder(save_folder: &str) -> &Path {
    Path::new(if is_url(save_folder) { DEFAULT_FOLDER } else { save_folder })
}

/// Where prepared data, and what comes from elsewhere, is kept.
pub(crate) fn cache(save_folder: &str) -> PathBuf {
    local_folder(save_folder).join(".cache")
}

/// Where a checkpoint that is named by its path, a url, or its path on a workspace lies on this machine. What comes by a url is kept
/// in `cache`; `key` is what named it.
pub(crate) fn checkpoint(
    key: &'static str,
    given: &Path,
    cache: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<PathBuf, TrainError> {
    if let Some(url) = url_of(given) {
        return weights(key, url, cache, observer);
    }
    Ok(on_workspace(key, &given.to_string_lossy())?.unwrap_or_else(|| given.to_owned()))
}

/// Where what is named by its path on a workspace is mounted on this machine; `None`: it names something else.
pub(crate) fn on_workspace(key: &'static str, given: &str) -> Result<Option<PathBuf>, TrainError> {
    workspace::mounted(key, given, Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_paths() {
        for url in ["s3://b", "gs://b/x", "abfss://c@a.dfs.core.windows.net/x", "https://h/x", "ftp://h/x"] {
            assert!(is_url(url), "{url}");
        }
        for path in ["runs", "/data/x.jsonl", "a/b/train", "dbfs:/Volumes/a", "./a://b", "c://x"] {
            assert!(!is_url(path), "{path}");
        }
    }
}
