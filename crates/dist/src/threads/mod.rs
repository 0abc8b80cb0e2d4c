//! Ranks in one process, each on threads of its own: `devices: cpu:4`.
//!
//! A collective is a meeting. Each rank lays what it has to give on the board, as a shared reference; when all are
//! there each reads what it needs of the others'; when all have read, each takes its own back. Nothing is copied but
//! into its destination, and nobody writes what another still reads.

mod board;
mod transport;

use std::sync::Arc;

use crate::error::DistError;
use crate::group::Group;
use crate::host::{HostGroup, Transport, WORLD, Worker};
use crate::watchdog::Deadline;
use board::Board;
use transport::ThreadTransport;

/// The group of `world_size` ranks of this process, as each of them sees it; each goes to a thread of its own. A rank
/// that has not come to a collective when the `deadline` is over fails it for all, by name.
///
/// # Errors
/// When the system starts no more threads.
pub fn groups(world_size: usize, deadline: &Deadline) -> Result<Vec<Box<dyn Group>>, DistError> {
    let board = Arc::new(Board::new((0..world_size).collect(), deadline.clone()));
    (0..world_size)
        .map(|rank| {
            let transport = ThreadTransport::new(board.clone(), rank);
            let started =
                Worker::start(deadline.get(), move || Ok(Box::new(transport) as Box<dyn Transport>))?;
            // Not joined: a rank that stands still must not keep the others from ending.
            drop(started.thread);
            let (worker, peers) = (started.worker, started.peers);
            Ok(Box::new(HostGroup { name: WORLD, rank, world_size, worker, index: 0, peers }) as _)
        })
        .collect()
}
