//! Keeps a copy of a run at the url that is its `save_folder`, beside the training.
//!
//! A thread looks at the run's folder and uploads what is new there; steps do not wait for it, nor does it for them. What it
//! cannot upload it tries again later, since everything stays on this machine. Only the end of the run waits until all is
//! there. It starts when the run here is known to be the one at the url: until then nothing there is changed but the sign of life,
//! by which others see that a process works on the run.

mod heart;
mod local;
mod opening;
mod remote;
mod word;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tessera_stores::{Problem, StoreError};

use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::{Settings, file_error};

use super::is_url;
use heart::Heart;
pub(super) use opening::{MOST_RUN_FILE, RUN_FILE};
use remote::RemoteRun;
pub(super) use remote::{CHECKPOINTS, CONFIG, EXPORTS, METADATA};

/// How often is looked for checkpoints and exports that are whole.
const LOOK: Duration = Duration::from_secs(1);
/// How often logs are uploaded, and what failed is tried again.
const INTERVAL: Duration = Duration::from_secs(30);
/// How often is looked whether somebody elsewhere cancels the run.
const LISTEN: Duration = Duration::from_secs(5);
/// Pauses between the attempts to upload what is left at the end.
const LAST_PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(10)];
/// How long a run that failed waits, while its other processes wait for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// A run at a url that this machine has all of. By itself it does nothing.
pub(crate) struct Mirror {
    remote: RemoteRun,
    heart: Heart,
}

impl Mirror {
    /// Looks at the url, where the settings name one. A checkpoint there that is newer than those of this machine is brought here,
    /// with all that belongs to it.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached, or has another run; and when it has checkpoints and the run may not go on
    /// from them.
    pub(crate) fn open(
        settings: &Settings,
        observer: &Arc<dyn Observer>,
    ) -> Result<Option<Self>, TrainError> {
        if !is_url(&settings.save_folder) {
            return Ok(None);
        }
        let mut remote = RemoteRun::open(settings, observer.clone())?;
        remote.compare(settings)?;
        // By connections of its own: those of the uploads are busy.
        let heart = Heart::start(&RemoteRun::place(settings)?)?;
        remote.bring_newest_here(settings)?;
        Ok(Some(Self { remote, heart }))
    }

    /// Starts to keep the copy of a run that goes on from checkpoints, or begins.
    ///
    /// # Errors
    /// When the url has checkpoints and the run does not go on from them.
    pub(crate) fn start(self, resumes: bool) -> Result<Mirroring, TrainError> {
        let Self { mut remote, heart } = self;
        let is_ending = Arc::new(AtomicBool::new(false));
        remote.begin(resumes, &is_ending)?;
        let (url, folder, observer) = (remote.url(), remote.folder.clone(), remote.observer.clone());
        let (ending, ended) = mpsc::channel();
        let (tell, done) = mpsc::channel();
        thread::Builder::new()
            .name("mirror".into())
            .spawn(move || {
                // Nobody may wait for it any more.
                let _ = tell.send(keep(&mut remote, &ended));
            })
            .map_err(|source| file_error("start a thread for", &folder, source))?;
        Ok(Mirroring { ending, done, is_ending, folder, url, observer, _heart: heart })
    }
}

/// The copy of a run, kept up by a thread. Dropped it is kept up no longer.
pub(crate) struct Mirroring {
    /// Tells the thread to come to its end.
    ending: mpsc::Sender<()>,
    /// How the thread ended.
    done: mpsc::Receiver<Result<(), TrainError>>,
    is_ending: Arc<AtomicBool>,
    folder: PathBuf,
    url: String,
    observer: Arc<dyn Observer>,
    /// Beats until all the rest is done.
    _heart: Heart,
}

impl Mirroring {
    /// Waits until all of the run is there.
    ///
    /// # Errors
    /// When the store stays away, or refuses.
    pub(crate) fn finish(self) -> Result<(), TrainError> {
        self.end();
        let problem = match self.done.recv() {
            Ok(Ok(())) => {
                self.observer.observe(Update::Uploaded(&self.url));
                return Ok(());
            }
            Ok(Err(error @ TrainError::OtherRun { .. })) => return Err(error),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the thread that uploads failed".to_owned(),
        };
        Err(TrainError::NotUploaded { folder: self.folder, url: self.url, problem })
    }

    /// The end of a run that failed: what takes long to upload is left to the next start.
    pub(crate) fn finish_soon(self) {
        self.end();
        match self.done.recv_timeout(PATIENCE) {
            Ok(Ok(())) => self.observer.observe(Update::Uploaded(&self.url)),
            _ => self.observer.observe(Update::Warning(&format!(
                "not all of {} is at {}; the same command uploads the rest",
                self.folder.display(),
                self.url
            ))),
        }
    }

    fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        // A thread that has failed hears nothing, and is found out when it is waited for.
        let _ = self.ending.send(());
    }
}

/// Uploads what is new until the run ends, then all that is left, unless nobody waits for it.
fn keep(remote: &mut RemoteRun, ended: &mpsc::Receiver<()>) -> Result<(), TrainError> {
    let observer = remote.observer.clone();
    let (mut last, mut listened, mut is_told, mut is_deaf) = (Instant::now(), Instant::now(), false, false);
    loop {
        match ended.recv_timeout(LOOK) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(()) => return upload_the_rest(remote),
        }
        if listened.elapsed() >= LISTEN {
            match remote.hear() {
                Ok(()) => is_deaf = false,
                // A store that is away is told of when something is uploaded.
                Err(error) if is_deaf || may_pass(&error) => {}
                Err(error) => {
                    observer.observe(Update::Warning(&format!(
                        "{error}. Training goes on; until this is put right nobody can cancel the run from another machine"
                    )));
                    is_deaf = true;
                }
            }
            listened = Instant::now();
        }
        let is_due = last.elapsed() >= INTERVAL;
        if !is_due && (is_told || !remote.is_behind()) {
            continue;
        }
        match remote.catch_up() {
            Ok(()) => is_told = false,
            Err(_) if remote.is_abandoned() => return Ok(()),
            Err(error) => {
                if !is_told {
                    observer.observe(Update::Warning(&format!(
                        "{error}. Training goes on; what is not uploaded stays here, and is tried again"
                    )));
                }
                is_told = true;
            }
        }
        last = Instant::now();
    }
}

fn upload_the_rest(remote: &mut RemoteRun) -> Result<(), TrainError> {
    for pause in LAST_PAUSES {
        match remote.catch_up() {
            Err(error) if may_pass(&error) => thread::sleep(pause),
            done => return done,
        }
    }
    remote.catch_up()
}

/// Whether the same may succeed a little later: the store is away, or files moved while they were read.
fn may_pass(error: &TrainError) -> bool {
    match error {
        TrainError::File(_) | TrainError::Store(StoreError { problem: Problem::File(_), .. }) => true,
        TrainError::Store(error) => error.passes(),
        _ => false,
    }
}
