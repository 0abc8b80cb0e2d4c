//! Runs and checkpoints in an object store, asked about by url, of which a stand-in listens here.

#[path = "../../../stores/tests/stores/server.rs"]
#[allow(dead_code)]
pub mod server;

use std::process::Command;

use serde_json::{Value, json};

use crate::signals::{Background, numbers};
use crate::support::{Bench, Ended, ended};
use server::{SECRET, Server};

const RUNS: &str = "s3://bucket/runs";
const TINY: &str = "s3://bucket/runs/tiny";
/// As if everything had been uploaded just now.
const LATELY: &str = "2199-01-02T03:04:05.000Z";

/// The binary with the store that `server` stands in for.
pub fn command(bench: &Bench, server: &Server, arguments: &[&str]) -> Command {
    let mut command = bench.command(arguments);
    command
        .env("AWS_ENDPOINT_URL", server.address())
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_REGION", "eu-central-1");
    command
}

pub fn tessera(bench: &Bench, server: &Server, arguments: &[&str]) -> Ended {
    let ended = ended(command(bench, server, arguments));
    assert!(!format!("{ended:?}").contains(SECRET), "{ended:?}");
    ended
}

fn train(bench: &Bench, server: &Server, overrides: &[&str]) {
    let save_folder = format!("save_folder={RUNS}");
    tessera(bench, server, &[&["train", "run.yaml", &save_folder], overrides].concat()).printed();
}

/// A folder in which nothing has run.
fn elsewhere() -> Bench {
    Bench::new()
}

#[test]
fn runs_at_a_url_are_told_of_as_those_of_a_folder() {
    let (bench, server) = (Bench::new(), Server::new());
    train(&bench, &server, &[]);
    train(&bench, &server, &["run_name=slower", "learning_rate=1e-3", "training_duration=2ba"]);
    let there = elsewhere();
    let ask = |arguments: &[&str]| tessera(&there, &server, arguments);

    // But for places, and times that are those of files.
    let known = |mut run: Value| {
        let fields = run.as_object_mut().unwrap();
        fields.retain(|name, _| !["folder", "is_held", "uploaded"].contains(&name.as_str()));
        run
    };
    let shown = ask(&["runs", "show", TINY, "--json"]).json();
    assert_eq!((&shown["folder"], &shown["is_held"]), (&json!(TINY), &Value::Null));
    assert_eq!(shown["uploaded"], "2026-01-02T03:04:05Z");
    assert_eq!(known(shown), known(bench.tessera(&["runs", "show", "tiny", "--json"]).json()));
    let said = ask(&["runs", "show", &format!("{TINY}/")]).printed();
    assert!(said.contains("COMPLETED\n") && said.contains(TINY) && said.contains("ep2-ba12"), "{said}");

    let listed = |filter: &[&str]| -> Vec<Value> {
        let listed = ask(&[&["runs", "list", RUNS, "--json"], filter].concat()).json();
        listed.as_array().unwrap().iter().map(|run| run["name"].clone()).collect()
    };
    assert_eq!(listed(&[]), [json!("slower"), json!("tiny")]);
    assert_eq!(listed(&["--status", "COMPLETED", "--limit", "1"]), [json!("slower")]);
    assert_eq!(listed(&["--before", "2020-01-01"]), [] as [Value; 0]);
    let said = ask(&["runs", "list", "s3://bucket/nothing"]).printed();
    assert!(said.contains("no runs in s3://bucket/nothing"), "{said}");

    let events = ask(&["runs", "events", TINY, "--follow", "--json"]).printed();
    assert_eq!(events, bench.text("runs/tiny/events.jsonl"));
    let slower = format!("{RUNS}/slower");
    let compared = ask(&["runs", "compare", TINY, &slower, "--json"]).json();
    let here = bench.tessera(&["runs", "compare", "tiny", "slower", "--json"]).json();
    assert_eq!((&compared["settings"], &compared["curves"]), (&here["settings"], &here["curves"]));
    assert_eq!(compared["runs"][1]["folder"], slower.as_str());
    // One here with one there.
    let same = tessera(&bench, &server, &["runs", "compare", "tiny", TINY]).printed();
    assert!(same.starts_with("The settings are the same."), "{same}");
    // Only what tells of runs was brought, and nothing is left of it.
    let brought = |request: &String| request.starts_with("GET") && request.contains("distcp");
    assert!(!server.requests().iter().any(brought));
    assert!(!there.path("runs").exists());

    server.put("runs/slower/events.jsonl", b"{}\n".to_vec());
    let listed = ask(&["runs", "list", RUNS]);
    assert!(listed.stderr.contains("s3://bucket/runs/slower/events.jsonl, line 1"), "{listed:?}");
    assert!(listed.printed().contains("tiny"));
    for command in ["show", "events", "cancel", "resume", "delete"] {
        ask(&["runs", command, "s3://bucket/model"]).refused(&["s3://bucket/model holds no events.jsonl"]);
    }
    ask(&["runs", "why", TINY]).refused(&[TINY, "is not uploaded", "tessera runs why"]);
    ask(&["runs", "show", "https://host/runs/tiny"]).refused(&["single files"]);
}

#[test]
fn a_run_is_canceled_by_its_url() {
    let (bench, server) = (Bench::new(), Server::new());
    let long = ["training_duration=4000ba", "save_interval=1dur", "eval_prompts=[]"];
    let save_folder = format!("save_folder={RUNS}");
    // A word for an earlier attempt is none for this one.
    server.put("runs/tiny/.cancel", Vec::new());
    let arguments = [&["train", "run.yaml", &save_folder], &long[..]].concat();
    let run = Background::start_command(&bench, command(&bench, &server, &arguments));
    let there = elsewhere();
    let ask = |arguments: &[&str]| tessera(&there, &server, arguments);
    server.set_time(LATELY);
    while server.get("runs/tiny/events.jsonl").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let refused = ["a process that works on this run gave a sign of life", "cancel it"];
    ask(&["runs", "delete", TINY, "--yes"]).refused(&refused);
    ask(&["runs", "resume", TINY]).refused(&refused);
    let said = ask(&["runs", "show", TINY]).printed();
    assert!(said.contains("when it was last uploaded"), "{said}");
    let said = ask(&["runs", "cancel", TINY]).printed();
    assert!(said.contains("1 run is asked to stop") && said.contains("every few seconds"), "{said}");
    let canceled = run.end();
    assert_eq!(canceled.code, Some(143), "{canceled:?}");
    assert!(canceled.stdout.contains("Canceled after "), "{canceled:?}");
    assert!(ask(&["runs", "events", TINY, "--follow"]).printed().contains("CANCELED"));
    assert!(server.get("runs/tiny/.cancel").is_none());
    // The sign of life went last, so that the run may be deleted.
    let deleted = server.deleted();
    assert_eq!(deleted.last().unwrap(), "runs/tiny/.alive", "{deleted:?}");
    assert!(server.names().iter().all(|name| !name.starts_with("runs/tiny/.")), "{:?}", server.names());
    ask(&["runs", "cancel", TINY]).refused(&["no process works on this run (STOPPED)"]);
}

#[test]
fn a_run_is_resumed_by_its_url() {
    let (bench, server) = (Bench::new(), Server::new());
    train(&bench, &server, &[]);
    // As if the last checkpoint had not come to be.
    for name in server.names() {
        if name.contains("ep2-ba12") || name.contains("huggingface") {
            server.remove(&name);
        }
    }
    let there = elsewhere();
    let said = tessera(&there, &server, &["runs", "resume", TINY]).printed();
    assert!(said.contains("Going on from runs/tiny/checkpoints/ep1-ba6"), "{said}");
    assert_eq!(numbers(&there), numbers(&bench));
    let said = tessera(&there, &server, &["train", "s3://bucket/runs/tiny/run.yaml"]).printed();
    assert!(said.contains("This run is finished"), "{said}");
    // One that was moved would be trained where it is not.
    for file in ["run.yaml", "events.jsonl"] {
        server.put(&format!("moved/{file}"), server.get(&format!("runs/tiny/{file}")).unwrap());
    }
    let refused = ["s3://bucket/moved/run.yaml says that the run is kept at s3://bucket/runs/tiny"];
    tessera(&there, &server, &["runs", "resume", "s3://bucket/moved"]).refused(&refused);
}

#[test]
fn a_run_at_a_url_is_deleted_only_when_that_is_said() {
    let (bench, server) = (Bench::new(), Server::new());
    train(&bench, &server, &["training_duration=2ba"]);
    server.put("runs/tiny-beside/events.jsonl", b"another's".to_vec());
    let before = server.names();
    let refused =
        ["s3://bucket/runs/tiny (COMPLETED, 2 batches, 1 checkpoint and 1 model of ", "--yes deletes it"];
    tessera(&bench, &server, &["runs", "delete", TINY]).refused(&refused);
    assert_eq!(server.names(), before);
    let asked = server.requests().len();
    let said = tessera(&bench, &server, &["runs", "delete", TINY, "--yes"]).printed();
    assert!(said.contains("deleted"), "{said}");
    assert_eq!(server.names(), ["runs/tiny-beside/events.jsonl"]);
    assert!(server.requests().len() > asked && bench.path("runs/tiny/events.jsonl").exists());
    // What makes things whole went first, what tells that it is a run last.
    let deleted = server.deleted();
    let position = |ending: &str| deleted.iter().position(|name| name.ends_with(ending)).unwrap();
    assert!(position(".symlink") < position(".metadata"), "{deleted:?}");
    assert!(position(".metadata") < position(".distcp"), "{deleted:?}");
    assert!(position("config.json") < position("model.safetensors"), "{deleted:?}");
    assert_eq!(position("events.jsonl"), deleted.len() - 1, "{deleted:?}");
}

#[test]
fn checkpoints_at_a_url_are_looked_at_and_asked() {
    let (bench, server) = (Bench::new(), Server::new());
    train(&bench, &server, &[]);
    let there = elsewhere();
    let ask = |arguments: &[&str]| tessera(&there, &server, arguments);
    let checkpoint = format!("{TINY}/checkpoints/ep2-ba12");
    let here = bench.tessera(&["checkpoint", "list", "runs/tiny", "--json"]).json();
    for place in [TINY, "s3://bucket/runs/tiny/checkpoints/"] {
        let listed = ask(&["checkpoint", "list", place, "--json"]).json();
        assert_eq!(listed[0]["folder"], checkpoint.as_str());
        for (index, one) in listed.as_array().unwrap().iter().enumerate() {
            assert_eq!((&one["name"], &one["bytes"]), (&here[index]["name"], &here[index]["bytes"]));
        }
        assert_eq!(listed.as_array().unwrap().len(), 2);
    }
    ask(&["checkpoint", "list", "s3://bucket/none"]).refused(&["s3://bucket/none", "a run's url"]);
    let shown = ask(&["checkpoint", "show", &checkpoint, "--json"]).json();
    assert_eq!((&shown["folder"], &shown["run_name"]), (&json!(checkpoint), &json!("tiny")));
    let latest = format!("{TINY}/checkpoints/latest-sharded-rank0.symlink");
    for place in [&checkpoint, &latest] {
        let said = ask(&["checkpoint", "verify", place]).printed();
        assert!(said.contains(&format!("{place} is whole")), "{said}");
    }
    let export = format!("{TINY}/huggingface/ba12");
    ask(&["checkpoint", "export", &latest, "--model", &export, "--output", "out"]).printed();
    assert!(
        there.read("out/model.safetensors") == bench.read("runs/tiny/huggingface/ba12/model.safetensors")
    );
    let answer = |model: &str, weights: &[&str]| {
        let generate = [
            "generate",
            model,
            "--prompt",
            "1 + 2?",
            "--task",
            "CONTINUED_PRETRAIN",
            "--top-logits",
            "3",
            "--json",
        ];
        ask(&[&generate, weights].concat()).json()
    };
    let of_export = answer(&export, &[]);
    assert_eq!(answer("model", &["--weights", &latest]), of_export);
    assert_ne!(answer("model", &[]), of_export);
    let wrong = ask(&["generate", "model", "--prompt", "a", "--weights", TINY]);
    wrong.refused(&["--weights", TINY, "a folder with .metadata"]);
    // What was brought is there for the next time.
    let brought =
        server.requests().iter().filter(|asked| asked.contains("GET") && asked.contains("distcp")).count();
    assert_eq!(brought, 1);
}
