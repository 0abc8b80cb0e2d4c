//! Ranks on GPUs. `scripts/test-cuda` runs this on the emulator, which has as many GPUs as wanted; where GPUs are, the
//! same tests run on as many ranks as there are.
//!
//! A test runs in a process of its own, since the emulator is made when it is first used.

#![allow(clippy::unwrap_used)]

mod faults;
mod processes;
mod seeds;
#[path = "../suite/mod.rs"]
mod suite;

use std::ops::Range;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tessera_dist::nccl::{UniqueId, groups};
use tessera_dist::{Deadline, Degrees, Group};
use tessera_ops::cuda::{Gpu, count};
use tessera_ops::{DType, Queue};

use suite::Place;

/// Longer than any test takes.
fn patience() -> Deadline {
    Deadline::new(Duration::from_secs(120))
}

/// Runs `body` as every rank of a group, each on its GPU and its thread, and returns what they return; `None` for a panic.
fn each_rank<T: Send>(
    world_size: usize,
    deadline: &Deadline,
    body: impl Fn(Box<dyn Group>, &Place) -> T + Sync,
) -> Vec<Option<T>> {
    let id = UniqueId::new().unwrap();
    each_rank_here(0..world_size, world_size, &id, deadline, body)
}

/// The same, where only the `ranks` are in this process, on the GPUs of those numbers.
fn each_rank_here<T: Send>(
    ranks: Range<usize>,
    world_size: usize,
    id: &UniqueId,
    deadline: &Deadline,
    body: impl Fn(Box<dyn Group>, &Place) -> T + Sync,
) -> Vec<Option<T>> {
    let gpus: Vec<_> = ranks.clone().map(|ordinal| Gpu::open(ordinal).unwrap()).collect();
    let groups = groups(&gpus, ranks.start, world_size, id, deadline).unwrap();
    thread::scope(|scope| {
        let start = |(group, gpu): (Box<dyn Group>, &Arc<Gpu>)| {
            let (place, body) = (Place { queue: Queue::cuda(gpu).unwrap() }, &body);
            scope.spawn(move || body(group, &place))
        };
        let ranks: Vec<_> = groups.into_iter().zip(&gpus).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().ok()).collect()
    })
}

/// A process of its own that runs one of the ignored tests, with four GPUs if they are emulated.
fn process(test: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture"]);
    command.env("TESSERA_EMULATOR_DEVICES", "4").envs(variables.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What it says on both streams, if it passes.
fn passes(test: &str, variables: &[(&str, &str)]) -> String {
    has_passed(&format!("{test}, {variables:?}"), process(test, variables).output().unwrap())
}

fn has_passed(what: &str, output: Output) -> String {
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{what}: {said}");
    said
}

#[test]
#[ignore = "started by another test"]
fn suite_on_gpus() {
    for world_size in 1..=count().unwrap().min(4) {
        let passed = each_rank(world_size, &patience(), suite::run);
        assert!(passed.iter().all(Option::is_some), "{world_size} ranks");
    }
}

#[test]
fn gpus_pass_the_suite() {
    passes("suite_on_gpus", &[]);
}

#[test]
#[ignore = "started by another test"]
fn replicas_on_gpus() {
    for (shard, replicate, context) in [(2, 2, 1), (1, 4, 1), (1, 2, 2), (2, 1, 2)] {
        for compute in [DType::F32, DType::BF16] {
            let degrees = Degrees { shard, replicate, context };
            let ranks = shard * replicate * context;
            if ranks > count().unwrap() {
                continue;
            }
            let passed = each_rank(ranks, &patience(), |group, place| {
                suite::replicas(group, place, compute, degrees);
            });
            assert!(passed.iter().all(Option::is_some), "{degrees:?}");
        }
    }
}

#[test]
fn replicas_on_gpus_end_with_the_sum_over_all_ranks() {
    passes("replicas_on_gpus", &[]);
}
