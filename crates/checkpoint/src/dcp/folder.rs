//! The folder `checkpoints/`: names of checkpoints, which of them are whole, the pointers to the latest, and
//! retention.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tessera_files::{FileError, IoContext, replace_symlink, sync_folder, write_atomic};

use super::metadata;

/// The link to the latest checkpoint, as Composer names it.
pub const LATEST_LINK: &str = "latest-sharded-rank0";
/// The text file that says the same where links cannot be kept.
pub const LATEST_TEXT: &str = "latest-sharded-rank0.symlink";
/// EPERM: what Linux says of a link on a file system that has none.
const NO_LINKS: i32 = 1;
/// What is being deleted bears a name of this ending, beginning with a dot.
const DELETED: &str = ".deleted";
/// What turned out to be damaged bears a name of this ending, beginning with a dot.
const DAMAGED: &str = ".damaged";

/// The name of a checkpoint: `ep<epochs completed>-ba<batches done>`. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CheckpointName {
    /// Epochs completed.
    pub epoch: u64,
    /// Batches done, over all epochs.
    pub batch: u64,
}

impl CheckpointName {
    /// Batches decide: they never go back, while the epoch counts up within a batch number.
    fn order(self) -> (u64, u64) {
        (self.batch, self.epoch)
    }
}

impl PartialOrd for CheckpointName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for CheckpointName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ep{}-ba{}", self.epoch, self.batch)
    }
}

/// A text is not `ep#-ba#`.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not the name of a checkpoint; expected ep<epoch>-ba<batch>, for example ep1-ba200")]
pub struct CheckpointNameError(String);

impl FromStr for CheckpointName {
    type Err = CheckpointNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text
            .strip_prefix("ep")
            .and_then(|rest| rest.split_once("-ba"))
            .and_then(|(epoch, batch)| Some(Self { epoch: epoch.parse().ok()?, batch: batch.parse().ok()? }));
        // Only the canonical spelling: `ep+1-ba01` would name a second folder for the same checkpoint.
        parsed.filter(|name| name.to_string() == text).ok_or_else(|| CheckpointNameError(text.to_owned()))
    }
}

/// The whole checkpoints in a folder, newest first. Whole: `.metadata`, which is written last, is there. A folder
/// that does not exist has none.
///
/// # Errors
/// When the folder cannot be listed.
pub fn list_checkpoints(checkpoints: &Path) -> Result<Vec<CheckpointName>, FileError> {
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for file_name in file_names(checkpoints)? {
        if let Ok(name) = file_name.parse::<CheckpointName>()
            && checkpoints.join(&file_name).join(metadata::FILE_NAME).is_file()
        {
            names.push(name);
        }
    }
    names.sort_by(|first, second| second.cmp(first));
    Ok(names)
}

/// Points `latest-sharded-rank0.symlink` and `latest-sharded-rank0` at a checkpoint, each in one step. A file system
/// without links has the text file only.
///
/// # Errors
/// When link or file cannot be replaced.
pub fn point_latest(checkpoints: &Path, name: CheckpointName) -> Result<(), FileError> {
    let target = name.to_string();
    // Without a newline: Composer takes the whole content for the path.
    write_atomic(&checkpoints.join(LATEST_TEXT), target.as_bytes())?;
    match replace_symlink(Path::new(&target), &checkpoints.join(LATEST_LINK)) {
        Err(error) if error.source.kind() == std::io::ErrorKind::Unsupported => Ok(()),
        Err(error) if error.source.raw_os_error() == Some(NO_LINKS) => Ok(()),
        linked => linked,
    }
}

/// Moves a checkpoint that turned out to be damaged aside, to a name that begins with a dot, so that neither resuming nor
/// retention counts it. Returns the new path.
///
/// # Errors
/// When it cannot be renamed.
pub fn set_aside(checkpoints: &Path, name: CheckpointName) -> Result<PathBuf, FileError> {
    let path = checkpoints.join(name.to_string());
    let aside = checkpoints.join(format!(".{name}{DAMAGED}"));
    if aside.exists() {
        fs::remove_dir_all(&aside).context("remove", &aside)?;
    }
    fs::rename(&path, &aside).context("rename", &path)?;
    sync_folder(checkpoints)?;
    Ok(aside)
}

/// Removes what saving or deleting left behind when a run was killed: folders that never got their name, were being
/// replaced, or were half deleted.
///
/// # Errors
/// When a folder cannot be listed or removed.
pub fn remove_leftovers(checkpoints: &Path) -> Result<(), FileError> {
    if !checkpoints.exists() {
        return Ok(());
    }
    for file_name in file_names(checkpoints)? {
        let ending =
            [".partial", ".replaced", DELETED].iter().find_map(|ending| file_name.strip_suffix(ending));
        let Some(name) = ending.and_then(|rest| rest.strip_prefix('.')) else { continue };
        let path = checkpoints.join(&file_name);
        let named = checkpoints.join(name);
        if file_name.ends_with(".replaced") && !named.exists() {
            // Killed between the two renames: the old one is the only one.
            fs::rename(&path, &named).context("rename", &path)?;
        } else if path.is_dir() {
            fs::remove_dir_all(&path).context("remove", &path)?;
        }
    }
    Ok(())
}

/// Deletes whole checkpoints so that the newest `keep` remain, the newest in any case; `None` keeps all. Each
/// is renamed to a dot name first, so that one half deleted is never taken for whole. Returns what was deleted, newest first.
///
/// # Errors
/// When a folder cannot be renamed or removed.
pub fn retain(checkpoints: &Path, keep: Option<usize>) -> Result<Vec<CheckpointName>, FileError> {
    let Some(keep) = keep else { return Ok(Vec::new()) };
    let surplus: Vec<_> = list_checkpoints(checkpoints)?.into_iter().skip(keep.max(1)).collect();
    for name in &surplus {
        let path = checkpoints.join(name.to_string());
        fs::rename(&path, checkpoints.join(format!(".{name}{DELETED}"))).context("rename", &path)?;
    }
    if !surplus.is_empty() {
        sync_folder(checkpoints)?;
    }
    for name in &surplus {
        let path = checkpoints.join(format!(".{name}{DELETED}"));
        fs::remove_dir_all(&path).context("remove", &path)?;
    }
    Ok(surplus)
}

fn file_names(folder: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("list", folder)? {
        // A name that is not UTF-8 is not one of ours.
        names.extend(entry.context("list", folder)?.file_name().into_string());
    }
    Ok(names)
}

/// The folder that a text file `….symlink` names. Its content is relative to the file; Composer writes it relative
/// to the root of an object store, so every parent of the file is tried as that root, and last the bare name beside
/// the file. `None` if there is none of these.
pub(crate) fn follow_text(file: &Path, content: &str) -> Option<PathBuf> {
    let target = Path::new(content.trim());
    let beside = file.parent().unwrap_or(Path::new(""));
    let candidates = beside
        .ancestors()
        .map(|root| root.join(target))
        .chain(target.file_name().map(|name| beside.join(name)));
    candidates.into_iter().find(|candidate| candidate.join(metadata::FILE_NAME).is_file())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn filled(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join(".metadata"), b"").unwrap();
        }
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        list_checkpoints(folder).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_parsed_in_their_one_spelling() {
        assert_eq!("ep1-ba20".parse::<CheckpointName>().unwrap(), CheckpointName { epoch: 1, batch: 20 });
        for wrong in ["ep1", "ep1-ba", "ep01-ba2", "ep+1-ba2", "ep1-ba2-rank0.pt", ".ep1-ba2", "ep1-ba-2", ""]
        {
            assert!(wrong.parse::<CheckpointName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn whole_checkpoints_are_listed_newest_first() {
        let folder = filled(&["ep0-ba9", "ep1-ba10", "ep0-ba10", "ep2-ba100", ".ep3-ba200", "other"]);
        fs::create_dir(folder.path().join("ep9-ba900")).unwrap();
        assert_eq!(names(folder.path()), ["ep2-ba100", "ep1-ba10", "ep0-ba10", "ep0-ba9"]);
        assert_eq!(names(&folder.path().join("missing")), [] as [String; 0]);
    }

    #[test]
    fn retention_keeps_the_newest_and_at_least_one() {
        let folder = filled(&["ep0-ba1", "ep0-ba2", "ep0-ba3"]);
        fs::create_dir(folder.path().join("ep0-ba4")).unwrap();
        assert_eq!(retain(folder.path(), None).unwrap(), []);
        assert_eq!(retain(folder.path(), Some(2)).unwrap(), [CheckpointName { epoch: 0, batch: 1 }]);
        assert_eq!(names(folder.path()), ["ep0-ba3", "ep0-ba2"]);
        retain(folder.path(), Some(0)).unwrap();
        assert_eq!(names(folder.path()), ["ep0-ba3"]);
        assert!(folder.path().join("ep0-ba4").exists());
        let left = file_names(folder.path()).unwrap();
        assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
    }

    #[test]
    fn leftovers_go_and_what_was_being_replaced_comes_back() {
        let left = [".ep0-ba0.deleted", ".ep0-ba3.partial", ".ep0-ba1.replaced", ".ep0-ba2.replaced"];
        let folder = filled(&[&["ep0-ba1"][..], &left].concat());
        let aside = set_aside(folder.path(), CheckpointName { epoch: 0, batch: 1 }).unwrap();
        remove_leftovers(folder.path()).unwrap();
        let mut there = file_names(folder.path()).unwrap();
        there.sort();
        assert_eq!(there, [".ep0-ba1.damaged", "ep0-ba1", "ep0-ba2"]);
        assert!(aside.ends_with(".ep0-ba1.damaged"));
        remove_leftovers(&folder.path().join("missing")).unwrap();
    }

    #[test]
    fn the_pointers_name_the_latest() {
        let folder = filled(&["ep0-ba1", "ep0-ba2"]);
        for batch in [1, 2] {
            point_latest(folder.path(), CheckpointName { epoch: 0, batch }).unwrap();
        }
        assert_eq!(fs::read_link(folder.path().join(LATEST_LINK)).unwrap(), Path::new("ep0-ba2"));
        assert_eq!(fs::read_to_string(folder.path().join(LATEST_TEXT)).unwrap(), "ep0-ba2");
    }
}
