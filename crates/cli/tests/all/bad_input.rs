//! Mistakes in run file, data and model: exit code 2, and a message that says where, what, and what to do.

use std::fs;

use crate::support::{Bench, chat, config, sums};

#[test]
fn mistakes_in_the_run_file_are_told_together_with_their_lines() {
    let bench = Bench::new();
    let text = bench.text("run.yaml").replace("learning_rate", "learning_rat").replace("2ep", "2steps");
    bench.write("run.yaml", text);
    bench.tessera(&["train", "run.yaml"]).refused(&[
        "run.yaml:7: `learning_rat`: unknown key, did you mean `learning_rate`?",
        "run.yaml:6: `training_duration`: found",
        "2steps",
        "1ep, 10ba",
    ]);
    assert!(!bench.path("runs").exists());
    bench.tessera(&["validate", "absent.yaml"]).refused(&["cannot read absent.yaml"]);
    bench.write("broken.yaml", "model: [1\n");
    bench.tessera(&["plan", "broken.yaml"]).refused(&["broken.yaml", "not valid YAML"]);
}

#[test]
fn mistakes_in_arguments_name_the_argument() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml", "save_interval=often"]).refused(&["`save_interval=often`", "1ep"]);
    bench.tessera(&["train", "run.yaml", "seed"]).refused(&["`seed`", "key=value"]);
    bench.tessera(&["train"]).refused(&["RUN.yaml"]);
    bench
        .tessera(&["generate", "model", "--prompt", "x", "--temperature", "0"])
        .refused(&["a number above 0"]);
}

#[test]
fn data_that_is_not_there_or_empty_is_refused() {
    let bench = Bench::new();
    let check = |path: &str, parts: &[&str]| {
        bench.tessera(&["validate", "run.yaml", &format!("train_data_path={path}")]).refused(parts);
    };
    check("absent.jsonl", &["absent.jsonl: no such file", "CHAT_COMPLETION expects"]);
    bench.write("empty.jsonl", "\n");
    check("empty.jsonl", &["empty.jsonl is empty"]);
    bench.tessera(&["validate", "run.yaml", "eval_data_path=absent.jsonl"]).refused(&["absent.jsonl"]);
    bench.tessera(&["validate", "run.yaml", "model=absent"]).refused(&["\"absent\"", "hub id"]);
}

#[test]
fn rows_that_break_the_rules_are_listed_with_their_lines_and_number() {
    let bench = Bench::new();
    let mut rows = sums(0..2);
    rows.push_str("{\"messages\": [\n");
    rows.push_str(&chat(&[("user", "a")]));
    rows.push_str(&chat(&[("robot", "a"), ("assistant", "b")]));
    rows.push_str(&chat(&[]));
    rows.push_str("{\"prompt\": \"a\"}\n");
    let mut rows = rows.into_bytes();
    rows.extend(b"{\"messages\": \"\xff\"}\n");
    bench.write("bad.jsonl", rows);
    bench.tessera(&["validate", "run.yaml", "train_data_path=bad.jsonl"]).refused(&[
        "bad.jsonl: 6 rows cannot be used for CHAT_COMPLETION",
        "line 3: broken JSON at column",
        "line 4: ",
        "line 5: ",
        "robot",
        "line 6: ",
        "line 7: ",
        "line 8: ",
        "UTF-8",
    ]);
    bench.write("many.jsonl", "{}\n".repeat(30));
    bench.tessera(&["validate", "run.yaml", "train_data_path=many.jsonl"]).refused(&[
        "30 rows cannot be used",
        "line 20: ",
        "… and 10 more",
    ]);
}

#[test]
fn a_template_that_refuses_a_role_says_so() {
    let bench = Bench::new();
    bench.write(
        "model/chat_template.jinja",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}\
         {{ m.content }}{% endfor %}",
    );
    bench.write("system.jsonl", sums(0..1) + &chat(&[("system", "s"), ("user", "a"), ("assistant", "b")]));
    bench.tessera(&["validate", "run.yaml", "train_data_path=system.jsonl"]).refused(&[
        "system.jsonl",
        "line 2: ",
        "no system role here",
    ]);
}

#[test]
fn a_tokenizer_with_ids_that_the_model_lacks_is_refused() {
    let bench = Bench::new();
    bench.write("model/config.json", config(100).to_string());
    bench
        .tessera(&["validate", "run.yaml", "init=random"])
        .refused(&["train.jsonl, line 1", "vocab_size is 100"]);
}

#[test]
fn weights_that_are_not_the_models_are_listed() {
    let bench = Bench::new();
    bench.change_weights(|tensors| {
        let at = |name: &str, tensors: &[crate::support::Tensor]| {
            tensors.iter().position(|tensor| tensor.0 == name).unwrap()
        };
        let missing = at("model.layers.1.mlp.up_proj.weight", tensors);
        tensors.remove(missing);
        let misshapen = at("model.layers.0.mlp.down_proj.weight", tensors);
        tensors[misshapen].1.reverse();
        tensors.push(("model.layers.2.extra".into(), vec![1], vec![0.0]));
    });
    let parts = [
        "1 missing, 1 unexpected, 1 of another shape",
        "model.layers.1.mlp.up_proj.weight [48, 32]",
        "model.layers.2.extra [1]",
        "model.layers.0.mlp.down_proj.weight is [48, 32], the model has [32, 48]",
    ];
    bench.tessera(&["validate", "run.yaml"]).refused(&parts);
    bench.tessera(&["validate", "run.yaml", "validate_inputs=false"]).refused(&parts);
    bench.tessera(&["train", "run.yaml"]).refused(&parts);
    let events = bench.json_lines("runs/tiny/events.jsonl");
    assert!(events.iter().all(|event| event["type"] == "CHECK_FAILED"), "{events:?}");
    // Without the check it is found when the weights are to be loaded, and the run has an end.
    bench.tessera(&["train", "run.yaml", "validate_inputs=false"]).refused(&parts);
    assert_eq!(bench.json_lines("runs/tiny/events.jsonl").last().unwrap()["type"], "FAILED_EXCEPTION");
    bench.tessera(&["generate", "model", "--prompt", "x"]).refused(&parts);
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let bench = Bench::new();
    for value in [f32::NAN, f32::NEG_INFINITY] {
        bench.change_weights(|tensors| {
            let name = "model.layers.1.mlp.up_proj.weight";
            tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap().2[7] = value;
        });
        let parts =
            ["element 7 of model.layers.1.mlp.up_proj.weight", &format!("is {value}; fetch them again")];
        bench.tessera(&["validate", "run.yaml"]).refused(&parts);
        bench.tessera(&["validate", "run.yaml", "validate_inputs=false"]).refused(&parts);
        bench.tessera(&["train", "run.yaml"]).refused(&parts);
        assert_eq!(bench.json_lines("runs/tiny/events.jsonl").last().unwrap()["type"], "FAILED_EXCEPTION");
        bench.tessera(&["validate", "run.yaml", "init=random"]).printed();
    }
}

#[test]
fn truncated_or_absent_weights_are_refused() {
    let bench = Bench::new();
    let bytes = bench.read("model/model.safetensors");
    bench.write("model/model.safetensors", &bytes[..bytes.len() - 100]);
    bench.tessera(&["validate", "run.yaml"]).refused(&["model.safetensors", "truncated"]);
    fs::remove_file(bench.path("model/model.safetensors")).unwrap();
    bench.tessera(&["validate", "run.yaml"]).refused(&["safetensors"]);
    bench.write("model/config.json", "{\"hidden_size\": 32");
    bench.tessera(&["validate", "run.yaml"]).refused(&["config.json", "not valid JSON"]);
}

#[test]
fn a_context_beyond_the_models_is_refused() {
    let bench = Bench::new();
    bench.tessera(&["plan", "run.yaml", "context_length=256"]).refused(&["context_length", "256", "128"]);
    bench
        .tessera(&["generate", "model", "--prompt", "x", "--context-length", "256"])
        .refused(&["context_length", "128"]);
    bench
        .tessera(&["generate", "model", "--prompt", &"1".repeat(300)])
        .refused(&["prompt: ", "less than context_length"]);
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let bench = Bench::new();
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/../checkpoint/tests/fixtures/composer-sharded/ep1-ba5");
    let parts = ["composer-sharded/ep1-ba5", "do not fit", "lm_head.weight [97, 32]"];
    for command in ["validate", "train"] {
        bench.tessera(&[command, "run.yaml", &format!("custom_weights_path={other}")]).refused(&parts);
    }
    let export = ["checkpoint", "export", other, "--model", "model", "--output", "out"];
    bench.tessera(&export).refused(&parts);
    assert!(!bench.path("out").exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let bench = Bench::new();
    bench.write("file", "");
    let ended = bench.tessera(&["train", "run.yaml", "save_folder=file/runs"]);
    assert!(ended.stderr.contains("file/runs"), "{ended:?}");
    assert_eq!(ended.code, Some(2), "{ended:?}");
}

#[test]
fn rows_and_batches_that_are_not_there_are_refused() {
    let bench = Bench::new();
    bench.tessera(&["inspect", "run.yaml", "--row", "96"]).refused(&["--row 96", "96 packed rows"]);
    bench.tessera(&["inspect", "run.yaml", "--batch", "12"]).refused(&["--batch 12", "12 batches"]);
    bench.tessera(&["inspect", "run.yaml", "--row", "1", "--batch", "1"]).refused(&["cannot be used with"]);
}
