//! The flight recorder: a ring of a rank's last collectives, and what they cost in all.
//!
//! Every rank makes the same collectives in the same order, so the n-th of one rank is the n-th of every other: the
//! sequence number is all that is needed to lay the rings of a stuck run beside one another.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::host::Peers;

/// Collectives that a ring remembers: several steps of a deep model.
const CAPACITY: usize = 1024;

/// When this process began, as far as its collectives are concerned: the zero of all times in a record.
static BEGINNING: LazyLock<(Instant, f64)> = LazyLock::new(|| (Instant::now(), unix_seconds()));

/// Seconds since this process began.
fn seconds() -> f64 {
    BEGINNING.0.elapsed().as_secs_f64()
}

/// Wall clock, in seconds since 1970.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Wall clock at the zero of all times in a record.
pub(crate) fn beginning_unix_seconds() -> f64 {
    BEGINNING.1
}

/// A kind of collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// A unit's weights from the masters of all ranks.
    AllGather,
    /// A unit's gradient into the shards of all ranks.
    ReduceScatter,
    /// A shard's gradient over the replicas.
    AllReduceGradient,
    /// A few numbers of a step.
    AllReduce,
    /// Blocks from every rank to every other.
    AllToAll,
    /// Bytes from one rank to all.
    Broadcast,
    /// Bytes from all ranks to all.
    AllGatherBytes,
    /// Nothing but the meeting.
    Barrier,
    /// Smaller groups from a group.
    Split,
}

impl Operation {
    const COUNT: usize = Operation::Split as usize + 1;
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Operation::AllGather => "all-gather",
            Operation::ReduceScatter => "reduce-scatter",
            Operation::AllReduceGradient => "all-reduce of the gradient",
            Operation::AllReduce => "all-reduce",
            Operation::AllToAll => "all-to-all",
            Operation::Broadcast => "broadcast",
            Operation::AllGatherBytes => "all-gather of bytes",
            Operation::Barrier => "barrier",
            Operation::Split => "split",
        })
    }
}

/// What a collective is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// A sharded unit, by its index in the model.
    Unit(usize),
    /// Anything else.
    Label(Cow<'static, str>),
}

impl Label {
    pub(crate) fn named(label: &'static str) -> Self {
        Label::Label(label.into())
    }
}

/// A collective as all its ranks must make it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Call {
    /// The group: `world`, or the name that it got when it was split off.
    pub group: Cow<'static, str>,
    /// The kind of collective.
    pub operation: Operation,
    /// What it is about.
    #[serde(flatten)]
    pub label: Label,
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            Label::Unit(unit) => write!(formatter, "{} of unit {unit}", self.operation)?,
            Label::Label(label) => write!(formatter, "{} '{label}'", self.operation)?,
        }
        match self.group.as_ref() {
            "world" => Ok(()),
            group => write!(formatter, " in group {group}"),
        }
    }
}

/// One collective of one rank. Times are seconds since the process began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which of this rank's collectives it is, from 0.
    pub sequence: u64,
    /// What was called.
    #[serde(flatten)]
    pub call: Call,
    /// Bytes of the buffer that it works on, on this rank.
    pub bytes: u64,
    /// When it was called.
    pub queued: f64,
    /// When the ranks before it were done with; `None` if that has not come.
    pub started: Option<f64>,
    /// The same by the wall clock, in seconds since 1970.
    pub started_unix: Option<f64>,
    /// When it was complete; `None` if it is not, or failed.
    pub finished: Option<f64>,
}

impl fmt::Display for Record {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "number {}, {}", self.sequence, self.call)
    }
}

/// What all collectives of one kind cost this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// How many were completed.
    pub calls: u64,
    /// Bytes that this rank sent to others: its data, without the headers by which ranks compare what they call.
    pub bytes_sent: u64,
    /// For how long they ran.
    pub ran: Duration,
    /// For how long a caller stood and waited for them: what was not hidden behind compute.
    pub waited: Duration,
}

impl Totals {
    /// What was added since an earlier look.
    pub fn since(&self, before: Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            bytes_sent: self.bytes_sent - before.bytes_sent,
            ran: self.ran - before.ran,
            waited: self.waited - before.waited,
        }
    }

    /// The share of the time that was hidden behind compute; 1 if nothing ran.
    pub fn hidden_share(&self) -> f64 {
        if self.ran.is_zero() {
            return 1.0;
        }
        (1.0 - self.waited.as_secs_f64() / self.ran.as_secs_f64()).max(0.0)
    }
}

/// A rank's last collectives, and the totals of all.
pub struct Recorder {
    rank: usize,
    world_size: usize,
    state: Mutex<State>,
}

struct State {
    next: u64,
    ring: VecDeque<Record>,
    totals: [Totals; Operation::COUNT],
    /// When a collective was last completed.
    progress: f64,
    /// Who knows which ranks the collective under way still lacks.
    peers: Option<Arc<dyn Peers>>,
    /// The oldest collective that is not complete, by its number and since when it could have been running, and how
    /// long it has been watched since.
    watched: Option<(u64, f64, Duration)>,
    /// For how many seconds the process last stood still, and until when.
    stood_still: Option<(f64, f64)>,
}

/// A collective that is not complete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wait {
    pub record: Record,
    /// For how long it has been watched, as the watcher counts.
    pub watched: Duration,
    /// Ranks of the world that are known not to have come to it.
    pub absent: Vec<usize>,
}

impl State {
    fn record(&mut self, sequence: u64) -> Option<&mut Record> {
        let first = self.ring.front()?.sequence;
        self.ring.get_mut(usize::try_from(sequence.checked_sub(first)?).ok()?)
    }
}

impl Recorder {
    pub(crate) fn new(rank: usize, world_size: usize) -> Self {
        let ring = VecDeque::with_capacity(CAPACITY);
        let progress = seconds();
        let totals = [Totals::default(); Operation::COUNT];
        let state = State { next: 0, ring, totals, progress, peers: None, watched: None, stood_still: None };
        Self { rank, world_size, state: Mutex::new(state) }
    }

    /// Every update leaves the state whole, so one that a panic cut off does no harm.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rank, in the world.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The ranks of the world.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// The last collectives, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.state().ring.iter().cloned().collect()
    }

    /// For how many seconds this rank's process has just stood still: it was stopped, or its machine stalled. That is
    /// told for twice as long as it lasted: the others run into their deadlines meanwhile.
    pub(crate) fn stood_still(&self) -> Option<f64> {
        let (lasted, until) = self.state().stood_still?;
        (seconds() - until < 2.0 * lasted).then_some(lasted)
    }

    pub(crate) fn note_standstill(&self, time: Duration) {
        self.state().stood_still = Some((time.as_secs_f64(), seconds()));
    }

    /// What all collectives of a kind cost so far.
    pub fn totals(&self, operation: Operation) -> Totals {
        self.state().totals[operation as usize]
    }

    /// The last collective that was called.
    pub(crate) fn last(&self) -> Option<Record> {
        self.state().ring.back().cloned()
    }

    /// The oldest collective that is not complete, watched for `counted` longer than at the last look, as far as it
    /// could have been running then.
    pub(crate) fn watch(&self, counted: Duration) -> Option<Wait> {
        let mut state = self.state();
        let Some(record) = state.ring.iter().find(|record| record.finished.is_none()).cloned() else {
            state.watched = None;
            return None;
        };
        // Behind others in the queue, a collective is not late as long as they go on.
        let since = record.started.unwrap_or(record.queued.max(state.progress));
        let watched = match state.watched {
            Some((sequence, began, watched)) if (sequence, began) == (record.sequence, since) => {
                watched + counted
            }
            _ => counted.min(Duration::from_secs_f64((seconds() - since).max(0.0))),
        };
        state.watched = Some((record.sequence, since, watched));
        let absent = match (record.started, &state.peers) {
            (Some(_), Some(peers)) => peers.absent(),
            _ => Vec::new(),
        };
        Some(Wait { record, watched, absent })
    }

    pub(crate) fn queue(&self, call: Call, bytes: usize) -> u64 {
        let mut state = self.state();
        let sequence = state.next;
        state.next += 1;
        if state.ring.len() == CAPACITY {
            state.ring.pop_front();
        }
        let (queued, bytes) = (seconds(), bytes as u64);
        state.ring.push_back(Record {
            sequence,
            call,
            bytes,
            queued,
            started: None,
            started_unix: None,
            finished: None,
        });
        sequence
    }

    pub(crate) fn start(&self, sequence: u64, peers: Option<Arc<dyn Peers>>) {
        let mut state = self.state();
        state.peers = peers;
        if let Some(record) = state.record(sequence) {
            record.started = Some(seconds());
            record.started_unix = Some(unix_seconds());
        }
    }

    pub(crate) fn finish(&self, sequence: u64, bytes_sent: u64) {
        let mut state = self.state();
        let now = seconds();
        state.progress = now;
        let Some(record) = state.record(sequence) else { return };
        record.finished = Some(now);
        let ran = now - record.started.unwrap_or(now);
        let operation = record.call.operation;
        let totals = &mut state.totals[operation as usize];
        totals.calls += 1;
        totals.bytes_sent += bytes_sent;
        totals.ran += Duration::from_secs_f64(ran.max(0.0));
    }

    pub(crate) fn waited(&self, operation: Operation, time: Duration) {
        self.state().totals[operation as usize].waited += time;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn call(unit: usize) -> Call {
        Call { group: "world".into(), operation: Operation::AllGather, label: Label::Unit(unit) }
    }

    #[test]
    fn the_ring_keeps_the_last_collectives() {
        let recorder = Recorder::new(0, 1);
        for unit in 0..CAPACITY + 10 {
            let sequence = recorder.queue(call(unit), 8);
            recorder.start(sequence, None);
            recorder.finish(sequence, 3);
        }
        let records = recorder.records();
        assert_eq!((records.len(), records[0].sequence), (CAPACITY, 10));
        assert!(records.iter().all(|record| record.finished.is_some()));
        let totals = recorder.totals(Operation::AllGather);
        let calls = (CAPACITY + 10) as u64;
        assert_eq!((totals.calls, totals.bytes_sent), (calls, 3 * calls));
    }

    #[test]
    fn what_nobody_waited_for_was_hidden() {
        let share = |ran, waited| {
            let (ran, waited) = (Duration::from_secs(ran), Duration::from_secs(waited));
            Totals { calls: 1, bytes_sent: 0, ran, waited }.hidden_share()
        };
        // A caller that waits for the collectives before its own too waits longer than that one runs.
        assert_eq!([share(4, 1), share(4, 0), share(4, 5), share(0, 0)], [0.75, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn a_collective_is_watched_by_its_own_time_not_by_that_of_the_queue() {
        let recorder = Recorder::new(0, 1);
        let look = |counted| {
            let wait = recorder.watch(Duration::from_millis(counted))?;
            Some((wait.record.sequence, wait.watched.as_millis()))
        };
        assert_eq!(look(0), None);
        let (first, second) = (recorder.queue(call(0), 0), recorder.queue(call(1), 0));
        recorder.start(first, None);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!([look(10), look(300)], [Some((first, 10)), Some((first, 310))]);
        std::thread::sleep(Duration::from_millis(20));
        recorder.finish(first, 0);
        let (sequence, watched) = look(10_000).unwrap();
        assert_eq!(sequence, second, "nobody has begun with it");
        assert!(watched < 10_000, "it has not been watched for long: {watched}");
        std::thread::sleep(Duration::from_millis(20));
        recorder.start(second, None);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(look(10), Some((second, 10)), "it has begun only now");
    }

    #[test]
    fn the_clock_of_a_process_that_stood_still_is_no_reason_to_be_late() {
        let recorder = Recorder::new(0, 1);
        recorder.start(recorder.queue(call(0), 0), None);
        std::thread::sleep(Duration::from_millis(100));
        // The watcher counts what it was awake for.
        let wait = recorder.watch(Duration::from_millis(30)).unwrap();
        assert_eq!(wait.watched, Duration::from_millis(30));
    }
}
