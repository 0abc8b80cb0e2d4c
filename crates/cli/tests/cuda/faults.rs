//! GPUs that are missing, too small, lost in the middle, or waited for in vain.

use crate::several::{losses, on_gpus};
use crate::support::{Bench, ended};

const RUN: [&str; 3] = ["train", "run.yaml", "devices=cuda:0"];

#[test]
fn without_a_driver_the_cpu_trains_and_a_gpu_is_refused() {
    let bench = Bench::new();
    let without = |arguments: &[&str]| {
        let mut command = bench.command(arguments);
        command.env_remove("LD_LIBRARY_PATH");
        ended(command)
    };
    without(&RUN).failed(3, &["libcuda", "install NVIDIA's driver"]);
    without(&["train", "run.yaml", "devices=auto", "training_duration=2ba"]).printed();
    assert!(bench.text("runs/tiny/run.yaml").contains("devices: cpu"));
}

#[test]
fn a_gpu_that_is_too_small_is_named_before_anything_is_allocated() {
    let bench = Bench::new();
    on_gpus(&bench, 1, &RUN, &[("TESSERA_EMULATOR_MEMORY", "2010000000")])
        .failed(3, &["the run needs", "GPU 0 has 1.87 GiB", "tessera plan"]);
}

#[test]
fn a_gpu_that_is_lost_ends_the_run_and_nothing_else() {
    let undisturbed = Bench::new();
    on_gpus(&undisturbed, 1, &RUN, &[]).printed();
    let bench = Bench::new();
    let arguments = [&RUN[..], &["save_interval=1ba", "hf_save_interval=1dur"]].concat();
    for launch in ["0:400", "0:800"] {
        on_gpus(&bench, 1, &arguments, &[("TESSERA_EMULATOR_FAIL", launch)]).failed(3, &["CUDA device 0"]);
    }
    on_gpus(&bench, 1, &arguments, &[]).printed();
    assert_eq!(losses(&bench), losses(&undisturbed));
    let weights = "runs/tiny/huggingface/ba12/model.safetensors";
    assert!(bench.read(weights) == undisturbed.read(weights));
}

#[test]
fn a_rank_that_does_not_come_to_a_collective_is_named() {
    let bench = Bench::new();
    let arguments = ["train", "run.yaml", "devices=cuda", "dist_timeout=3", "dist_startup_timeout=20"];
    let hang = [("TESSERA_EMULATOR_HANG", "1:40")];
    on_gpus(&bench, 2, &arguments, &hang).failed(4, &["rank 1"]);
    let why = on_gpus(&bench, 2, &["runs", "why", "runs/tiny"], &[]).printed();
    assert!(why.contains("ank 1"), "{why}");
    on_gpus(&bench, 2, &arguments, &[]).printed();
}
