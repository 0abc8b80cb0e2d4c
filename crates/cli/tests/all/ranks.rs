//! Runs over several ranks of one process: killed, stopped, and met with damaged shards.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use crate::signals::{Background, numbers};
use crate::support::Bench;

const LONG: [&str; 5] =
    ["train", "run.yaml", "devices=cpu:3", "training_duration=120ba", "save_interval=10ba"];
const LONG_WEIGHTS: &str = "runs/tiny/huggingface/ba120/model.safetensors";
const SHORT: [&str; 3] = ["train", "run.yaml", "devices=cpu:3"];
const SHORT_WEIGHTS: &str = "runs/tiny/huggingface/ba12/model.safetensors";

#[test]
fn killed_and_stopped_a_run_of_three_ranks_ends_with_the_same_weights() {
    let undisturbed = Bench::new();
    undisturbed.tessera(&LONG).printed();
    let bench = Bench::new();
    for pause in [0, 30, 60, 90] {
        let run = Background::start(&bench, &LONG);
        sleep(Duration::from_millis(pause));
        assert!(run.kill_was_needed(), "the run was over before it was killed");
    }
    let run = Background::start(&bench, &LONG);
    run.send(&["TERM"]);
    let ended = run.end();
    assert_eq!(ended.code, Some(143), "{ended:?}");
    bench.tessera(&LONG).printed();
    assert_eq!(numbers(&bench), numbers(&undisturbed));
    assert!(bench.read(LONG_WEIGHTS) == undisturbed.read(LONG_WEIGHTS));
}

/// A finished run whose export is gone and whose newest checkpoint is about to be damaged: where its second shard is.
fn finished(bench: &Bench) -> (PathBuf, Vec<u8>) {
    bench.tessera(&SHORT).printed();
    let weights = bench.read(SHORT_WEIGHTS);
    fs::remove_dir_all(bench.path("runs/tiny/huggingface")).unwrap();
    (bench.path("runs/tiny/checkpoints/ep2-ba12/__1_0.distcp"), weights)
}

/// Checks that the run is taken up from the older checkpoint, and says what was wrong with the newest.
fn goes_on_from_the_older(bench: &Bench, weights: &[u8], parts: &[&str]) {
    let again = bench.tessera(&SHORT);
    for part in ["checkpoint ep2-ba12 is passed over: ", "__1_0.distcp"].iter().chain(parts) {
        assert!(again.stderr.contains(part), "{part:?} is not in: {}", again.stderr);
    }
    assert!(again.printed().contains("Going on from runs/tiny/checkpoints/ep1-ba6"));
    assert!(bench.read(SHORT_WEIGHTS) == weights);
    bench.tessera(&["checkpoint", "verify", "runs/tiny/checkpoints/ep2-ba12"]).printed();
}

#[test]
fn a_missing_shard_is_named_and_the_older_checkpoint_used() {
    let bench = Bench::new();
    let (shard, weights) = finished(&bench);
    fs::remove_file(shard).unwrap();
    goes_on_from_the_older(&bench, &weights, &[]);
}

#[test]
fn a_truncated_shard_is_named_and_the_older_checkpoint_used() {
    let bench = Bench::new();
    let (shard, weights) = finished(&bench);
    let length = shard.metadata().unwrap().len();
    OpenOptions::new().write(true).open(&shard).unwrap().set_len(length - 100).unwrap();
    goes_on_from_the_older(&bench, &weights, &["truncated"]);
}

#[test]
fn a_shard_of_another_save_is_named_and_the_older_checkpoint_used() {
    let bench = Bench::new();
    let (shard, weights) = finished(&bench);
    // As long, of the same tensors, whole in itself.
    fs::copy(bench.path("runs/tiny/checkpoints/ep1-ba6/__1_0.distcp"), shard).unwrap();
    goes_on_from_the_older(&bench, &weights, &["of another save than .metadata"]);
}

#[test]
fn without_a_readable_checkpoint_nothing_is_trained_over() {
    let bench = Bench::new();
    bench.tessera(&SHORT).printed();
    for checkpoint in ["ep1-ba6", "ep2-ba12"] {
        fs::remove_file(bench.path(&format!("runs/tiny/checkpoints/{checkpoint}/__2_0.distcp"))).unwrap();
    }
    fs::remove_dir_all(bench.path("runs/tiny/huggingface")).unwrap();
    bench.tessera(&SHORT).refused(&["no checkpoint in", "ep2-ba12/__2_0.distcp"]);
    assert!(bench.path("runs/tiny/checkpoints/ep2-ba12").is_dir(), "what can be restored stays where it is");
}

#[test]
fn a_run_that_nobody_waited_for_in_vain_has_nothing_to_explain() {
    let bench = Bench::new();
    bench.tessera(&SHORT).printed();
    bench.tessera(&["runs", "why", "runs/tiny"]).refused(&["runs/tiny/flight", "no watchdog"]);
}
