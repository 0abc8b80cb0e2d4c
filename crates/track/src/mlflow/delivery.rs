//! What is delivered of a run, in which order, one call at a time.
//!
//! Each call is followed by a note in the ledger, so a process that dies between them repeats at most one call, which the
//! server takes for the same.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tessera_files::{FileError, IoContext};

use super::client::{Content, MOST_METRICS, MOST_PARAMETERS, MlflowClient, RunHandle};
use super::ledger::Ledger;
use super::machine::Machine;
use super::tail::Tail;
use super::{Ending, Job, MlflowError};

/// The tag by which a run is found again.
const MARK: &str = "tessera.mark";
/// Files of the run folder that every finished run has among its artifacts.
const FILES: [&str; 4] = ["report.html", "run.yaml", "generations.jsonl", "events.jsonl"];
/// The folder of the run folder with models.
pub(super) const MODELS: &str = "huggingface";
/// Folders of the run folder whose folders are copied by choice.
const FOLDERS: [&str; 2] = ["checkpoints", MODELS];

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Something has arrived; there may be more.
    Some,
    /// Everything that there is has arrived.
    All,
}

/// A delivery under way.
pub(super) struct Delivery {
    job: Job,
    folder: PathBuf,
    client: MlflowClient,
    ledger: Ledger,
    machine: Option<Machine>,
    tail: Option<Tail>,
    /// The server knows that this process works on the run.
    is_reopened: bool,
    /// A run that this one takes the place of.
    superseded: Option<String>,
    /// Artifacts can be written, as far as is known.
    takes_artifacts: bool,
}

/// Whether everything of the run in this folder was delivered when it ended like this.
pub fn is_delivered(folder: &Path, job: &Job, ending: Ending) -> Result<bool, MlflowError> {
    Ok(Ledger::read(folder)?.is_some_and(|ledger| ledger.is_of(job) && ledger.ending == Some(ending)))
}

impl Delivery {
    /// Goes on where an earlier process ended, if it was about the same.
    pub fn open(job: Job, folder: &Path) -> Result<Self, MlflowError> {
        let earlier = Ledger::read(folder)?;
        let client = MlflowClient::new(job.server.clone())?;
        let (ledger, superseded) = match earlier {
            Some(ledger) if ledger.is_of(&job) => (ledger, None),
            Some(ledger) if ledger.server == job.server.place() && ledger.ending.is_none() => {
                (Ledger::begin(&job, folder, now()), ledger.run.map(|run| run.run_id))
            }
            _ => (Ledger::begin(&job, folder, now()), None),
        };
        Ok(Self {
            machine: if job.system_metrics { Machine::new() } else { None },
            folder: folder.to_owned(),
            tail: None,
            is_reopened: false,
            takes_artifacts: true,
            superseded,
            job,
            client,
            ledger,
        })
    }

    /// Makes sure that the server is there, lets this user in, and has the experiment.
    pub fn check(&mut self) -> Result<(), MlflowError> {
        if self.ledger.experiment_id.is_none() {
            self.ledger.experiment_id = Some(self.client.experiment(&self.job.experiment)?);
        }
        self.run_exists().map(drop)
    }

    /// Metrics are written from now on, after those of the checkpoint that is resumed.
    pub fn read_metrics(&mut self) {
        if self.tail.is_none() {
            self.tail = Some(Tail::new(&self.folder));
        }
    }

    /// Where a person sees the run, once it is there.
    pub fn address(&self) -> Option<String> {
        let (experiment, run) = (self.ledger.experiment_id.as_ref()?, self.ledger.run.as_ref()?);
        Some(self.job.server.url(&format!("#/experiments/{experiment}/runs/{}", run.run_id)))
    }

    /// Takes a sample of the machine's load, if it is time for one.
    pub fn look_at_machine(&mut self) {
        if let Some(machine) = &mut self.machine {
            machine.look(&mut self.ledger.samples, now());
        }
    }

    /// The next call.
    pub fn advance(&mut self, ending: Option<Ending>) -> Result<Progress, MlflowError> {
        let run = self.run_exists()?;
        if !self.is_reopened {
            self.client.set_status(&run.run_id, None)?;
            self.is_reopened = true;
            self.ledger.ending = None;
            self.ledger.write(&self.folder)?;
            return Ok(Progress::Some);
        }
        if !self.ledger.is_described {
            self.describe(&run)?;
            return Ok(Progress::Some);
        }
        if self.ledger.pending.is_empty() {
            if let Some(machine) = &mut self.machine {
                self.ledger.pending = machine.take(MOST_METRICS / 2);
            }
            if let Some(tail) = &mut self.tail {
                tail.fill(&mut self.ledger, now())?;
            }
            if !self.ledger.pending.is_empty() {
                self.ledger.write(&self.folder)?;
            }
        }
        if !self.ledger.pending.is_empty() {
            self.client.log(&run.run_id, &[], &[], &self.ledger.pending)?;
            self.ledger.pending.clear();
            self.ledger.write(&self.folder)?;
            return Ok(Progress::Some);
        }
        match ending {
            Some(ending) if self.ledger.ending.is_none() => self.end(&run, ending),
            _ => Ok(Progress::All),
        }
    }

    /// The run on the server, which is made if there is none.
    pub(super) fn run_exists(&mut self) -> Result<RunHandle, MlflowError> {
        if let Some(run) = &self.ledger.run {
            return Ok(run.clone());
        }
        let experiment = match &self.ledger.experiment_id {
            Some(id) => id.clone(),
            None => self.client.experiment(&self.job.experiment)?,
        };
        self.ledger.experiment_id = Some(experiment.clone());
        self.ledger.write(&self.folder)?;
        let run = match self.client.run_with_tag(&experiment, MARK, &self.ledger.mark)? {
            Some(run) => run,
            None => {
                let tags =
                    [vec![(MARK.to_owned(), self.ledger.mark.clone())], self.job.tags.clone()].concat();
                self.client.create_run(&experiment, &self.job.run_name, now(), &tags)?
            }
        };
        self.ledger.run = Some(run.clone());
        self.ledger.write(&self.folder)?;
        Ok(run)
    }

    fn describe(&mut self, run: &RunHandle) -> Result<(), MlflowError> {
        if let Some(superseded) = self.superseded.take() {
            // A run that is no longer there needs no end.
            match self.client.set_status(&superseded, Some((Ending::Killed, now()))) {
                Err(error) if error.passes() => {
                    self.superseded = Some(superseded);
                    return Err(error);
                }
                _ => {}
            }
        }
        for parameters in self.job.parameters.chunks(MOST_PARAMETERS) {
            self.client.log(&run.run_id, parameters, &[], &[])?;
        }
        self.client.log(&run.run_id, &[], &self.job.tags, &[])?;
        self.client.log_inputs(&run.run_id, &self.job.datasets)?;
        self.ledger.is_described = true;
        self.ledger.write(&self.folder)
    }

    /// Artifacts, one at a time, then the links and the status.
    fn end(&mut self, run: &RunHandle, ending: Ending) -> Result<Progress, MlflowError> {
        if self.takes_artifacts {
            for (name, file) in self.artifacts()? {
                match self.copy(run, &name, &Content::File(file)) {
                    Ok(false) => {}
                    Ok(true) => return Ok(Progress::Some),
                    Err(error @ MlflowError::NoArtifacts { .. }) => {
                        self.takes_artifacts = false;
                        return Err(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let links = self.links()?;
        self.client.log(&run.run_id, &[], &links, &[])?;
        self.client.set_status(&run.run_id, Some((ending, now())))?;
        self.ledger.ending = Some(ending);
        // The report of a run that goes on is another.
        self.ledger.uploaded.retain(|name| !FILES.contains(&name.as_str()));
        self.ledger.write(&self.folder)?;
        Ok(Progress::All)
    }

    /// Copies an artifact, unless it is there.
    pub(super) fn copy(
        &mut self,
        run: &RunHandle,
        name: &str,
        content: &Content,
    ) -> Result<bool, MlflowError> {
        if self.has_copied(name) {
            return Ok(false);
        }
        self.client.upload(run, name, content)?;
        self.note_copy(name.to_owned())?;
        Ok(true)
    }

    /// Whether a file is known to be there.
    pub(super) fn has_copied(&self, name: &str) -> bool {
        self.ledger.uploaded.contains(name)
    }

    /// Takes note of a file that is there.
    pub(super) fn note_copy(&mut self, name: String) -> Result<(), MlflowError> {
        self.ledger.uploaded.insert(name);
        self.ledger.write(&self.folder)
    }

    /// Takes files for not there which were.
    pub(super) fn forget_copies(&mut self, names: &[String]) -> Result<(), MlflowError> {
        self.ledger.uploaded.retain(|name| !names.contains(name));
        self.ledger.write(&self.folder)
    }

    /// Gives the run a tag.
    pub(super) fn tag(&self, run: &RunHandle, key: &str, value: String) -> Result<(), MlflowError> {
        self.client.log(&run.run_id, &[], &[(key.to_owned(), value)], &[])
    }

    /// The server that the run is delivered to.
    pub(super) fn client(&self) -> &MlflowClient {
        &self.client
    }

    /// The run that is delivered.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// What is to be copied: the artifact's name and the file.
    fn artifacts(&self) -> Result<Vec<(String, PathBuf)>, FileError> {
        let mut artifacts = Vec::new();
        for name in FILES {
            let file = self.folder.join(name);
            if file.is_file() {
                artifacts.push((name.to_owned(), file));
            }
        }
        if self.job.uploads {
            for kind in FOLDERS {
                for stored in
                    entries(&self.folder.join(kind))?.into_iter().filter(|(_, path)| is_folder(path))
                {
                    for (file, path) in entries(&stored.1)?.into_iter().filter(|(_, path)| path.is_file()) {
                        artifacts.push((format!("{}/{file}", self.job.place(kind, &stored.0)), path));
                    }
                }
            }
        }
        Ok(artifacts)
    }

    /// Where the run's folder, its last checkpoint and its last model lie.
    fn links(&self) -> Result<Vec<(String, String)>, FileError> {
        let folder = fs::canonicalize(&self.folder).context("find", &self.folder)?;
        let mut links = vec![("tessera.run_folder".to_owned(), folder.display().to_string())];
        for (tag, kind) in [("tessera.checkpoint", "checkpoints"), ("tessera.model", MODELS)] {
            let stored = entries(&folder.join(kind))?;
            let folders = stored.into_iter().filter(|(_, path)| is_folder(path));
            let newest = folders.max_by_key(|(name, _)| {
                name.rsplit_once("ba").and_then(|(_, batch)| batch.parse::<u64>().ok())
            });
            links.extend(newest.map(|(_, path)| (tag.to_owned(), path.display().to_string())));
        }
        Ok(links)
    }
}

/// What is in a folder, by name, without what is still being written; nothing where it is not there.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, FileError> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("list", folder),
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.context("list", folder)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // A checkpoint without its metadata is none.
        if !name.starts_with('.') || name == ".metadata" {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether it is a folder itself, not a link to one.
fn is_folder(path: &Path) -> bool {
    path.is_dir() && !path.is_symlink()
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}
