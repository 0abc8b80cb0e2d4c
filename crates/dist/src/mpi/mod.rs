//! Ranks as processes over Open MPI, on one host or many: `mpirun -n 4 …`, `srun --mpi=pmix …`.
//!
//! The communication thread of a rank initialises MPI and is the only one that calls it, so that funnelled threading,
//! which every MPI has, is enough. Sums are taken here, in the order of the ranks, and not by MPI, whose order depends
//! on the algorithm that it picks: the bits are those of as many threads in one process. What is moved is what
//! a reduction by MPI would move.

mod transport;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::environment::initialize_with_threading;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::Communicator;

use crate::error::DistError;
use crate::group::Group;
use crate::host::{HostGroup, Transport, WORLD, Worker};
use crate::waiting::Waiting;
use crate::watchdog::Deadline;
use transport::MpiTransport;

/// How long the communication thread may take to end the job before this process ends without it.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);
/// How often a thread's end is asked for.
const PAUSE: Duration = Duration::from_millis(10);

/// The process's communication thread, which alone may end the job; MPI is initialised once in a process. It is kept here so
/// that it serves until [`Session::finish`] takes its queue: a process that fails has given up its session by the time that it
/// calls [`abort`], and a thread without a queue would stand in MPI's own end, which waits for the others.
static WORKER: OnceLock<Arc<Worker>> = OnceLock::new();
/// The exit code with which the job is to be ended.
static ABORT: OnceLock<i32> = OnceLock::new();
/// Whether MPI has been left.
static LEFT: AtomicBool = AtomicBool::new(false);

/// This process's part in the MPI job.
pub struct Session {
    worker: Arc<Worker>,
    thread: JoinHandle<()>,
}

/// Joins the job that this process was started in, as one rank of the group of all, and waits as long as `patience` for the
/// others to do so. Can be done once in a process.
///
/// # Errors
/// When a process does not come, MPI is there already, or does not allow a thread of its own.
pub fn connect(patience: Duration) -> Result<(Box<dyn Group>, Session), DistError> {
    let started = Worker::start(patience, || {
        let (universe, threading) = initialize_with_threading(Threading::Funneled)
            .ok_or(DistError::Mpi("it has been initialised in this process before"))?;
        if threading < Threading::Funneled {
            return Err(DistError::Mpi("the library was built without threads (MPI_THREAD_FUNNELED)"));
        }
        Ok(Box::new(MpiTransport::new(universe)) as Box<dyn Transport>)
    })?;
    let (worker, thread) = (started.worker, started.thread);
    let (rank, world_size) = (worker.recorder.rank(), worker.recorder.world_size());
    let session = Session { worker: worker.clone(), thread };
    WORKER.get_or_init(|| worker.clone());
    let peers = started.peers;
    Ok((Box::new(HostGroup { name: WORLD, rank, world_size, worker, index: 0, peers }), session))
}

impl Session {
    /// Leaves the job in good order, which waits for the others to do so too: first in a barrier, so that a watchdog names
    /// who does not come by the `deadline`, then for MPI itself, by the deadline again. A process that ends in failure
    /// calls [`abort`] instead.
    ///
    /// # Errors
    /// When the others do not come, or the communication thread has failed.
    pub fn finish(self, deadline: &Deadline) -> Result<(), DistError> {
        let met = self.worker.finish()?;
        let mut waiting = Waiting::begin();
        while !self.thread.is_finished() {
            waiting.look();
            // The watchdog knows more and is to come first.
            let patience = deadline.get().saturating_mul(2);
            if waiting.waited() >= patience {
                return Err(DistError::Unparted { seconds: patience.as_secs_f64() });
            }
            thread::sleep(waiting.pause(PAUSE));
        }
        let rank = self.worker.recorder.rank();
        self.thread.join().map_err(|_| DistError::Ended { rank })?;
        LEFT.store(true, Ordering::Release);
        met.wait()
    }
}

/// Ends this process with an exit code and has the launcher end all others of its job, which would wait for it. Every
/// rank that fails calls this as the last thing it does: how much a launcher does by itself when a process ends depends
/// on its settings. Outside a job it only ends the process.
pub fn abort(code: i32) -> ! {
    if let Some(worker) = WORKER.get()
        && !LEFT.load(Ordering::Acquire)
    {
        let _ = ABORT.set(code);
        // The thread is idle and finds this, or is in a collective and finds the code.
        worker.interject(abort_if_wanted);
        thread::sleep(ABORT_PATIENCE);
    }
    std::process::exit(code)
}

/// Ends the job if another thread has asked for it; on the communication thread.
fn abort_if_wanted() {
    if let Some(&code) = ABORT.get() {
        SimpleCommunicator::world().abort(code);
    }
}
