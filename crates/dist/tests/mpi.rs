//! The suite as one rank of an MPI job: `scripts/test-mpi` starts it under `mpirun`.
#![allow(clippy::unwrap_used)]

mod suite;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tessera_dist::{Deadline, Degrees, DistError, Group, Watchdog, explain, mpi};
use tessera_ops::{Buffer, DType, Queue};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (group, session) = mpi::connect(Duration::from_secs(60)).unwrap();
    let (rank, ranks) = (group.rank(), group.world_size());
    let mut deadline = Deadline::new(Duration::from_secs(60));
    let mut watchdog = None;
    match arguments[..] {
        ["replicas"] => {
            let degrees = Degrees { shard: 2, replicate: ranks / 2, context: 1 };
            suite::replicas(group, &suite::Place::host(), DType::BF16, degrees);
        }
        ["hang", folder] => halt(group.as_ref(), Path::new(folder), || thread::sleep(FOR_EVER)),
        ["stop", folder] => halt(group.as_ref(), Path::new(folder), || {
            let stopped = Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status();
            assert!(stopped.unwrap().success());
        }),
        ["end", folder] => {
            deadline = Deadline::new(Duration::from_secs(2));
            watchdog = Some(watch(group.as_ref(), Path::new(folder), &deadline));
            drop(group);
            if rank == 1 {
                thread::sleep(FOR_EVER);
            }
        }
        ["unwatched end", _] => {
            deadline.set(Duration::from_secs(1));
            drop(group);
            if rank == 1 {
                thread::sleep(FOR_EVER);
            }
        }
        ["mismatch", _] => {
            differ(group.as_ref());
            return;
        }
        ["abort", _] => {
            let _pending = group.barrier("nobody else comes").unwrap();
            thread::sleep(if rank == 0 { Duration::from_millis(300) } else { FOR_EVER });
            mpi::abort(7);
        }
        ["abort idle", _] => {
            thread::sleep(if rank == 0 { Duration::from_millis(300) } else { FOR_EVER });
            mpi::abort(7);
        }
        _ => suite::run(group, &suite::Place::host()),
    }
    if let Err(error) = session.finish(&deadline) {
        eprintln!("rank {rank}: {error}");
        mpi::abort(if matches!(error, DistError::Unparted { .. }) { 7 } else { 1 });
    }
    drop(watchdog);
    println!("rank {rank} of {ranks}: passed");
}

/// Longer than the job.
const FOR_EVER: Duration = Duration::from_secs(600);

/// Watches a rank. Rank 0 explains a hang and ends the job.
fn watch(group: &dyn Group, folder: &Path, deadline: &Deadline) -> Watchdog {
    let (rank, rings) = (group.rank(), folder.to_owned());
    let watchdog = Watchdog::start(folder, deadline, move |alarm| {
        eprintln!("{alarm}");
        thread::sleep(if rank == 0 { Duration::ZERO } else { FOR_EVER });
        eprintln!("{}", explain(&rings).unwrap());
        mpi::abort(4);
    });
    let watchdog = watchdog.unwrap();
    watchdog.watch(group.recorder().unwrap().clone());
    watchdog.begin().unwrap();
    watchdog
}

/// Rank 1 stands still; rank 0 explains it and ends the job.
fn halt(group: &dyn Group, folder: &Path, stand_still: impl FnOnce()) {
    let _watchdog = watch(group, folder, &Deadline::new(Duration::from_secs(2)));
    group.barrier("before").unwrap().wait().unwrap();
    if group.rank() == 1 {
        stand_still();
    }
    group.barrier("after").unwrap().wait().unwrap();
}

/// Rank 1 gathers another unit of the same size, which nothing but the call tells apart.
fn differ(group: &dyn Group) {
    let (rank, ranks) = (group.rank(), group.world_size());
    let part = group.split("all of them", 0).unwrap();
    let (unit, room) = (if rank == 1 { 4 } else { 3 }, Buffer::zeroed(5 * ranks * 4).unwrap());
    let shard = suite::Place::host().shard(rank, 5);
    let gathered = part.all_gather(&Queue::cpu(), unit, DType::F32, 5 * ranks, &shard, room);
    match gathered.unwrap().wait() {
        Err(error @ DistError::Mismatch { .. }) => println!("rank {rank} was told: {error}"),
        other => panic!("rank {rank}: {:?}", other.map(|buffer| buffer.len())),
    }
    // In good order all the same, so that the others have said what they were told too.
    thread::sleep(if rank == 0 { Duration::from_secs(1) } else { FOR_EVER });
    mpi::abort(7);
}
