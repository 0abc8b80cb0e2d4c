//! Delta tables as data of a run: in a folder, and by the name that a stand-in for Unity Catalog knows.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::signals::numbers;
use crate::support::{Bench, Ended, ended};
use crate::volumes::server::Server;

const TOKEN: &str = "dapi-s3cret";

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/fixtures/delta")
}

/// Puts a table into the bench's folder, without the files of its log that `later` tells of.
fn put(bench: &Bench, name: &str, later: impl Fn(&str) -> bool) {
    for folder in [name.to_owned(), format!("{name}/_delta_log")] {
        for entry in fs::read_dir(fixtures().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let file = format!("{folder}/{}", entry.file_name().to_str().unwrap());
            if entry.path().is_file() && !later(&file) {
                bench.write(&file, fs::read(entry.path()).unwrap());
            }
        }
    }
}

/// The version that the run `tiny` has read.
fn version(bench: &Bench) -> String {
    let pins: serde_json::Value = serde_json::from_str(&bench.text("runs/tiny/data.json")).unwrap();
    pins["train"][0]["version"].as_str().unwrap().to_owned()
}

fn trained(bench: &Bench, source: &str) -> Ended {
    bench.tessera(&["train", "run.yaml", &format!("train_data_path={source}")])
}

/// Takes the run `tiny` back to its first checkpoint.
fn without_its_end(bench: &Bench) {
    let checkpoints =
        fs::read_dir(bench.path("runs/tiny/checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    let last =
        checkpoints.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("ep2-")).last();
    fs::remove_dir_all(last.unwrap()).unwrap();
}

#[test]
fn a_run_keeps_the_version_that_it_began_with() {
    let bench = Bench::new();
    put(&bench, "conversations", |file| file.ends_with("6.json"));
    trained(&bench, "delta:conversations").printed();
    let (straight, began_with) = (numbers(&bench), version(&bench));
    put(&bench, "conversations", |_| false);
    without_its_end(&bench);
    trained(&bench, "delta:conversations").printed();
    assert_eq!((began_with.as_str(), version(&bench).as_str()), ("5", "5"));
    assert_eq!(numbers(&bench), straight);

    let lines = Bench::new();
    let rows = fs::read_to_string(fixtures().join("conversations.jsonl")).unwrap();
    lines.write("all.jsonl", &rows);
    let newest = Bench::new();
    put(&newest, "conversations", |_| false);
    trained(&newest, "delta:conversations").printed();
    trained(&lines, "all.jsonl").printed();
    assert_eq!((version(&newest), numbers(&newest)), ("6".to_owned(), numbers(&lines)));

    // What the run began with is gone: neither other rows nor none are trained on.
    for entry in fs::read_dir(bench.path("conversations")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    let parts = [
        "delta:conversations: version 5 cannot be read any more",
        "the newest version is 6",
        "another run_name",
    ];
    trained(&bench, "delta:conversations").refused(&parts);
}

#[test]
fn another_table_at_the_same_place_is_refused() {
    let bench = Bench::new();
    put(&bench, "texts", |_| false);
    let train = || {
        let data =
            ["task_type=CONTINUED_PRETRAIN", "train_data_path=delta:texts", "eval_data_path=delta:texts@0"];
        bench.tessera(&[&["train", "run.yaml"][..], &data[..]].concat())
    };
    train().printed();
    // The same rows under another id.
    let log = "texts/_delta_log/00000000000000000000.json";
    let (before, after) =
        bench.text(log).split_once("\"id\":\"").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    bench.write(log, format!("{before}\"id\":\"00000000{}", &after[8..]));
    train().refused(&["was trained on delta:texts (version 3, 10 rows", "but now this is"]);
}

#[test]
fn a_table_has_a_name_in_unity_catalog() {
    let bench = Bench::new();
    put(&bench, "conversations", |_| false);
    let server = Server::start(TOKEN);
    let table = |kind: &str| {
        let location = format!("file://{}", bench.path("conversations").display());
        json!({"table_type": kind, "data_source_format": "DELTA", "storage_location": location, "table_id": "1"}).to_string()
    };
    server.catalog("tables/main.default.chat", &table("MANAGED"));
    server.catalog("tables/main.default.view", &table("VIEW"));
    let tessera = |command: &str, source: &str| {
        let source = format!("train_data_path={source}");
        let mut command = bench.command(&[command, "run.yaml", &source, "training_duration=1ep"]);
        command.env("DATABRICKS_HOST", server.address()).env("DATABRICKS_TOKEN", TOKEN);
        ended(command)
    };
    let said = tessera("validate", "main.default.chat@4").printed();
    assert!(said.contains("main.default.chat@4: 30 examples"), "{said}");
    tessera("train", "main.default.chat").printed();
    assert_eq!(version(&bench), "6");
    for file in ["run.yaml", "data.json", "events.jsonl", "metrics.jsonl"] {
        assert!(!bench.text(&format!("runs/tiny/{file}")).contains("s3cret"), "{file}");
    }
    tessera("validate", "main.default.view")
        .refused(&["main.default.view is of the kind VIEW, no Delta table"]);
    tessera("validate", "main.default.none")
        .refused(&["could not find table main.default.none on the workspace"]);
    // A file that is here is no table, nor is one that is not here.
    bench.write("main.default.train", "");
    tessera("validate", "main.default.train").refused(&["main.default.train is a file of type \"train\""]);
    tessera("validate", "main.default.jsonl").refused(&["main.default.jsonl: no such file or folder"]);
    tessera("validate", "default.chat").refused(&[
        "Delta table input to train_data_path or eval_data_path must be in the format catalog.schema.table, but got default.chat",
    ]);
    let mut command = bench.command(&["validate", "run.yaml", "train_data_path=main.default.chat"]);
    command.env_remove("DATABRICKS_HOST").env_remove("DATABRICKS_TOKEN");
    ended(command).refused(&["so it means a table of Unity Catalog; DATABRICKS_HOST is not set"]);
}

#[test]
fn what_is_no_table_is_refused() {
    let bench = Bench::new();
    put(&bench, "texts", |_| false);
    let refused = |source: &str, parts: &[&str]| {
        let source = format!("train_data_path={source}");
        bench.tessera(&["validate", "run.yaml", "task_type=CONTINUED_PRETRAIN", &source]).refused(parts);
    };
    refused("delta:missing", &["delta:missing: no Delta table is there"]);
    refused("delta:texts@9", &["delta:texts@9: version 9 cannot be read: those from 0 to 3 can"]);
    refused("delta:ftp://host/texts", &["ftp://host/texts"]);
    refused("delta:dbfs:/Volumes/c/s/v/texts", &["a table whose volume is mounted here at /Volumes"]);
    refused("texts", &["texts is a Delta table, which is read by the name delta:texts"]);
}
