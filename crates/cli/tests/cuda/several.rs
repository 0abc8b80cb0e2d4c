//! Runs on several GPUs of one process, joined by NCCL.

use crate::support::{Bench, Ended, ended};

/// Runs the binary where there are so many emulated GPUs.
pub fn on_gpus(bench: &Bench, gpus: usize, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = bench.command(arguments);
    command.env("TESSERA_EMULATOR_DEVICES", gpus.to_string()).env("TESSERA_EMULATOR_STRICT", "1");
    command.envs(variables.iter().copied());
    ended(command)
}

/// The losses of a run's batches.
pub fn losses(bench: &Bench) -> Vec<f64> {
    let lines = bench.json_lines("runs/tiny/metrics.jsonl");
    lines.iter().filter_map(|line| line.get("loss/train/total")?.as_f64()).collect()
}

fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found / expected - 1.0).abs() < tolerance, "{found}, expected {expected}");
    }
}

#[test]
fn four_gpus_train_as_the_cpu_does() {
    let cpu = Bench::new();
    cpu.tessera(&["train", "run.yaml", "devices=cpu"]).printed();
    for parallel in [
        "parallel.replicate=1",
        "parallel.replicate=2",
        "parallel.context=2",
        "parallel.reshard_after_forward=false",
    ] {
        let bench = Bench::new();
        let arguments = ["train", "run.yaml", "devices=cuda", "precision=fp32", parallel];
        on_gpus(&bench, 4, &arguments, &[]).printed();
        close(&losses(&bench), &losses(&cpu), 1e-3);
        let run = bench.text("runs/tiny/run.yaml");
        assert!(run.contains("devices: cuda"), "{run}");
    }
}

#[test]
fn a_checkpoint_of_two_gpus_is_gone_on_with_by_three_and_by_the_cpu() {
    let bench = Bench::new();
    let train = |devices: &str, duration: &str, gpus| {
        let devices = format!("devices={devices}");
        let duration = format!("training_duration={duration}");
        let arguments = ["train", "run.yaml", &devices, "precision=fp32", &duration];
        on_gpus(&bench, gpus, &arguments, &[])
    };
    let whole = Bench::new();
    whole.tessera(&["train", "run.yaml", "devices=cpu", "scheduler.name=constant_with_warmup"]).printed();
    bench.write("run.yaml", format!("{}scheduler: {{name: constant_with_warmup}}\n", bench.text("run.yaml")));
    train("cuda:0,1", "2ep", 2).printed();
    close(&losses(&bench), &losses(&whole), 1e-3);
    // The export is missing: the run is taken up again from its last checkpoint, by whatever is there.
    std::fs::remove_dir_all(bench.path("runs/tiny/huggingface")).unwrap();
    train("cuda", "2ep", 3).printed();
    std::fs::remove_dir_all(bench.path("runs/tiny/huggingface")).unwrap();
    train("cpu", "2ep", 1).printed();
    assert!(bench.path("runs/tiny/huggingface/ba12/model.safetensors").is_file());
}

#[test]
fn the_order_of_streams_does_not_touch_the_bits() {
    let weights = |seed: &str| {
        let bench = Bench::new();
        let arguments =
            ["train", "run.yaml", "devices=cuda:0,1", "training_duration=3ba", "hf_save_precision=fp32"];
        on_gpus(&bench, 2, &arguments, &[("TESSERA_EMULATOR_SEED", seed)]).printed();
        bench.read("runs/tiny/huggingface/ba3/model.safetensors")
    };
    let first = weights("0");
    for seed in 1..6 {
        assert!(weights(&seed.to_string()) == first, "seed {seed}");
    }
}
