//! What can go wrong between ranks.

use std::path::PathBuf;

use tessera_files::FileError;
use tessera_ops::OpError;

use crate::recorder::Call;

/// A collective or an access to a sharded unit failed.
#[derive(Debug, thiserror::Error)]
pub enum DistError {
    /// A buffer could not be had, or a view did not fit.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The flight recorder's files could not be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The step loop holds more units at once than there are slots for.
    #[error("no slot is free to gather unit {unit}: more units are held at once than there are slots")]
    NoFreeSlot {
        /// The unit's index.
        unit: usize,
    },
    /// The masters have changed under weights that are in use.
    #[error("the masters changed while the gathered weights of unit {unit} were held")]
    StillHeld {
        /// The unit's index.
        unit: usize,
    },
    /// A thread panicked while it held a unit, whose content can no longer be trusted.
    #[error("a thread failed while it held sharded unit {unit}; its content cannot be trusted any more")]
    Abandoned {
        /// The unit's index.
        unit: usize,
    },
    /// The same, found out by a collective.
    #[error("a thread failed while it held what {call} works on; its content cannot be trusted any more")]
    Held {
        /// The collective.
        call: Call,
    },
    /// A rank is no longer there.
    #[error("rank {rank} is gone, {reason}: {call} cannot be completed")]
    Lost {
        /// The rank, in the world.
        rank: usize,
        /// How it went.
        reason: String,
        /// What another rank wanted of it.
        call: Call,
    },
    /// Ranks did not come to a collective in time.
    #[error("{ranks} did not come to {call} within {seconds} s", ranks = name_late(ranks))]
    Late {
        /// The ranks, in the world; none where it is not known which.
        ranks: Vec<usize>,
        /// What the others waited in.
        call: Call,
        /// The deadline.
        seconds: f64,
    },
    /// The processes of a job did not find one another.
    #[error(
        "not all processes of the job have joined within {seconds} s (dist_startup_timeout){}",
        missing_from_the_start(missing)
    )]
    Unjoined {
        /// The deadline.
        seconds: f64,
        /// Those that show no sign of life, where that is known.
        missing: Vec<usize>,
    },
    /// The processes of a job did not leave it together.
    #[error(
        "the processes of the job have not all left it within {seconds} s: one stands still at the end of the run, or has \
         ended before"
    )]
    Unparted {
        /// How long this one waited.
        seconds: f64,
    },
    /// Ranks make different collectives, which would never end.
    #[error("ranks do not make the same collectives: rank {} makes {}, rank {} {}", one.0, one.1, other.0, other.1)]
    Mismatch {
        /// A rank of the world and what it calls.
        one: (usize, Call),
        /// Another rank and what it calls instead.
        other: (usize, Call),
    },
    /// After a failed collective no other can be made.
    #[error("rank {rank} makes no more collectives since one failed: {reason}")]
    Broken {
        /// The rank, in the world.
        rank: usize,
        /// The first failure.
        reason: String,
    },
    /// The thread that makes this rank's collectives has ended.
    #[error("rank {rank} has ended its part in the collectives")]
    Ended {
        /// The rank, in the world.
        rank: usize,
    },
    /// A buffer does not have the extent that the collective calls for.
    #[error("{call}: {what} has an extent of {found}, expected {expected}")]
    Extent {
        /// The collective.
        call: Call,
        /// Which buffer.
        what: &'static str,
        /// Its elements, or ranks.
        found: usize,
        /// What they must be.
        expected: String,
    },
    /// The degrees of parallelism do not make up the ranks.
    #[error(
        "parallel: shard {shard} × replicate {replicate} × context {context} does not make {world_size} ranks"
    )]
    Degrees {
        /// Ranks that share one copy, by weights alone.
        shard: usize,
        /// Copies.
        replicate: usize,
        /// Ranks that share one sequence.
        context: usize,
        /// The ranks there are.
        world_size: usize,
    },
    /// The operating system starts no further thread.
    #[error("cannot start a thread for {purpose}: {source}")]
    Thread {
        /// What it was for.
        purpose: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the flight recorder is not one.
    #[error("{path}, line {line}: not a record of collectives ({reason})", path = path.display())]
    Ring {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder without a single ring.
    #[error(
        "{folder} holds no rank-<number>.jsonl: no watchdog has written there, so no collective of this run passed its \
         deadline",
        folder = folder.display()
    )]
    NoRings {
        /// The folder.
        folder: PathBuf,
    },
    /// NCCL cannot be used on this machine.
    #[error("{0}")]
    NoNccl(String),
    /// NCCL failed.
    #[error("NCCL: {doing} failed: {message}")]
    Nccl {
        /// What was being done.
        doing: &'static str,
        /// What NCCL says.
        message: String,
    },
    /// The processes of a run cannot meet.
    #[error("rendezvous at {address}: {reason}")]
    Rendezvous {
        /// Where they meet.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// Processes of a run did not come to the meeting.
    #[error(
        "rendezvous at {address}: {} of the run did not come within {seconds} s (dist_startup_timeout)",
        name_processes(processes)
    )]
    Unmet {
        /// Where they meet.
        address: String,
        /// The processes, counted from 0.
        processes: Vec<usize>,
        /// The deadline.
        seconds: f64,
    },
    /// MPI cannot be used as this crate needs it.
    #[cfg(feature = "mpi")]
    #[error("MPI: {0}")]
    Mpi(&'static str),
}

impl DistError {
    /// Whether a rank lost another: it is gone or late, or has failed itself.
    pub fn is_between_ranks(&self) -> bool {
        matches!(
            self,
            Self::Lost { .. }
                | Self::Late { .. }
                | Self::Unjoined { .. }
                | Self::Unparted { .. }
                | Self::Mismatch { .. }
                | Self::Broken { .. }
                | Self::Ended { .. }
                | Self::Nccl { .. }
                | Self::Rendezvous { .. }
                | Self::Unmet { .. }
        )
    }
}

fn missing_from_the_start(missing: &[usize]) -> String {
    match missing {
        [] => ": one did not start, or ended before it could join".to_owned(),
        ranks => format!(
            ": nothing is seen of {}, which did not start, ended before it could join, stands still, or sees another \
             save_folder",
            name_ranks(ranks)
        ),
    }
}

/// `rank 3`, `ranks 0 and 2`, `ranks 0, 1 and 2`.
pub(crate) fn name_ranks(ranks: &[usize]) -> String {
    name_numbers("rank", "ranks", ranks)
}

fn name_processes(processes: &[usize]) -> String {
    name_numbers("process", "processes", processes)
}

fn name_late(ranks: &[usize]) -> String {
    if ranks.is_empty() { "a rank that cannot be told".to_owned() } else { name_ranks(ranks) }
}

fn name_numbers(one: &str, several: &str, numbers: &[usize]) -> String {
    let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    match numbers {
        [] => format!("no {one}"),
        [number] => format!("{one} {number}"),
        [before @ .., last] => format!("{several} {} and {last}", list(before)),
    }
}
