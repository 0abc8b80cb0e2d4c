//! Whole runs against themselves: stopped and resumed, saved one way and another, continued from damage.

use std::fs;

use tessera_train::TrainError;
use tessera_train::launch::Launch;
use tessera_train::run::Outcome;

use crate::tiny::Tiny;

#[test]
fn a_run_learns_and_leaves_what_the_folder_promises() {
    let tiny = Tiny::new();
    let (outcome, watcher) = tiny.train(&[], None);
    let Outcome::Completed(finished) = outcome.unwrap() else { panic!("the run should be complete") };
    let losses = watcher.losses.lock().unwrap().clone();
    assert_eq!(losses.len() as u64, finished.batch);
    assert!(losses.last().unwrap().1 < 0.8 * losses[0].1, "{losses:?}");
    let (first, last) = (finished.first_evaluation.unwrap(), finished.last_evaluation.unwrap());
    assert!(last.cross_entropy < first.cross_entropy);
    let run = tiny.path("runs/tiny");
    for file in ["run.yaml", "events.jsonl", "metrics.jsonl", "generations.jsonl", "report.html"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        assert!(finished.export.join(file).is_file(), "{file}");
    }
    let latest = fs::read_link(run.join("checkpoints/latest-sharded-rank0")).unwrap();
    assert_eq!(run.join("checkpoints").join(latest), finished.checkpoint);
    let text = fs::read_to_string(run.join("events.jsonl")).unwrap();
    for event in
        ["CREATED", "DATA_VALIDATED", "MODEL_INITIALIZED", "TRAIN_STARTED", "CHECKPOINT_SAVED", "COMPLETED"]
    {
        assert!(text.contains(event), "{event}");
    }
    // The tiny tokenizer brings no template: the run says which one it uses, and the export carries it.
    let warnings = watcher.warnings.lock().unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("ChatML"), "{warnings:?}");
    assert!(
        fs::read_to_string(finished.export.join("chat_template.jinja")).unwrap().contains("<|im_start|>")
    );
}

#[test]
fn a_finished_run_says_so_and_completes_a_missing_export() {
    let tiny = Tiny::new();
    tiny.train(&[], None).0.unwrap();
    assert!(matches!(tiny.train(&[], None).0.unwrap(), Outcome::AlreadyCompleted(_)));
    let exported = tiny.exported("tiny");
    fs::remove_dir_all(tiny.path("runs/tiny/huggingface")).unwrap();
    assert!(matches!(tiny.train(&[], None).0.unwrap(), Outcome::Completed(_)));
    assert_eq!(tiny.exported("tiny"), exported);
}

#[test]
fn the_resolved_run_file_gives_the_same_run() {
    let tiny = Tiny::new();
    tiny.train(&[], None).0.unwrap();
    let yaml = fs::read_to_string(tiny.path("runs/tiny/run.yaml")).unwrap();
    let path = tiny.path("again.yaml");
    fs::write(&path, yaml).unwrap();
    let spec = tessera_train::spec::RunSpec::load(&path, &["run_name=again".into()]).unwrap();
    let observer: std::sync::Arc<dyn tessera_train::observe::Observer> =
        std::sync::Arc::new(tessera_train::observe::Silent);
    tessera_train::run::train(spec, &Launch::alone(), &observer, &Default::default()).unwrap();
    assert_eq!(tiny.exported("again"), tiny.exported("tiny"));
}

#[test]
fn stopped_anywhere_and_resumed_it_is_the_same_run() {
    let tiny = Tiny::new();
    tiny.train(&["run_name=whole"], None).0.unwrap();
    for stop in 1..5 {
        let name = format!("run_name=stopped{stop}");
        let (outcome, _) = tiny.train(&[&name], Some(stop));
        assert!(matches!(outcome.unwrap(), Outcome::Stopped { batch, signal: 15, .. } if batch == stop));
        let (outcome, watcher) = tiny.train(&[&name], None);
        outcome.unwrap();
        assert_eq!(watcher.losses.lock().unwrap()[0].0, stop);
        assert_eq!(tiny.exported(&format!("stopped{stop}")), tiny.exported("whole"));
        assert_eq!(tiny.metrics(&format!("stopped{stop}")), tiny.metrics("whole"));
    }
}

#[test]
fn numbers_do_not_depend_on_how_memory_is_used() {
    let tiny = Tiny::new();
    tiny.train(&["run_name=a"], None).0.unwrap();
    tiny.train(&["run_name=b", "activation_checkpointing=none", "save_async=false"], None).0.unwrap();
    assert_eq!(tiny.exported("a"), tiny.exported("b"));
}

#[test]
fn numbers_do_not_depend_on_the_number_of_threads() {
    let tiny = Tiny::new();
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| tiny.train(&[&format!("run_name=threads{threads}")], None).0.unwrap());
    }
    assert_eq!(tiny.exported("threads1"), tiny.exported("threads2"));
    assert_eq!(tiny.exported("threads1"), tiny.exported("threads3"));
}

#[test]
fn evaluation_and_answers_leave_training_alone() {
    let tiny = Tiny::new();
    tiny.train(&["run_name=a"], None).0.unwrap();
    tiny.train(&["run_name=b", "eval_data_path=null", "eval_prompts=[]"], None).0.unwrap();
    assert_eq!(tiny.exported("a"), tiny.exported("b"));
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let tiny = Tiny::new();
    tiny.train(&["run_name=whole"], None).0.unwrap();
    tiny.train(&["save_interval=1ba"], Some(4)).0.unwrap();
    let checkpoints = tiny.path("runs/tiny/checkpoints");
    let newest = fs::read_link(checkpoints.join("latest-sharded-rank0")).unwrap();
    let shard = checkpoints.join(newest).join("__0_0.distcp");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    let (outcome, watcher) = tiny.train(&["save_interval=1ba"], None);
    outcome.unwrap();
    assert_eq!(watcher.losses.lock().unwrap()[0].0, 3);
    let warnings = watcher.warnings.lock().unwrap();
    assert!(warnings.iter().any(|warning| warning.contains("passed over")), "{warnings:?}");
    assert_eq!(tiny.exported("tiny"), tiny.exported("whole"));
}

#[test]
fn retention_keeps_the_newest() {
    let tiny = Tiny::new();
    tiny.train(&["save_interval=1ba", "save_num_checkpoints_to_keep=2"], None).0.unwrap();
    let kept = fs::read_dir(tiny.path("runs/tiny/checkpoints")).unwrap();
    let kept = kept.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("ep"));
    assert_eq!(kept.count(), 2);
}

#[test]
fn a_changed_key_is_refused_by_name() {
    let tiny = Tiny::new();
    tiny.train(&[], Some(2)).0.unwrap();
    let (outcome, _) = tiny.train(&["learning_rate=1.0e-3"], None);
    let error = outcome.unwrap_err();
    assert!(matches!(&error, TrainError::Changed { .. }), "{error}");
    assert!(error.to_string().contains("learning_rate"), "{error}");
}

#[test]
fn a_changed_source_is_refused_with_what_it_was_and_is() {
    let tiny = Tiny::new();
    tiny.train(&[], Some(2)).0.unwrap();
    let pinned = tiny.path("runs/tiny/data.json");
    let pins: serde_json::Value = serde_json::from_slice(&fs::read(&pinned).unwrap()).unwrap();
    let (path, whole) = (tiny.path("train.jsonl"), fs::read(tiny.path("train.jsonl")).unwrap());
    assert_eq!(pins["train"][0]["path"], path.to_str().unwrap());
    assert_eq!((&pins["train"][0]["rows"], &pins["eval"][0]["rows"]), (&64.into(), &6.into()));
    assert_eq!(pins["train"][0]["bytes"], whole.len());
    let shorter: Vec<u8> = whole.split_inclusive(|&byte| byte == b'\n').take(63).flatten().copied().collect();
    fs::write(&path, &shorter).unwrap();
    let error = tiny.train(&[], None).0.unwrap_err();
    assert!(matches!(&error, TrainError::SourceChanged { .. }), "{error}");
    let error = error.to_string();
    for rows in
        [format!("(64 rows, {} bytes, digest ", whole.len()), format!("(63 rows, {} bytes", shorter.len())]
    {
        assert!(error.contains(&format!("{} {rows}", path.display())), "{error}");
    }
    // The same rows at another place are the same source.
    fs::write(&path, &whole).unwrap();
    tiny.train(&[], Some(3)).0.unwrap();
    // Nothing says what it was: the run is refused all the same.
    fs::remove_file(&pinned).unwrap();
    fs::write(&path, &shorter).unwrap();
    assert!(matches!(tiny.train(&[], None).0.unwrap_err(), TrainError::OtherData { .. }));
}

#[test]
fn a_run_of_mixed_sources_evaluates_on_what_is_set_aside() {
    let tiny = Tiny::new();
    let list = tiny.path("sources.yaml");
    let root = tiny.folder().display();
    fs::write(
        &list,
        format!(
            "model: {root}/model\ntrain_data_path: [{{path: {root}/train.jsonl, weight: 3}}, {{path: {root}/other.json, columns: \
             {{messages: said}}}}]\neval_split: 0.2\ninit: random\nsave_folder: {root}/runs\nrun_name: mixed\n\
             context_length: 96\nglobal_train_batch_size: 4\ntraining_duration: 1ep\n"
        ),
    )
    .unwrap();
    fs::write(
        tiny.path("other.json"),
        r#"[{"id": 1, "said": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"id": 2, "said": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}]"#,
    )
    .unwrap();
    let spec = || tessera_train::spec::RunSpec::load(&list, &[]).unwrap();
    let outcome = tiny.train_spec(spec(), None).0.unwrap();
    let Outcome::Completed(finished) = outcome else { panic!("the run should be complete") };
    assert!(finished.last_evaluation.is_some());
    // What it wrote down is the same run.
    let written = tiny.path("runs/mixed/run.yaml");
    let again = tessera_train::spec::RunSpec::load(&written, &[]).unwrap();
    assert_eq!(again.train_data_path, spec().train_data_path);
    assert!(matches!(tiny.train_spec(again, None).0.unwrap(), Outcome::AlreadyCompleted(_)));
    let mut other = spec();
    other.eval_split = None;
    let error = tiny.train_spec(other, None).0.unwrap_err().to_string();
    assert!(error.contains("was trained with eval_split 0.2, the run file says null"), "{error}");
    let mut wrong = spec();
    wrong.columns = Some(tessera_data::Columns::new([("prompt".to_owned(), "question".to_owned())].into()));
    let error = tiny.train_spec(wrong, None).0.unwrap_err().to_string();
    assert!(
        error.contains("columns: prompt cannot be had; expected messages, which CHAT_COMPLETION reads"),
        "{error}"
    );
}

#[test]
fn a_checkpoint_starts_another_run() {
    let tiny = Tiny::new();
    let (outcome, _) = tiny.train(&[], None);
    let Outcome::Completed(first) = outcome.unwrap() else { panic!("the run should be complete") };
    let latest = tiny.path("runs/tiny/checkpoints/latest-sharded-rank0.symlink");
    let argument = format!("custom_weights_path={}", latest.display());
    let (outcome, _) = tiny.train(&["run_name=second", &argument], None);
    let Outcome::Completed(second) = outcome.unwrap() else { panic!("the run should be complete") };
    let (end, start) = (first.last_evaluation.unwrap(), second.first_evaluation.unwrap());
    assert_eq!((end.cross_entropy, end.accuracy), (start.cross_entropy, start.accuracy));
}

/// The file with element `element` of a tensor of an export replaced by NaN.
fn with_nan(bytes: &[u8], name: &str, element: usize) -> Vec<u8> {
    let place = safetensors::SafeTensors::deserialize(bytes).unwrap().tensor(name).unwrap().data().as_ptr();
    let start = place as usize - bytes.as_ptr() as usize + element * 4;
    let mut damaged = bytes.to_vec();
    damaged[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    damaged
}

#[test]
fn weights_that_are_not_finite_are_named_before_training() {
    let tiny = Tiny::new();
    let (outcome, _) = tiny.train(&["training_duration=1ba"], None);
    let Outcome::Completed(first) = outcome.unwrap() else { panic!("the run should be complete") };
    let weights = first.export.join("model.safetensors");
    let name = "model.layers.1.self_attn.k_proj.weight";
    fs::write(&weights, with_nan(&fs::read(&weights).unwrap(), name, 37)).unwrap();
    let model = format!("model={}", first.export.display());
    let (outcome, watcher) = tiny.train(&[&model, "run_name=second", "init=pretrained"], None);
    let error = outcome.unwrap_err();
    assert!(
        matches!(&error, TrainError::NotFiniteSource { name: named, element: 37, value } if named == name && value.is_nan()),
        "{error}"
    );
    assert!(watcher.losses.lock().unwrap().is_empty());
}

#[test]
fn a_rate_that_explodes_ends_the_run_and_keeps_the_last_good_checkpoint() {
    let tiny = Tiny::new();
    let (outcome, watcher) = tiny.train(
        &[
            "learning_rate=1.0e+30",
            "save_interval=1ba",
            "training_duration=12ba",
            "scheduler={name: constant_with_warmup, t_warmup: 0ba}",
        ],
        None,
    );
    let error = outcome.unwrap_err();
    assert!(
        matches!(error, TrainError::NotFinite { count: 5, .. } | TrainError::NotFiniteWeights { .. }),
        "{error}"
    );
    assert!(!watcher.warnings.lock().unwrap().is_empty());
    for entry in fs::read_dir(tiny.path("runs/tiny/checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tessera_checkpoint::dcp::DcpReader::open(&path).unwrap().verify().unwrap();
        }
    }
}

#[test]
fn every_task_and_rule_trains() {
    let tiny = Tiny::new();
    let pairs: String = (0..12)
        .map(|index| format!("{{\"prompt\": \"count {index} \", \"response\": \"up to {}\"}}\n", index + 1))
        .collect();
    fs::write(tiny.path("pairs.jsonl"), pairs).unwrap();
    fs::create_dir(tiny.path("texts")).unwrap();
    fs::write(tiny.path("texts/one.txt"), "to be or not to be ".repeat(60)).unwrap();
    let pairs = format!("train_data_path={}", tiny.path("pairs.jsonl").display());
    let texts = format!("train_data_path={}", tiny.path("texts").display());
    let alone = "eval_data_path=null";
    for (name, arguments) in [
        (
            "pairs",
            vec![
                pairs.as_str(),
                alone,
                "task_type=INSTRUCTION_FINETUNE",
                "optimizer={name: decoupled_adamw}",
            ],
        ),
        (
            "texts",
            vec![
                texts.as_str(),
                alone,
                "task_type=CONTINUED_PRETRAIN",
                "optimizer={name: decoupled_lionw}",
                "learning_rate=1.0e-3",
            ],
        ),
        (
            "alone",
            vec![
                "packing=none",
                "shuffle=false",
                "target_responses=last",
                "scheduler={name: cosine_with_warmup}",
            ],
        ),
        ("light", vec!["save_weights_only=true"]),
    ] {
        let name = format!("run_name={name}");
        let arguments: Vec<&str> = arguments.into_iter().chain([name.as_str()]).collect();
        let (outcome, watcher) = tiny.train(&arguments, None);
        outcome.unwrap();
        let losses = watcher.losses.lock().unwrap();
        assert!(losses.last().unwrap().1 < losses[0].1, "{name}: {losses:?}");
    }
}

/// Flips a byte in the middle of a file.
fn damage(path: &std::path::Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn newest(tiny: &Tiny) -> std::path::PathBuf {
    let checkpoints = tiny.path("runs/tiny/checkpoints");
    checkpoints.join(fs::read_link(checkpoints.join("latest-sharded-rank0")).unwrap())
}

#[test]
fn retention_never_counts_a_damaged_checkpoint() {
    let tiny = Tiny::new();
    let arguments = ["save_interval=2ba", "save_num_checkpoints_to_keep=2"];
    tiny.train(&arguments, Some(4)).0.unwrap();
    damage(&newest(&tiny).join("__0_0.distcp"));
    // The first checkpoint after the fall back bears a smaller number than the damaged one.
    tiny.train(&arguments, Some(3)).0.unwrap();
    assert!(newest(&tiny).ends_with("ep0-ba3"), "{}", newest(&tiny).display());
    assert!(newest(&tiny).join(".metadata").is_file());
    let (outcome, watcher) = tiny.train(&arguments, None);
    outcome.unwrap();
    assert_eq!(watcher.losses.lock().unwrap()[0].0, 3);
}

#[test]
fn a_stop_at_a_save_point_saves_once_and_owes_the_evaluation() {
    let tiny = Tiny::new();
    let arguments = ["save_interval=2ba", "eval_interval=2ba"];
    tiny.train(&[&arguments[..], &["run_name=whole"]].concat(), None).0.unwrap();
    tiny.train(&arguments, Some(2)).0.unwrap();
    let events = fs::read_to_string(tiny.path("runs/tiny/events.jsonl")).unwrap();
    assert_eq!(events.matches("CHECKPOINT_SAVED").count(), 1, "{events}");
    tiny.train(&arguments, None).0.unwrap();
    assert_eq!(tiny.metrics("tiny"), tiny.metrics("whole"));
    let answers =
        |run: &str| fs::read_to_string(tiny.path("runs").join(run).join("generations.jsonl")).unwrap();
    assert_eq!(answers("tiny"), answers("whole"));
}

#[test]
fn an_earlier_runs_export_is_not_taken_for_this_ones() {
    let tiny = Tiny::new();
    tiny.train(&[], None).0.unwrap();
    let earlier = tiny.exported("tiny");
    fs::remove_dir_all(tiny.path("runs/tiny/checkpoints")).unwrap();
    tiny.train(&["seed=3"], None).0.unwrap();
    assert_ne!(tiny.exported("tiny"), earlier);
}

#[test]
fn a_finished_run_with_a_damaged_end_trains_its_end_again() {
    let tiny = Tiny::new();
    tiny.train(&[], None).0.unwrap();
    let exported = tiny.exported("tiny");
    damage(&newest(&tiny).join("__0_0.distcp"));
    fs::remove_dir_all(tiny.path("runs/tiny/huggingface")).unwrap();
    assert!(matches!(tiny.train(&[], None).0.unwrap(), Outcome::Completed(_)));
    assert_eq!(tiny.exported("tiny"), exported);
}

#[test]
fn weights_alone_end_a_run_but_a_stopped_one_can_go_on() {
    let tiny = Tiny::new();
    tiny.train(&["run_name=whole"], None).0.unwrap();
    let light = ["save_weights_only=true"];
    tiny.train(&light, Some(4)).0.unwrap();
    tiny.train(&light, None).0.unwrap();
    assert_eq!(tiny.exported("tiny"), tiny.exported("whole"));
    fs::remove_dir_all(tiny.path("runs/tiny/huggingface")).unwrap();
    tiny.train(&light, None).0.unwrap();
    assert_eq!(tiny.exported("tiny"), tiny.exported("whole"));
}

#[test]
fn any_rate_is_the_same_rate_when_it_is_read_back() {
    let tiny = Tiny::new();
    for rate in ["0.00009258946299467323", "3.3333333333333333e-5", "0.0001234567890123457"] {
        let arguments = [format!("learning_rate={rate}"), format!("run_name=rate{rate}")];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        tiny.train(&arguments, Some(1)).0.unwrap();
        tiny.train(&arguments, Some(2)).0.unwrap();
    }
}

#[test]
fn resuming_needs_no_first_weights() {
    let tiny = Tiny::new();
    tiny.train(&["run_name=first"], None).0.unwrap();
    let copy = tiny.path("weights");
    let newest = fs::read_link(tiny.path("runs/first/checkpoints/latest-sharded-rank0")).unwrap();
    fs::rename(tiny.path("runs/first/checkpoints").join(newest), &copy).unwrap();
    let argument = format!("custom_weights_path={}", copy.display());
    tiny.train(&[&argument], Some(2)).0.unwrap();
    fs::remove_dir_all(&copy).unwrap();
    tiny.train(&[&argument], None).0.unwrap();
}

#[test]
fn a_batch_beyond_all_bounds_is_refused() {
    let tiny = Tiny::new();
    let (outcome, _) = tiny.train(&["global_train_batch_size=1000000000000"], None);
    assert!(outcome.unwrap_err().to_string().contains("global_train_batch_size"));
    tiny.train(
        &["global_train_batch_size=500000", "training_duration=1ba", "seed=18446744073709551615"],
        None,
    )
    .0
    .unwrap();
}

/// Copies a folder with everything in it.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    assert!(std::process::Command::new("cp").args(["-a"]).args([from, to]).status().unwrap().success());
}

#[test]
fn what_is_owed_is_written_once_however_often_it_is_begun() {
    let tiny = Tiny::new();
    let arguments = ["save_interval=2ba", "eval_interval=2ba", "hf_save_interval=2ba"];
    tiny.train(&[&arguments[..], &["run_name=whole"]].concat(), None).0.unwrap();
    tiny.train(&arguments, Some(2)).0.unwrap();
    let (run, kept) = (tiny.path("runs/tiny"), tiny.path("kept"));
    copy(&run.join("checkpoints"), &kept);
    // Killed right after it made up for what it owed, before any newer checkpoint.
    tiny.train(&arguments, Some(3)).0.unwrap();
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    copy(&kept, &run.join("checkpoints"));
    tiny.train(&arguments, None).0.unwrap();
    assert_eq!(tiny.metrics("tiny"), tiny.metrics("whole"));
    for file in ["generations.jsonl", "huggingface/ba2/model.safetensors"] {
        let read = |run: &str| fs::read(tiny.path("runs").join(run).join(file)).unwrap();
        assert!(read("tiny") == read("whole"), "{file}");
    }
}

#[test]
fn if_no_checkpoint_is_whole_all_stay_where_they_are() {
    let tiny = Tiny::new();
    tiny.train(&["save_interval=1ba", "save_num_checkpoints_to_keep=1"], Some(3)).0.unwrap();
    let shard = newest(&tiny).join("__0_0.distcp");
    damage(&shard);
    for _ in 0..2 {
        let error = tiny.train(&["save_interval=1ba"], None).0.unwrap_err();
        assert!(matches!(error, TrainError::NoReadableCheckpoint { .. }), "{error}");
        assert!(shard.is_file());
    }
}

#[test]
fn a_kill_between_the_last_rename_and_the_last_event_is_made_up_for() {
    let tiny = Tiny::new();
    tiny.train(&[], None).0.unwrap();
    let events = tiny.path("runs/tiny/events.jsonl");
    let text = fs::read_to_string(&events).unwrap();
    let before =
        text.lines().filter(|line| !line.contains("\"COMPLETED\"")).collect::<Vec<_>>().join("\n") + "\n";
    fs::write(&events, before).unwrap();
    fs::remove_file(tiny.path("runs/tiny/report.html")).unwrap();
    assert!(matches!(tiny.train(&[], None).0.unwrap(), Outcome::AlreadyCompleted(_)));
    assert!(fs::read_to_string(&events).unwrap().contains("\"COMPLETED\""));
    assert!(tiny.path("runs/tiny/report.html").is_file());
}
