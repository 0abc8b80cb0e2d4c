//! Ranks as processes over Open MPI, on one host or many: `mpirun -n 4 …`, `srun --mpi=pmix …`.
//!
//! The communication thread of a rank initialises MPI and is the only one that calls it, so that funnelled threading,
//! which every MPI has, is enough. Sums are taken here, in the order of the ranks, and not by MPI, whose order depends
//! on the algorithm that it picks: the bits are those of as many threads in one process. What is moved is what
//! a reduction by MPI would move.

mod transport;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::environment::initialize_with_threading;

use crate::error::DistError;
use crate::group::Group;
use crate::host::{HostGroup, Transport, WORLD, Worker};
use transport::MpiTransport;

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
    let peers = started.peers;
    Ok((Box::new(HostGroup { name: WORLD, rank, world_size, worker, index: 0, peers }), session))
}

impl Session {
    /// Leaves the job in good order, which waits for the others to do so too. A process that ends in failure should
    /// not call this: `mpirun` then ends the others.
    pub fn finish(self) -> Result<(), DistError> {
        let rank = self.worker.recorder.rank();
        self.worker.finish();
        self.thread.join().map_err(|_| DistError::Ended { rank })
    }
}
