//! The suite as one rank of an MPI job: `scripts/test-mpi` starts it under `mpirun`.
#![allow(clippy::unwrap_used)]

mod suite;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tessera_dist::{Deadline, Degrees, Group, Watchdog, explain, mpi};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (group, session) = mpi::connect(Duration::from_secs(60)).unwrap();
    let (rank, ranks) = (group.rank(), group.world_size());
    match arguments[..] {
        ["replicas"] => suite::replicas(group, Degrees { shard: 2, replicate: ranks / 2, context: 1 }),
        ["hang", folder] => halt(group.as_ref(), Path::new(folder), || thread::sleep(FOR_EVER)),
        ["stop", folder] => halt(group.as_ref(), Path::new(folder), || {
            let stopped = Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status();
            assert!(stopped.unwrap().success());
        }),
        _ => suite::run(group),
    }
    session.finish().unwrap();
    println!("rank {rank} of {ranks}: passed");
}

/// Longer than the job.
const FOR_EVER: Duration = Duration::from_secs(600);

/// Rank 1 stands still; rank 0 explains it and ends the job.
fn halt(group: &dyn Group, folder: &Path, stand_still: impl FnOnce()) {
    let deadline = Deadline::new(Duration::from_secs(2));
    let (rank, rings) = (group.rank(), folder.to_owned());
    let watchdog = Watchdog::start(folder, &deadline, move |alarm| {
        eprintln!("{alarm}");
        // The first to end makes mpirun end the others.
        thread::sleep(if rank == 0 { Duration::ZERO } else { FOR_EVER });
        eprintln!("{}", explain(&rings).unwrap());
        std::process::exit(4);
    });
    let watchdog = watchdog.unwrap();
    watchdog.watch(group.recorder().unwrap().clone());
    group.barrier("before").unwrap().wait().unwrap();
    if rank == 1 {
        stand_still();
    }
    group.barrier("after").unwrap().wait().unwrap();
}
