//! `tessera runs cancel`, `resume` and `delete`: what changes a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tessera_files::{FileError, FolderLock, IoContext};
use tessera_track::{RunSummary, read_run, request_cancel};
use tessera_train::TrainError;
use tessera_train::elsewhere::{StoredRun, local_folder};

use super::asked::Asked;
use crate::failure::Failure;
use crate::output::{complain, print};
use crate::run_file::RunFile;
use crate::text::{bytes, counted, duration};
use crate::train::TrainArguments;

/// Asks each run to stop. All are known to be runs that work, as far as can be seen, before the first is asked.
pub fn cancel(runs: &[PathBuf]) -> Result<(), Failure> {
    let runs = runs.iter().map(|run| Asked::open(run)).collect::<Result<Vec<_>, _>>()?;
    for asked in &runs {
        let run = asked.summary()?;
        let works = match asked {
            Asked::Here(folder) => is_held(folder)?,
            Asked::There(_) => !run.status.has_ended(),
        };
        if !works {
            let text = format!(
                "{}: no process works on this run ({}); there is nothing to cancel",
                run.folder.display(),
                run.status
            );
            return Err(Failure::Argument(text));
        }
    }
    for asked in &runs {
        match asked {
            Asked::Here(folder) => request_cancel(folder).map_err(TrainError::from)?,
            Asked::There(run) => run.request_cancel()?,
        }
    }
    let asked = counted(runs.len(), "run is", "runs are");
    let mut text = format!("{asked} asked to stop after the batch under way and to save\n");
    if runs.iter().any(|run| matches!(run, Asked::There(_))) {
        text.push_str(
            "a process at another machine looks for this every few seconds, and after what it is uploading; \
             one that was killed does not\n",
        );
    }
    print(&text)
}

/// Does what `tessera train` does with the run's own run file.
pub fn resume(run: &Path, json: bool) -> Result<ExitCode, Failure> {
    let run_file = match Asked::open(run)? {
        Asked::Here(folder) => run_file_of(&folder)?,
        Asked::There(run) => run_file_at(&run)?,
    };
    TrainArguments::of(run_file, json).run()
}

fn run_file_of(folder: &Path) -> Result<RunFile, Failure> {
    read_run(folder).map_err(TrainError::from)?;
    let path = folder.join("run.yaml");
    let run_file = RunFile::new(&path, Vec::new());
    let spec = run_file.load()?;
    let (save_folder, run_name) = (spec.save_folder.unwrap_or_default(), spec.run_name.unwrap_or_default());
    let written = local_folder(&save_folder).join(&run_name);
    // Paths in a run file are relative to the working folder: in another one a new run would begin.
    let same = |path: &Path| fs::canonicalize(path).ok();
    if same(&written).is_none() || same(&written) != same(folder) {
        return Err(Failure::Argument(format!(
            "{} says that the run's folder is {}, which from here is another; go to the folder in which the run was started",
            path.display(),
            written.display()
        )));
    }
    Ok(run_file)
}

/// As on any other machine, the run works in the `runs` of the working folder.
fn run_file_at(run: &StoredRun) -> Result<RunFile, Failure> {
    refuse_one_that_works(run, "; `tessera train` with its run.yaml, also by url, does not ask")?;
    let url = format!("{}/run.yaml", run.url());
    let run_file = RunFile::new(&url, Vec::new());
    let spec = run_file.load()?;
    let (save_folder, run_name) = (spec.save_folder.unwrap_or_default(), spec.run_name.unwrap_or_default());
    let written = format!("{}/{run_name}", save_folder.trim_end_matches('/'));
    if written != run.url() {
        return Err(Failure::Argument(format!(
            "{url} says that the run is kept at {written}; resume it there, or move it back"
        )));
    }
    Ok(run_file)
}

/// Deletes each run, if `yes` says so. All are known to be runs at rest, as far as can be seen, before the first is deleted.
pub fn delete(runs: &[PathBuf], yes: bool) -> Result<(), Failure> {
    let runs = runs.iter().map(|run| Asked::open(run)).collect::<Result<Vec<_>, _>>()?;
    let mut all = Vec::new();
    for asked in &runs {
        all.push(description(&asked.summary()?));
    }
    for asked in &runs {
        match asked {
            Asked::Here(folder) if is_held(folder)? => {
                return Err(TrainError::Busy { folder: folder.clone() }.into());
            }
            Asked::Here(_) => {}
            Asked::There(run) => refuse_one_that_works(run, "")?,
        }
    }
    let all = all.join("\n");
    if !yes {
        return Err(Failure::Argument(format!("{all}\nnothing is deleted yet; --yes deletes it")));
    }
    for asked in &runs {
        match asked {
            Asked::Here(folder) => remove(folder).map_err(TrainError::from)?,
            Asked::There(run) => {
                // Somebody may have taken it up while others were deleted.
                refuse_one_that_works(run, "")?;
                run.delete()?;
            }
        }
    }
    print(&format!("{all}\ndeleted\n"))
}

/// Fails for a run at a url of which it cannot be told that no process works on it.
fn refuse_one_that_works(run: &StoredRun, advice: &str) -> Result<(), Failure> {
    let Some(silence) = run.last_sign_of_life()? else { return Ok(()) };
    Err(Failure::Argument(format!(
        "{}: a process that works on this run gave a sign of life {} ago; cancel it, or wait until it has given none for two \
         minutes{advice}",
        run.url(),
        duration(silence)
    )))
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
