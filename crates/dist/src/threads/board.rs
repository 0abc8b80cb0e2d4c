//! Where the ranks of a process meet.

use std::any::Any;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::DistError;
use crate::host::Failure;
use crate::recorder::Call;
use crate::waiting::Waiting;
use crate::watchdog::Deadline;

/// What a rank lays out for the others.
struct Post {
    call: Call,
    payload: Arc<dyn Any + Send + Sync>,
}

/// The meeting place of one group. A member is a rank of the group, by its place in it.
pub(super) struct Board {
    /// The members' ranks in the world.
    ranks: Vec<usize>,
    deadline: Deadline,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Meetings that were complete.
    meetings: u64,
    /// Who has come to the next.
    here: Vec<bool>,
    posts: Vec<Option<Post>>,
    /// Why no meeting will ever be complete again.
    failure: Option<Failure>,
}

impl Board {
    pub fn new(ranks: Vec<usize>, deadline: Deadline) -> Self {
        let members = ranks.len();
        let posts = (0..members).map(|_| None).collect();
        let state = State { meetings: 0, here: vec![false; members], posts, failure: None };
        Self { ranks, deadline, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The members' ranks in the world.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// A part of the group, by members.
    pub fn part(&self, members: &[usize]) -> Self {
        Self::new(members.iter().map(|&member| self.ranks[member]).collect(), self.deadline.clone())
    }

    /// Nothing panics while it holds the lock, and every update leaves the state whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays out `payload`, lets `read` see everybody's, in the order of the members, and returns what it makes of them
    /// when all have read: from then on nobody looks at `payload` any more.
    pub fn meet<T: Send + Sync + 'static, R>(
        &self,
        member: usize,
        call: &Call,
        payload: &Arc<T>,
        read: impl FnOnce(&[Arc<T>]) -> Result<R, DistError>,
    ) -> Result<R, DistError> {
        self.state().posts[member] = Some(Post { call: call.clone(), payload: payload.clone() });
        self.arrive(member, call)?;
        let payloads = self.payloads::<T>(member, call)?;
        let result = read(&payloads)?;
        drop(payloads);
        self.arrive(member, call)?;
        self.state().posts[member] = None;
        Ok(result)
    }

    /// What everybody has laid out, if all are in the same collective.
    fn payloads<T: Send + Sync + 'static>(
        &self,
        member: usize,
        call: &Call,
    ) -> Result<Vec<Arc<T>>, DistError> {
        let state = self.state();
        let posts = state.posts.iter().enumerate().map(|(other, post)| {
            let theirs = post.as_ref().filter(|theirs| theirs.call == *call);
            theirs.and_then(|theirs| theirs.payload.clone().downcast().ok()).ok_or_else(|| {
                let theirs = post.as_ref().map_or(call, |theirs| &theirs.call);
                DistError::Mismatch {
                    one: (self.ranks[member], call.clone()),
                    other: (self.ranks[other], theirs.clone()),
                }
            })
        });
        posts.collect()
    }

    /// Waits until all members have come.
    fn arrive(&self, member: usize, call: &Call) -> Result<(), DistError> {
        let mut state = self.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone().error(call));
        }
        state.here[member] = true;
        let meeting = state.meetings;
        if state.here.iter().all(|&here| here) {
            state.here.fill(false);
            state.meetings += 1;
            self.changed.notify_all();
            return Ok(());
        }
        let mut waiting = Waiting::begin();
        // A meeting that was complete stays so, whatever became of a member since.
        while state.meetings == meeting {
            if let Some(failure) = &state.failure {
                return Err(failure.clone().error(call));
            }
            waiting.look();
            let (waited, deadline) = (waiting.waited(), self.deadline.get());
            if waited >= deadline {
                let failure = Failure::Late { ranks: self.absent(&state), seconds: deadline.as_secs_f64() };
                state.failure = Some(failure.clone());
                self.changed.notify_all();
                return Err(failure.error(call));
            }
            let pause = waiting.pause((deadline - waited).min(self.deadline.pause()));
            let woken = self.changed.wait_timeout(state, pause);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn absent(&self, state: &State) -> Vec<usize> {
        let here = self.ranks.iter().zip(&state.here);
        here.filter(|&(_, &here)| !here).map(|(&rank, _)| rank).collect()
    }

    /// Ranks of the world that the meeting under way still lacks.
    pub fn lacking(&self) -> Vec<usize> {
        self.absent(&self.state())
    }

    /// No further meeting will be complete. What was told first stays.
    pub fn fail(&self, failure: Failure) {
        let mut state = self.state();
        if state.failure.is_none() {
            state.failure = Some(failure);
            self.changed.notify_all();
        }
    }
}
