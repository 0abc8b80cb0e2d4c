//! `tessera plan` for clusters that are not there, and for runs of several ranks.

use serde_json::{Value, json};

use crate::support::Bench;

const LLAMA_8B: &str = "meta-llama/Meta-Llama-3.1-8B";

#[test]
fn a_model_is_planned_by_name_for_a_cluster() {
    let bench = Bench::new();
    let arguments = ["plan", "--model", LLAMA_8B, "--nodes", "2", "--gpus", "8", "--gpu", "a100-80gb"];
    let keys = ["global_train_batch_size=64", "parallel.replicate=2", "--gpu-mtbf-hours", "50000"];
    let arguments = [arguments.as_slice(), keys.as_slice()].concat();
    let said = bench.tessera(&arguments).printed();
    for part in [
        "8,030,261,248 parameters",
        "2 nodes of 8 a100-80gb",
        "shard 8, replicate 2, context 1",
        "64 rows of 8,192 tokens",
        "master weights, fp32",
        "gathered weights, bf16",
        "pinned for each GPU",
        "sums of replicas, fp32",
        "Step, estimated",
        "MFU",
        "restarts a day",
        "312.0 TFLOP/s, dense bf16 (NVIDIA A100 datasheet",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }

    let plan = bench.tessera(&[arguments.as_slice(), &["--json"]].concat()).json();
    let parts = plan["memory"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap());
    assert_eq!(parts.sum::<u64>(), plan["memory_total_bytes"].as_u64().unwrap());
    assert_eq!(plan["parallel"], json!({"shard": 8, "replicate": 2, "context": 1}));
    assert_eq!((&plan["fits"], &plan["rows"]["global_batch"]), (&json!(true), &json!(64)));
    let interval = &plan["failures"]["interval"];
    let [expected, simulated] =
        ["expected_loss", "simulated_loss"].map(|key| interval[key].as_f64().unwrap());
    assert!(0.0 < expected && expected < 0.01 && (simulated / expected - 1.0).abs() < 0.5, "{interval}");
}

#[test]
fn a_run_file_is_planned_for_a_cluster_without_its_data_or_weights() {
    let bench = Bench::new();
    for name in ["train.jsonl", "model/model.safetensors", "model/tokenizer.json"] {
        std::fs::remove_file(bench.path(name)).unwrap();
    }
    let plan = |more: &[&str]| {
        bench.tessera(&[&["plan", "run.yaml", "--nodes", "1", "--gpus", "4", "--json"], more].concat()).json()
    };
    let short = plan(&[]);
    assert_eq!(
        (&short["model"], &short["context_length"], &short["rows"]["global_batch"]),
        (&json!("model"), &json!(64), &json!(16))
    );
    assert!(short["assumptions"][0].as_str().unwrap().starts_with("data: not read"));
    let shared = plan(&["--context-length", "128", "parallel.context=2", "save_async=false"]);
    assert_eq!(shared["context_length"], 128);
    assert_eq!(shared["parallel"], json!({"shard": 2, "replicate": 1, "context": 2}));
    // What training waits for passes through the host unit by unit.
    let pinned = |plan: &Value| plan["saving"]["pinned_bytes"].as_u64().unwrap();
    assert!((1..pinned(&short)).contains(&pinned(&shared)));
    assert!(shared["links"]["exchanged"]["nvlink_bytes"].as_u64().unwrap() > 0);
    let rounded = plan(&["parallel.reduce_dtype=bf16"]);
    let sent = |plan: &Value, what: &str| plan["links"][what]["nvlink_bytes"].as_u64().unwrap();
    assert_eq!(2 * sent(&rounded, "reduced"), sent(&short, "reduced"));
    assert_eq!(sent(&rounded, "gathered"), sent(&short, "gathered"));
    assert_eq!((&short["reduce_dtype"], &rounded["reduce_dtype"]), (&json!("fp32"), &json!("bf16")));
}

#[test]
fn the_catalogue_is_a_table_with_every_model() {
    let bench = Bench::new();
    let said = bench.tessera(&["plan", "--catalogue"]).printed();
    assert!(said.lines().all(|line| line.starts_with('|') && line.ends_with('|')), "{said}");
    let models = bench.tessera(&["models", "--json"]).json();
    for model in models.as_array().unwrap() {
        let name = model["name"].as_str().unwrap().rsplit('/').next().unwrap();
        assert!(said.contains(name), "{name} is not in: {said}");
    }
    let more_memory = bench.tessera(&["plan", "--catalogue", "--gpu", "h200", "--json"]).json();
    let usual = bench.tessera(&["plan", "--catalogue", "--json"]).json();
    let gpus = |json: &Value| -> Vec<u64> {
        let rows = json["models"].as_array().unwrap().iter();
        rows.map(|row| row["usual"]["cluster"]["gpus"].as_u64().unwrap()).collect()
    };
    assert!(gpus(&more_memory).iter().zip(gpus(&usual)).all(|(&h200, h100)| h200 <= h100));
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let bench = Bench::new();
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--model", LLAMA_8B, "--nodes", "0"], &["0 nodes", "1 to 131072"]),
        (&["--model", LLAMA_8B, "--gpu", "h1"], &["`h1`", "a100-40gb", "b200"]),
        (&["--model", "gpt2"], &["`gpt2` is not in the catalogue", "tessera models"]),
        (&["--model", "Llama-3.1-8B"], &["did you mean `meta-llama/Meta-Llama-3.1-8B`?"]),
        (&["--model", LLAMA_8B, "--context-length", "200000"], &["context_length", "at most 131072"]),
        (&["--model", LLAMA_8B, "parallel.context=3", "--gpus", "3"], &["parallel.context", "3"]),
        (&["--model", LLAMA_8B, "--gpu-mtbf-hours", "0"], &["0 hours", "above 0"]),
        (&["run.yaml", "parallel.context=3", "context_length=63"], &["parallel.context", "one of 1"]),
        (&["--model", LLAMA_8B, "run.yaml"], &["`run.yaml`", "key=value"]),
    ];
    for (arguments, parts) in cases {
        bench.tessera(&[&["plan"], arguments].concat()).refused(parts);
    }
    bench.tessera(&["plan"]).refused(&["RUN.yaml"]);
    let cluster = [
        ("--model", LLAMA_8B),
        ("--context-length", "64"),
        ("--nodes", "1"),
        ("--gpus", "2"),
        ("--gpu", "h100"),
        ("--network-gbit", "400"),
        ("--gpu-mtbf-hours", "50000"),
    ];
    for (flag, value) in cluster {
        let ended = bench.tessera(&["plan", "run.yaml", "--processes", "2", flag, value]);
        ended.refused(&["--processes", flag, "cannot be used with"]);
    }
}

#[test]
fn processes_need_room_to_pack_for_one_another() {
    let bench = Bench::new();
    let plan = |arguments: &[&str]| {
        let keys = ["device_train_microbatch_size=1"];
        let plan = bench.tessera(&[&["plan", "run.yaml", "--json"], arguments, &keys].concat()).json();
        let part = |name: &str| plan["memory_bytes"][name].as_u64().unwrap_or(0);
        (part("weights"), part("exchange_between_processes"), plan["memory_total_bytes"].as_u64().unwrap())
    };
    let (alone, one_of_two) = (plan(&[]), plan(&["--processes", "2"]));
    assert_eq!(one_of_two.0, alone.0 / 2);
    assert_eq!((alone.1, one_of_two.1), (0, 2 << 22));
    let threads = plan(&["devices=cpu:2"]);
    assert_eq!((threads.1, threads.2), (0, 2 * (one_of_two.2 - one_of_two.1)), "two ranks, in one process");
    // Where the run file names them the number of processes is known.
    assert_eq!(plan(&["parallel.shard=2"]), one_of_two);
    bench.tessera(&["plan", "run.yaml", "--processes", "3", "parallel.shard=2"]).refused(&["parallel", "3"]);
}

#[test]
fn ranks_of_one_process_need_their_memory_together() {
    let bench = Bench::new();
    let memory = |devices: &str| {
        let keys = [devices, "device_train_microbatch_size=1"];
        let plan = bench.tessera(&[&["plan", "run.yaml", "--json"], keys.as_slice()].concat()).json();
        let part = |name: &str| plan["memory_bytes"][name].as_u64().unwrap_or(0);
        (part("weights"), part("gathered_weights"), part("inputs_of_blocks"))
    };
    let (one, two) = (memory("devices=cpu"), memory("devices=cpu:2"));
    // Each has a half of the weights, slots for whole units, and rows of its own.
    assert_eq!(two.0, one.0);
    assert!(one.1 == 0 && two.1 > 0);
    assert_eq!(two.2, 2 * one.2);
}
