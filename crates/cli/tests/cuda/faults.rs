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

/// The machine code of the kernels runs on every driver of the toolkit's major version.
#[test]
fn a_driver_that_is_too_old_is_named_and_one_of_the_same_major_version_serves() {
    let bench = Bench::new();
    train(&bench, 1, &[ONE], &[("TESSERA_EMULATOR_DRIVER", "11080")])
        .failed(3, &["the CUDA driver is of CUDA 11.8", "install a newer driver"]);
    train(&bench, 1, &[ONE, "training_duration=1ba"], &[("TESSERA_EMULATOR_DRIVER", "13000")]).printed();
}

#[test]
fn doctor_tries_every_gpu() {
    let bench = Bench::new();
    let report = on_gpus(&bench, 2, &["doctor"], &[("TESSERA_EMULATOR_CHECKS", "none")]).printed();
    for expected in ["driver of CUDA 13.4", "NCCL 2.", "cuda:0", "cuda:1", "two steps in amp_bf16: right"] {
        assert!(report.contains(expected), "{expected}: {report}");
    }
    // Its first launch fails, and every one after it.
    on_gpus(&bench, 1, &["doctor"], &[("TESSERA_EMULATOR_FAIL", "0:0")]).failed(3, &["cannot be used"]);
    on_gpus(&bench, 1, &["doctor"], &[("TESSERA_EMULATOR_DRIVER", "11080")]).failed(3, &["cannot be used"]);
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
    for launch in ["0:70", "0:110"] {
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
