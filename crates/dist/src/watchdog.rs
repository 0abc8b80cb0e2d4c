//! The watch over a process's collectives: one that does not end is named, and the run ends with it.
//!
//! A hang has no error of its own: some rank waits for another for ever. The watchdog is a thread that does nothing
//! but look at the clock. When a collective is past its deadline, or waits while the process of a rank is gone, it writes
//! the rings of its ranks, says who is missing as far as that can be known, and calls a handler that ends the process,
//! whatever the other threads stand in. The processes that wait for the same rank, or for one that ends so, hear of it and end
//! with the same words. What its own process stood still for is nobody's delay and does not count.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tessera_files::IoContext;

use crate::error::{DistError, name_ranks};
use crate::flight;
use crate::pulse::{Neighbour, Pulses, SILENCE};
use crate::recorder::{Record, Recorder, Wait};
use crate::waiting::Waiting;

/// How often the clock is looked at in the time of a deadline, and how long at most between.
const LOOKS: u32 = 8;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Pauses in which every heart that beats is heard.
const BEATS: u32 = 3;

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

    /// How long the clock may be left alone meanwhile: a change of the deadline is seen soon, and a standstill of the
    /// process costs little of it.
    pub(crate) fn pause(&self) -> Duration {
        (self.get() / LOOKS).min(LONGEST_PAUSE)
    }
}

/// A collective that did not end in time, or cannot end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// The rank that noticed, in the world; it may be one of another process, which has told this one.
    pub rank: usize,
    /// The collective.
    pub record: Record,
    /// Why no more is waited.
    pub reason: Reason,
    /// For how many seconds the process that noticed had stood still itself.
    pub stood_still: Option<f64>,
    /// Ranks that are known not to have come to it, each with the last collective that it is known to have called.
    pub absent: Vec<(usize, Option<Record>)>,
    /// Where the rings are, or why they are not. Each process sees the folder by its own path.
    #[serde(skip, default = "nowhere")]
    pub rings: Result<PathBuf, String>,
}

fn nowhere() -> Result<PathBuf, String> {
    Ok(PathBuf::new())
}

/// Why a collective is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It had this long.
    Late(Duration),
    /// The process of the absent rank has shown no sign of life for this long.
    Silent(Duration),
}

impl fmt::Display for Alarm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, record, .. } = self;
        let absent: Vec<usize> = self.absent.iter().map(|&(rank, _)| rank).collect();
        write!(formatter, "rank {rank}: {record}, ")?;
        match self.reason {
            Reason::Late(deadline) => write!(formatter, "has not ended for {} s; ", deadline.as_secs_f64())?,
            Reason::Silent(_) => formatter.write_str("cannot end; ")?,
        }
        match (self.reason, self.stood_still) {
            (Reason::Silent(silence), _) => {
                let (ranks, seconds) = (name_ranks(&absent), silence.as_secs_f64());
                let why = "its process was killed or stopped, or its machine is gone";
                write!(formatter, "{ranks} has shown no sign of life for {seconds} s: {why}")?;
            }
            (_, Some(seconds)) => {
                let why = "its process was stopped or its machine stalled";
                write!(formatter, "rank {rank} itself stood still for {seconds:.1} s: {why}")?;
            }
            _ if absent.is_empty() => formatter.write_str("which rank is missing is not known")?,
            _ => write!(formatter, "{} did not come to it", name_ranks(&absent))?,
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
    /// See [`SILENCE`].
    silence: Duration,
    state: Mutex<State>,
    stop: Condvar,
}

#[derive(Default)]
struct State {
    recorders: Vec<Arc<Recorder>>,
    /// Whether the folder is this attempt's.
    begun: bool,
    stopped: bool,
}

impl Shared {
    /// Every update leaves the state whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_rings(&self, recorders: &[Arc<Recorder>]) -> Result<(), DistError> {
        fs::create_dir_all(&self.folder).context("create", &self.folder)?;
        recorders.iter().try_for_each(|recorder| flight::write_ring(&self.folder, recorder))
    }
}

/// A process's watchdog. It stops when it is dropped.
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts to watch. `handler` is called once, when a collective is given up; it should end the process. Before that,
    /// nothing is written to `folder`, which all ranks of the run see, until [`Watchdog::begin`].
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn start(
        folder: &Path,
        deadline: &Deadline,
        handler: impl FnOnce(&Alarm) + Send + 'static,
    ) -> Result<Self, DistError> {
        Self::with_silence(folder, deadline, SILENCE, handler)
    }

    fn with_silence(
        folder: &Path,
        deadline: &Deadline,
        silence: Duration,
        handler: impl FnOnce(&Alarm) + Send + 'static,
    ) -> Result<Self, DistError> {
        const PURPOSE: &str = "watchdog";
        let (folder, deadline) = (folder.to_owned(), deadline.clone());
        let (state, stop) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { folder, deadline, silence, state, stop });
        let watched = shared.clone();
        let thread = thread::Builder::new()
            .name(PURPOSE.to_owned())
            .spawn(move || watch(&watched, handler))
            .map_err(|source| DistError::Thread { purpose: PURPOSE, source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets aside what an earlier attempt of the run left in the folder. One process does so, before any begins, and while it
    /// has the run to itself.
    ///
    /// # Errors
    /// When the folder cannot be changed.
    pub fn set_aside(&self) -> Result<(), DistError> {
        flight::set_aside(&self.shared.folder)
    }

    /// The folder is this attempt's from now on: the process says there how far its ranks are, and listens to the others.
    ///
    /// # Errors
    /// When the folder cannot be created or written to.
    pub fn begin(&self) -> Result<(), DistError> {
        let folder = &self.shared.folder;
        fs::create_dir_all(folder).context("create", folder)?;
        let mut state = self.shared.state();
        let local = Local::new(state.recorders.clone(), true);
        // At once: from now on a rank of which nothing is there is silent.
        if local.heard {
            local.recorders.iter().try_for_each(|recorder| flight::write_heartbeat(folder, recorder, 0))?;
        }
        state.begun = true;
        Ok(())
    }

    /// Watches one more rank of this process.
    pub fn watch(&self, recorder: Arc<Recorder>) {
        self.shared.state().recorders.push(recorder);
    }

    /// Writes the rings of this process's ranks now: a collective has failed and the run ends by itself.
    pub fn write_rings(&self) -> Result<(), DistError> {
        let recorders = self.shared.state().recorders.clone();
        self.shared.write_rings(&recorders)
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
    let mut watch = Watch { shared, beats: 0, rings_wanted: true, neighbour: None };
    let mut waiting = Waiting::begin();
    let mut state = shared.state();
    while !state.stopped {
        let (recorders, begun) = (state.recorders.clone(), state.begun);
        drop(state);
        let look = waiting.look();
        if let Some(time) = look.stood_still {
            recorders.iter().for_each(|recorder| recorder.note_standstill(time));
        }
        let pause = waiting.pause(shared.deadline.pause());
        let local = Local::new(recorders, begun);
        watch.listen(&local, look.counted);
        if let Some(alarm) = watch.look(&local, look.counted) {
            handler(&alarm);
            return;
        }
        state = shared.state();
        if !state.stopped {
            state = shared.stop.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The ranks of this process.
struct Local {
    recorders: Vec<Arc<Recorder>>,
    ranks: Vec<usize>,
    world_size: usize,
    /// Whether there are other processes that can be heard.
    heard: bool,
}

impl Local {
    fn new(recorders: Vec<Arc<Recorder>>, begun: bool) -> Self {
        let ranks: Vec<usize> = recorders.iter().map(|recorder| recorder.rank()).collect();
        let world_size = recorders.iter().map(|recorder| recorder.world_size()).max().unwrap_or(0);
        let heard = begun && ranks.len() < world_size;
        Self { recorders, ranks, world_size, heard }
    }
}

/// What the watchdog's thread remembers from one look to the next.
struct Watch<'a> {
    shared: &'a Shared,
    /// How often it has said how far the ranks are.
    beats: u64,
    rings_wanted: bool,
    neighbour: Option<Neighbour>,
}

impl Watch<'_> {
    /// Tells other processes how far the ranks of this one are, and writes their rings if another process wants them. A
    /// failure costs an alarm some of its detail, and is no reason for one.
    fn beat(&mut self, local: &Local) -> Result<(), DistError> {
        self.beats += 1;
        let folder = &self.shared.folder;
        if self.rings_wanted && flight::alarm_is_raised(folder) {
            self.rings_wanted = false;
            let _ = self.shared.write_rings(&local.recorders);
        }
        let mut recorders = local.recorders.iter();
        recorders.try_for_each(|recorder| flight::write_heartbeat(folder, recorder, self.beats))
    }

    /// Beats, and hears whether the neighbour does.
    fn listen(&mut self, local: &Local, counted: Duration) {
        if !local.heard {
            return;
        }
        // Whoever cannot write there does not know whether the others can.
        if self.beat(local).is_err() {
            self.neighbour = None;
            return;
        }
        if self.neighbour.is_none() {
            self.neighbour = Neighbour::of(&local.ranks, local.world_size);
        }
        if let Some(neighbour) = &mut self.neighbour {
            neighbour.listen(&self.shared.folder, counted);
        }
    }

    /// Looks at every rank of this process once.
    fn look(&mut self, local: &Local, counted: Duration) -> Option<Alarm> {
        let (deadline, silence) = (self.shared.deadline.get(), self.shared.silence);
        let waits = local.recorders.iter().filter_map(|recorder| Some((recorder, recorder.watch(counted)?)));
        let waits: Vec<(&Arc<Recorder>, Wait)> = waits.collect();
        if local.heard
            && !waits.is_empty()
            && let Some(told) = flight::read_verdict(&self.shared.folder)
        {
            let rings = self.rings(self.shared.write_rings(&local.recorders));
            return Some(Alarm { rings, ..told });
        }
        let first = |time: Duration| {
            let overdue = waits.iter().filter(move |(_, wait)| wait.watched >= time);
            overdue.min_by_key(|(_, wait)| wait.record.sequence).cloned()
        };
        if let Some((recorder, wait)) = first(deadline) {
            return Some(self.late(local, recorder, wait, deadline));
        }
        let silent = self.neighbour.as_ref()?.is_silent_for(silence)?;
        let (recorder, Wait { record, .. }) = first(silence)?;
        let (reason, absent) = (Reason::Silent(silence), vec![silent]);
        let (rank, stood_still) = (recorder.rank(), recorder.stood_still());
        let mut alarm = Alarm { rank, record, reason, stood_still, absent, rings: nowhere() };
        alarm.rings = self.raise(local, recorder, Some(&alarm));
        self.let_others_write(local);
        Some(alarm)
    }

    /// A collective is past the deadline.
    fn late(&mut self, local: &Local, recorder: &Recorder, wait: Wait, deadline: Duration) -> Alarm {
        let Wait { record, absent, .. } = wait;
        let rings = self.raise(local, recorder, None);
        let stood_still = recorder.stood_still();
        let mut absent: Vec<(usize, Option<Record>)> = absent.into_iter().map(|rank| (rank, None)).collect();
        if local.heard {
            let others = (0..local.world_size).filter(|rank| !local.ranks.contains(rank));
            let before = Pulses::of(&self.shared.folder, others.clone());
            self.let_others_write(local);
            // Those who heard another process's verdict have ended, and only look as if they were behind.
            if let Some(told) = flight::read_verdict(&self.shared.folder) {
                return Alarm { rings, ..told };
            }
            if absent.is_empty() && stood_still.is_none() {
                absent = Pulses::of(&self.shared.folder, others).behind(before, record.sequence);
            }
        }
        for (rank, last) in &mut absent {
            if let Some(recorder) = local.recorders.iter().find(|recorder| recorder.rank() == *rank) {
                *last = recorder.last();
            }
        }
        let (rank, reason) = (recorder.rank(), Reason::Late(deadline));
        let alarm = Alarm { rank, record, reason, stood_still, absent, rings };
        // Whoever does not hear of it waits for as long itself.
        let _ = flight::raise_alarm(&self.shared.folder, recorder, Some(&alarm));
        alarm
    }

    /// Writes the rings of this process and asks the others for theirs, or tells them the `verdict`; where the rings are, or
    /// why not.
    fn raise(&self, local: &Local, recorder: &Recorder, verdict: Option<&Alarm>) -> Result<PathBuf, String> {
        let written = self.shared.write_rings(&local.recorders);
        self.rings(written.and_then(|()| flight::raise_alarm(&self.shared.folder, recorder, verdict)))
    }

    /// Where the rings are that were written so.
    fn rings(&self, written: Result<(), DistError>) -> Result<PathBuf, String> {
        written.map(|()| self.shared.folder.clone()).map_err(|error| error.to_string())
    }

    /// The other processes look as often, and write their rings before this one's end ends them.
    fn let_others_write(&mut self, local: &Local) {
        for _ in 0..BEATS {
            thread::sleep(self.shared.deadline.pause());
            let _ = self.beat(local);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;
    use crate::recorder::{Call, Label, Operation};

    /// Long enough for the looks of a busy machine.
    const SILENT: Duration = Duration::from_secs(2);

    fn barrier() -> Call {
        Call { group: "world".into(), operation: Operation::Barrier, label: Label::Label("save".into()) }
    }

    /// Rank 0 of two processes waits in a barrier while the heart of rank 1 beats so often, four times a second; what the
    /// watchdog says until `patience` after that.
    fn alarm_when_rank_1_beats(times: u64, patience: Duration) -> Result<Alarm, RecvTimeoutError> {
        let folder = tempfile::tempdir().unwrap();
        let (tell, told) = channel();
        let deadline = Deadline::new(Duration::from_secs(60));
        let watchdog = Watchdog::with_silence(folder.path(), &deadline, SILENT, move |alarm| {
            tell.send(alarm.clone()).unwrap();
        });
        let watchdog = watchdog.unwrap();
        let [waits, other] = [0, 1].map(|rank| Arc::new(Recorder::new(rank, 2)));
        waits.start(waits.queue(barrier(), 0), None);
        watchdog.watch(waits);
        watchdog.begin().unwrap();
        for beats in 0..times {
            flight::write_heartbeat(folder.path(), &other, beats).unwrap();
            thread::sleep(Duration::from_millis(250));
        }
        told.recv_timeout(patience)
    }

    #[test]
    fn a_rank_whose_heart_does_not_beat_is_not_waited_for() {
        let alarm = alarm_when_rank_1_beats(1, Duration::from_secs(30)).unwrap();
        assert_eq!((alarm.rank, alarm.absent.as_slice()), (0, [(1, None)].as_slice()));
        let text = alarm.to_string();
        let expected =
            "rank 0: number 0, barrier 'save', cannot end; rank 1 has shown no sign of life for 2 s";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn a_rank_that_was_never_heard_is_not_waited_for() {
        let alarm = alarm_when_rank_1_beats(0, Duration::from_secs(30)).unwrap();
        assert_eq!((alarm.reason, alarm.absent.as_slice()), (Reason::Silent(SILENT), [(1, None)].as_slice()));
    }

    /// Rank 2 of four processes is gone. Only rank 1 listens to it, and the hearts of the others beat until they end.
    #[test]
    fn all_who_wait_end_with_the_first_and_name_the_same_rank() {
        let folder = tempfile::tempdir().unwrap();
        let deadline = Deadline::new(Duration::from_secs(600));
        let (tell, told) = channel();
        let watchdogs = [0, 1, 3].map(|rank| {
            let (tell, path) = (tell.clone(), folder.path());
            let watchdog = Watchdog::with_silence(path, &deadline, SILENT, move |alarm| {
                tell.send((rank, alarm.clone())).unwrap();
            });
            let watchdog = watchdog.unwrap();
            let recorder = Arc::new(Recorder::new(rank, 4));
            recorder.start(recorder.queue(barrier(), 0), None);
            watchdog.watch(recorder);
            watchdog.begin().unwrap();
            watchdog
        });
        flight::write_heartbeat(folder.path(), &Recorder::new(2, 4), 1).unwrap();
        let alarms = [(); 3].map(|()| told.recv_timeout(Duration::from_secs(30)).unwrap());
        let mut ended = alarms.each_ref().map(|&(rank, _)| rank);
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 3]);
        for (rank, alarm) in &alarms {
            assert_eq!((alarm.rank, alarm.absent.as_slice()), (1, [(2, None)].as_slice()), "rank {rank}");
            assert_eq!(alarm.rings, Ok(folder.path().to_owned()));
            assert!(folder.path().join(format!("rank-{rank}.jsonl")).exists());
        }
        drop(watchdogs);
    }

    #[test]
    fn a_rank_whose_heart_beats_is_waited_for() {
        let alarm = alarm_when_rank_1_beats(24, Duration::ZERO);
        assert_eq!(alarm, Err(RecvTimeoutError::Timeout));
    }

    #[test]
    fn nothing_is_written_before_the_attempt_begins() {
        let folder = tempfile::tempdir().unwrap();
        let flight = folder.path().join("flight");
        let deadline = Deadline::new(Duration::from_millis(80));
        let watchdog = Watchdog::start(&flight, &deadline, |_| {}).unwrap();
        watchdog.watch(Arc::new(Recorder::new(0, 2)));
        thread::sleep(Duration::from_millis(200));
        assert!(!flight.exists());
        watchdog.begin().unwrap();
        while !flight.join("heartbeat-0.json").exists() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}
