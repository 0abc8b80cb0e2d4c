//! `tessera runs`: what is told of runs, what can be asked of them, and what is refused.

use serde_json::{Value, json};

use crate::signals::{Background, numbers};
use crate::support::{Bench, names};

const LONG: [&str; 4] = ["train", "run.yaml", "training_duration=200ba", "save_interval=1dur"];

#[test]
fn runs_are_filtered_by_state_and_time() {
    let bench = Bench::new();
    assert!(bench.tessera(&["runs", "list"]).printed().contains("no runs in runs"));
    bench.tessera(&["train", "run.yaml", "training_duration=2ba"]).printed();
    bench.tessera(&["train", "run.yaml", "training_duration=2ba", "run_name=other"]).printed();
    let listed = |filter: &[&str]| -> Vec<Value> {
        let json = bench.tessera(&[&["runs", "list", "--json"], filter].concat()).json();
        json.as_array().unwrap().iter().map(|run| run["name"].clone()).collect()
    };
    let both = [json!("other"), json!("tiny")];
    assert_eq!(listed(&[]), both);
    assert_eq!(listed(&["--status", "failed,Completed", "--after", "2020-01-01"]), both);
    assert_eq!(listed(&["--limit", "1"]), both[..1]);
    for filter in [["--status", "RUNNING"], ["--before", "2020-01-01"], ["--after", "2199-01-01 10:00"]] {
        assert_eq!(listed(&filter), [] as [Value; 0], "{filter:?}");
    }
    let said = bench.tessera(&["runs", "list", "--status", "STOPPED"]).printed();
    assert!(said.contains("no such runs in runs"), "{said}");
    let refused = bench.tessera(&["runs", "list", "--status", "DONE"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("PENDING, QUEUED, STARTING"), "{refused:?}");
    let refused = bench.tessera(&["runs", "list", "--before", "noon"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("such as 2026-11-20"), "{refused:?}");
}

#[test]
fn a_run_is_shown_with_its_events() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml"]).printed();
    let said = bench.tessera(&["runs", "show", "tiny"]).printed();
    for part in
        ["COMPLETED", "■■■■■■■■■■ 12 of 12 batches", "train.jsonl", "ep2-ba12", "ba12", "1e-2", "runs/tiny"]
    {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    let shown = bench.tessera(&["runs", "show", "runs/tiny", "--json"]).json();
    assert_eq!(
        (&shown["status"], &shown["total_batches"], &shown["is_held"], &shown["estimated_end"]),
        (&json!("COMPLETED"), &json!(12), &json!(false), &Value::Null)
    );
    let said = bench.tessera(&["runs", "events", "tiny", "--follow"]).printed();
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].contains("CREATED") && lines.last().unwrap().contains("COMPLETED"), "{said}");
    // The first batch is told of; the others come too soon after it.
    let updates: Vec<_> = lines.iter().filter(|line| line.contains("TRAIN_UPDATED")).collect();
    assert!(
        updates.len() == 1 && updates[0].contains("batch 1 of 12, ") && updates[0].ends_with("s left"),
        "{said}"
    );
    let events = bench.json_lines("runs/tiny/events.jsonl");
    let update = events.iter().find(|event| event["type"] == "TRAIN_UPDATED").unwrap();
    assert_eq!((&update["batch"], &update["batches"]), (&json!(1), &json!(12)));
    assert!(update["estimated_end"].is_string() && update["loss"].is_number(), "{update}");
    let said = bench.tessera(&["runs", "events", "tiny", "--json"]).printed();
    assert_eq!(said, bench.text("runs/tiny/events.jsonl"));
    for command in ["show", "events", "cancel", "resume", "delete"] {
        bench.tessera(&["runs", command, "model"]).refused(&["model holds no events.jsonl"]);
    }
}

#[test]
fn a_canceled_run_is_saved_and_resumed() {
    let bench = Bench::new();
    let run = Background::start(&bench, &LONG);
    let shown = bench.tessera(&["runs", "show", "tiny", "--json"]).json();
    assert_eq!((&shown["is_held"], &shown["status"]), (&json!(true), &json!("RUNNING")));
    assert!(shown["estimated_end"].is_string(), "{shown}");
    bench.tessera(&["runs", "delete", "tiny", "--yes"]).refused(&["runs/tiny is in use by another process"]);
    // It follows the run to its end.
    let follower = Background::spawn(&bench, &["runs", "events", "tiny", "--follow"]);
    let said = bench.tessera(&["runs", "cancel", "tiny"]).printed();
    assert!(said.contains("1 run is asked to stop"), "{said}");
    let ended = run.end();
    assert_eq!(ended.code, Some(143), "{ended:?}");
    assert!(ended.stdout.contains("Canceled after "), "{ended:?}");
    assert!(follower.end().printed().contains("CANCELED"));
    assert_eq!(bench.json_lines("runs/tiny/events.jsonl").last().unwrap()["type"], "CANCELED");
    let refused = ["no process works on this run (STOPPED); there is nothing to cancel"];
    bench.tessera(&["runs", "cancel", "tiny"]).refused(&refused);

    // Elsewhere the paths in its run file mean something else.
    let mut elsewhere = bench.command(&["runs", "resume", "../runs/tiny"]);
    elsewhere.current_dir(bench.path("model"));
    crate::support::ended(elsewhere).refused(&["go to the folder in which the run was started"]);
    let said = bench.tessera(&["runs", "resume", "tiny"]).printed();
    assert!(said.contains("Going on from runs/tiny/checkpoints/ep"), "{said}");
    let undisturbed = Bench::new();
    undisturbed.tessera(&LONG).printed();
    assert_eq!(numbers(&bench), numbers(&undisturbed));
}

#[test]
fn a_killed_run_is_told_from_one_that_works() {
    let bench = Bench::new();
    let run = Background::start(&bench, &LONG);
    assert!(run.kill_was_needed());
    let said = bench.tessera(&["runs", "show", "tiny"]).printed();
    assert!(said.contains("RUNNING, but no process works on it: it was killed"), "{said}");
    bench.tessera(&["runs", "cancel", "tiny"]).refused(&["there is nothing to cancel"]);
}

#[test]
fn a_run_is_deleted_only_when_that_is_said() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml", "training_duration=2ba"]).printed();
    let refused = ["runs/tiny (COMPLETED, 2 batches, 1 checkpoint and 1 model of ", "--yes deletes it"];
    bench.tessera(&["runs", "delete", "tiny"]).refused(&refused);
    assert!(bench.path("runs/tiny/report.html").is_file());
    let said = bench.tessera(&["runs", "delete", "tiny", "--yes"]).printed();
    assert!(said.contains("deleted"), "{said}");
    assert_eq!(names(&bench.path("runs")), [] as [&str; 0]);
    assert!(!bench.path("runs/.tiny.deleted").exists());
}

#[test]
fn runs_are_compared() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml"]).printed();
    let slower = ["train", "run.yaml", "run_name=slower", "learning_rate=1e-3", "optimizer.weight_decay=0.1"];
    bench.tessera(&slower).printed();
    let said = bench.tessera(&["runs", "compare", "tiny", "slower"]).printed();
    let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    assert_eq!(
        line("learning_rate").split_whitespace().collect::<Vec<_>>(),
        ["learning_rate", "0.01", "0.001"]
    );
    assert!(line("optimizer.weight_decay").ends_with("0.1"), "{said}");
    assert!(!said.contains("seed") && said.contains("o tiny, x slower, * both"), "{said}");
    assert!(line("metrics/eval/LanguageCrossEntropy").split_whitespace().count() == 3, "{said}");
    let json = bench.tessera(&["runs", "compare", "tiny", "slower", "--json"]).json();
    assert_eq!(json["settings"].as_array().unwrap().len(), 2);
    let losses = &json["curves"]["loss/train/total"];
    assert_eq!((losses[0].as_array().unwrap().len(), &losses[0][11][0]), (12, &json!(11)));
    let same = bench.tessera(&["runs", "compare", "tiny", "tiny"]).printed();
    assert!(same.starts_with("The settings are the same."), "{same}");
}
