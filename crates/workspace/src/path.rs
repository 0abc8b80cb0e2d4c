//! Paths in volumes of Unity Catalog.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::WorkspaceError;

/// What stands before a path on a workspace.
const SCHEME: &str = "dbfs:";

/// A file or folder in a volume: `/Volumes/<catalog>/<schema>/<volume>/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePath {
    /// Without a slash at the end.
    path: String,
}

impl VolumePath {
    /// Reads `dbfs:/Volumes/<catalog>/<schema>/<volume>/…`, of which `dbfs:` may be missing; `None`: the text names nothing on a
    /// workspace.
    ///
    /// # Errors
    /// When it names something there that is in no volume.
    pub fn parse(text: &str) -> Result<Option<Self>, WorkspaceError> {
        let without_scheme = text.starts_with("/Volumes/").then_some(text);
        let Some(path) = text.strip_prefix(SCHEME).or(without_scheme) else { return Ok(None) };
        let path = path.trim_end_matches('/');
        let mut parts = path.split('/');
        let begins = parts.next() == Some("") && parts.next() == Some("Volumes");
        let parts: Vec<_> = parts.collect();
        let is_name = |part: &&str| !matches!(*part, "" | "." | "..");
        if !begins || parts.len() < 3 || !parts.iter().all(is_name) {
            return Err(WorkspaceError::NoVolume { path: text.to_owned() });
        }
        Ok(Some(Self { path: path.to_owned() }))
    }

    /// The path below `root`, where volumes may be mounted, if it is there.
    pub fn mounted(&self, root: &Path) -> Option<PathBuf> {
        let path = root.join(self.path.trim_start_matches('/'));
        path.exists().then_some(path)
    }

    /// The path as the workspace has it.
    pub(crate) fn as_str(&self) -> &str {
        &self.path
    }

    /// Its last part.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for VolumePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_in_volumes() {
        for text in ["dbfs:/Volumes/c/s/v", "dbfs:/Volumes/c/s/v/", "dbfs:/Volumes/c/s/v/a b/rows.jsonl"] {
            let path = VolumePath::parse(text).unwrap().unwrap();
            assert_eq!(path.to_string(), text.trim_end_matches('/'));
        }
        assert_eq!(
            VolumePath::parse("/Volumes/c/s/v").unwrap(),
            VolumePath::parse("dbfs:/Volumes/c/s/v").unwrap()
        );
        for text in ["/Volumes.jsonl", "data/rows.jsonl", "delta:/Volumes/c/s/v", "c.s.t"] {
            assert_eq!(VolumePath::parse(text).unwrap(), None, "{text}");
        }
        for text in [
            "dbfs:/Volumes/c/s",
            "dbfs:/databricks/mlflow-tracking/1/2/artifacts",
            "dbfs:Volumes/c/s/v",
            "dbfs:/Volumes/c//v/x",
            "dbfs:/Volumes/c/s/v/../w",
        ] {
            let error = VolumePath::parse(text).unwrap_err().to_string();
            assert!(
                error.contains(text) && error.contains("dbfs:/Volumes/<catalog>/<schema>/<volume>"),
                "{error}"
            );
        }
    }

    #[test]
    fn mounted_volumes_are_folders() {
        let root = tempfile::tempdir().unwrap();
        let path = VolumePath::parse("dbfs:/Volumes/c/s/v/rows.jsonl").unwrap().unwrap();
        assert_eq!(path.mounted(root.path()), None);
        let file = root.path().join("Volumes/c/s/v/rows.jsonl");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        assert_eq!(path.mounted(root.path()), Some(file));
    }
}
