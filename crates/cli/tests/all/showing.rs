//! Commands that only show: what they print for people and for programs, and that they leave no run behind.

use std::io::Read;

use serde_json::json;

use crate::support::Bench;

#[test]
fn validate_counts_advises_and_makes_no_run() {
    let bench = Bench::new();
    let said = bench.tessera(&["validate", "run.yaml"]).printed();
    for part in [
        "96 examples",
        "96 rows of 64 tokens",
        "Lengths of the training examples",
        "█",
        "tessera train run.yaml",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(!bench.path("runs/tiny").exists());

    bench.write("model/tokenizer_config.json", "{}");
    bench.write("one.jsonl", crate::support::sums(0..1));
    let keys = ["train_data_path=one.jsonl", "scheduler.t_warmup=5ba", "scheduler.name=constant_with_warmup"];
    let json = bench.tessera(&[&["validate", "run.yaml", "--json"], keys.as_slice()].concat()).json();
    let advice = json["advice"].to_string();
    for part in
        ["usually needs at least 64", "the warm-up takes 5 batches and the run has 2", "end-of-sequence"]
    {
        assert!(advice.contains(part), "{part:?} is not in: {advice}");
    }
    assert_eq!((&json["train"]["examples"], &json["batches"]), (&json!(1), &json!(2)));
    assert!(json["estimated_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn validate_tells_what_is_cut_and_dropped() {
    let bench = Bench::new();
    let long = crate::support::chat(&[("user", &"1 ".repeat(100)), ("assistant", "2")]);
    let empty = crate::support::chat(&[("user", "1"), ("assistant", &"2 ".repeat(100))]);
    bench.write("train.jsonl", crate::support::sums(0..4) + &long + &empty);
    let json = bench.tessera(&["validate", "run.yaml", "--json"]).json();
    assert_eq!(
        (&json["train"]["dropped_no_loss_token"], &json["train"]["truncated"]),
        (&json!(1), &json!(1))
    );
    let said = bench.tessera(&["validate", "run.yaml"]).printed();
    assert!(said.contains("1 dropped: no loss token in the first 64 tokens"), "{said}");
    assert!(said.contains("1 cut to 64 tokens"), "{said}");
}

#[test]
fn the_plan_adds_up() {
    let bench = Bench::new();
    let plan = bench.tessera(&["plan", "run.yaml", "--json"]).json();
    let parts = plan["memory_bytes"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap());
    assert_eq!(parts.sum::<u64>(), plan["memory_total_bytes"].as_u64().unwrap());
    assert_eq!((&plan["batches"], &plan["batches_per_epoch"]), (&json!(12), &json!(6)));
    assert_eq!(plan["settings"]["seed"], 17);
    let said = bench.tessera(&["plan", "run.yaml"]).printed();
    assert!(said.contains("12 batches, 6 an epoch"), "{said}");
}

#[test]
fn inspect_marks_what_is_learnt() {
    let bench = Bench::new();
    let keys = ["shuffle=false", "packing=best_fit", "context_length=128"];
    let said = bench.tessera(&[&["inspect", "run.yaml", "--row", "0"], keys.as_slice()].concat()).printed();
    assert!(said.contains("<|im_start|>assistant\n[["), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
    let rows =
        bench.tessera(&[&["inspect", "run.yaml", "--batch", "0", "--json"], keys.as_slice()].concat()).json();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 16);
    let documents = rows[0]["documents"].as_array().unwrap();
    assert!(documents.len() > 1);
    let token = &documents[0]["tokens"][0];
    assert_eq!((&token["text"], &token["loss"]), (&json!("<|im_start|>"), &json!(false)));
}

#[test]
fn runs_are_listed() {
    let bench = Bench::new();
    assert!(bench.tessera(&["runs"]).printed().contains("no runs in runs"));
    bench.tessera(&["train", "run.yaml", "training_duration=2ba"]).printed();
    let said = bench.tessera(&["runs"]).printed();
    assert!(
        said.starts_with("NAME") && said.contains("COMPLETED") && said.contains("CHAT_COMPLETION"),
        "{said}"
    );
    let runs = bench.tessera(&["runs", "runs", "--json"]).json();
    assert_eq!((&runs[0]["name"], &runs[0]["batches"]), (&json!("tiny"), &json!(2)));
    assert!(runs[0]["duration"].is_number());
}

#[test]
fn every_command_has_help_with_an_example() {
    let bench = Bench::new();
    let commands: [&[&str]; 21] = [
        &["train"],
        &["validate"],
        &["inspect"],
        &["plan"],
        &["models"],
        &["models", "show"],
        &["checkpoint", "list"],
        &["checkpoint", "show"],
        &["checkpoint", "verify"],
        &["checkpoint", "export"],
        &["generate"],
        &["runs"],
        &["runs", "list"],
        &["runs", "show"],
        &["runs", "events"],
        &["runs", "cancel"],
        &["runs", "resume"],
        &["runs", "delete"],
        &["runs", "why"],
        &["runs", "compare"],
        &["sweep"],
    ];
    for command in commands {
        let help = bench.tessera(&[command, &["--help"]].concat()).printed();
        assert!(help.contains(&format!("  tessera {}", command.join(" "))), "{help}");
        assert!(help.contains("Example"), "{help}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let bench = Bench::new();
    let mut run = bench.command(&["validate", "run.yaml"]).spawn().unwrap();
    drop(run.stdout.take());
    let mut stderr = String::new();
    run.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((run.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn doctor_says_what_is_here_and_whether_it_computes_right() {
    let said = Bench::new().tessera(&["doctor"]).printed();
    for part in ["tessera 0.", "of memory", "two steps: right", "GPUs"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}
