//! Listens for the word that cancels the run, which another process leaves in the run's folder.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tessera_dist::DistError;
use tessera_track::{clear_cancel, is_cancel_requested};

use super::StopSignal;
use crate::error::TrainError;

/// How often the folder is looked at: not by the step, which a slow file system would hold up.
const PERIOD: Duration = Duration::from_millis(250);

/// Looks for the word until it is dropped.
pub(super) struct CancelWatch {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl CancelWatch {
    /// Begins to look, on a thread of its own.
    pub(super) fn start(folder: &Path, stop: &StopSignal) -> Result<Self, TrainError> {
        let (over, ended) = mpsc::channel();
        let (folder, stop) = (folder.to_owned(), stop.clone());
        let look = move || {
            while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                if is_cancel_requested(&folder) && !stop.is_canceled() {
                    stop.cancel();
                }
            }
            // What is asked of a run that ends is done; left there, it is taken away by the next start.
            let _ = clear_cancel(&folder);
        };
        let thread = thread::Builder::new().name("cancel".into()).spawn(look);
        let thread =
            thread.map_err(|source| DistError::Thread { purpose: "the wait for a cancel", source })?;
        Ok(Self { over: Some(over), thread: Some(thread) })
    }
}

impl Drop for CancelWatch {
    fn drop(&mut self) {
        self.over = None;
        if let Some(thread) = self.thread.take() {
            // It only waits and looks; if it failed there is nothing to save of it.
            let _ = thread.join();
        }
    }
}
