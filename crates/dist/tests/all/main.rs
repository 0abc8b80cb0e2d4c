//! Groups, units, recorder and watchdog, on ranks that are threads of this process.

#![allow(clippy::unwrap_used)]

mod explaining;
mod faults;
mod meeting;
#[path = "../suite/mod.rs"]
mod suite;
mod threads;
mod watching;

use std::thread;
use std::time::Duration;

use tessera_dist::threads::groups;
use tessera_dist::{Deadline, Group};

/// Longer than any test takes.
fn patience() -> Deadline {
    Deadline::new(Duration::from_secs(60))
}

/// Runs `body` as every rank of a group, each on its thread, and returns what they return; `None` for a panic.
fn each_rank<T: Send>(
    world_size: usize,
    deadline: &Deadline,
    body: impl Fn(Box<dyn Group>) -> T + Sync,
) -> Vec<Option<T>> {
    thread::scope(|scope| {
        let ranks: Vec<_> = groups(world_size, deadline)
            .unwrap()
            .into_iter()
            .map(|group| scope.spawn(|| body(group)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().ok()).collect()
    })
}
