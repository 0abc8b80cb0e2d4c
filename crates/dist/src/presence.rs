//! Signs of life of processes that have yet to join one another.
//!
//! Until there is a group nothing tells who is missing: a library only waits. So each process says in a folder that all
//! see that it is there and moves, and whoever gives up waiting can name those that do not. One that gave up says so and leaves
//! that behind, because others may look for it later; the first process removes what was left once all have joined.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use crate::error::DistError;
use crate::recorder::beginning_unix_seconds;

/// How often a process says that it moves, and after how many times everybody who does has been seen to.
const BEAT: Duration = Duration::from_millis(500);
const BEATS: u32 = 4;
/// What follows the time in the last sign of a process that gave up waiting.
const GAVE_UP: &str = "gave up";

/// This process's sign of life, given until it is dropped.
pub struct Presence {
    folder: PathBuf,
    process: usize,
    /// A word on it: the process gives up. Its end: the process has joined.
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
            let mut beat = 0_u64;
            let ended = loop {
                // Whoever cannot write here is taken for missing, which the message allows for.
                let _ = fs::write(&path, format!("{began} {beat}\n"));
                beat += 1;
                match stopped.recv_timeout(BEAT) {
                    Err(RecvTimeoutError::Timeout) => {}
                    ended => break ended,
                }
            };
            let _ = match ended {
                Ok(()) => fs::write(&path, format!("{} {GAVE_UP}\n", unix_seconds())),
                Err(_) => fs::remove_file(&path),
            };
        };
        let thread = thread::Builder::new()
            .name(PURPOSE.to_owned())
            .spawn(give)
            .map_err(|source| DistError::Thread { purpose: PURPOSE, source })?;
        Ok(Self { folder: folder.to_owned(), process, stop: Some(stop), thread: Some(thread) })
    }

    /// Those of so many `processes` that show no sign of life. It takes a moment to know.
    pub fn missing(&self, processes: usize) -> Vec<usize> {
        let signs = || -> Vec<Option<String>> {
            (0..processes).map(|process| fs::read_to_string(sign(&self.folder, process)).ok()).collect()
        };
        let before = signs();
        thread::sleep(BEAT * BEATS);
        let pairs = before.into_iter().zip(signs()).enumerate();
        let missing = pairs.filter(|(process, (before, now))| {
            *process != self.process && before == now && !now.as_deref().is_some_and(gave_up_meanwhile)
        });
        missing.map(|(process, _)| process).collect()
    }

    /// The same error, with the names of those that did not join, if that is what it says. This process has then given up.
    pub fn name_missing(&self, error: DistError, processes: usize) -> DistError {
        match error {
            DistError::Unjoined { seconds, .. } => {
                let missing = self.missing(processes);
                // The thread has ended only if it could not start.
                let _ = self.stop.as_ref().map(|stop| stop.send(()));
                DistError::Unjoined { seconds, missing }
            }
            error => error,
        }
    }

    /// Ends the signs of a run whose processes have all joined. The first of them also removes what was left by those that gave
    /// up or were killed before.
    pub fn joined(self) {
        let (folder, process) = (self.folder.clone(), self.process);
        drop(self);
        if process == 0 {
            remove_signs(&folder);
        }
    }
}

/// Whether a sign is that of a process which gave up while this one was there.
fn gave_up_meanwhile(sign: &str) -> bool {
    let time = sign.trim_end().strip_suffix(GAVE_UP).and_then(|time| time.trim_end().parse().ok());
    time.is_some_and(|time: f64| time >= beginning_unix_seconds())
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Removes the signs of all processes of a run. What cannot be removed is harmless, and in nobody's way.
fn remove_signs(folder: &Path) {
    let prefix = sign_prefix(folder);
    for entry in folder.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten()
    {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_file(entry.path());
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
    folder.with_file_name(format!("{}{process}", sign_prefix(folder)))
}

fn sign_prefix(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.joining-")
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
        // It is gone, but was there: whoever gives up later must not name it.
        let [first, last] = here;
        drop(first);
        assert_eq!(last.missing(4), [1, 3]);
        // As it would be left by an attempt before this one.
        fs::write(sign(&folder, 0), format!("1.5 {GAVE_UP}\n")).unwrap();
        assert_eq!(last.missing(4), [0, 1, 3]);
        last.joined();
        assert!(
            sign(&folder, 3).exists() && !sign(&folder, 2).exists(),
            "others' signs are not this process's"
        );
        Presence::show(&folder, 0).unwrap().joined();
        assert_eq!(
            fs::read_dir(folder.parent().unwrap()).unwrap().count(),
            0,
            "signs, or the run's folder, are left"
        );
    }
}
