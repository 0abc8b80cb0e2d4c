//! `tessera runs cancel`, `resume` and `delete`: what changes a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tessera_files::{FileError, FolderLock, IoContext};
use tessera_track::{RunSummary, read_run, request_cancel};
use tessera_train::TrainError;
use tessera_train::elsewhere::local_folder;

use crate::failure::Failure;
use crate::output::{complain, print};
use crate::run_file::RunFile;
use crate::text::{bytes, counted};
use crate::train::TrainArguments;

/// Asks each run to stop. All are known to be runs that work before the first is asked.
pub fn cancel(folders: &[PathBuf]) -> Result<(), Failure> {
    for folder in folders {
        let run = read_run(folder).map_err(TrainError::from)?;
        if !is_held(folder)? {
            let text = format!(
                "{}: no process works on this run ({}); there is nothing to cancel",
                folder.display(),
                run.status
            );
            return Err(Failure::Argument(text));
        }
    }
    for folder in folders {
        request_cancel(folder).map_err(TrainError::from)?;
    }
    let runs = counted(folders.len(), "run is", "runs are");
    print(&format!("{runs} asked to stop after the batch under way and to save\n"))
}

/// Does what `tessera train` does with the run's own run file.
pub fn resume(folder: &Path, json: bool) -> Result<ExitCode, Failure> {
    read_run(folder).map_err(TrainError::from)?;
    let run_file = RunFile::new(folder.join("run.yaml"), Vec::new());
    let spec = run_file.load()?;
    let (save_folder, run_name) = (spec.save_folder.unwrap_or_default(), spec.run_name.unwrap_or_default());
    let written = local_folder(&save_folder).join(&run_name);
    // Paths in a run file are relative to the working folder: in another one a new run would begin.
    let same = |path: &Path| fs::canonicalize(path).ok();
    if same(&written).is_none() || same(&written) != same(folder) {
        return Err(Failure::Argument(format!(
            "{} says that the run's folder is {}, which from here is another; go to the folder in which the run was started",
            folder.join("run.yaml").display(),
            written.display()
        )));
    }
    TrainArguments::of(run_file, json).run()
}

/// Deletes each run, if `yes` says so. All are known to be runs at rest before the first is deleted.
pub fn delete(folders: &[PathBuf], yes: bool) -> Result<(), Failure> {
    let runs = folders
        .iter()
        .map(|folder| read_run(folder).map_err(TrainError::from))
        .collect::<Result<Vec<_>, _>>()?;
    for folder in folders {
        if is_held(folder)? {
            return Err(TrainError::Busy { folder: folder.clone() }.into());
        }
    }
    let all = runs.iter().map(description).collect::<Vec<_>>().join("\n");
    if !yes {
        return Err(Failure::Argument(format!("{all}\nnothing is deleted yet; --yes deletes it")));
    }
    for folder in folders {
        remove(folder).map_err(TrainError::from)?;
    }
    print(&format!("{all}\ndeleted\n"))
}

fn description(run: &RunSummary) -> String {
    let stored: u64 = run.checkpoints.iter().chain(&run.exports).map(|folder| folder.bytes).sum();
    format!(
        "{} ({}, {}, {} and {} of {})",
        run.folder.display(),
        run.status,
        counted(run.batches, "batch", "batches"),
        counted(run.checkpoints.len(), "checkpoint", "checkpoints"),
        counted(run.exports.len(), "model", "models"),
        bytes(stored)
    )
}

/// The folder is gone for everyone who lists runs before its first file is: half a run would be taken for a whole one. Whoever
/// starts the run meanwhile finds it in use, or gone.
fn remove(folder: &Path) -> Result<(), FileError> {
    let Some(_lock) = FolderLock::try_take(folder)? else {
        let source = std::io::ErrorKind::ResourceBusy.into();
        return Err(FileError { action: "delete", path: folder.to_owned(), source });
    };
    let folder = fs::canonicalize(folder).context("find", folder)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(folder.file_name().unwrap_or_default());
    name.push(".deleted");
    let aside = folder.with_file_name(name);
    fs::rename(&folder, &aside).context("move", &folder)?;
    let removed = fs::remove_dir_all(&aside).context("delete", &aside);
    if removed.is_err() {
        complain("warning", &format!("what is left of the run lies in {}", aside.display()));
    }
    removed
}

fn is_held(folder: &Path) -> Result<bool, Failure> {
    Ok(FolderLock::is_held(folder).map_err(TrainError::from)?)
}
