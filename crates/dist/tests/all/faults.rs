//! Ranks that die, leave, stand still or do something else: the others are told who it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tessera_dist::{Deadline, DistError, Group};
use tessera_ops::{Queue, ViewMut};

use crate::{each_rank, patience};

fn sum(group: &dyn Group) -> Result<(), DistError> {
    group.all_reduce(&Queue::cpu(), ViewMut::of(&mut [1.0_f64]))?.wait()
}

/// What the ranks say of a fault, and how long the slowest took.
fn told(
    world_size: usize,
    deadline: &Deadline,
    body: impl Fn(Box<dyn Group>) -> Result<(), DistError> + Sync,
) -> (Vec<Option<Result<(), DistError>>>, Duration) {
    let since = Instant::now();
    (each_rank(world_size, deadline, body), since.elapsed())
}

#[test]
fn a_rank_that_panics_is_named_at_once() {
    let (told, time) = told(3, &patience(), |group| {
        sum(group.as_ref())?;
        assert!(group.rank() != 1, "a fault of rank 1, wanted here");
        sum(group.as_ref())
    });
    assert!(told[1].is_none());
    for rank in [0, 2] {
        let error = told[rank].as_ref().unwrap().as_ref().unwrap_err();
        assert!(matches!(error, DistError::Lost { rank: 1, .. }), "{error}");
        assert!(error.to_string().contains("its thread panicked"), "{error}");
    }
    assert!(time < Duration::from_secs(20));
}

/// Says that a rank is done for, when all that was made after it has been dropped.
struct Gone<'a>(&'a AtomicBool);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_rank_that_panics_while_its_collective_waits_is_named_at_once() {
    let gone = AtomicBool::new(false);
    let (told, time) = told(2, &patience(), |group| {
        if group.rank() == 0 {
            let _gone = Gone(&gone);
            let group = group;
            let _pending = group.barrier("save")?;
            panic!("a fault of rank 0, wanted here");
        }
        while !gone.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        group.barrier("save")?.wait()
    });
    assert!(told[0].is_none());
    let error = told[1].as_ref().unwrap().as_ref().unwrap_err();
    assert!(matches!(error, DistError::Lost { rank: 0, .. }), "{error}");
    assert!(time < Duration::from_secs(20));
}

#[test]
fn a_rank_that_leaves_is_named() {
    let (told, time) = told(3, &patience(), |group| {
        sum(group.as_ref())?;
        if group.rank() == 2 { Ok(()) } else { sum(group.as_ref()) }
    });
    assert!(matches!(told[2], Some(Ok(()))));
    for rank in [0, 1] {
        let error = told[rank].as_ref().unwrap().as_ref().unwrap_err();
        assert!(matches!(error, DistError::Lost { rank: 2, .. }), "{error}");
    }
    assert!(time < Duration::from_secs(20));
}

#[test]
fn a_rank_that_does_not_come_is_named_after_the_deadline() {
    let (deadline, noticed) = (patience(), AtomicBool::new(false));
    let (told, _) = told(3, &deadline, |group| {
        sum(group.as_ref())?;
        if group.rank() == 1 {
            // The others wait already, by the deadline of before.
            std::thread::sleep(Duration::from_millis(300));
            deadline.set(Duration::from_secs(1));
        }
        while group.rank() == 1 && !noticed.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let sum = sum(group.as_ref());
        noticed.store(true, Ordering::Relaxed);
        sum
    });
    for rank in told {
        match rank.unwrap().unwrap_err() {
            DistError::Late { ranks, seconds, .. } => assert_eq!((ranks, seconds), (vec![1], 1.0)),
            error => panic!("{error}"),
        }
    }
}

#[test]
fn a_loss_in_one_part_is_told_in_all() {
    let (told, time) = told(4, &patience(), |group| {
        let part = group.split("half", group.rank() / 2)?;
        assert!(group.rank() != 3, "a fault of rank 3, wanted here");
        if group.rank() == 2 { sum(part.as_ref()) } else { sum(group.as_ref()) }
    });
    assert!(told[3].is_none());
    for rank in &told[..3] {
        let error = rank.as_ref().unwrap().as_ref().unwrap_err();
        assert!(matches!(error, DistError::Lost { rank: 3, .. }), "{error}");
    }
    assert!(time < Duration::from_secs(20));
}

#[test]
fn ranks_that_call_different_things_are_told_so() {
    let barrier = |group: &dyn Group, label| group.barrier(label)?.wait();
    for same_kind in [false, true] {
        let (told, _) = told(3, &patience(), |group| {
            let first = match (group.rank(), same_kind) {
                (1, _) => barrier(group.as_ref(), "save"),
                (_, true) => barrier(group.as_ref(), "load"),
                (_, false) => sum(group.as_ref()),
            };
            assert!(matches!(sum(group.as_ref()), Err(DistError::Broken { .. })));
            first
        });
        for rank in told {
            let error = rank.unwrap().unwrap_err().to_string();
            let named = ["rank 1 barrier 'save'", "rank 1 makes barrier 'save'"];
            // Whoever comes last may hear of it from a rank that has given up.
            assert!(named.iter().any(|named| error.contains(named)), "{error}");
        }
    }
}
