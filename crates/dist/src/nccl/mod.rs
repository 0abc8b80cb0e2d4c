//! Ranks on GPUs, over NCCL: one thread for each GPU of a process, or one process for each GPU, on one host or many.
//!
//! **One order.** NCCL wants the operations of a communicator issued in one order on all ranks, and two communicators whose
//! kernels wait for each other's turn on a GPU can deadlock. So a rank has one communication stream, on which the
//! collectives of all its groups run in the order of their calls; every rank makes the same calls in the same order, and
//! at any time a GPU holds one kernel of NCCL at most. Nothing is lost by that: gathers and reductions share the same
//! links, and while one unit computes, the stream reduces the last one and then gathers the next.
//!
//! **Order by events.** A collective waits, on the stream, for an event that the caller's queue had come to at the call, and
//! whoever waits for a collective lets the caller's queue wait for an event after it; the host waits for neither. The
//! locks around masters and gradients are held only while work on them is *issued*. What keeps that work in order:
//! - Masters are read by the gathers' first step on the stream and written by the optimizer on the compute queue. A gather
//!   comes after all updates issued before its call, by the event of the call. An update comes after all gathers, because
//!   [`crate::Units::change`] has waited for those that were still on their way, and those that had arrived were
//!   waited for when they were asked for.
//! - A reduction adds to a shard's gradient on the stream; it is read and cleared on the compute queue after
//!   [`crate::Units::finish_reductions`] has waited for all, and the next reduction comes after the clearing by the event of
//!   its call.
//! - A slot is filled on the stream after what the compute queue did in it before the call, and used, given back or freed
//!   after it was waited for.
//!
//! **Bits.** Algorithm and protocol are pinned, unless the user's environment chooses them, so that sums are taken in an order
//! that follows from the ranks, their topology and the size alone.
//!
//! **Faults.** Communicators are non-blocking, so that no call waits for peers. What does not end by the deadline is given up
//! by the rank's communication thread, which aborts its communicators so that nobody stands in a synchronisation of the GPU;
//! the watchdog knows of every collective through the recorder. Who is missing can be told of ranks of this process; of
//! others NCCL says nothing, and the rings do.

mod crew;
mod group;
mod lane;
mod library;
mod member;
mod rounded;
mod staging;

use std::sync::Arc;
use std::sync::mpsc::channel;

use tessera_ops::cuda::Gpu;

use crate::error::DistError;
use crate::group::Group;
use crate::host::WORLD;
use crate::recorder::Recorder;
use crate::watchdog::Deadline;
use crew::Crew;
use group::NcclGroup;
pub use library::{UniqueId, version};
use member::{Member, State};
pub use staging::STAGING_BYTES;

/// The group of `world_size` ranks, as each rank of this process sees it: one for each of `gpus`, of which the first is rank
/// `first_rank`. Each goes to a thread of its own. All processes call this with the same `id`; a rank that has not come to
/// a collective when the `deadline` is over fails it for all.
///
/// # Errors
/// When there is no NCCL, another process does not join within the deadline, or a thread cannot be started.
pub fn groups(
    gpus: &[Arc<Gpu>],
    first_rank: usize,
    world_size: usize,
    id: &UniqueId,
    deadline: &Deadline,
) -> Result<Vec<Box<dyn Group>>, DistError> {
    let recorders: Vec<_> =
        (0..gpus.len()).map(|index| Arc::new(Recorder::new(first_rank + index, world_size))).collect();
    let crew = Arc::new(Crew::new(recorders.iter().map(|recorder| recorder.rank()).collect()));
    let (join, joined) = channel();
    let members = gpus.iter().zip(recorders).map(|(gpu, recorder)| {
        let state = Arc::new(State::new(recorder, crew.clone(), deadline.clone()));
        Member::start(gpu, *id, state, join.clone())
    });
    let members: Vec<Member> = members.collect::<Result<_, _>>()?;
    drop(join);
    // The first to fail says why; it lets the others give up.
    joined.iter().take(members.len()).collect::<Result<(), _>>()?;
    let group = |(index, member)| {
        let (name, rank, member) = (WORLD, first_rank + index, Arc::new(member));
        Box::new(NcclGroup { name, rank, world_size, member, index: 0 }) as Box<dyn Group>
    };
    Ok(members.into_iter().enumerate().map(group).collect())
}
