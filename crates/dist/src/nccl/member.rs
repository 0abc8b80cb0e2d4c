//! A rank as its groups see it: the way to its communication thread, and what is known when that has ended.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use tessera_ops::Queue;
use tessera_ops::cuda::Gpu;

use super::crew::Crew;
use super::lane::{Collective, Lane, PATIENCE, Queued};
use super::library::UniqueId;
use crate::error::DistError;
use crate::host::Failure;
use crate::recorder::{Call, Operation, Recorder};
use crate::watchdog::Deadline;

/// What the thread is given to do.
pub(super) type Job = Box<dyn FnOnce(&mut Lane) + Send>;

/// What a rank's threads know of it.
pub(super) struct State {
    pub recorder: Arc<Recorder>,
    pub crew: Arc<Crew>,
    pub deadline: Deadline,
    /// Set once no more collectives are made.
    ended: Mutex<Option<Ended>>,
}

struct Ended {
    /// What went wrong, until somebody has been told.
    error: Option<DistError>,
    reason: String,
}

impl State {
    pub fn new(recorder: Arc<Recorder>, crew: Arc<Crew>, deadline: Deadline) -> Self {
        Self { recorder, crew, deadline, ended: Mutex::default() }
    }

    /// Fails if a collective has failed.
    pub fn check(&self) -> Result<(), DistError> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ended) = ended.as_mut() else { return Ok(()) };
        let broken = DistError::Broken { rank: self.recorder.rank(), reason: ended.reason.clone() };
        Err(ended.error.take().unwrap_or(broken))
    }

    pub fn has_ended(&self) -> bool {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What went wrong is `error`, which the caller tells if it is given back.
    pub fn end(&self, error: DistError, is_told: bool) -> Option<DistError> {
        self.crew.fail(Failure::of(&error, self.recorder.rank()));
        let reason = error.to_string();
        let (kept, told) = if is_told { (None, Some(error)) } else { (Some(error), None) };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.get_or_insert(Ended { error: kept, reason });
        told
    }
}

/// A rank's communication thread, as its groups see it. It ends when the last of them is gone and its stream is empty.
pub(super) struct Member {
    pub state: Arc<State>,
    /// `None` once it is to end.
    jobs: Mutex<Option<Sender<Job>>>,
    left: Mutex<Receiver<()>>,
}

impl Member {
    /// Starts the thread of a rank, which sends whether it has joined the others.
    pub fn start(
        gpu: &Arc<Gpu>,
        id: UniqueId,
        state: Arc<State>,
        joined: Sender<Result<(), DistError>>,
    ) -> Result<Self, DistError> {
        const PURPOSE: &str = "collectives";
        let (sender, jobs) = channel();
        let (leave, left) = channel();
        let (gpu, shared) = (gpu.clone(), state.clone());
        let run = move || {
            let lane = Lane::join(&gpu, &id, shared.clone());
            match lane {
                Ok(lane) => {
                    // Whoever started the thread waits for this.
                    let _ = joined.send(Ok(()));
                    drop(joined);
                    lane.serve(&jobs);
                }
                Err(error) => {
                    shared.crew.fail(Failure::of(&error, shared.recorder.rank()));
                    let _ = joined.send(Err(error));
                }
            }
            let _ = leave.send(());
        };
        let thread = thread::Builder::new().name(PURPOSE.to_owned()).spawn(run);
        thread.map_err(|source| DistError::Thread { purpose: PURPOSE, source })?;
        Ok(Self { state, jobs: Mutex::new(Some(sender)), left: Mutex::new(left) })
    }

    /// Gives the thread a collective, which is entered in the recorder. What it answers comes through the receiver.
    pub fn submit<T: Send + 'static>(
        &self,
        group: usize,
        call: Call,
        bytes: usize,
        bytes_sent: usize,
        make: impl FnOnce(&mut Lane, &Collective) -> Result<T, DistError> + Send + 'static,
    ) -> Result<Answer<T>, DistError> {
        self.state.check()?;
        if let Some(failure) = self.state.crew.failure() {
            return Err(failure.error(&call));
        }
        let (recorder, operation) = (&self.state.recorder, call.operation);
        let ended = DistError::Ended { rank: recorder.rank() };
        let (answer, answered) = channel();
        // The order of the queue is that of the sequence numbers.
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = jobs.as_ref() else { return Err(ended) };
        let sequence = recorder.queue(call.clone(), bytes);
        let job = move |lane: &mut Lane| {
            // A collective that nobody waits for has nobody to tell.
            let _ = answer.send(lane.make((sequence, call, group, bytes_sent as u64), make));
        };
        sender.send(Box::new(job)).map_err(|_| ended)?;
        Ok(Answer { answered, operation, state: self.state.clone() })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // So that a process which ends in good order does not end in the middle of it.
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = left.recv_timeout(PATIENCE);
    }
}

/// What the communication thread will say of a collective.
pub(super) struct Answer<T> {
    answered: Receiver<Result<T, DistError>>,
    operation: Operation,
    pub state: Arc<State>,
}

impl<T> Answer<T> {
    /// Waits for what the thread says: that it has queued a collective, or completed one of the host.
    pub fn receive(&self) -> Result<T, DistError> {
        let rank = self.state.recorder.rank();
        self.answered.recv().unwrap_or(Err(DistError::Ended { rank }))
    }

    /// The same, as time that the caller stood and waited.
    pub fn wait(&self) -> Result<T, DistError> {
        let since = Instant::now();
        let result = self.receive();
        self.state.recorder.waited(self.operation, since.elapsed());
        result
    }
}

impl<T> Answer<Queued<T>> {
    /// Lets `queue` wait for the collective.
    pub fn order(&self, queue: &Queue) -> Result<T, DistError> {
        let Queued { value, finished, awaited } = self.receive()?;
        let arrived = queue.record()?;
        queue.wait(&finished)?;
        *awaited.lock().unwrap_or_else(PoisonError::into_inner) = Some(arrived);
        self.state.check()?;
        Ok(value)
    }
}
