//! The sign of life of a run at a url: an object that is written anew twice a minute as long as a process works on the run, whatever it
//! does meanwhile. Steps, evaluations and uploads may each take longer than anybody who asks could wait.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use tessera_stores::Place;

use super::super::runs::ALIVE;
use crate::error::TrainError;
use crate::plan::file_error;

/// How often the sign is given.
const BEAT: Duration = Duration::from_secs(30);
/// The pause where the store did not take it.
const AGAIN: Duration = Duration::from_secs(5);
/// How long is waited for the sign to be taken away. One that stays is soon too old to count.
const PATIENCE: Duration = Duration::from_secs(3);

/// Beats until it is dropped, by a thread of its own.
pub(super) struct Heart {
    stop: Option<mpsc::Sender<()>>,
    stopped: mpsc::Receiver<()>,
}

impl Heart {
    /// Starts to beat in the run at this place.
    pub(super) fn start(run: &Place) -> Result<Self, TrainError> {
        let sign = run.join(ALIVE);
        let (stop, ended) = mpsc::channel();
        let (tell, stopped) = mpsc::channel();
        let beat = move || {
            keep_beating(&sign, &ended);
            // Nobody may wait for it any more.
            let _ = tell.send(());
        };
        let thread = thread::Builder::new().name("heart".into()).spawn(beat);
        thread.map_err(|source| file_error("start a thread for", Path::new(&run.to_string()), source))?;
        Ok(Self { stop: Some(stop), stopped })
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.stop = None;
        // It ends by itself, and a store that is away holds nobody up.
        let _ = self.stopped.recv_timeout(PATIENCE);
    }
}

/// A store that does not take the sign is told of by what uploads.
fn keep_beating(sign: &Place, ended: &mpsc::Receiver<()>) {
    let mut is_there = false;
    loop {
        let is_given = sign.write(Vec::new()).is_ok();
        is_there |= is_given;
        if ended.recv_timeout(if is_given { BEAT } else { AGAIN }) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    if is_there {
        let _ = sign.delete();
    }
}
