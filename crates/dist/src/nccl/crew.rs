//! The ranks of one process, which know more of one another than NCCL tells.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::DistError;
use crate::host::{Failure, Peers};
use crate::recorder::Call;

/// What the ranks of this process share.
pub(super) struct Crew {
    /// The ranks that are here, in the world.
    ranks: Vec<usize>,
    board: Mutex<Board>,
}

#[derive(Default)]
struct Board {
    meetings: BTreeMap<Meeting, Attendance>,
    /// Ranks that make no more collectives; those that they have come to they complete.
    left: Vec<usize>,
    /// Why none of the ranks makes any more: what was told first.
    failure: Option<Failure>,
}

/// Which collective of which group. All its ranks count alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Meeting {
    /// What stands for the group.
    pub group: u64,
    /// How many collectives of the group there were before.
    pub number: u64,
}

/// Who of this process's ranks has come how far in a collective.
struct Attendance {
    /// Who came first, and what it calls.
    first: (usize, Call),
    called: Vec<usize>,
    begun: Vec<usize>,
    done: usize,
}

impl Crew {
    pub fn new(ranks: Vec<usize>) -> Self {
        Self { ranks, board: Mutex::default() }
    }

    /// Every update leaves the board whole.
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No further collective will be complete.
    pub fn fail(&self, failure: Failure) {
        self.board().failure.get_or_insert(failure);
    }

    pub fn failure(&self) -> Option<Failure> {
        self.board().failure.clone()
    }

    /// A rank makes no more collectives.
    pub fn leave(&self, rank: usize) {
        self.board().left.push(rank);
    }

    /// `rank` comes to a collective. Fails if another rank that is here has come with another call: NCCL itself would join
    /// whatever they call.
    pub fn come(&self, meeting: Meeting, rank: usize, call: &Call) -> Result<(), DistError> {
        let mut board = self.board();
        let new =
            || Attendance { first: (rank, call.clone()), called: Vec::new(), begun: Vec::new(), done: 0 };
        let attendance = board.meetings.entry(meeting).or_insert_with(new);
        if attendance.first.1 != *call {
            return Err(DistError::Mismatch { one: (rank, call.clone()), other: attendance.first.clone() });
        }
        attendance.called.push(rank);
        Ok(())
    }

    /// The GPU of `rank` has come to it.
    pub fn begin(&self, meeting: Meeting, rank: usize) {
        if let Some(attendance) = self.board().meetings.get_mut(&meeting) {
            attendance.begun.push(rank);
        }
    }

    /// It is complete for one of the `members`.
    pub fn finish(&self, meeting: Meeting, members: &[usize]) {
        let mut board = self.board();
        let Some(attendance) = board.meetings.get_mut(&meeting) else { return };
        attendance.done += 1;
        if attendance.done == self.here(members).count() {
            board.meetings.remove(&meeting);
        }
    }

    /// Those of the `members` that are ranks of this process.
    fn here<'a>(&'a self, members: &'a [usize]) -> impl Iterator<Item = usize> {
        self.ranks.iter().copied().filter(|rank| members.contains(rank))
    }

    /// A member that has left without having come to a collective.
    pub fn gone(&self, meeting: Meeting, members: &[usize]) -> Option<usize> {
        let board = self.board();
        let called =
            board.meetings.get(&meeting).map(|attendance| &attendance.called[..]).unwrap_or_default();
        self.here(members).find(|rank| board.left.contains(rank) && !called.contains(rank))
    }

    /// Members that are known not to have come to a collective: those that have not called it, or, if all here have, those
    /// whose GPU still stands in what comes before it.
    pub fn absent(&self, meeting: Meeting, members: &[usize]) -> Vec<usize> {
        let board = self.board();
        let Some(attendance) = board.meetings.get(&meeting) else { return Vec::new() };
        let without = |ranks: &[usize]| self.here(members).filter(|rank| !ranks.contains(rank)).collect();
        let silent: Vec<usize> = without(&attendance.called);
        if silent.is_empty() { without(&attendance.begun) } else { silent }
    }
}

/// A collective under way, for whoever asks which ranks it lacks.
pub(super) struct UnderWay {
    pub crew: Arc<Crew>,
    pub meeting: Meeting,
    pub members: Arc<[usize]>,
}

impl Peers for UnderWay {
    fn absent(&self) -> Vec<usize> {
        self.crew.absent(self.meeting, &self.members)
    }

    fn give_up(&self, failure: Failure) {
        self.crew.fail(failure);
    }
}
