//! The watch over a process's collectives: one that does not end is named, and the run ends with it.
//!
//! A hang has no error of its own: some rank waits for another for ever. The watchdog is a thread that does nothing
//! but look at the clock. When a collective is past its deadline it writes the rings of its ranks, says who is missing
//! as far as that can be known, and calls a handler that ends the process, whatever the other threads stand in.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tessera_files::IoContext;

use crate::error::{DistError, name_ranks};
use crate::flight::{self, Heartbeat};
use crate::recorder::{Record, Recorder, unix_seconds};

/// How often the clock is looked at in the time of a deadline, and how long at most between.
const LOOKS: u32 = 8;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a rank may be waited for. It is shared by all who wait, and can be changed while they do: a start takes
/// longer than a step.
#[derive(Debug, Clone)]
pub struct Deadline(Arc<AtomicU64>);

impl Deadline {
    /// A deadline.
    pub fn new(time: Duration) -> Self {
        let deadline = Self(Arc::default());
        deadline.set(time);
        deadline
    }

    /// Changes it for everybody.
    pub fn set(&self, time: Duration) {
        self.0.store(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The time.
    pub fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A collective that did not end in time.
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    /// The rank that noticed, in the world.
    pub rank: usize,
    /// The collective.
    pub record: Record,
    /// How long it had.
    pub deadline: Duration,
    /// For how many seconds the process that noticed had stood still itself.
    pub stood_still: Option<f64>,
    /// Ranks that are known not to have come to it, each with the last collective that it is known to have called.
    pub absent: Vec<(usize, Option<Record>)>,
    /// Where the rings are, or why they are not.
    pub rings: Result<PathBuf, String>,
}

impl fmt::Display for Alarm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, record, .. } = self;
        write!(formatter, "rank {rank}: {record}, has not ended for {} s; ", self.deadline.as_secs_f64())?;
        if let Some(seconds) = self.stood_still {
            let why = "its process was stopped or its machine stalled";
            write!(formatter, "rank {rank} itself stood still for {seconds:.1} s: {why}")?;
        } else if self.absent.is_empty() {
            formatter.write_str("which rank is missing is not known")?;
        } else {
            let ranks: Vec<usize> = self.absent.iter().map(|&(rank, _)| rank).collect();
            write!(formatter, "{} did not come to it", name_ranks(&ranks))?;
        }
        for (rank, last) in &self.absent {
            if let Some(last) = last {
                write!(formatter, "; the last of rank {rank} was {last}")?;
            }
        }
        match &self.rings {
            Ok(folder) => {
                write!(formatter, ". The last collectives of each rank are in {}", folder.display())
            }
            Err(reason) => write!(formatter, ". The last collectives could not be written: {reason}"),
        }
    }
}

struct Shared {
    folder: PathBuf,
    deadline: Deadline,
    state: Mutex<State>,
    stop: Condvar,
}

#[derive(Default)]
struct State {
    recorders: Vec<Arc<Recorder>>,
    stopped: bool,
}

impl Shared {
    /// Every update leaves the state whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process's watchdog. It stops when it is dropped.
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts to watch. The rings are to be written to `folder`, which all ranks of the run see. `handler` is called
    /// once, when a collective is past the deadline; it should end the process.
    pub fn start(
        folder: &Path,
        deadline: &Deadline,
        handler: impl FnOnce(&Alarm) + Send + 'static,
    ) -> Result<Self, DistError> {
        const PURPOSE: &str = "watchdog";
        fs::create_dir_all(folder).context("create", folder)?;
        let (folder, deadline) = (folder.to_owned(), deadline.clone());
        let shared = Arc::new(Shared { folder, deadline, state: Mutex::default(), stop: Condvar::new() });
        let watched = shared.clone();
        let thread = thread::Builder::new()
            .name(PURPOSE.to_owned())
            .spawn(move || watch(&watched, handler))
            .map_err(|source| DistError::Thread { purpose: PURPOSE, source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Watches one more rank of this process.
    pub fn watch(&self, recorder: Arc<Recorder>) {
        self.shared.state().recorders.push(recorder);
    }

    /// Writes the rings of this process's ranks now: a collective has failed and the run ends by itself.
    pub fn write_rings(&self) -> Result<(), DistError> {
        let recorders = self.shared.state().recorders.clone();
        write_rings(&self.shared.folder, &recorders)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.stop.notify_all();
        if let Some(thread) = self.thread.take() {
            // A handler that panicked has said why.
            let _ = thread.join();
        }
    }
}

fn watch(shared: &Shared, handler: impl FnOnce(&Alarm)) {
    let mut state = shared.state();
    let mut rings_wanted = true;
    let mut looked = Instant::now();
    while !state.stopped {
        let recorders = state.recorders.clone();
        drop(state);
        let pause = (shared.deadline.get() / LOOKS).min(LONGEST_PAUSE);
        let since = looked.elapsed();
        looked = Instant::now();
        if since > pause + shared.deadline.get() / 2 {
            recorders.iter().for_each(|recorder| recorder.note_standstill(since));
        }
        let alone = recorders.iter().all(|recorder| recorder.world_size() == recorders.len());
        if !alone {
            beat(&shared.folder, &recorders, &mut rings_wanted);
        }
        if let Some(alarm) = look(shared, &recorders) {
            if !alone {
                // The other processes look as often, and write their rings before this one's end ends them.
                thread::sleep(2 * pause);
            }
            handler(&alarm);
            return;
        }
        state = shared.state();
        if !state.stopped {
            state = shared.stop.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Tells other processes how far the ranks of this one are, and writes their rings if another process wants them.
/// A failure costs an alarm some of its detail, and is no reason for one.
fn beat(folder: &Path, recorders: &[Arc<Recorder>], rings_wanted: &mut bool) {
    for recorder in recorders {
        let _ = flight::write_heartbeat(folder, recorder);
    }
    if *rings_wanted && flight::alarm_is_raised(folder) {
        *rings_wanted = false;
        let _ = write_rings(folder, recorders);
    }
}

/// Looks at every rank of this process once.
fn look(shared: &Shared, recorders: &[Arc<Recorder>]) -> Option<Alarm> {
    let local: Vec<usize> = recorders.iter().map(|recorder| recorder.rank()).collect();
    let deadline = shared.deadline.get();
    let overdue = |recorder: &Arc<Recorder>| Some((recorder.clone(), recorder.overdue(deadline)?));
    let (recorder, (record, absent)) =
        recorders.iter().filter_map(overdue).min_by_key(|(_, (record, _))| record.sequence)?;
    let written =
        flight::raise_alarm(&shared.folder, &recorder).and_then(|()| write_rings(&shared.folder, recorders));
    let stood_still = recorder.stood_still();
    let mut absent: Vec<(usize, Option<Record>)> = absent.into_iter().map(|rank| (rank, None)).collect();
    if absent.is_empty() && stood_still.is_none() {
        let others = (0..recorder.world_size()).filter(|rank| !local.contains(rank));
        absent = behind(&shared.folder, others, record.sequence, deadline);
    }
    for (rank, last) in &mut absent {
        if let Some(recorder) = recorders.iter().find(|recorder| recorder.rank() == *rank) {
            *last = recorder.last();
        }
    }
    let rings = written.map(|()| shared.folder.clone()).map_err(|error| error.to_string());
    Some(Alarm { rank: recorder.rank(), record, deadline, stood_still, absent, rings })
}

fn write_rings(folder: &Path, recorders: &[Arc<Recorder>]) -> Result<(), DistError> {
    recorders.iter().try_for_each(|recorder| flight::write_ring(folder, recorder))
}

/// Ranks of other processes that are not known to have called collective `sequence`, or whose process has stood still
/// since, by their heartbeats.
fn behind(
    folder: &Path,
    ranks: impl Iterator<Item = usize>,
    sequence: u64,
    deadline: Duration,
) -> Vec<(usize, Option<Record>)> {
    let silence = deadline.as_secs_f64() / 2.0;
    let now = unix_seconds();
    let stands = |heartbeat: &Heartbeat| {
        let called = heartbeat.last.as_ref().is_some_and(|last| last.sequence >= sequence);
        !called || now - heartbeat.header.written_unix > silence
    };
    ranks
        .map(|rank| (rank, flight::read_heartbeat(folder, rank)))
        .filter(|(_, heartbeat)| heartbeat.as_ref().is_none_or(stands))
        .map(|(rank, heartbeat)| (rank, heartbeat.and_then(|heartbeat| heartbeat.last)))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::recorder::{Call, Label, Operation};

    /// Writes the heartbeat of a rank that has called so many collectives.
    fn heartbeat(folder: &Path, rank: usize, calls: usize) {
        let recorder = Recorder::new(rank, 5);
        for unit in 0..calls {
            let call =
                Call { group: "world".into(), operation: Operation::AllGather, label: Label::Unit(unit) };
            recorder.queue(call, 0);
        }
        flight::write_heartbeat(folder, &recorder).unwrap();
    }

    #[test]
    fn ranks_of_other_processes_are_behind_by_their_heartbeats() {
        let folder = tempfile::tempdir().unwrap();
        let names = |deadline| {
            let behind = behind(folder.path(), 1..5, 3, Duration::from_secs_f64(deadline));
            behind.into_iter().map(|(rank, last)| (rank, last.map(|last| last.sequence))).collect::<Vec<_>>()
        };
        heartbeat(folder.path(), 1, 3);
        heartbeat(folder.path(), 2, 4);
        heartbeat(folder.path(), 3, 5);
        assert_eq!(names(60.0), [(1, Some(2)), (4, None)]);
        // A process whose heart has not beaten for half a deadline stands still, whatever it has called before.
        thread::sleep(Duration::from_millis(500));
        heartbeat(folder.path(), 3, 5);
        assert_eq!(names(0.8), [(1, Some(2)), (2, Some(3)), (4, None)]);
    }
}
