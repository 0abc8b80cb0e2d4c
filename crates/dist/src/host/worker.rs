//! The communication thread of a rank.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[cfg(feature = "mpi")]
use super::group::WORLD;
use super::transport::{Failure, Peers, Transport};
use crate::error::DistError;
use crate::group::Pending;
use crate::recorder::{Call, Recorder};
#[cfg(feature = "mpi")]
use crate::recorder::{Label, Operation};

/// What the thread is given to do.
type Job = Box<dyn FnOnce(&mut Table) + Send>;

/// The thread's transports, one for each group of the rank, the world's first.
pub(super) struct Table {
    pub transports: Vec<Box<dyn Transport>>,
    /// Why nothing more is done.
    broken: Option<String>,
}

impl Table {
    /// Makes one collective, unless an earlier one has failed: its peers may be anywhere by now.
    fn run<T>(
        &mut self,
        recorder: &Recorder,
        sequence: u64,
        group: usize,
        collective: impl FnOnce(&mut Table) -> Result<T, DistError>,
    ) -> Result<T, DistError> {
        if let Some(reason) = &self.broken {
            return Err(DistError::Broken { rank: recorder.rank(), reason: reason.clone() });
        }
        recorder.start(sequence, self.transports[group].peers());
        match collective(self) {
            Ok(value) => {
                recorder.finish(sequence, self.transports[group].take_sent());
                Ok(value)
            }
            Err(error) => {
                for peers in self.transports.iter().filter_map(|transport| transport.peers()) {
                    peers.give_up(Failure::of(&error, recorder.rank()));
                }
                self.broken = Some(error.to_string());
                Err(error)
            }
        }
    }
}

/// A rank's communication thread, as its groups see it. It ends when the last of them is gone and its queue is empty.
pub(crate) struct Worker {
    /// `None` once the rank has ended its part.
    jobs: Mutex<Option<Sender<Job>>>,
    pub recorder: Arc<Recorder>,
}

/// A thread that has met its peers.
pub(crate) struct Started {
    pub worker: Arc<Worker>,
    pub thread: JoinHandle<()>,
    /// What is known of the other ranks.
    pub peers: Option<Arc<dyn Peers>>,
}

impl Worker {
    /// Starts the thread of a rank, which makes its way to the others with `connect`, in as long as `patience`.
    pub fn start(
        patience: Duration,
        connect: impl FnOnce() -> Result<Box<dyn Transport>, DistError> + Send + 'static,
    ) -> Result<Started, DistError> {
        const PURPOSE: &str = "collectives";
        let (sender, receiver) = channel();
        let (introduce, introduced) = sync_channel(1);
        let thread = thread::Builder::new()
            .name(PURPOSE.to_owned())
            .spawn(move || match connect() {
                Ok(world) => {
                    let recorder = Arc::new(Recorder::new(world.rank(), world.world_size()));
                    // Whoever started the thread waits for this.
                    let _ = introduce.send(Ok((recorder, world.peers())));
                    serve(Table { transports: vec![world], broken: None }, &receiver);
                }
                Err(error) => {
                    let _ = introduce.send(Err(error));
                }
            })
            .map_err(|source| DistError::Thread { purpose: PURPOSE, source })?;
        let (recorder, peers) = introduced.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                DistError::Unjoined { seconds: patience.as_secs_f64(), missing: Vec::new() }
            }
            RecvTimeoutError::Disconnected => DistError::Ended { rank: 0 },
        })??;
        let worker = Arc::new(Self { jobs: Mutex::new(Some(sender)), recorder });
        Ok(Started { worker, thread, peers })
    }

    /// Queues a collective of the `group`-th group.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        group: usize,
        call: Call,
        bytes: usize,
        collective: impl FnOnce(&mut Table, &Call) -> Result<T, DistError> + Send + 'static,
    ) -> Result<Pending<T>, DistError> {
        let operation = call.operation;
        let ended = DistError::Ended { rank: self.recorder.rank() };
        let (answer, answered) = sync_channel(1);
        let recorder = self.recorder.clone();
        // The order of the queue is that of the sequence numbers.
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = jobs.as_ref() else { return Err(ended) };
        let sequence = recorder.queue(call.clone(), bytes);
        let run = move |table: &mut Table| {
            let result = table.run(&recorder, sequence, group, |table| collective(table, &call));
            // A collective that nobody waits for has nobody to tell.
            let _ = answer.send(result);
        };
        if sender.send(Box::new(run)).is_err() {
            return Err(ended);
        }
        drop(jobs);
        let recorder = self.recorder.clone();
        Ok(Pending::under_way(move || {
            let since = Instant::now();
            let result = answered.recv();
            recorder.waited(operation, since.elapsed());
            result.unwrap_or(Err(ended))
        }))
    }

    /// Queues a meeting of all ranks after which the thread ends.
    #[cfg(feature = "mpi")]
    pub fn finish(&self) -> Result<Pending<()>, DistError> {
        let label = Label::Label("end of the run".into());
        let call = Call { group: WORLD.into(), operation: Operation::Barrier, label };
        let met = self.submit(0, call, 0, |table, call| table.transports[0].barrier(call));
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
        met
    }

    /// Queues something that is no collective.
    #[cfg(feature = "mpi")]
    pub fn interject(&self, job: impl FnOnce() + Send + 'static) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = jobs.as_ref() {
            // A thread that has ended does nothing any more.
            let _ = sender.send(Box::new(|_| job()));
        }
    }
}

fn serve(mut table: Table, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        job(&mut table);
    }
}
