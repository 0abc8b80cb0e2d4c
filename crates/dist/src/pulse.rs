//! What the heartbeats of other processes tell of them, without a look at their clocks: a heart beats if the number of
//! its beats moves while this process watches.

use std::path::Path;
use std::time::Duration;

use crate::flight::{self, Heartbeat};
use crate::recorder::Record;

/// How long the heart of a process may stand still before the process is taken for dead. It beats every second, also
/// while its ranks compute or are slow, so that far more than the longest hiccup of a shared disk lies in between; and
/// far less than the time that a live rank is waited for.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

/// How many times as long the first heartbeat may take to be seen: a network file system that has once found no file may go on
/// finding none for a minute.
const FIRST: u32 = 3;

/// The one rank that a process listens to all the time. Each listens to the next, so every rank is heard by one other,
/// and the shared folder bears it however many there are.
pub(crate) struct Neighbour {
    rank: usize,
    heartbeat: Option<Heartbeat>,
    silent: Duration,
}

impl Neighbour {
    /// That of a process with these ranks; `None` if there are no others.
    pub fn of(local: &[usize], world_size: usize) -> Option<Self> {
        let rank = (local.iter().max()? + 1) % world_size;
        (!local.contains(&rank)).then_some(Self { rank, heartbeat: None, silent: Duration::ZERO })
    }

    /// Listens, `counted` after the last time.
    pub fn listen(&mut self, folder: &Path, counted: Duration) {
        let heard = flight::read_heartbeat(folder, self.rank);
        // One that is there and cannot be read is being written, or met a full disk: not the end of a rank.
        let moved = match &heard {
            Some(_) => beats(&heard) != beats(&self.heartbeat),
            None => !flight::has_no_heartbeat(folder, self.rank),
        };
        self.silent = if moved { Duration::ZERO } else { self.silent + counted };
        self.heartbeat = heard.or(self.heartbeat.take());
    }

    /// The rank and the last collective that it is known to have called, if it has been silent for that long.
    pub fn is_silent_for(&self, silence: Duration) -> Option<(usize, Option<Record>)> {
        let patience = if self.heartbeat.is_some() { silence } else { silence * FIRST };
        let last = self.heartbeat.as_ref().and_then(|heartbeat| heartbeat.last.clone());
        (self.silent >= patience).then_some((self.rank, last))
    }
}

/// Which process has beaten, and how often.
fn beats(heartbeat: &Option<Heartbeat>) -> Option<(f64, u64)> {
    heartbeat.as_ref().map(|heartbeat| (heartbeat.header.began_unix, heartbeat.beats))
}

/// What is known of many ranks at one time.
pub(crate) struct Pulses(Vec<(usize, Option<Heartbeat>)>);

impl Pulses {
    /// Reads those of `ranks`.
    pub fn of(folder: &Path, ranks: impl Iterator<Item = usize>) -> Self {
        Self(ranks.map(|rank| (rank, flight::read_heartbeat(folder, rank))).collect())
    }

    /// The ranks that are not known to have called collective `sequence`; if all have, those whose heart has not beaten
    /// since `before`. One that beats and stands in an earlier collective waits itself, and is named only where all do. Each with
    /// the last collective that it is known to have called.
    pub fn behind(self, before: Pulses, sequence: u64) -> Vec<(usize, Option<Record>)> {
        let stands = |(rank, now, before): (usize, Option<Heartbeat>, Option<Heartbeat>)| {
            let stands = beats(&now) == beats(&before);
            // One that is just being written cannot be read.
            (rank, now.or(before).and_then(|heartbeat| heartbeat.last), stands)
        };
        let pairs = self.0.into_iter().zip(before.0);
        let ranks: Vec<_> = pairs.map(|((rank, now), (_, before))| stands((rank, now, before))).collect();
        let called = |last: &Option<Record>| last.as_ref().is_some_and(|last| last.sequence >= sequence);
        let all_called = ranks.iter().all(|(_, last, _)| called(last));
        let behind =
            ranks.into_iter().filter(|(_, last, stands)| if all_called { *stands } else { !called(last) });
        let waits = |last: &Option<Record>| {
            last.as_ref().is_some_and(|last| last.started.is_some() && last.finished.is_none())
        };
        let (wait, missing): (Vec<_>, Vec<_>) = behind.partition(|(_, last, stands)| !stands && waits(last));
        let named = if missing.is_empty() { wait } else { missing };
        named.into_iter().map(|(rank, last, _)| (rank, last)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::recorder::{Call, Label, Operation, Recorder};

    /// Writes a heartbeat of a rank that has called so many collectives.
    fn beat(folder: &Path, rank: usize, calls: usize, beats: u64) {
        let recorder = Recorder::new(rank, 5);
        for unit in 0..calls {
            let call =
                Call { group: "world".into(), operation: Operation::AllGather, label: Label::Unit(unit) };
            recorder.queue(call, 0);
        }
        flight::write_heartbeat(folder, &recorder, beats).unwrap();
    }

    #[test]
    fn ranks_are_behind_by_their_calls_or_because_they_stand_still() {
        let folder = tempfile::tempdir().unwrap();
        let behind = |before: Pulses| {
            let behind = Pulses::of(folder.path(), 1..4).behind(before, 3).into_iter();
            behind.map(|(rank, last)| (rank, last.map(|last| last.sequence))).collect::<Vec<_>>()
        };
        let before = || Pulses::of(folder.path(), 1..4);
        beat(folder.path(), 1, 3, 7);
        beat(folder.path(), 2, 4, 7);
        assert_eq!(behind(before()), [(1, Some(2)), (3, None)]);
        beat(folder.path(), 1, 4, 8);
        beat(folder.path(), 3, 5, 7);
        let before = before();
        beat(folder.path(), 1, 4, 9);
        std::fs::write(folder.path().join("heartbeat-3.json"), "").unwrap();
        assert_eq!(behind(before), [(2, Some(3))], "it has stopped in the call");
    }

    #[test]
    fn a_rank_that_waits_in_an_earlier_collective_is_not_the_one_that_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let waits = Recorder::new(1, 3);
        let call = Call { group: "world".into(), operation: Operation::AllGather, label: Label::Unit(0) };
        waits.start(waits.queue(call, 0), None);
        flight::write_heartbeat(folder.path(), &waits, 1).unwrap();
        beat(folder.path(), 2, 1, 1);
        let pulses = || Pulses::of(folder.path(), 1..3);
        let before = pulses();
        flight::write_heartbeat(folder.path(), &waits, 2).unwrap();
        let ranks = |behind: Vec<(usize, Option<Record>)>| {
            behind.into_iter().map(|(rank, _)| rank).collect::<Vec<_>>()
        };
        assert_eq!(ranks(pulses().behind(before, 1)), [2]);
        assert_eq!(ranks(pulses().behind(pulses(), 1)), [1, 2], "it stands still too");
    }

    #[test]
    fn silence_is_a_count_that_does_not_move() {
        let folder = tempfile::tempdir().unwrap();
        let mut neighbour = Neighbour::of(&[4], 5).unwrap();
        let second = Duration::from_secs(1);
        let mut hear = |seconds| {
            (0..seconds).for_each(|_| neighbour.listen(folder.path(), second));
            neighbour.is_silent_for(SILENCE).map(|(rank, last)| (rank, last.map(|last| last.sequence)))
        };
        assert_eq!(hear(89), None, "it has not been heard yet");
        assert_eq!(hear(1), Some((0, None)), "it was lost before it was heard");
        beat(folder.path(), 0, 3, 1);
        assert_eq!(hear(30), None);
        beat(folder.path(), 0, 3, 2);
        assert_eq!(hear(30), None);
        assert_eq!(hear(1), Some((0, Some(2))));
        std::fs::write(folder.path().join("heartbeat-0.json"), "").unwrap();
        assert_eq!(hear(40), None, "its disk is full");
        std::fs::remove_file(folder.path().join("heartbeat-0.json")).unwrap();
        assert_eq!(hear(29), None);
        assert_eq!(hear(1), Some((0, Some(2))), "there is none any more");
        assert!(Neighbour::of(&[0, 1], 2).is_none());
    }
}
