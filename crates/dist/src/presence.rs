//! Signs of life of processes that have yet to join one another.
//!
//! Until there is a group nothing tells who is missing: a library only waits. So each process says in a folder that all
//! see that it is there and moves, and whoever gives up waiting can name those that do not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::DistError;
use crate::recorder::beginning_unix_seconds;

/// How often a process says that it moves, and after how many times everybody who does has been seen to.
const BEAT: Duration = Duration::from_millis(500);
const BEATS: u32 = 4;

/// This process's sign of life, given until it is dropped.
pub struct Presence {
    folder: PathBuf,
    process: usize,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Presence {
    /// Shows that `process` of a run is there, beside the run's `folder`, which another run may still have to itself.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn show(folder: &Path, process: usize) -> Result<Self, DistError> {
        const PURPOSE: &str = "signs of life";
        let (stop, stopped) = channel();
        let path = sign(folder, process);
        let began = beginning_unix_seconds();
        let give = move || {
            let _ = path.parent().map(fs::create_dir_all);
            for beat in 0_u64.. {
                // Whoever cannot write here is taken for missing, which the message allows for.
                let _ = fs::write(&path, format!("{began} {beat}\n"));
                if stopped.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            let _ = fs::remove_file(&path);
        };
        let thread = thread::Builder::new()
            .name(PURPOSE.to_owned())
            .spawn(give)
            .map_err(|source| DistError::Thread { purpose: PURPOSE, source })?;
        Ok(Self { folder: folder.to_owned(), process, stop: Some(stop), thread: Some(thread) })
    }

    /// Those of so many `processes` that show no sign of life. It takes a moment to know.
    pub fn missing(&self, processes: usize) -> Vec<usize> {
        let signs = || -> Vec<Option<Vec<u8>>> {
            (0..processes).map(|process| fs::read(sign(&self.folder, process)).ok()).collect()
        };
        let before = signs();
        thread::sleep(BEAT * BEATS);
        let pairs = before.into_iter().zip(signs()).enumerate();
        let still = pairs.filter(|(process, (before, now))| *process != self.process && before == now);
        still.map(|(process, _)| process).collect()
    }

    /// The same error, with the names of those that did not join, if that is what it says.
    pub fn name_missing(&self, error: DistError, processes: usize) -> DistError {
        match error {
            DistError::Unjoined { seconds, .. } => {
                DistError::Unjoined { seconds, missing: self.missing(processes) }
            }
            error => error,
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where a process gives its sign.
fn sign(folder: &Path, process: usize) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.joining-{process}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_does_not_move_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("runs/one");
        let here = [0, 2].map(|process| Presence::show(&folder, process).unwrap());
        // Of an earlier attempt, or of a process that has been stopped.
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
        fs::write(sign(&folder, 3), "0 7\n").unwrap();
        let error = here[0].name_missing(DistError::Unjoined { seconds: 1.0, missing: Vec::new() }, 4);
        assert!(matches!(&error, DistError::Unjoined { missing, .. } if *missing == [1, 3]), "{error}");
        assert!(error.to_string().contains("nothing is seen of ranks 1 and 3"), "{error}");
        drop(here);
        assert!(!sign(&folder, 0).exists() && !sign(&folder, 2).exists());
        assert!(!folder.exists(), "the run's folder is the run's");
    }
}
