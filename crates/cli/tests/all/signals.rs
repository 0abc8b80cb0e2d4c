//! Runs that are stopped, and runs that meet another in their folder.

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Bench, Ended, timeless};

/// A run with so many batches that it can be met in the middle.
const LONG: [&str; 4] = ["train", "run.yaml", "training_duration=200ba", "save_interval=1dur"];

/// A run in the background; it ends with the test.
pub struct Background(Child);

impl Background {
    /// Starts a run.
    pub fn launch(bench: &Bench, arguments: &[&str]) -> Self {
        let mut command = bench.command(arguments);
        // Nobody reads what a killed run prints, and a full pipe would stop it.
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Kills the run with a signal that it cannot catch; false if it was over before.
    pub fn kill_was_needed(mut self) -> bool {
        let running = self.0.try_wait().unwrap().is_none();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        running
    }

    /// Starts a run and waits until it has done some batches.
    pub fn start(bench: &Bench, arguments: &[&str]) -> Self {
        Self::start_command(bench, bench.command(arguments))
    }

    /// The same by a command that was made for it.
    pub fn start_command(bench: &Bench, mut command: Command) -> Self {
        let metrics = bench.path("runs/tiny/metrics.jsonl");
        let batches =
            || std::fs::read_to_string(&metrics).unwrap_or_default().matches("loss/train/total").count();
        let (before, begun) = (batches(), Instant::now());
        let run = Self(command.spawn().unwrap());
        while batches() < before + 2 {
            assert!(begun.elapsed() < Duration::from_secs(60), "the run does not begin");
            sleep(Duration::from_millis(5));
        }
        run
    }

    /// Starts a command whose words are read at its end.
    pub fn spawn(bench: &Bench, arguments: &[&str]) -> Self {
        Self(bench.command(arguments).spawn().unwrap())
    }

    /// Sends signals, one right after the other.
    pub fn send(&self, signals: &[&str]) {
        let id = self.0.id();
        let kills: Vec<_> = signals.iter().map(|signal| format!("kill -{signal} {id}")).collect();
        assert!(Command::new("sh").args(["-c", &kills.join(" && ")]).status().unwrap().success());
    }

    pub fn end(mut self) -> Ended {
        let read = |pipe: Option<&mut dyn std::io::Read>| {
            let mut text = String::new();
            pipe.unwrap().read_to_string(&mut text).unwrap();
            text
        };
        let stdout = read(self.0.stdout.as_mut().map(|pipe| pipe as _));
        let stderr = read(self.0.stderr.as_mut().map(|pipe| pipe as _));
        Ended { code: self.0.wait().unwrap().code(), stdout, stderr }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn numbers(bench: &Bench) -> Vec<Value> {
    bench.json_lines("runs/tiny/metrics.jsonl").into_iter().map(timeless).collect()
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_never_stopped() {
    let bench = Bench::new();
    for (signal, code) in [("TERM", 143), ("INT", 130), ("USR1", 143)] {
        let run = Background::start(&bench, &LONG);
        run.send(&[signal]);
        let ended = run.end();
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains(&format!("SIG{signal}: stopping after this batch")), "{ended:?}");
        assert!(ended.stdout.contains(&format!("Stopped by SIG{signal} after ")), "{ended:?}");
        assert!(ended.stdout.contains("  tessera train run.yaml training_duration=200ba"), "{ended:?}");
        assert_eq!(bench.json_lines("runs/tiny/events.jsonl").last().unwrap()["type"], "STOPPED");
    }
    let said = bench.tessera(&LONG).printed();
    assert!(said.contains("Going on from runs/tiny/checkpoints/ep"), "{said}");

    let undisturbed = Bench::new();
    undisturbed.tessera(&LONG).printed();
    assert_eq!(numbers(&bench), numbers(&undisturbed));
    let weights = "runs/tiny/huggingface/ba200/model.safetensors";
    assert!(bench.read(weights) == undisturbed.read(weights));
}

#[test]
fn a_second_signal_leaves_at_once() {
    let bench = Bench::new();
    // Batches that take long enough for both signals to meet the same one.
    let slow =
        ["train", "run.yaml", "training_duration=100ep", "global_train_batch_size=96", "context_length=128"];
    let run = Background::start(&bench, &slow);
    run.send(&["INT", "TERM"]);
    let ended = run.end();
    // Signals that are both pending when the process comes to run are delivered in an order of the kernel's choice.
    let again = |signal: &str| ended.stderr.contains(&format!("SIG{signal} again: leaving at once"));
    assert!(
        (again("TERM") && ended.code == Some(143)) || (again("INT") && ended.code == Some(130)),
        "{ended:?}"
    );
    assert!(!ended.stdout.contains("Stopped by"), "{ended:?}");
    assert_ne!(bench.json_lines("runs/tiny/events.jsonl").last().unwrap()["type"], "STOPPED");
}

#[test]
fn two_runs_in_one_folder_do_not_meet() {
    let bench = Bench::new();
    let run = Background::start(&bench, &LONG);
    bench.tessera(&LONG).refused(&["runs/tiny is in use by another process", "run_name"]);
    run.send(&["TERM"]);
    assert_eq!(run.end().code, Some(143));
}
