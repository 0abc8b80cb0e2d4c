//! Ranks that fail, leave, stand still or do something else, and GPUs that do: nobody hangs, and whoever can be named is.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use tessera_dist::nccl::UniqueId;
use tessera_dist::{Alarm, Deadline, DistError, Group, Watchdog, Wire, explain};
use tessera_ops::DType;

use crate::suite::Place;
use crate::{each_rank, passes, patience};

/// Sums a number over the ranks, and waits on the host for what comes of it.
fn sum(group: &dyn Group, place: &Place) -> Result<(), DistError> {
    let mut values = place.buffer(&[1.0_f64]);
    group.all_reduce(&place.queue, values.view_mut(DType::F64))?.wait()?;
    place.queue.synchronize()?;
    group.check()
}

type Told = Vec<Option<Result<(), DistError>>>;

/// Fails unless each of the `ranks` was told of an error that `is` the expected one.
fn assert_told(told: &Told, ranks: &[usize], is: impl Fn(&DistError) -> bool) {
    for &rank in ranks {
        let error = told[rank].as_ref().unwrap().as_ref().unwrap_err();
        assert!(is(error), "rank {rank}: {error}");
        assert!(error.is_between_ranks());
    }
}

fn panics() {
    let told = each_rank(3, &patience(), |group, place| {
        sum(group.as_ref(), place)?;
        assert!(group.rank() != 1, "a fault of rank 1, wanted here");
        sum(group.as_ref(), place)
    });
    assert!(told[1].is_none());
    let is = |error: &DistError| {
        matches!(error, DistError::Lost { rank: 1, .. }) && error.to_string().contains("its thread panicked")
    };
    assert_told(&told, &[0, 2], is);
}

/// In another group than that of the rank that fails.
fn panics_in_a_part() {
    let told = each_rank(4, &patience(), |group, place| {
        let part = group.split("half", group.rank() / 2)?;
        assert!(group.rank() != 3, "a fault of rank 3, wanted here");
        if group.rank() == 2 { sum(part.as_ref(), place) } else { sum(group.as_ref(), place) }
    });
    assert_told(&told, &[0, 1, 2], |error| matches!(error, DistError::Lost { rank: 3, .. }));
}

fn leaves() {
    let told = each_rank(3, &patience(), |group, place| {
        sum(group.as_ref(), place)?;
        if group.rank() == 2 { Ok(()) } else { sum(group.as_ref(), place) }
    });
    assert!(matches!(told[2], Some(Ok(()))));
    assert_told(&told, &[0, 1], |error| matches!(error, DistError::Lost { rank: 2, .. }));
}

fn calls_something_else() {
    let told = each_rank(3, &patience(), |group, place| {
        let barrier = |label| group.barrier(label)?.wait();
        let first = if group.rank() == 1 { barrier("save") } else { sum(group.as_ref(), place) };
        let second = sum(group.as_ref(), place);
        assert!(matches!(second, Err(DistError::Broken { .. } | DistError::Mismatch { .. })), "{second:?}");
        first
    });
    let names = |error: &DistError| error.to_string().contains("rank 1 barrier 'save'");
    let is = |error: &DistError| names(error) || error.to_string().contains("rank 1 makes barrier 'save'");
    assert_told(&told, &[0, 1, 2], is);
}

#[test]
#[ignore = "started by another test"]
fn ranks_with_faults() {
    panics();
    panics_in_a_part();
    leaves();
    calls_something_else();
}

#[test]
fn a_rank_with_a_fault_is_named_at_once() {
    passes("faults::ranks_with_faults", &[]);
}

/// Has three ranks watched, and returns what they were told, the alarm, and how the rings explain it.
fn watched(
    deadline: &Deadline,
    body: impl Fn(&dyn Group, &Place) -> Result<(), DistError> + Sync,
) -> (Told, Alarm, String) {
    let folder = tempfile::tempdir().unwrap();
    let (tell, alarm) = channel();
    let watchdog = Watchdog::start(folder.path(), deadline, move |alarm| tell.send(alarm.clone()).unwrap());
    let watchdog = watchdog.unwrap();
    let told = each_rank(3, deadline, |group, place| {
        watchdog.watch(group.recorder().unwrap().clone());
        body(group.as_ref(), place)
    });
    let alarm = alarm.recv_timeout(Duration::from_secs(60)).unwrap();
    (told, alarm, explain(folder.path()).unwrap().to_string())
}

#[test]
#[ignore = "started by another test"]
fn rank_that_does_not_come() {
    let (deadline, noticed) = (patience(), AtomicBool::new(false));
    let (told, alarm, explained) = watched(&deadline, |group, place| {
        group.barrier("start")?.wait()?;
        sum(group, place)?;
        if group.rank() == 1 {
            // The others wait already, by the deadline of before.
            sleep(Duration::from_millis(300));
            deadline.set(Duration::from_secs(1));
        }
        while group.rank() == 1 && !noticed.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(10));
        }
        let sum = sum(group, place);
        // The watchdog looks once a second, while this rank is not there.
        sleep(Duration::from_secs(3));
        noticed.store(true, Ordering::Relaxed);
        sum
    });
    assert_told(
        &told,
        &[0, 1, 2],
        |error| matches!(error, DistError::Late { ranks, seconds: 1.0, .. } if ranks == &[1]),
    );
    let text = alarm.to_string();
    assert!(text.contains("number 2, all-reduce 'statistics', has not ended for 1 s; rank 1 did"), "{text}");
    assert!(text.contains("the last of rank 1 was number 1, all-reduce 'statistics'"), "{text}");
    let expected = "Rank 1 never came to number 2, all-reduce 'statistics', for which ranks 0 and 2 waited";
    assert!(explained.starts_with(expected), "{explained}");
}

#[test]
fn a_rank_that_does_not_come_is_named_after_the_deadline() {
    passes("faults::rank_that_does_not_come", &[]);
}

#[test]
#[ignore = "started by another test"]
fn gpu_that_does_not_come() {
    let (told, alarm, explained) = watched(&Deadline::new(Duration::from_secs(1)), |group, place| {
        (0..5).try_for_each(|_| sum(group, place))
    });
    assert_told(
        &told,
        &[0, 1, 2],
        |error| matches!(error, DistError::Late { ranks, seconds: 1.0, .. } if ranks.is_empty()),
    );
    let text = alarm.to_string();
    assert!(text.contains("number 3, all-reduce 'statistics', has not ended for 1 s"), "{text}");
    assert!(
        explained.starts_with("Number 3, all-reduce 'statistics', did not end for ranks 0, 1"),
        "{explained}"
    );
}

#[test]
fn a_gpu_that_does_not_come_ends_the_run_and_names_the_collective() {
    passes("faults::gpu_that_does_not_come", &[("TESSERA_EMULATOR_HANG", "1:3")]);
}

#[test]
#[ignore = "started by another test"]
fn gpu_that_is_lost() {
    let told = each_rank(3, &patience(), |group, place| {
        let (queue, ranks) = (&place.queue, group.world_size());
        let mut full = place.zeroed(ranks * 16);
        let shard = Arc::new(Mutex::new(place.zeroed(16)));
        for unit in 0..20 {
            full = group.reduce_scatter(queue, unit, ranks * 4, full, &shard, Wire::Fp32)?.wait()?;
            queue.synchronize()?;
            group.check()?;
        }
        Ok(())
    });
    let lost = |rank: usize| told[rank].as_ref().unwrap().as_ref().unwrap_err();
    assert!(matches!(lost(1), DistError::Op(_)), "{}", lost(1));
    assert!(lost(1).to_string().starts_with("CUDA device 1: "), "{}", lost(1));
    assert_told(
        &told,
        &[0, 2],
        |error| matches!(error, DistError::Lost { rank: 1, reason, .. } if reason.contains("CUDA device 1")),
    );
}

#[test]
fn a_gpu_that_is_lost_is_named() {
    passes("faults::gpu_that_is_lost", &[("TESSERA_EMULATOR_FAIL", "1:5")]);
}

#[test]
#[ignore = "started by another test"]
fn machine_without_nccl() {
    let text = UniqueId::new().unwrap_err().to_string();
    assert!(text.starts_with("found no libnccl.so, which several GPUs need: install"), "{text}");
    assert!(text.contains("Where there is only a libnccl.so.2, make a link of that name to it"), "{text}");
}

#[test]
fn a_machine_without_nccl_is_told_what_to_do() {
    let folders = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let name = "libtessera_cuda_emulator.so";
    let Some(emulator) =
        folders.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
    else {
        return;
    };
    // All libraries but the name under which NCCL is looked for.
    let folder = tempfile::tempdir().unwrap();
    for name in ["libcuda.so.1", "libcublas.so.13", "libcublasLt.so.13", "libnccl.so.2"] {
        symlink(&emulator, folder.path().join(name)).unwrap();
    }
    passes("faults::machine_without_nccl", &[("LD_LIBRARY_PATH", folder.path().to_str().unwrap())]);
}
