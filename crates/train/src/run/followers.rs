//! Who else is told of a run while it goes on: an MLflow server, TensorBoard, Prometheus. Only rank 0 has any. None of them can
//! hold up or end a run that trains: what goes wrong with them is told once, as a warning.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tessera_data::Summary;
use tessera_track::mlflow::{
    self, Asking, Courier, DatasetEntry, Ending, Job, MlflowError, Model, Notice, Registration, Server,
    Standing,
};
use tessera_track::prometheus::Exporter;
use tessera_track::tensorboard::EventFile;
use tessera_track::{Record, TrackError, flattened};

use super::{Contact, Outcome};
use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::{Prepared, Settings};
use crate::spec::{Artifacts, MlflowSpec, Unreachable};

/// How long a finished run waits for a server that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one does that was asked to stop: whoever asked may not wait for long.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);

/// Asks the tracking server whether it is there and takes what it will be told.
///
/// # Errors
/// For a server that is not named, refuses, or does not answer where the run file says that it must.
pub(super) fn check(settings: &Settings, asking: Asking) -> Result<Option<Contact>, TrainError> {
    let Some((experiment, spec)) = tracked(settings) else { return Ok(None) };
    let server = server(spec)?;
    let place = server.place();
    Ok(Some(match mlflow::check(server, experiment, asking) {
        Err(error) if may_be_away(&error, spec) => {
            Contact::Away(format!("{error}; the run is told to it when it is there"))
        }
        checked => match checked? {
            Standing::There => Contact::There(format!("MLflow at {place} takes runs of {experiment}")),
            Standing::ToBeMade => {
                let said = "is there; the run will make the experiment";
                Contact::There(format!("MLflow at {place} {said} {experiment} when it starts"))
            }
        },
    }))
}

/// Asks the registry whether the run's model can be registered under this name.
///
/// # Errors
/// For a registry that refuses, or does not answer where the run file says that servers must.
pub(super) fn check_registration(
    settings: &Settings,
    name: &str,
    asking: Asking,
) -> Result<Option<Contact>, TrainError> {
    let Some((experiment, spec)) = tracked(settings) else { return Ok(None) };
    let registry = registry(spec)?;
    let place = registry.place();
    Ok(Some(match mlflow::check_registration(server(spec)?, experiment, registry, name, asking) {
        Err(error) if may_be_away(&error, spec) => {
            Contact::Away(format!("{error}; the model is registered if it is there at the end"))
        }
        checked => match checked? {
            Standing::There => Contact::There(format!("the registry at {place} takes versions of {name}")),
            Standing::ToBeMade => {
                let said = "is there; the run will make the registered model";
                Contact::There(format!("the registry at {place} {said} {name} when it starts"))
            }
        },
    }))
}

fn may_be_away(error: &MlflowError, spec: &MlflowSpec) -> bool {
    error.passes() && spec.unreachable == Unreachable::Buffer
}

/// Those who follow a run.
#[derive(Default)]
pub(super) struct Followers {
    courier: Option<Courier>,
    /// Whether TensorBoard follows.
    has_event_file: bool,
    event_file: Option<EventFile>,
    exporter: Option<Exporter>,
    observer: Option<Arc<dyn Observer>>,
}

impl Followers {
    /// Those that the run file asks for.
    ///
    /// # Errors
    /// When one of them cannot follow from the start.
    pub(super) fn start(
        prepared: &Prepared,
        folder: &Path,
        observer: &Arc<dyn Observer>,
    ) -> Result<Self, TrainError> {
        let settings = &prepared.plan.settings;
        // Before the server is told of a run that cannot start.
        let exporter =
            settings.metrics_port.map(|port| Exporter::start(port, &settings.run_name)).transpose()?;
        Ok(Self {
            courier: courier(prepared, folder, observer)?,
            has_event_file: settings.tensorboard,
            event_file: None,
            exporter,
            observer: Some(observer.clone()),
        })
    }

    /// Those who are still to be told of a run that is complete: MLflow, where it does not have all of it, or has to have it again
    /// for the model to be registered.
    ///
    /// # Errors
    /// When it cannot be told, and the model is to be registered; else that is a warning.
    pub(super) fn of_complete(
        prepared: &Prepared,
        folder: &Path,
        observer: &Arc<dyn Observer>,
        registers: bool,
    ) -> Result<Self, TrainError> {
        let followers = Self { observer: Some(observer.clone()), ..Self::default() };
        let courier = || -> Result<Option<Courier>, TrainError> {
            let Some(job) = job(prepared)? else { return Ok(None) };
            if !registers && mlflow::is_delivered(folder, &job, Ending::Finished)? {
                return Ok(None);
            }
            Ok(Some(Courier::start(job, folder, false, notify(observer))?))
        };
        match courier() {
            Err(error) if !registers => {
                followers.warn(&format!("MLflow does not have all of this run: {error}"));
                Ok(followers)
            }
            courier => Ok(Self { courier: courier?, ..followers }),
        }
    }

    /// Registers the model in MLflow's registry.
    ///
    /// # Errors
    /// What kept it from being registered.
    pub(super) fn register(&self, settings: &Settings, model: Model) -> Result<Registration, TrainError> {
        match (&self.courier, tracked(settings)) {
            (Some(courier), Some((_, spec))) => Ok(courier.register(model, registry(spec)?, PATIENCE)?),
            // The settings do not resolve without an experiment.
            _ => Err(MlflowError::NoServer.into()),
        }
    }

    /// The run's metrics are written from now on, after those of the `batch` batches that are done.
    pub(super) fn metrics_begin(&mut self, folder: &Path, batch: u64) -> Result<(), TrackError> {
        if let Some(courier) = &self.courier {
            courier.read_metrics();
        }
        if self.has_event_file {
            self.event_file = Some(EventFile::create(folder, batch)?);
        }
        Ok(())
    }

    /// A line was written.
    pub(super) fn record(&mut self, record: &Record) {
        if let Some(exporter) = &self.exporter {
            exporter.record(record);
        }
        if let Some(event_file) = &mut self.event_file
            && let Err(error) = event_file.record(record)
        {
            // What follows half a record cannot be read.
            self.event_file = None;
            self.warn(&format!("TensorBoard is told no more of this run: {error}"));
        }
    }

    /// The run is over: waits until that is told.
    pub(super) fn finish(self, outcome: Result<&Outcome, &TrainError>) {
        let (ending, patience) = match outcome {
            Ok(Outcome::Completed(_) | Outcome::AlreadyCompleted(_)) => (Ending::Finished, PATIENCE),
            Ok(Outcome::Stopped { .. }) => (Ending::Killed, SHORT_PATIENCE),
            Err(_) => (Ending::Failed, SHORT_PATIENCE),
        };
        self.end(ending, patience);
    }

    /// The run had been finished before, and still is, whatever failed now.
    pub(super) fn finish_again(self) {
        self.end(Ending::Finished, SHORT_PATIENCE);
    }

    fn end(mut self, ending: Ending, patience: Duration) {
        if let Some(courier) = self.courier.take()
            && let Err(error) = courier.finish(ending, patience)
        {
            self.warn(&format!(
                "MLflow does not have all of this run: {error}. Nothing is lost: the same command delivers the rest"
            ));
        }
    }

    fn warn(&self, text: &str) {
        if let Some(observer) = &self.observer {
            observer.observe(Update::Warning(text));
        }
    }
}

fn courier(
    prepared: &Prepared,
    folder: &Path,
    observer: &Arc<dyn Observer>,
) -> Result<Option<Courier>, TrainError> {
    let Some(job) = job(prepared)? else { return Ok(None) };
    let spec = prepared.plan.settings.mlflow.as_ref();
    let may_be_away = spec.is_some_and(|spec| spec.unreachable == Unreachable::Buffer);
    Ok(Some(Courier::start(job, folder, may_be_away, notify(observer))?))
}

fn notify(observer: &Arc<dyn Observer>) -> impl Fn(Notice<'_>) + Send + 'static {
    let observer = observer.clone();
    move |notice| match notice {
        Notice::Tracked(address) => observer.observe(Update::Tracked(address)),
        Notice::Trouble(text) => observer.observe(Update::Warning(text)),
    }
}

fn tracked(settings: &Settings) -> Option<(&str, &MlflowSpec)> {
    Some((settings.experiment_path.as_deref()?, settings.mlflow.as_ref()?))
}

/// The address of the registry of models, as people and files may see it.
///
/// # Errors
/// When none is named, or it cannot be used.
pub(super) fn registry_place(settings: &Settings) -> Result<String, TrainError> {
    let (_, spec) = tracked(settings).ok_or(MlflowError::NoServer)?;
    Ok(registry(spec)?.place())
}

/// Where models are registered.
fn registry(spec: &MlflowSpec) -> Result<Server, TrainError> {
    let variable = |name: &str| std::env::var(name).ok();
    Ok(Server::find_registry(spec.registry_uri.as_deref(), &server(spec)?, variable)?)
}

fn server(spec: &MlflowSpec) -> Result<Server, TrainError> {
    Ok(Server::find(spec.tracking_uri.as_deref(), |name| std::env::var(name).ok())?)
}

/// What an MLflow server is told, if one is.
fn job(prepared: &Prepared) -> Result<Option<Job>, TrainError> {
    let settings = &prepared.plan.settings;
    let Some((experiment, spec)) = tracked(settings) else { return Ok(None) };
    let tag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut tags = vec![
        tag("mlflow.source.name", "tessera"),
        tag("mlflow.source.type", "LOCAL"),
        tag("run_name", &settings.run_name),
        tag("tessera.version", env!("CARGO_PKG_VERSION")),
    ];
    if let Ok(user) = std::env::var("USER") {
        tags.push(tag("mlflow.user", &user));
    }
    let train = &settings.train_data_path;
    let mut datasets =
        vec![dataset("train", &train.to_string(), prepared.train.identity(), &prepared.train_summary)];
    if let Some((data, summary)) = &prepared.eval {
        // What is held out is of the training data.
        let path = settings.eval_data_path.as_ref().unwrap_or(train);
        datasets.push(dataset("eval", &path.to_string(), data.identity(), summary));
    }
    Ok(Some(Job {
        server: server(spec)?,
        experiment: experiment.to_owned(),
        run_name: settings.run_name.clone(),
        parameters: parameters(prepared)?,
        tags,
        datasets,
        uploads: spec.artifacts == Artifacts::Upload,
        system_metrics: spec.system_metrics,
        resumes: prepared.resumes,
    }))
}

/// The resolved run file, and what follows from it.
fn parameters(prepared: &Prepared) -> Result<Vec<(String, String)>, TrainError> {
    let plan = &prepared.plan;
    let settings = match plan.settings.to_json()? {
        Value::Object(settings) => flattened(&settings),
        _ => serde_json::Map::new(),
    };
    let text = |value: Value| match value {
        Value::String(text) => text,
        value => value.to_string(),
    };
    let mut parameters: Vec<_> = settings.into_iter().map(|(key, value)| (key, text(value))).collect();
    let sizes = [
        ("plan.parameters", plan.parameters as u64),
        ("plan.batches", plan.length.total_batches),
        ("plan.batches_per_epoch", plan.length.epoch.batches()),
        ("plan.warmup_batches", plan.schedule.warmup_batches()),
        ("plan.memory_bytes", plan.memory_bytes() as u64),
    ];
    parameters.extend(sizes.map(|(key, size)| (key.to_owned(), size.to_string())));
    Ok(parameters)
}

fn dataset(context: &'static str, path: &str, identity: &str, summary: &Summary) -> DatasetEntry {
    /// The longest digest that MLflow takes.
    const LONGEST: usize = 36;
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    DatasetEntry {
        context,
        name: name.to_owned(),
        digest: identity.chars().take(LONGEST).collect(),
        source_type: source_type(path),
        uri: path.to_owned(),
        profile: json!({
            "num_rows": summary.examples,
            "tokens": summary.tokens,
            "loss_tokens": summary.loss_tokens,
            "packed_rows": summary.rows,
        }),
    }
}

/// The kind of place that a data set comes from, in MLflow's words.
fn source_type(path: &str) -> &'static str {
    const KINDS: [(&str, &str); 7] = [
        ("s3://", "s3"),
        ("gs://", "gs"),
        ("http://", "http"),
        ("https://", "http"),
        ("delta:", "delta_table"),
        ("dbfs:/Volumes/", "uc_volume"),
        ("/Volumes/", "uc_volume"),
    ];
    KINDS.iter().find(|(prefix, _)| path.starts_with(prefix)).map_or("local", |(_, kind)| kind)
}
