//! Keeps a copy of a run at the url that is its `save_folder`, beside the training.
//!
//! A thread looks at the run's folder and uploads what is new there; steps do not wait for it, nor does it for them. What it
//! cannot upload it tries again later, since everything stays on this machine. Only the end of the run waits until all is
//! there.

mod remote;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tessera_stores::StoreError;

use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::{Settings, file_error};

use super::is_url;
use remote::RemoteRun;

/// How often is looked for checkpoints and exports that are whole.
const LOOK: Duration = Duration::from_secs(1);
/// How often logs are uploaded, and what failed is tried again.
const INTERVAL: Duration = Duration::from_secs(30);
/// Pauses between the attempts to upload what is left at the end.
const LAST_PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(10)];

/// The copy of a run, kept up by a thread.
pub(crate) struct Mirror {
    thread: JoinHandle<Result<(), StoreError>>,
    /// Dropped to let the thread come to its end.
    ending: mpsc::Sender<()>,
    is_ending: Arc<AtomicBool>,
    folder: PathBuf,
    url: String,
    observer: Arc<dyn Observer>,
}

impl Mirror {
    /// Starts to keep a copy where the settings ask for one. A checkpoint there that is newer than those of this machine is
    /// brought here first, with all that belongs to it.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached, or has checkpoints and the run may not go on from them.
    pub(crate) fn start(
        settings: &Settings,
        observer: &Arc<dyn Observer>,
    ) -> Result<Option<Self>, TrainError> {
        if !is_url(&settings.save_folder) {
            return Ok(None);
        }
        let is_ending = Arc::new(AtomicBool::new(false));
        let mut remote = RemoteRun::open(settings, observer.clone(), is_ending.clone())?;
        remote.bring_newest_here(settings.autoresume)?;
        let (ending, ended) = mpsc::channel();
        let (url, observing) = (remote.url(), observer.clone());
        let thread = thread::Builder::new()
            .name("mirror".into())
            .spawn(move || keep(&mut remote, &ended, observing.as_ref()))
            .map_err(|source| file_error("start a thread for", &settings.run_folder(), source))?;
        let (folder, observer) = (settings.run_folder(), observer.clone());
        Ok(Some(Self { thread, ending, is_ending, folder, url, observer }))
    }

    /// Waits until all of the run is there.
    ///
    /// # Errors
    /// When the store stays away, or refuses.
    pub(crate) fn finish(self) -> Result<(), TrainError> {
        self.is_ending.store(true, Ordering::Relaxed);
        drop(self.ending);
        let problem = match self.thread.join() {
            Ok(Ok(())) => {
                self.observer.observe(Update::Uploaded(&self.url));
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the thread that uploads failed".to_owned(),
        };
        Err(TrainError::NotUploaded { folder: self.folder, url: self.url, problem })
    }
}

/// Uploads what is new until the run ends, then all that is left.
fn keep(
    remote: &mut RemoteRun,
    ended: &mpsc::Receiver<()>,
    observer: &dyn Observer,
) -> Result<(), StoreError> {
    let (mut last, mut is_told) = (Instant::now(), false);
    while ended.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
        let is_due = last.elapsed() >= INTERVAL;
        if !is_due && (is_told || !remote.is_behind()) {
            continue;
        }
        match remote.catch_up() {
            Ok(()) => is_told = false,
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
    for pause in LAST_PAUSES {
        match remote.catch_up() {
            Err(error) if error.passes() => thread::sleep(pause),
            done => return done,
        }
    }
    remote.catch_up()
}
