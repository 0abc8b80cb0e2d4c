//! The catalogue as it is printed.

use serde_json::json;

use crate::support::Bench;

#[test]
fn models_are_listed() {
    let bench = Bench::new();
    let said = bench.tessera(&["models"]).printed();
    assert!(said.starts_with("NAME") && said.contains("retired by 2026-08-14"), "{said}");
    let row = said.lines().find(|line| line.starts_with("mistralai/Mixtral-8x7B-v0.1")).unwrap();
    for part in ["Mixtral", "46,702,792,704", "12,879,925,248", "32,768", "Apache License 2.0"] {
        assert!(row.contains(part), "{part:?} is not in: {row}");
    }
    let models = bench.tessera(&["models", "--json"]).json();
    let models = models.as_array().unwrap();
    assert_eq!(models.len(), said.lines().filter(|line| line.contains('/') && line.contains("  ")).count());
    let dbrx = models.iter().find(|model| model["name"] == "databricks/dbrx-instruct").unwrap();
    let expected = json!({
        "name": "databricks/dbrx-instruct",
        "series": "DBRX",
        "family": "DBRX",
        "chat": true,
        "parameters": 131_596_523_520_u64,
        "active_parameters": 36_469_708_800_u64,
        "max_context_length": 32_768,
        "licence": "Databricks Open Model License; gated on the hub",
        "status": "retired",
        "retired_by": "2026-08-14",
    });
    assert_eq!(dbrx, &expected);
}

#[test]
fn a_model_is_shown_with_what_it_needs() {
    let bench = Bench::new();
    let shown = |name| bench.tessera(&["models", "show", name]).printed();
    let cases: [(&str, &[&str]); 4] = [
        (
            "meta-llama/Llama-3.2-1B-Instruct",
            &[
                "1,235,814,400\n",
                "16 blocks of width 2,048",
                "32 query heads and 8 key and value heads of width 64",
                "stretched by 32",
                "the embedding is also the head",
                "131,072 tokens",
                "2.30 GiB of files",
                "18.4 GiB for weights, gradients",
                "gated on the hub",
                "task_type: CHAT_COMPLETION",
            ],
        ),
        ("mistralai/Mistral-7B-v0.1", &["sees the last 4,096", "task_type: INSTRUCTION_FINETUNE"]),
        (
            "MISTRALAI/mixtral-8x7b-instruct-v0.1",
            &[
                "8 experts of width 14,336, 2 for each token; load-balancing loss × 0.02",
                "older templates refuse",
            ],
        ),
        ("databricks/dbrx-base", &["LayerNorm", "clamped to ±8", "of which a token uses 36,469,708,800"]),
    ];
    for (name, parts) in cases {
        let said = shown(name);
        for part in parts {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
    }
    let json = bench.tessera(&["models", "show", "databricks/dbrx-base", "--json"]).json();
    assert_eq!(json["config"]["attn_config"]["clip_qkv"], 8);
    assert_eq!(json["training_state_bytes"], 16 * 131_596_523_520_u64);
    assert_eq!(json["chat_template"], json!(null));
}

/// What is shown as a run file is one: it fails for want of the model, not for its words.
#[test]
fn the_run_file_shown_is_one() {
    let bench = Bench::new();
    let json = bench.tessera(&["models", "show", "meta-llama/Llama-3.2-1B", "--json"]).json();
    bench.write("shown.yaml", json["run_file"].as_str().unwrap());
    let keys =
        ["train_data_path=train.jsonl", "model=model", "context_length=64", "task_type=CHAT_COMPLETION"];
    bench.tessera(&[&["validate", "shown.yaml"], keys.as_slice()].concat()).printed();
}

#[test]
fn a_wrong_name_is_refused_with_the_right_one() {
    let bench = Bench::new();
    bench
        .tessera(&["models", "show", "meta-llama/Llama-3.2-1B-Instuct"])
        .refused(&["did you mean `meta-llama/Llama-3.2-1B-Instruct`?"]);
    bench.tessera(&["models", "show", "gpt2"]).refused(&["`gpt2` is not in the catalogue", "tessera models"]);
}
