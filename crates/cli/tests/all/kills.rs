//! A run killed at any moment, by a signal that nothing can catch, and started again.

use std::thread::sleep;
use std::time::Duration;

use crate::signals::Background;
use crate::support::{Bench, timeless};

const KILLS: u64 = 20;
/// Several times as many batches as are done before the last kill, so that the kills meet the run in all its parts: starting,
/// training, saving, renaming, deleting.
const RUN: [&str; 6] = [
    "train",
    "run.yaml",
    "training_duration=1500ba",
    "save_interval=10ba",
    "eval_interval=50ba",
    "save_num_checkpoints_to_keep=2",
];

#[test]
fn killed_twenty_times_a_run_ends_with_the_same_weights() {
    let bench = Bench::new();
    let mut state = 17_u64;
    for kill in 0..KILLS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Two of three are killed while they train, the others perhaps while they start.
        let run =
            if kill % 3 == 0 { Background::launch(&bench, &RUN) } else { Background::start(&bench, &RUN) };
        sleep(Duration::from_millis((state >> 33) % 150));
        assert!(run.kill_was_needed(), "the run was over before kill {kill}");
    }
    bench.tessera(&RUN).printed();

    let undisturbed = Bench::new();
    undisturbed.tessera(&RUN).printed();
    let weights = "runs/tiny/huggingface/ba1500/model.safetensors";
    assert!(bench.read(weights) == undisturbed.read(weights));
    let numbers = |bench: &Bench| -> Vec<_> {
        bench.json_lines("runs/tiny/metrics.jsonl").into_iter().map(timeless).collect()
    };
    assert_eq!(numbers(&bench), numbers(&undisturbed));
    assert_eq!(bench.read("runs/tiny/generations.jsonl"), undisturbed.read("runs/tiny/generations.jsonl"));
}
