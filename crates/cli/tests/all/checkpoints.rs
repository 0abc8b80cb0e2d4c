//! `tessera checkpoint` and `tessera generate` on what a run has left.

use serde_json::{Value, json};

use crate::support::Bench;

#[test]
fn checkpoints_are_listed_shown_verified_exported_and_asked() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml"]).printed();
    let checkpoint = "runs/tiny/checkpoints/ep2-ba12";

    let list = bench.tessera(&["checkpoint", "list", "runs/tiny", "--json"]).json();
    let listed: Vec<_> =
        list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(listed, ["ep2-ba12", "ep1-ba6"]);
    assert_eq!(list[0]["folder"], checkpoint);
    assert_eq!(bench.tessera(&["checkpoint", "list", "runs/tiny/checkpoints", "--json"]).json(), list);
    assert!(bench.tessera(&["checkpoint", "list", "runs/tiny"]).printed().contains("ep1-ba6"));

    let show = bench.tessera(&["checkpoint", "show", checkpoint, "--json"]).json();
    assert_eq!((&show["run_name"], &show["optimizer"]), (&json!("tiny"), &json!("AdamW")));
    assert_eq!((&show["timestamp"]["epoch"], &show["timestamp"]["batch"]), (&json!(2), &json!(12)));
    assert_eq!(show["settings"]["learning_rate"], json!(0.01));
    let tensor = &show["weights"]["model.layers.0.mlp.up_proj.weight"];
    assert_eq!(*tensor, json!({"dtype": "F32", "shape": [48, 32]}));
    let shown = bench.tessera(&["checkpoint", "show", checkpoint]).printed();
    assert!(shown.contains("2 epochs, 12 batches"), "{shown}");

    let verified = bench.tessera(&["checkpoint", "verify", checkpoint]).printed();
    assert!(verified.contains("is whole"), "{verified}");

    let export = ["checkpoint", "export", checkpoint, "--model", "model", "--output", "out"];
    bench.tessera(&export).printed();
    let weights = "huggingface/ba12/model.safetensors";
    assert!(bench.read("out/model.safetensors") == bench.read(&format!("runs/tiny/{weights}")));
    bench.tessera(&export).refused(&["output: out", "nothing is yet"]);
    bench.tessera(&["checkpoint", "list", "absent"]).refused(&["folder: absent", "a run's folder"]);
    let half = [
        "checkpoint",
        "export",
        checkpoint,
        "--model",
        "model",
        "--output",
        "half",
        "--precision",
        "bf16",
        "--json",
    ];
    assert_eq!(bench.tessera(&half).json()["output"], "half");
    assert!(bench.text("half/config.json").contains("bfloat16"));
    assert!(bench.read("half/model.safetensors").len() < bench.read("out/model.safetensors").len() * 6 / 10);
}

#[test]
fn a_composer_checkpoint_is_shown_and_exported() {
    let bench = Bench::new();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../checkpoint/tests/fixtures/composer-sharded");
    let checkpoint = format!("{root}/ep1-ba5");
    let show = bench.tessera(&["checkpoint", "show", &checkpoint, "--json"]).json();
    assert_eq!((&show["optimizer"], &show["timestamp"]["batch"]), (&json!("DecoupledAdamW"), &json!(5)));
    std::fs::copy(format!("{root}/config.json"), bench.path("model/config.json")).unwrap();
    bench.tessera(&["checkpoint", "export", &checkpoint, "--model", "model", "--output", "out"]).printed();
    assert!(bench.path("out/model.safetensors").is_file());
}

#[test]
fn a_model_and_a_checkpoint_answer() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml", "training_duration=48ba", "save_interval=1dur"]).printed();
    let chat = ["--task", "CHAT_COMPLETION", "--prompt", "1 + 2?"];
    let ask = |arguments: &[&str]| bench.tessera(&[&["generate"], arguments, &chat].concat());
    let exported = "runs/tiny/huggingface/ba48";
    let checkpoint = ["model", "--weights", "runs/tiny/checkpoints/latest-sharded-rank0.symlink"];

    let answer = ask(&[exported, "--greedy"]).printed();
    assert!(answer.len() > 2, "{answer:?}");
    assert_eq!(ask(&[&checkpoint, ["--greedy"].as_slice()].concat()).printed(), answer);
    let answers = ask(&[exported, "--greedy", "--json", "--prompt", "4 + 5?"]).json();
    let prompts: Vec<_> = answers.as_array().unwrap().iter().map(|entry| &entry["prompt"]).collect();
    assert_eq!(prompts, [&json!("4 + 5?"), &json!("1 + 2?")]);
    assert_eq!(format!("{}\n", answers[1]["answer"].as_str().unwrap()), answer);

    let drawn = |seed: &str| ask(&[exported, "--seed", seed, "--max-new-tokens", "5"]).printed();
    assert_eq!(drawn("1"), drawn("1"));

    let logits = ask(&[exported, "--top-logits", "300", "--json"]).json();
    let ranked = logits[0]["next_tokens"].as_array().unwrap();
    assert_eq!(ranked.len(), 288, "one for each row of the embedding");
    let values: Vec<f64> = ranked.iter().map(|token| token["logit"].as_f64().unwrap()).collect();
    assert!(values.is_sorted_by(|first, second| first >= second));
    let first: &Value = &ranked[0];
    assert!(answer.starts_with(first["text"].as_str().unwrap()), "{answer:?} {first}");
}
