//! The watchdog: what hangs is named, and the rings are written.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::Duration;

use tessera_dist::{Deadline, Finding, Label, Operation, Watchdog, explain};

use crate::{each_rank, patience};

#[test]
fn a_hang_raises_the_alarm_and_leaves_the_rings() {
    let folder = tempfile::tempdir().unwrap();
    let deadline = patience();
    let (tell, told) = channel();
    let watchdog = Watchdog::start(folder.path(), &deadline, move |alarm| tell.send(alarm.clone()).unwrap());
    let watchdog = watchdog.unwrap();
    each_rank(3, &deadline, |group| {
        watchdog.watch(group.recorder().unwrap().clone());
        group.barrier("start").unwrap().wait().unwrap();
        deadline.set(Duration::from_secs(1));
        if group.rank() == 1 {
            // Stands still until the others have noticed.
            while folder.path().join("rank-0.jsonl").metadata().is_err() {
                sleep(Duration::from_millis(10));
            }
            return;
        }
        assert!(group.barrier("save").unwrap().wait().is_err());
    });
    let alarm = told.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(alarm.record.sequence, 1);
    assert_eq!(alarm.record.call.operation, Operation::Barrier);
    assert_eq!(alarm.record.call.label, Label::Label("save".into()));
    let text = alarm.to_string();
    assert!(text.contains("barrier 'save', has not ended for 1 s; rank 1 did not come to it"), "{text}");
    assert!(text.contains("the last of rank 1 was number 0, barrier 'start'"), "{text}");

    let explanation = explain(folder.path()).unwrap();
    assert!(explanation.silent.is_empty());
    let text = explanation.to_string();
    assert!(
        text.starts_with("Rank 1 never came to number 1, barrier 'save', for which ranks 0 and 2 waited"),
        "{text}"
    );
}

#[test]
fn a_run_without_a_hang_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let watchdog = Watchdog::start(folder.path(), &Deadline::new(Duration::from_millis(400)), |alarm| {
        panic!("a false alarm: {alarm}")
    })
    .unwrap();
    each_rank(2, &patience(), |group| {
        watchdog.watch(group.recorder().unwrap().clone());
        for _ in 0..2 {
            group.barrier("step").unwrap().wait().unwrap();
            // Compute may take longer than the deadline: only collectives are watched.
            sleep(Duration::from_millis(600));
        }
        group.barrier("end").unwrap().wait().unwrap();
    });
    watchdog.write_rings().unwrap();
    let explanation = explain(folder.path()).unwrap();
    assert_eq!((explanation.world_size, explanation.finding), (2, Finding::Complete));
    let ring = std::fs::read_to_string(folder.path().join("rank-1.jsonl")).unwrap();
    let lines: Vec<&str> = ring.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(
        lines[1]
            .starts_with(r#"{"sequence":0,"group":"world","operation":"barrier","label":"step","bytes":0,"#)
    );
}

/// What [`a_process_that_was_stopped_goes_on`] stops.
#[test]
#[ignore = "started by another test"]
fn ranks_that_are_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let deadline = Deadline::new(Duration::from_secs(1));
    let watchdog = Watchdog::start(folder.path(), &deadline, |alarm| {
        eprintln!("{alarm}");
        std::process::exit(4);
    });
    let watchdog = watchdog.unwrap();
    let ranks = each_rank(2, &deadline, |group| {
        watchdog.watch(group.recorder().unwrap().clone());
        for step in 0..50 {
            if group.rank() == 1 {
                // The other one nearly always waits, and looks at the clock before this one comes.
                (0..50).for_each(|_| sleep(Duration::from_millis(1)));
                eprintln!("step {step}");
            }
            group.barrier("step").unwrap().wait().unwrap();
        }
    });
    assert_eq!(ranks, [Some(()), Some(())]);
}

#[test]
fn a_process_that_was_stopped_goes_on() {
    let arguments = ["watching::ranks_that_are_stopped", "--exact", "--ignored", "--nocapture"];
    let mut process = Command::new(std::env::current_exe().unwrap());
    let mut process = process.args(arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "step 10"));
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, process.id().to_string().as_str()]).status();
        assert!(sent.unwrap().success());
    };
    // In the middle of the next step.
    sleep(Duration::from_millis(25));
    signal("-STOP");
    sleep(Duration::from_secs(3));
    signal("-CONT");
    let said: Vec<String> = lines.collect();
    assert!(process.wait().unwrap().success(), "{said:?}");
}
