//! `mlflow.json`: how far the delivery of a run has come, so that another process goes on where this one ended.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tessera_files::{Digest, IoContext, Sha256, sha256_hex, write_atomic};

use super::client::{Metric, RunHandle};
use super::{Ending, Job, MlflowError};

const FILE: &str = "mlflow.json";

/// What is known to have arrived, and what may have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// The server, without credentials.
    pub server: String,
    pub experiment: String,
    /// What the parameters are known by: a run that starts over with others is another run.
    pub plan: String,
    /// A tag by which a run is found again whose making was not confirmed.
    pub mark: String,
    pub experiment_id: Option<String>,
    pub run: Option<RunHandle>,
    /// Parameters, tags and data sets are there.
    pub is_described: bool,
    /// The next training line, by its batch.
    pub next_training: u64,
    /// The next line of another kind, by the batches done.
    pub next_other: u64,
    /// Samples of the machine's load.
    pub samples: u64,
    /// Metrics that were about to be sent.
    pub pending: Vec<Metric>,
    /// Artifacts that are there.
    pub uploaded: BTreeSet<String>,
    /// How the run ended, once that is told.
    pub ending: Option<Ending>,
}

impl Ledger {
    /// What an earlier process left in the run's folder, if anything.
    pub fn read(folder: &Path) -> Result<Option<Self>, MlflowError> {
        let path = path(folder);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("read", &path)?,
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| MlflowError::Damaged { path, reason: error.to_string() })
    }

    /// That of a run which nobody has been told of.
    pub fn begin(job: &Job, folder: &Path, now: i64) -> Self {
        let mut hash = Sha256::new();
        hash.update(format!("{now} {} {}", std::process::id(), folder.display()));
        Self {
            server: job.server.place(),
            experiment: job.experiment.clone(),
            plan: plan(job),
            mark: sha256_hex(hash)[..32].to_owned(),
            ..Self::default()
        }
    }

    /// Whether it tells of the run that the job is about: on the same server and in the same experiment, gone on with or started
    /// over with the same plan. One that starts over when checkpoints or models of it have been copied, which its own would be taken
    /// for, is another run.
    pub fn is_of(&self, job: &Job) -> bool {
        let may_start_over =
            || self.plan == plan(job) && self.uploaded.iter().all(|name| !name.contains('/'));
        self.server == job.server.place()
            && self.experiment == job.experiment
            && (job.resumes || may_start_over())
    }

    /// Puts it on disk.
    pub fn write(&self, folder: &Path) -> Result<(), MlflowError> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::from).context("encode", &path(folder))?;
        Ok(write_atomic(&path(folder), &bytes)?)
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

fn plan(job: &Job) -> String {
    let mut hash = Sha256::new();
    for (key, value) in &job.parameters {
        hash.update(format!("{key}={value}\n"));
    }
    sha256_hex(hash)[..16].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Server;
    use super::*;

    #[test]
    fn a_run_that_starts_over_after_its_model_was_copied_is_another() {
        let job = |resumes| Job {
            server: Server::find(Some("http://a:1"), |_| None).unwrap(),
            experiment: "/e".into(),
            run_name: "r".into(),
            parameters: vec![("seed".into(), "1".into())],
            tags: Vec::new(),
            datasets: Vec::new(),
            uploads: false,
            system_metrics: false,
            resumes,
        };
        let mut ledger = Ledger::begin(&job(false), Path::new("r"), 0);
        ledger.uploaded.insert("report.html".into());
        assert!(ledger.is_of(&job(false)) && ledger.is_of(&job(true)));
        ledger.uploaded.insert("r/huggingface/ba6/config.json".into());
        assert!(!ledger.is_of(&job(false)) && ledger.is_of(&job(true)));
    }
}
