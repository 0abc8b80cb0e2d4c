//! The suite on threads of one process, and on the group of one.

use std::time::{Duration, Instant};

use tessera_dist::{Degrees, DistError, Operation, Residency, Single, SlotPlan, UnitSize};
use tessera_ops::{DType, Queue};

use crate::suite::Place;
use crate::{each_rank, patience, suite};

#[test]
fn single_passes_the_suite() {
    suite::run(Box::new(Single), &Place::host());
}

#[test]
fn threads_pass_the_suite() {
    for world_size in [1, 2, 3, 4, 8] {
        let passed = each_rank(world_size, &patience(), |group| suite::run(group, &Place::host()));
        assert!(passed.iter().all(Option::is_some), "{world_size} ranks");
    }
}

#[test]
fn replicas_end_with_the_sum_over_all_ranks() {
    for (shard, replicate, context) in [(2, 2, 1), (1, 4, 1), (1, 2, 2), (2, 1, 2), (2, 3, 1)] {
        let degrees = Degrees { shard, replicate, context };
        let passed = each_rank(shard * replicate * context, &patience(), |group| {
            suite::replicas(group, &Place::host(), DType::F32, degrees);
        });
        assert!(passed.iter().all(Option::is_some), "{degrees:?}");
    }
}

#[test]
fn a_collective_goes_on_while_nobody_waits_for_it() {
    let waited = each_rank(2, &patience(), |group| {
        let queue = Queue::cpu();
        let recorder = group.recorder().unwrap().clone();
        let units = suite::units(group, &Place::host(), DType::F32, Residency::WhileUsed);
        units.prefetch(&queue, 1).unwrap();
        let since = Instant::now();
        while recorder.totals(Operation::AllGather).calls == 0 {
            assert!(since.elapsed() < Duration::from_secs(20), "it waits to be waited for");
            std::thread::yield_now();
        }
        assert_eq!(recorder.totals(Operation::AllGather).waited, Duration::ZERO);
        drop(units.weights(&queue, 1).unwrap());
        recorder.totals(Operation::AllGather).waited > Duration::ZERO
    });
    assert_eq!(waited, [Some(true), Some(true)]);
}

#[test]
fn held_units_are_not_evicted() {
    each_rank(2, &patience(), |group| {
        let queue = Queue::cpu();
        let recorder = group.recorder().unwrap().clone();
        let units = suite::units(group, &Place::host(), DType::F32, Residency::WhileUsed);
        drop(units.weights(&queue, 0).unwrap());
        let second = units.weights(&queue, 1).unwrap();
        let first = units.weights(&queue, 0).unwrap();
        assert_eq!(recorder.totals(Operation::AllGather).calls, 2, "a free slot is taken before a used one");
        assert!(matches!(units.weights(&queue, 2), Err(DistError::NoFreeSlot { unit: 2 })));
        assert!(matches!(units.forget_weights(), Err(DistError::StillHeld { .. })));
        drop(first);
        let third = units.weights(&queue, 2).unwrap();
        assert_eq!(second.view().unwrap().as_slice::<f32>().unwrap()[0], 101.0);
        assert_eq!(third.view().unwrap().as_slice::<f32>().unwrap()[0], 201.0);
        let gradients = [0, 1].map(|unit| units.gradient(&queue, unit).unwrap());
        assert!(matches!(units.gradient(&queue, 2), Err(DistError::NoFreeSlot { unit: 2 })));
        drop(gradients);
    })
    .into_iter()
    .for_each(|rank| rank.unwrap());
}

#[test]
fn weights_that_stay_are_gathered_once() {
    let gathers = each_rank(2, &patience(), |group| {
        let recorder = group.recorder().unwrap().clone();
        let units = suite::units(group, &Place::host(), DType::F32, Residency::WholeStep);
        suite::go_through(&units, 0, &Place::host());
        recorder.totals(Operation::AllGather).calls
    });
    assert_eq!(gathers, [Some(3), Some(3)]);
}

#[test]
fn the_slot_plan_says_what_is_allocated() {
    let sizes = [5, 9, 7].map(|elements| UnitSize { elements, decayed: 0 });
    let plan = |ranks, lends, residency| SlotPlan::new(&sizes, ranks, lends, DType::F32, residency);
    let size = DType::F32.size();
    let two = vec![10 * size; 2];
    assert_eq!(
        plan(2, false, Residency::WhileUsed),
        SlotPlan { weights: two.clone(), gradients: two.clone() }
    );
    let all = vec![6 * size, 10 * size, 8 * size];
    assert_eq!(plan(2, false, Residency::WholeStep), SlotPlan { weights: all, gradients: two });
    assert_eq!(plan(1, true, Residency::WholeStep), SlotPlan { weights: vec![], gradients: vec![] });
}
