//! The run file with the arguments laid over it: what four commands begin with.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tessera_train::TrainError;
use tessera_train::elsewhere::{run_file, url_of};
use tessera_train::observe::Observer;
use tessera_train::plan::{Prepared, resolve};
use tessera_train::spec::RunSpec;

use crate::failure::Failure;
use crate::text::quoted;
use crate::watch::Watcher;

/// A run file and what is changed of it.
#[derive(Debug, Clone, Args)]
pub struct RunFile {
    /// The run file, also by url
    #[arg(value_name = "RUN.yaml")]
    path: PathBuf,
    /// Keys laid over the run file, such as learning_rate=2e-5 or optimizer.weight_decay=0.1
    #[arg(value_name = "key=value")]
    overrides: Vec<String>,
}

impl RunFile {
    /// The run file at `path` with `overrides` laid over it.
    pub fn new(path: impl Into<PathBuf>, overrides: Vec<String>) -> Self {
        Self { path: path.into(), overrides }
    }

    /// The run as it was written.
    pub fn load(&self) -> Result<RunSpec, Failure> {
        let spec = match url_of(&self.path) {
            Some(url) => RunSpec::parse(&run_file(url)?, &self.path, &self.overrides),
            None => RunSpec::load(&self.path, &self.overrides),
        };
        Ok(spec.map_err(TrainError::from)?)
    }

    /// Everything up to the start of the run, with progress on standard error.
    pub fn prepare(&self) -> Result<Prepared, Failure> {
        self.prepare_over(None)
    }

    /// The same for one of so many processes, where their number is known.
    pub fn prepare_over(&self, processes: Option<NonZeroUsize>) -> Result<Prepared, Failure> {
        let watcher = Arc::new(Watcher::default());
        let observer: Arc<dyn Observer> = watcher.clone();
        let mut resolved = resolve(self.load()?, &observer);
        if let Some(processes) = processes {
            resolved = resolved.and_then(|resolved| resolved.over(processes.get()));
        }
        let prepared = resolved.and_then(|resolved| resolved.prepare(&observer));
        watcher.clear();
        Ok(prepared?)
    }

    /// The command line that runs this file.
    pub fn command(&self, command: &str) -> String {
        let path = self.path.display().to_string();
        let arguments = std::iter::once(&path).chain(&self.overrides).map(|argument| quoted(argument));
        format!("tessera {command} {}", arguments.collect::<Vec<_>>().join(" "))
    }
}
