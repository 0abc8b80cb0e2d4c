//! Checkpoints that are damaged, hostile, or find no room.

use std::fs::{self, OpenOptions};
use std::process::Command;

use crate::support::{Bench, ended};

#[test]
fn a_truncated_newest_checkpoint_gives_way_to_the_older_one() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml"]).printed();
    let weights = "runs/tiny/huggingface/ba12/model.safetensors";
    let expected = bench.read(weights);
    fs::remove_dir_all(bench.path("runs/tiny/huggingface")).unwrap();
    let shard = bench.path("runs/tiny/checkpoints/ep2-ba12/__0_0.distcp");
    let length = shard.metadata().unwrap().len();
    OpenOptions::new().write(true).open(&shard).unwrap().set_len(length / 2).unwrap();

    let verify = ["checkpoint", "verify", "runs/tiny/checkpoints/ep2-ba12"];
    bench.tessera(&verify).refused(&["__0_0.distcp", "truncated"]);
    let again = bench.tessera(&["train", "run.yaml"]);
    assert!(again.stderr.contains("warning: ") && again.stderr.contains("ep2-ba12"), "{again:?}");
    assert!(again.stderr.contains("passed over") && again.stderr.contains("truncated"), "{again:?}");
    assert!(again.printed().contains("Going on from runs/tiny/checkpoints/ep1-ba6"));
    assert!(bench.read(weights) == expected);
    bench.tessera(&verify).printed();
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml", "training_duration=1ba"]).printed();
    let shard = "runs/tiny/checkpoints/ep0-ba1/__0_0.distcp";
    let mut bytes = bench.read(shard);
    // The last values of the exported weights, wherever they lie in the shard.
    let weights = bench.read("runs/tiny/huggingface/ba1/model.safetensors");
    let values = &weights[weights.len() - 32..];
    let place = bytes.windows(values.len()).position(|window| window == values).unwrap();
    bytes[place] ^= 4;
    bench.write(shard, bytes);
    bench.tessera(&["checkpoint", "verify", "runs/tiny/checkpoints/ep0-ba1"]).refused(&[
        "__0_0.distcp",
        "CRC-32",
        "use an older checkpoint",
    ]);
}

#[test]
fn a_pickle_that_would_run_something_is_refused_and_runs_nothing() {
    let bench = Bench::new();
    bench.write("evil/.metadata", b"\x80\x02cposix\nsystem\nX\x0b\x00\x00\x00touch owned\x85R.");
    bench.tessera(&["checkpoint", "show", "evil"]).refused(&["evil/.metadata", "posix"]);
    bench
        .tessera(&["validate", "run.yaml", "custom_weights_path=evil"])
        .refused(&["evil/.metadata", "posix"]);
    assert!(!bench.path("owned").exists());
}

#[test]
fn what_is_no_checkpoint_is_not_taken_for_one() {
    let bench = Bench::new();
    bench.tessera(&["checkpoint", "show", "model"]).refused(&["model is not a checkpoint", ".metadata"]);
    bench.tessera(&["checkpoint", "verify", "absent"]).refused(&["absent is not a checkpoint"]);
    bench
        .tessera(&["validate", "run.yaml", "custom_weights_path=train.jsonl"])
        .refused(&["train.jsonl is not a checkpoint", "ep#-ba#"]);
}

/// A full disk, played by a limit on the size of files.
#[test]
fn a_full_disk_costs_no_training_until_the_last_checkpoint_and_no_older_one() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml", "training_duration=1ep", "run_name=before"]).printed();
    let size = bench.path("runs/before/checkpoints/ep1-ba6/__0_0.distcp").metadata().unwrap().len();
    let mut command = Command::new("sh");
    let limit = size / 2 / 512;
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" train run.yaml");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_tessera")]).current_dir(bench.path(""));
    let full = ended(command);
    assert!(full.stderr.contains("warning: a checkpoint could not be saved: "), "{full:?}");
    full.failed(3, &["the final checkpoint could not be saved", "Make room"]);
    assert!(crate::support::names(&bench.path("runs/tiny/checkpoints")).is_empty());
    let said = bench.tessera(&["train", "run.yaml"]).printed();
    assert!(said.contains("Done: 12 batches."), "{said}");
}
