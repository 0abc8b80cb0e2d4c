//! GPUs that are missing, too small, lost in the middle, or waited for in vain.

use crate::several::{EXPORT, SHORT, losses, on_gpus, train};
use crate::support::{Bench, ended};

const ONE: &str = "devices=cuda:0";

#[test]
fn without_a_driver_the_cpu_trains_and_a_gpu_is_refused() {
    let bench = Bench::new();
    let without = |devices: &str| {
        let mut command = bench.command(&[&SHORT[..], &[devices]].concat());
        command.env_remove("LD_LIBRARY_PATH");
        ended(command)
    };
    without(ONE).failed(3, &["libcuda", "install NVIDIA's driver"]);
    without("devices=auto").printed();
    assert!(bench.text("runs/tiny/run.yaml").contains("devices: cpu"));
}

#[test]
fn a_gpu_that_is_too_small_is_named_before_anything_is_allocated() {
    let bench = Bench::new();
    train(&bench, 1, &[ONE], &[("TESSERA_EMULATOR_MEMORY", "2010000000")])
        .failed(3, &["the run needs", "GPU 0 has 1.87 GiB", "tessera plan"]);
}

#[test]
fn a_gpu_that_is_lost_ends_the_run_and_nothing_else() {
    let undisturbed = Bench::new();
    train(&undisturbed, 1, &[ONE], &[]).printed();
    let bench = Bench::new();
    let keys = [ONE, "save_interval=1ba"];
    // In the second batch, then two batches later, wherever that is.
    for launch in ["0:100", "0:150"] {
        train(&bench, 1, &keys, &[("TESSERA_EMULATOR_FAIL", launch)]).failed(3, &["CUDA device 0"]);
    }
    train(&bench, 1, &keys, &[]).printed();
    assert_eq!(losses(&bench), losses(&undisturbed));
    assert!(bench.read(EXPORT) == undisturbed.read(EXPORT));
}

#[test]
fn a_collective_that_does_not_end_is_named() {
    let bench = Bench::new();
    let keys = ["devices=cuda", "dist_timeout=3", "dist_startup_timeout=20"];
    train(&bench, 2, &keys, &[("TESSERA_EMULATOR_HANG", "1:40")])
        .failed(4, &["has not ended for 3 s", "runs/tiny/flight"]);
    // All ranks have called it: which GPU does not come NCCL does not tell.
    let why = on_gpus(&bench, 2, &["runs", "why", "runs/tiny"], &[]).printed();
    assert!(why.contains("all-gather") || why.contains("reduce-scatter"), "{why}");
    train(&bench, 2, &keys, &[]).printed();
}
