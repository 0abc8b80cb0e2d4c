//! Runs on several GPUs of one process, joined by NCCL.

use crate::support::{Bench, Ended, ended};

/// Four batches of four rows: the emulator is ten thousand times slower than a GPU.
pub const SHORT: [&str; 6] = [
    "train",
    "run.yaml",
    "training_duration=4ba",
    "global_train_batch_size=4",
    "eval_data_path=null",
    "eval_prompts=[]",
];
/// What they end with.
pub const EXPORT: &str = "runs/tiny/huggingface/ba4/model.safetensors";

/// Trains where there are so many emulated GPUs.
pub fn train(bench: &Bench, gpus: usize, keys: &[&str], variables: &[(&str, &str)]) -> Ended {
    on_gpus(bench, gpus, &[&SHORT[..], keys].concat(), variables)
}

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

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found / expected - 1.0).abs() < 1e-3, "{found}, expected {expected}");
    }
}

/// The losses on the CPU.
fn expected() -> Vec<f64> {
    let cpu = Bench::new();
    train(&cpu, 1, &["devices=cpu"], &[]).printed();
    losses(&cpu)
}

#[test]
fn four_gpus_train_as_the_cpu_does() {
    let expected = expected();
    for parallel in [
        "parallel.replicate=1",
        "parallel.replicate=2",
        "parallel.context=2",
        "parallel.reshard_after_forward=false",
    ] {
        let bench = Bench::new();
        train(&bench, 4, &["devices=cuda", "precision=fp32", parallel], &[]).printed();
        close(&losses(&bench), &expected);
        let run = bench.text("runs/tiny/run.yaml");
        assert!(run.contains("devices: cuda") && run.contains("activation_checkpointing: auto"), "{run}");
    }
}

/// By default blocks and gathered weights are kept where the GPU has room for that.
#[test]
fn blocks_and_weights_are_kept_where_there_is_room() {
    let bench = Bench::new();
    let plan = |key: &str, memory: &str| {
        let keys = ["plan", "run.yaml", "devices=cuda:0", "eval_data_path=null", "context_length=128", key];
        on_gpus(&bench, 1, &keys, &[("TESSERA_EMULATOR_MEMORY", memory)]).printed()
    };
    let large = "8000000000";
    for (auto, keeping, giving_up) in [
        ("activation_checkpointing=auto", "activation_checkpointing=none", "activation_checkpointing=block"),
        (
            "parallel.reshard_after_forward=auto",
            "parallel.reshard_after_forward=false",
            "parallel.reshard_after_forward=true",
        ),
    ] {
        assert_ne!(plan(keeping, large), plan(giving_up, large));
        assert_eq!(plan(auto, large), plan(keeping, large));
    }
}

/// The optimizer's moments may lie in the memory of the host: the bits are the same, and either goes on with the other.
#[test]
fn moments_in_the_memory_of_the_host_change_nothing() {
    let trained = |offload: &str| {
        let bench = Bench::new();
        train(&bench, 1, &["devices=cuda:0", "training_duration=2ba", "save_interval=1ba", offload], &[])
            .printed();
        bench
    };
    let (plain, moved) = (trained("offload=none"), trained("offload=optimizer"));
    let export = "runs/tiny/huggingface/ba2/model.safetensors";
    assert!(moved.read(export) == plain.read(export));
    assert!(moved.text("runs/tiny/run.yaml").contains("offload: optimizer"));
    // What was saved there goes on here.
    let expected = plain.read(export);
    for (bench, offload) in [(&moved, "offload=none"), (&plain, "offload=optimizer")] {
        std::fs::remove_dir_all(bench.path("runs/tiny/huggingface")).unwrap();
        std::fs::remove_dir_all(bench.path("runs/tiny/checkpoints/ep0-ba2")).unwrap();
        let keys = ["devices=cuda:0", "training_duration=2ba", "save_interval=1ba", offload];
        train(bench, 1, &keys, &[]).printed();
        assert!(bench.read(export) == expected, "{offload}");
    }

    let plan = |offload: &str| {
        let keys = ["plan", "run.yaml", "--json", "devices=cuda:0", "eval_data_path=null", offload];
        serde_json::from_str::<serde_json::Value>(&on_gpus(&plain, 1, &keys, &[]).printed()).unwrap()
    };
    let (here, there) = (plan("offload=none"), plan("offload=optimizer"));
    let moments = &here["memory_bytes"]["optimizer"];
    assert!(moments.is_u64() && there["memory_bytes"]["optimizer"].is_null());
    assert_eq!(&there["host_memory_bytes"]["optimizer"], moments);
}

#[test]
fn a_checkpoint_of_two_gpus_serves_three_and_the_cpu() {
    let bench = Bench::new();
    let fp32 = "precision=fp32";
    train(&bench, 2, &["devices=cuda:0,1", fp32], &[]).printed();
    close(&losses(&bench), &expected());
    let whole = bench.read(EXPORT);
    // The export is missing: it is made again from the last checkpoint, by whatever is there.
    for (gpus, devices) in [(3, "devices=cuda"), (1, "devices=cuda:0"), (1, "devices=cpu:2")] {
        std::fs::remove_dir_all(bench.path("runs/tiny/huggingface")).unwrap();
        train(&bench, gpus, &[devices, fp32], &[]).printed();
        assert!(bench.read(EXPORT) == whole, "{devices}");
    }
}

#[test]
fn the_order_of_streams_does_not_touch_the_bits() {
    let weights = |seed: u32| {
        let bench = Bench::new();
        let keys = ["devices=cuda:0,1", "training_duration=2ba", "hf_save_precision=fp32"];
        train(&bench, 2, &keys, &[("TESSERA_EMULATOR_SEED", &seed.to_string())]).printed();
        bench.read("runs/tiny/huggingface/ba2/model.safetensors")
    };
    let first = weights(0);
    for seed in 1..20 {
        assert!(weights(seed) == first, "seed {seed}");
    }
}
