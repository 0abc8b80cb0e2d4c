//! Runs that go well: what is in their folder, what they say, what another start of the same command does.

use crate::support::{Bench, names};

#[test]
fn a_run_leaves_the_folder_that_the_design_names_and_is_not_run_twice() {
    let bench = Bench::new();
    let said = bench.tessera(&["train", "run.yaml"]).printed();
    for part in [
        "96 examples",
        "2ep: 12 batches of 16 rows",
        "Evaluation after 0 batches",
        "> 1 + 2?",
        "batch 1/12  loss",
        "batch 12/12  loss",
        "Saved runs/tiny/checkpoints/ep1-ba6",
        "Done: 12 batches.",
        "runs/tiny/report.html",
        "tessera generate runs/tiny/huggingface/ba12 --task CHAT_COMPLETION --prompt '1 + 2?'",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert_eq!(
        names(&bench.path("runs/tiny")),
        [
            "checkpoints",
            "data.json",
            "events.jsonl",
            "generations.jsonl",
            "huggingface",
            "metrics.jsonl",
            "report.html",
            "run.yaml"
        ]
    );
    assert_eq!(
        names(&bench.path("runs/tiny/checkpoints")),
        ["ep1-ba6", "ep2-ba12", "latest-sharded-rank0", "latest-sharded-rank0.symlink"]
    );
    assert_eq!(bench.text("runs/tiny/checkpoints/latest-sharded-rank0.symlink"), "ep2-ba12");
    assert_eq!(
        names(&bench.path("runs/tiny/huggingface/ba12")),
        [
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let metrics = bench.json_lines("runs/tiny/metrics.jsonl");
    let losses: Vec<_> = metrics.iter().filter_map(|line| line.get("loss/train/total")?.as_f64()).collect();
    assert_eq!(losses.len(), 12);
    assert!(losses[11] < losses[0] * 0.6, "{losses:?}");
    let events = bench.json_lines("runs/tiny/events.jsonl");
    assert_eq!(events.first().unwrap()["type"], "CREATED");
    assert_eq!(events.last().unwrap()["type"], "COMPLETED");

    let again = bench.tessera(&["train", "run.yaml"]).printed();
    assert!(again.contains("This run is finished: all 12 batches are done."), "{again}");
    assert_eq!(bench.json_lines("runs/tiny/metrics.jsonl").len(), metrics.len());

    // The resolved run is the same run; a lost export is made again.
    let export = bench.read("runs/tiny/huggingface/ba12/model.safetensors");
    std::fs::remove_dir_all(bench.path("runs/tiny/huggingface")).unwrap();
    bench.tessera(&["train", "runs/tiny/run.yaml"]).printed();
    assert_eq!(bench.read("runs/tiny/huggingface/ba12/model.safetensors"), export);

    bench.tessera(&["train", "run.yaml", "seed=18"]).refused(&["seed", "17", "18", "run_name"]);
}

#[test]
fn mixed_precision_trains_on_cpus() {
    let bench = Bench::new();
    let arguments = ["train", "run.yaml", "precision=amp_bf16", "devices=cpu"];
    let said = bench.tessera(&arguments).printed();
    assert!(said.contains("Done: 12 batches."), "{said}");
    let metrics = bench.json_lines("runs/tiny/metrics.jsonl");
    let losses: Vec<_> = metrics.iter().filter_map(|line| line.get("loss/train/total")?.as_f64()).collect();
    assert!(losses[11] < losses[0] * 0.6, "{losses:?}");
    assert!(bench.text("runs/tiny/run.yaml").contains("precision: amp_bf16"));
    bench.tessera(&["train", "run.yaml", "precision=fp32"]).refused(&["precision", "amp_bf16", "fp32"]);
}

#[test]
fn a_program_reads_how_a_run_ended_from_standard_output() {
    let bench = Bench::new();
    let arguments = ["train", "run.yaml", "training_duration=3ba", "--json"];
    let ended = bench.tessera(&arguments);
    assert!(ended.stderr.contains("batch 3/3"), "{ended:?}");
    let first = ended.json();
    assert_eq!((&first["outcome"], &first["batches"]), (&"completed".into(), &3.into()));
    assert!(bench.path(first["export"].as_str().unwrap()).join("config.json").is_file());
    let [before, after] =
        ["first_evaluation", "last_evaluation"].map(|key| first[key]["cross_entropy"].as_f64().unwrap());
    assert!(after < before);
    let second = bench.tessera(&arguments).json();
    assert_eq!(second["outcome"], "already_completed");
    assert_eq!(second["last_evaluation"], first["last_evaluation"]);
}

#[test]
fn the_other_tasks_train_too() {
    let bench = Bench::new();
    bench.write("pairs.jsonl", "{\"prompt\": \"1 + 2?\", \"response\": \"3.\"}\n".repeat(8));
    bench.write("texts/a.txt", "one and two and three. ".repeat(30));
    bench.write("texts/b.txt", "yes and no. ".repeat(30));
    for (task, path) in [("INSTRUCTION_FINETUNE", "pairs.jsonl"), ("CONTINUED_PRETRAIN", "texts")] {
        let (task_type, data) = (format!("task_type={task}"), format!("train_data_path={path}"));
        let keys = [&task_type, &data, "eval_data_path=null", "training_duration=2ba", "init=random"];
        let name = format!("run_name={task}");
        let said =
            bench.tessera(&[&["train", "run.yaml", &name], keys.map(|key| key as &str).as_slice()].concat());
        assert!(said.printed().contains("Done: 2 batches."));
    }
}
