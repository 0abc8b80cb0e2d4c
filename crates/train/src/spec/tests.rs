#![allow(clippy::unwrap_used)]

use std::num::NonZeroUsize;
use std::path::Path;

use super::*;

const SMALLEST: &str = "model: m\ntrain_data_path: d.jsonl\n";

/// Every key of the run file's documentation, none at its default.
const EVERYTHING: &str = "\
model: meta-llama/Llama-3.2-1B
train_data_path:
  - {path: data/*.jsonl, weight: 0.7}
  - {path: data/other.parquet, weight: 2, columns: {prompt: ask}}
columns: {prompt: question, response: answer}
task_type: INSTRUCTION_FINETUNE
eval_data_path: data/eval.jsonl
data_prep_cluster_id: 1234-567890-abcde123
eval_prompts: ['What is 2 + 2?', \"no: really\"]
custom_weights_path: runs/a/checkpoints/ep1-ba10
training_duration: 1_000_000tok
learning_rate: 2e-5
context_length: 4096
validate_inputs: false
init: random
run_name: '2024'
save_folder: elsewhere
save_interval: 10ba
save_num_checkpoints_to_keep: 3
save_weights_only: true
save_async: false
hf_save_interval: 0.25dur
hf_save_precision: bf16
autoresume: false
seed: 18446744073709551615
global_train_batch_size: 16
device_train_microbatch_size: 2
precision: amp_bf16
optimizer: {name: decoupled_adamw, betas: [0.8, 0.99], eps: 1.0e-6, weight_decay: 0.01}
scheduler: {name: inv_sqrt_with_warmup, t_warmup: 5ba, t_scale: 50ba, t_cooldown: 0.1dur, t_max: 1dur,
            alpha_f_decay: 0.2, alpha_f_cooldown: 0.1}
max_grad_norm: 0.5
target_responses: last
packing: none
shuffle: false
activation_checkpointing: none
offload: optimizer
devices: cuda:1,0
parallel: {shard: 2, replicate: 1, context: 1, reshard_after_forward: false}
dist_timeout: 60
dist_startup_timeout: 120
eval_interval: 30m
experiment_path: /Shared/sums
mlflow: {tracking_uri: 'http://localhost:5000', registry_uri: 'http://localhost:5001', unreachable: buffer, artifacts: upload, system_metrics: false}
register_to: main.models.sums
tensorboard: true
metrics_port: 9400
template_date: 2026-08-14
eval_generation: {do_sample: false, max_new_tokens: 7, temperature: 0.5, top_k: 3, top_p: 0.9}
";

fn parse(text: &str, arguments: &[&str]) -> Result<RunSpec, SpecError> {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    RunSpec::parse(text, Path::new("run.yaml"), &arguments)
}

/// The message about the smallest run file with these lines after it.
fn message(lines: &str) -> String {
    parse(&format!("{SMALLEST}{lines}"), &[]).unwrap_err().to_string()
}

#[test]
fn smallest_file_leaves_everything_to_the_plan() {
    let spec = parse(SMALLEST, &[]).unwrap();
    assert_eq!((spec.model.as_str(), spec.train_data_path.to_string().as_str()), ("m", "d.jsonl"));
    assert_eq!(spec.learning_rate, None);
    assert_eq!(spec.optimizer, None);
    assert_eq!(spec, parse(&format!("{SMALLEST}optimizer: null\nseed:\nrun_name: ~\n"), &[]).unwrap());
}

#[test]
fn every_key_is_read() {
    let spec = parse(EVERYTHING, &[]).unwrap();
    assert_eq!(spec.task_type, Some(TaskType::InstructionFinetune));
    assert_eq!(spec.eval_prompts.as_deref().unwrap(), ["What is 2 + 2?", "no: really"]);
    assert_eq!(spec.training_duration, Some("1000000tok".parse().unwrap()));
    assert_eq!(spec.learning_rate, Some(2.0e-5));
    assert_eq!(spec.seed, Some(u64::MAX));
    assert_eq!(spec.run_name.as_deref(), Some("2024"));
    assert_eq!(
        spec.save_num_checkpoints_to_keep,
        Some(CheckpointsToKeep::Newest(NonZeroUsize::new(3).unwrap()))
    );
    assert_eq!(
        spec.optimizer,
        Some(OptimizerSpec::DecoupledAdamW(AdamSettings {
            betas: [0.8, 0.99],
            eps: 1.0e-6,
            weight_decay: 0.01
        }))
    );
    assert_eq!(spec.devices, Some(Devices::Gpus(vec![1, 0])));
    assert_eq!(spec.parallel.unwrap().shard, ShardDegree::Ranks(NonZeroUsize::new(2).unwrap()));
    assert_eq!(spec.eval_interval, Some("1800sec".parse().unwrap()));
    assert_eq!(spec.mlflow.unwrap().unreachable, Unreachable::Buffer);
    assert_eq!(spec.metrics_port, Some(9400));
}

#[test]
fn written_runs_read_the_same_again() {
    let everything = parse(EVERYTHING, &[]).unwrap();
    let mut text = everything.to_yaml().unwrap();
    // The one key that eval_data_path excludes.
    let others = text.replace("eval_split: null\n", "");
    assert!(!others.contains("null"), "a field of EVERYTHING is not set:\n{text}");
    assert_eq!(parse(&text, &[]).unwrap(), everything);

    let schedulers = [
        "{name: constant_with_warmup, t_warmup: 1ep, alpha: 0.5}",
        "{name: linear_decay_with_warmup, alpha_i: 2, alpha_f: 0.25}",
        "{name: cosine_with_warmup, t_warmup: 0ba, alpha_f: 0.1, t_max: 2dur}",
    ];
    for scheduler in schedulers {
        for optimizer in ["{name: adamw}", "{name: decoupled_lionw, betas: [0.9, 0.95]}"] {
            let arguments = [format!("scheduler={scheduler}"), format!("optimizer={optimizer}")];
            let spec = RunSpec::parse(EVERYTHING, Path::new("run.yaml"), &arguments).unwrap();
            text = spec.to_yaml().unwrap();
            assert_eq!(parse(&text, &[]).unwrap(), spec, "{text}");
        }
    }
    let smallest = parse(SMALLEST, &[]).unwrap();
    assert_eq!(parse(&smallest.to_yaml().unwrap(), &[]).unwrap(), smallest);
}

#[test]
fn text_that_looks_like_something_else_survives_writing() {
    for name in ["null", "true", "1e5", "no", "2024-01-01", "a: b", "# x", " padded ", "é\u{1f600}"] {
        let mut spec = parse(SMALLEST, &[]).unwrap();
        spec.run_name = Some(name.to_owned());
        assert_eq!(parse(&spec.to_yaml().unwrap(), &[]).unwrap(), spec);
    }
}

#[test]
fn only_true_and_false_are_booleans() {
    let spec = parse(SMALLEST, &["run_name=no", "shuffle=True"]).unwrap();
    assert_eq!((spec.run_name.as_deref(), spec.shuffle), (Some("no"), Some(true)));
}

#[test]
fn maps_have_their_documented_defaults() {
    let spec = parse(&format!("{SMALLEST}optimizer: {{}}\nscheduler: {{}}\nparallel: {{}}\n"), &[]).unwrap();
    let adam = AdamSettings { betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.0 };
    assert_eq!(spec.optimizer, Some(OptimizerSpec::AdamW(adam)));
    assert_eq!(spec.scheduler, Some(SchedulerSpec::default()));
    assert_eq!(spec.parallel, Some(Parallel::default()));
    let named =
        |name: &str| parse(SMALLEST, &[&format!("optimizer.name={name}")]).unwrap().optimizer.unwrap();
    let decoupled = AdamSettings { weight_decay: 1.0e-5, ..adam };
    assert_eq!(named("decoupled_adamw"), OptimizerSpec::DecoupledAdamW(decoupled));
    let lion = LionSettings { betas: [0.9, 0.99], weight_decay: 0.0 };
    assert_eq!(named("decoupled_lionw"), OptimizerSpec::DecoupledLionW(lion));
    let written = spec.to_yaml().unwrap();
    assert!(written.contains("0.02dur") && written.contains("shard: -1"), "{written}");
}

#[test]
fn misspelt_keys_get_a_suggestion_with_file_and_line() {
    assert_eq!(
        message("learning_rat: 1.0\n"),
        "run.yaml:3: `learning_rat`: unknown key, did you mean `learning_rate`?"
    );
    assert_eq!(
        message("optimizer:\n  name: adamw\n  betsa: [0.9, 0.95]\n"),
        "run.yaml:5: `optimizer.betsa`: adamw has no such key, did you mean `optimizer.betas`?"
    );
    assert_eq!(
        message("parallel: {sharding: 2}\n"),
        "run.yaml:3: `parallel.sharding`: unknown key, did you mean `parallel.shard`?"
    );
    let nothing_near = message("zzz: 1\n");
    assert!(
        nothing_near.contains("`zzz`: unknown key, expected one of model, train_data_path,"),
        "{nothing_near}"
    );
}

#[test]
fn keys_of_another_optimizer_or_scheduler_are_refused_by_name() {
    assert_eq!(
        message("scheduler: {name: linear_decay_with_warmup, t_scale: 10ba}\n"),
        "run.yaml:3: `scheduler.t_scale`: linear_decay_with_warmup has no such key, \
         expected one of name, t_warmup, alpha_i, alpha_f, t_max"
    );
    assert_eq!(
        message("optimizer: {name: decoupled_lionw, eps: 1.0e-8}\n"),
        "run.yaml:3: `optimizer.eps`: decoupled_lionw has no such key, expected one of name, betas, weight_decay"
    );
    // The rest of a map with an unknown name is not judged.
    assert_eq!(
        message("optimizer: {name: adam, momentum: 0.9}\n"),
        "run.yaml:3: `optimizer.name`: found the text `adam`, expected adamw, decoupled_adamw or decoupled_lionw"
    );
    assert_eq!(
        message("scheduler: {name: inv_sqrt_with_warmup}\n"),
        "run.yaml:3: `scheduler.t_scale`: the key is missing, expected a time above 0, such as 100ba"
    );
    assert_eq!(
        message(
            "scheduler: {name: inv_sqrt_with_warmup, t_scale: 9ba, alpha_f_decay: 0.1, alpha_f_cooldown: 0.2}\n"
        ),
        "run.yaml:3: `scheduler.alpha_f_cooldown`: found `0.2`, expected at most alpha_f_decay, which is 0.1"
    );
}

#[test]
fn repeated_keys_name_both_lines() {
    assert_eq!(
        message("seed: 1\nshuffle: true\nseed: 2\n"),
        "run.yaml:5: `seed`: the key is given again, earlier at line 3: keep one of them"
    );
    assert_eq!(
        message("optimizer:\n  eps: 1.0e-8\n  eps: 1.0e-9\n"),
        "run.yaml:5: `optimizer.eps`: the key is given again, earlier at line 4: keep one of them"
    );
}

#[test]
fn missing_keys_and_all_mistakes_at_once() {
    let error = parse("modle: m\nseed: -1\n", &[]).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 4, "{error}");
    assert!(lines[0].starts_with("run.yaml:1: `model`: the key is missing, expected a hub id"), "{error}");
    assert!(lines[1].starts_with("run.yaml:1: `train_data_path`: the key is missing"), "{error}");
    assert!(
        lines[2].starts_with("run.yaml:2: `seed`: found `-1`, expected a whole number of at least 0"),
        "{error}"
    );
    assert_eq!(lines[3], "run.yaml:1: `modle`: unknown key, did you mean `model`?");
}

#[test]
fn very_many_mistakes_are_counted() {
    let lines: String = (0..25).map(|number| format!("k{number}: 1\n")).collect();
    let message = message(&lines);
    assert_eq!(message.lines().count(), 21);
    assert!(message.ends_with("\n… and 5 more"), "{message}");
}

#[test]
fn wrong_types_and_ranges_name_key_found_and_expected() {
    let cases = [
        ("metrics_port: 65536", "found `65536`, expected a port, 1 to 65535"),
        ("mlflow: {unreachable: wait}", "found the text `wait`, expected fail or buffer"),
        ("learning_rate: fast", "found the text `fast`, expected a number above 0, such as 1.0e-5"),
        ("learning_rate: .nan", "found `NaN`, expected a number above 0"),
        ("learning_rate: .inf", "found `inf`, expected a number above 0"),
        ("learning_rate: 0", "found `0`, expected a number above 0"),
        ("learning_rate: -1.0e-5", "found `-1e-5`, expected a number above 0"),
        ("context_length: 1", "found `1`, expected a whole number of at least 2"),
        ("context_length: 10.5", "found `10.5`, expected a whole number of at least 2"),
        ("context_length: [1]", "found a list of 1, expected a whole number"),
        ("shuffle: 'yes'", "found the text `yes`, expected true or false"),
        ("task_type: CHAT", "expected CHAT_COMPLETION, INSTRUCTION_FINETUNE or CONTINUED_PRETRAIN"),
        ("precision: fp16", "found the text `fp16`, expected auto, fp32 or amp_bf16"),
        ("devices: gpu", "found the text `gpu`, expected auto, cpu, cpu:4 (ranks), cuda, or cuda:0,1"),
        ("devices: cuda:0,0", "found the text `cuda:0,0`, expected auto"),
        ("devices: cpu:0", "expected auto, cpu, cpu:4"),
        ("eval_prompts: hello", "found the text `hello`, expected a list of texts"),
        ("eval_prompts: [a, 3]", "found a list of 2, expected a list of texts, but it holds `3`"),
        ("run_name: a/b", "expected a folder's name"),
        ("run_name: 17", "found `17`, expected a folder's name"),
        ("run_name: ..", "expected a folder's name"),
        ("save_num_checkpoints_to_keep: 0", "found `0`, expected -1 (all) or a whole number of at least 1"),
        ("device_train_microbatch_size: big", "expected auto or a whole number of at least 1"),
        ("training_duration: 1.5ep", "found the text `1.5ep`, expected a whole number before `ep`"),
        ("training_duration: 1dur", "expected a whole number above 0 of epochs, batches, rows or tokens"),
        ("training_duration: 0", "found `0`, expected a whole number above 0 of epochs"),
        ("save_interval: 5 minutes", "found the text `5 minutes`, expected a number with a unit: 1ep, 10ba"),
        ("scheduler: {t_warmup: 30sec}", "`scheduler.t_warmup`: found the text `30sec`, expected 10ba, 1ep"),
        ("scheduler: {alpha_f: 1.5}", "`scheduler.alpha_f`: found `1.5`, expected a number from 0 to 1"),
        ("scheduler: linear", "found the text `linear`, expected a map of keys and values"),
        (
            "optimizer: {betas: [0.9, 1.0]}",
            "`optimizer.betas`: found a list of 2, expected two numbers of at least 0",
        ),
        ("optimizer: {betas: [0.9]}", "found a list of 1, expected two numbers of at least 0 and below 1"),
        ("optimizer: {weight_decay: -1}", "found `-1`, expected a number of at least 0"),
        (
            "parallel: {shard: 0}",
            "found `0`, expected -1 (all remaining ranks) or a whole number of at least 1",
        ),
        ("seed: 18446744073709551616", "expected a whole number of at least 0"),
    ];
    for (line, expected) in cases {
        let message = message(&format!("{line}\n"));
        assert!(message.starts_with("run.yaml:3: `") && message.contains(expected), "{line} gave {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn broken_yaml_names_file_and_line() {
    for lines in ["seed: [1, 2\n", "  seed: 1\n", "seed: 'x\n", "seed: *nowhere\n", "---\nseed: 1\n"] {
        let message = message(lines);
        assert!(
            message.starts_with("run.yaml:") && message.contains(": not valid YAML: "),
            "{lines} gave {message}"
        );
        assert!(!message.contains('\n') && !message.contains(" line "), "{message}");
    }
}

#[test]
fn deep_and_endless_input_is_refused() {
    let deep = format!("{SMALLEST}seed: {}", "[".repeat(1_000_000));
    assert!(matches!(parse(&deep, &[]).unwrap_err(), SpecError::Syntax { .. }));
    let mut bomb = String::from("a0: &a0 [x, x]\n");
    for level in 1..40 {
        bomb.push_str(&format!("a{level}: &a{level} [*a{0}, *a{0}]\n", level - 1));
    }
    assert!(matches!(parse(&bomb, &[]).unwrap_err(), SpecError::Syntax { .. }));
}

#[test]
fn files_without_keys_are_told_apart() {
    for text in ["", "# only a comment\n", "---\n"] {
        let message = parse(text, &[]).unwrap_err().to_string();
        assert!(message.starts_with("run.yaml:1: `model`: the key is missing"), "{text:?} gave {message}");
    }
    let message = parse("- a\n- b\n", &[]).unwrap_err().to_string();
    assert!(message.starts_with("run.yaml: found a list of 2, expected keys and values"), "{message}");
    let error = RunSpec::load(Path::new("no-such-folder/run.yaml"), &[]).unwrap_err().to_string();
    assert!(error.starts_with("cannot read no-such-folder/run.yaml: "), "{error}");
}

#[test]
fn arguments_override_the_file() {
    let arguments = [
        "learning_rate=1e-4",
        "optimizer.weight_decay=0.1",
        "eval_prompts=[hello, \"a: b\"]",
        "custom_weights_path=",
        "scheduler={name: cosine_with_warmup}",
        "scheduler.alpha_f=0.1",
        "seed=1",
        "seed=2",
        "training_duration=3",
    ];
    let spec = parse(EVERYTHING, &arguments).unwrap();
    assert_eq!(spec.learning_rate, Some(1.0e-4));
    let Some(OptimizerSpec::DecoupledAdamW(settings)) = spec.optimizer else {
        panic!("{:?}", spec.optimizer)
    };
    assert_eq!((settings.betas, settings.weight_decay), ([0.8, 0.99], 0.1));
    assert_eq!(spec.eval_prompts.unwrap(), ["hello", "a: b"]);
    assert_eq!(spec.custom_weights_path, None);
    assert!(
        matches!(spec.scheduler, Some(SchedulerSpec::CosineWithWarmup { alpha_f, .. }) if alpha_f == 0.1)
    );
    assert_eq!(spec.seed, Some(2));
    assert_eq!(spec.training_duration, Some("3ep".parse().unwrap()));

    let from_nothing = parse("", &["model=m", "train_data_path=d=1", "optimizer.eps=1.0e-6"]).unwrap();
    assert_eq!(from_nothing.train_data_path, DataPath::One("d=1".into()));
    assert!(matches!(from_nothing.optimizer, Some(OptimizerSpec::AdamW(settings)) if settings.eps == 1.0e-6));
}

#[test]
fn mistakes_in_arguments_name_the_argument() {
    let cases = [
        (
            "learning_rat=1",
            "argument `learning_rat=1`: `learning_rat`: unknown key, did you mean `learning_rate`?",
        ),
        (
            "optimizer.betsa=1",
            "argument `optimizer.betsa=1`: `optimizer.betsa`: adamw has no such key, did you mean",
        ),
        ("seed=x", "argument `seed=x`: `seed`: found the text `x`, expected a whole number of at least 0"),
        ("seed.x=1", "argument `seed.x=1`: `seed`: found a map, expected a whole number of at least 0"),
        ("seed", "argument `seed`: expected key=value"),
        ("=1", "argument `=1`: expected key=value"),
        ("a..b=1", "argument `a..b=1`: expected key=value"),
        ("a.b.c=1", "argument `a.b.c=1`: expected key=value"),
        ("model=@x", "argument `model=@x`: not valid YAML: "),
        (
            "parallel={shard: 1, shard: 2}",
            "argument `parallel={shard: 1, shard: 2}`: `parallel.shard`: the key is given",
        ),
    ];
    for (argument, expected) in cases {
        let message = parse(SMALLEST, &[argument]).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{argument} gave {message}");
    }
}

#[test]
fn sources_are_a_path_or_a_list_of_paths_with_weights() {
    let spec = parse(EVERYTHING, &[]).unwrap();
    let sources = spec.train_data_path.sources(spec.columns.as_ref());
    let shown: Vec<_> = sources.iter().map(|source| (source.path.as_str(), source.weight)).collect();
    assert_eq!(shown, [("data/*.jsonl", 0.7), ("data/other.parquet", 2.0)]);
    let columns = |names: &[(&str, &str)]| {
        Columns::new(names.iter().map(|(own, theirs)| ((*own).into(), (*theirs).into())).collect())
    };
    assert_eq!(sources[0].columns, columns(&[("prompt", "question"), ("response", "answer")]));
    assert_eq!(sources[1].columns, columns(&[("prompt", "ask")]));
    let mistakes = |lines: &str| parse(&format!("model: m\n{lines}"), &[]).unwrap_err().to_string();
    let error = mistakes("train_data_path: []\n");
    assert!(
        error.contains("`train_data_path`: found a list of 0, expected a list of at least one {path"),
        "{error}"
    );
    let error = mistakes("train_data_path:\n  - {weight: 0}\n  - a.jsonl\n  - {path: a, wieght: 1}\n");
    for part in [
        "run.yaml:3: `train_data_path.0.path`: the key is missing",
        "run.yaml:3: `train_data_path.0.weight`: found `0`, expected a share above 0",
        "run.yaml:4: `train_data_path.1`: found the text `a.jsonl`, expected a map, such as {path: …, weight: …}",
        "run.yaml:5: `train_data_path.2.wieght`: unknown key, did you mean `train_data_path.2.weight`?",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(message("eval_split: 1\n").contains("`eval_split`: found `1`, expected a share between 0 and 1"));
    let both = message("eval_split: 0.1\neval_data_path: e.jsonl\n");
    assert!(
        both.contains("`eval_split`: found `0.1`, expected this key or eval_data_path, not both"),
        "{both}"
    );
    let unknown = message("columns: {promt: a}\n");
    assert!(unknown.contains("`columns.promt`: unknown key, did you mean `columns.prompt`?"), "{unknown}");
}

#[test]
fn what_the_service_took_is_accepted() {
    let service = "\
train_data_path: main.default.sums
register_to: main.default
experiment_path: /Users/me/sums
task_type: CHAT_COMPLETION
eval_data_path: dbfs:/Volumes/main/default/sums/eval.jsonl
eval_prompts: [a]
custom_weights_path: dbfs:/databricks/mlflow-tracking/1/a/artifacts/ep1-ba5
training_duration: 1ep
learning_rate: 5e-7
context_length: 8192
validate_inputs: true
data_prep_cluster_id: serverless
";
    parse(&format!("model: m\n{service}"), &[]).unwrap();
}
