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
    let keys = ["devices=cuda:0", "training_duration=2ba", "save_interval=1ba", "hf_save_precision=fp32"];
    let trained = |more: &[&str]| {
        let bench = Bench::new();
        train(&bench, 1, &[&keys[..], more].concat(), &[]).printed();
        bench
    };
    let plain = trained(&[]);
    let moved = trained(&["offload=optimizer"]);
    // Saved from where they lie.
    let waiting = trained(&["offload=optimizer", "save_async=false"]);
    let export = "runs/tiny/huggingface/ba2/model.safetensors";
    let expected = plain.read(export);
    assert!(moved.read(export) == expected && waiting.read(export) == expected);
    assert!(moved.text("runs/tiny/run.yaml").contains("offload: optimizer"));
    // What was saved there goes on here.
    for (bench, offload) in
        [(&moved, "offload=none"), (&waiting, "offload=none"), (&plain, "offload=optimizer")]
    {
        std::fs::remove_dir_all(bench.path("runs/tiny/huggingface")).unwrap();
        std::fs::remove_dir_all(bench.path("runs/tiny/checkpoints/ep0-ba2")).unwrap();
        train(bench, 1, &[&keys[..], &[offload]].concat(), &[]).printed();
        assert!(bench.read(export) == expected, "{offload}");
    }

    let plan = |gpus: usize, more: &[&str]| {
        let devices = if gpus == 1 { "devices=cuda:0" } else { "devices=cuda:0,1" };
        let keys = [&["plan", "run.yaml", "--json", "eval_data_path=null", devices][..], more].concat();
        serde_json::from_str::<serde_json::Value>(&on_gpus(&plain, gpus, &keys, &[]).printed()).unwrap()
    };
    let bytes = |plan: &serde_json::Value, place: &str, part: &str| plan[place][part].as_u64().unwrap_or(0);
    let (gpu, host) = ("memory_bytes", "host_memory_bytes");
    let (here, there) = (plan(1, &[]), plan(1, &["offload=optimizer"]));
    let moments = bytes(&here, gpu, "optimizer");
    assert!(moments > 0 && bytes(&here, host, "optimizer") == 0);
    assert_eq!((bytes(&there, gpu, "optimizer"), bytes(&there, host, "optimizer")), (0, moments));
    // What both GPUs of the machine keep, each a half; with a little for slices of equal length.
    let both = bytes(&plan(2, &["offload=optimizer"]), host, "optimizer");
    assert!((moments..moments + moments / 100).contains(&both), "{both} of {moments}");
    let copy = |more: &[&str]| bytes(&plan(1, more), host, "copy_for_a_checkpoint");
    let (beside, waiting) = (copy(&["offload=optimizer"]), copy(&["offload=optimizer", "save_async=false"]));
    assert_eq!(beside, moments + moments / 2);
    assert!((1..moments / 2).contains(&waiting), "{waiting}");
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
