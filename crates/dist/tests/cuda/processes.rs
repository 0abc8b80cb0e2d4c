//! Ranks in several processes, which find one another at the rendezvous.

use std::net::TcpListener;
use std::thread::sleep;
use std::time::Duration;

use tessera_dist::nccl::UniqueId;
use tessera_dist::rendezvous::Rendezvous;
use tessera_dist::{Deadline, Degrees, DistError, Group};
use tessera_ops::DType;
use tessera_ops::cuda::count;

use crate::suite::{self, Place};
use crate::{each_rank_here, has_passed, patience, process};

/// GPUs of each of the two processes.
const GPUS: [usize; 2] = [1, 2];

/// Runs `body` as the ranks of this process, if there are GPUs for all.
fn as_process<T: Send>(
    deadline: &Deadline,
    body: impl Fn(Box<dyn Group>, &Place) -> T + Sync,
) -> Vec<Option<T>> {
    if count().unwrap() < GPUS.iter().sum() {
        return Vec::new();
    }
    let variable = |name: &str| std::env::var(name).ok();
    let number = variable("RANK").unwrap().parse().unwrap();
    let rendezvous = Rendezvous::read(variable, number, GPUS.len()).unwrap();
    let id = || UniqueId::new().map(|id| id.as_bytes().to_vec());
    let met = rendezvous.meet(GPUS[number], deadline.get(), id).unwrap();
    let id = UniqueId::from_bytes(met.bytes.try_into().unwrap());
    let ranks = met.first_rank..met.first_rank + GPUS[number];
    each_rank_here(ranks, met.world_size, &id, deadline, body)
}

/// Starts both processes with one of the ignored tests, which must pass in both.
fn pass(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port().to_string();
    let start = |rank: &str| {
        let variables = [
            ("RANK", rank),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", &port),
            ("TESSERA_RENDEZVOUS_SECRET", "only we know"),
            ("TESSERA_EMULATOR_MEET", folder.path().to_str().unwrap()),
        ];
        process(test, &variables).spawn().unwrap()
    };
    for started in [start("1"), start("0")] {
        has_passed(test, started.wait_with_output().unwrap());
    }
}

#[test]
#[ignore = "started by another test"]
fn suite_in_a_process() {
    let passed = as_process(&patience(), |group, place| {
        suite::run(group, place);
    });
    assert!(passed.iter().all(Option::is_some));
}

#[test]
fn processes_pass_the_suite() {
    pass("processes::suite_in_a_process");
}

#[test]
#[ignore = "started by another test"]
fn replicas_in_a_process() {
    let degrees = Degrees { shard: 1, replicate: 3, context: 1 };
    let passed = as_process(&patience(), |group, place| {
        suite::replicas(group, place, DType::BF16, degrees);
    });
    assert!(passed.iter().all(Option::is_some));
}

#[test]
fn replicas_in_processes_end_with_the_sum_over_all_ranks() {
    pass("processes::replicas_in_a_process");
}

#[test]
#[ignore = "started by another test"]
fn process_that_stands_still() {
    let deadline = Deadline::new(Duration::from_secs(20));
    let told = as_process(&deadline, |group, _| {
        group.barrier("start")?.wait()?;
        deadline.set(Duration::from_secs(1));
        if group.rank() == 0 {
            sleep(Duration::from_secs(5));
            return Ok(());
        }
        group.barrier("save")?.wait()
    });
    for told in told.into_iter().map(Option::unwrap).filter(|told| told.is_err()) {
        let error = told.unwrap_err();
        assert!(matches!(&error, DistError::Late { ranks, .. } if ranks.is_empty()), "{error}");
        let expected = "a rank that cannot be told did not come to barrier 'save' within 1 s";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_process_that_stands_still_is_not_waited_for() {
    pass("processes::process_that_stands_still");
}

#[test]
#[ignore = "started by another test"]
fn processes_that_part() {
    let told = as_process(&patience(), |group, _| {
        group.barrier(if group.rank() == 0 { "save" } else { "load" })?.wait()
    });
    for told in told {
        let text = told.unwrap().unwrap_err().to_string();
        let calls = ["rank 0 makes barrier 'save'", "rank 0 barrier 'save'"];
        assert!(calls.iter().any(|call| text.contains(call)) && text.contains("barrier 'load'"), "{text}");
    }
}

#[test]
fn processes_that_call_different_things_are_told_so() {
    pass("processes::processes_that_part");
}
