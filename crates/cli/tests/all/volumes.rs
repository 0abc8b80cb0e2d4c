//! Data in volumes of a workspace, of which a stand-in listens here.

#[path = "../../../workspace/tests/workspace/server.rs"]
#[allow(dead_code)]
pub mod server;

use crate::signals::numbers;
use crate::support::{Bench, Ended, ended};
use server::{Fault, Server};

const TOKEN: &str = "dapi-s3cret";
const VOLUME: &str = "train_data_path=dbfs:/Volumes/main/default/sums/data";

/// Runs the binary with the workspace that `server` stands in for.
fn tessera(bench: &Bench, server: &Server, arguments: &[&str]) -> Ended {
    let mut command = bench.command(arguments);
    command.env("DATABRICKS_HOST", server.address()).env("DATABRICKS_TOKEN", TOKEN);
    ended(command)
}

fn volume(bench: &Bench) -> Server {
    let server = Server::start(TOKEN);
    let rows = bench.read("train.jsonl");
    let middle = rows.len() / 2 + rows[rows.len() / 2..].iter().position(|&byte| byte == b'\n').unwrap() + 1;
    server.write("/Volumes/main/default/sums/data/a.jsonl", &rows[..middle]);
    server.write("/Volumes/main/default/sums/data/b/c.jsonl", &rows[middle..]);
    server.write("/Volumes/main/default/sums/data/_SUCCESS.json", b"");
    server.write("/Volumes/main/default/sums/data/.tmp.jsonl", b"not rows");
    server
}

#[test]
fn a_run_reads_a_volume_as_a_folder_and_goes_on_with_what_it_began_with() {
    let bench = Bench::new();
    let server = volume(&bench);
    server.fail("GET /api/2.0/fs/files", vec![Fault::Cut(100)]);
    let cluster = "data_prep_cluster_id=0123-456789-abcdef";
    let run = tessera(&bench, &server, &["train", "run.yaml", VOLUME, cluster, "training_duration=1ep"]);
    assert!(run.stderr.contains("data_prep_cluster_id: no cluster is needed"), "{run:?}");
    let said = run.printed();
    assert!(said.contains("dbfs:/Volumes/main/default/sums/data: 96 examples"), "{said}");
    let pins: serde_json::Value = serde_json::from_str(&bench.text("runs/tiny/data.json")).unwrap();
    assert_eq!(pins["train"][0]["path"], "dbfs:/Volumes/main/default/sums/data");
    assert_eq!(pins["train"][0]["version"].as_str().unwrap().len(), 32);
    for file in ["run.yaml", "data.json", "events.jsonl", "metrics.jsonl"] {
        assert!(!bench.text(&format!("runs/tiny/{file}")).contains("s3cret"), "{file}");
    }
    let local = Bench::new();
    local.tessera(&["train", "run.yaml", "training_duration=1ep"]).printed();
    assert_eq!(numbers(&bench), numbers(&local));

    // The volume moves on, and its workspace goes away; the run goes on.
    server.write("/Volumes/main/default/sums/data/a.jsonl", b"{}");
    drop(server);
    let resumed = bench.command(&["train", "run.yaml", VOLUME, "training_duration=1ep"]);
    ended(resumed).printed();
}

#[test]
fn what_a_workspace_does_not_give_is_named() {
    let bench = Bench::new();
    let server = volume(&bench);
    let mut command = bench.command(&["validate", "run.yaml", VOLUME]);
    command.env_remove("DATABRICKS_HOST").env_remove("DATABRICKS_TOKEN");
    ended(command)
        .refused(&["dbfs:/Volumes/main/default/sums/data is on a workspace", "DATABRICKS_HOST is not set"]);
    let refused = |path: &str, parts: &[&str]| {
        let key = format!("train_data_path={path}");
        tessera(&bench, &server, &["validate", "run.yaml", &key]).refused(parts);
    };
    refused("dbfs:/FileStore/a.jsonl", &["is in no volume", "dbfs:/Volumes/<catalog>/<schema>/<volume>"]);
    refused("dbfs:/Volumes/main/default/sums/none", &["has no /Volumes/main/default/sums/none"]);
    // The files of a table are of all its versions.
    server.write("/Volumes/main/default/tables/a/chat/part-0.parquet", b"PAR1");
    server.write("/Volumes/main/default/tables/a/chat/_delta_log/00000000000000000000.json", b"{}");
    for path in ["a/chat", "a", ""] {
        let parts =
            ["delta:/Volumes/main/default/tables/a/chat", "has to be mounted", "catalog.schema.table"];
        refused(&format!("dbfs:/Volumes/main/default/tables/{path}"), &parts);
    }
    assert_eq!(server.asked("GET /api/2.0/fs/files/Volumes/main/default/tables"), 0);
    server.fail("HEAD", vec![Fault::Status(403)]);
    refused("dbfs:/Volumes/main/default/sums/data", &["(403)", "READ VOLUME"]);
}

#[test]
fn weights_that_a_workspace_keeps_are_named_with_what_brings_them_here() {
    let bench = Bench::new();
    let artifact = "dbfs:/databricks/mlflow-tracking/1/ab34/artifacts/run/checkpoints/ep1-ba5";
    let download = "mlflow artifacts download --run-id ab34 --artifact-path 'run/checkpoints/ep1-ba5'";
    let key = format!("custom_weights_path={artifact}");
    bench.tessera(&["train", "run.yaml", &key]).refused(&["custom_weights_path", artifact, download]);
    let generate = ["generate", "model", "--prompt", "a", "--weights", artifact];
    bench.tessera(&generate).refused(&["--weights", artifact, download]);
    let copy = "databricks fs cp --recursive 'dbfs:/FileStore/model' DIR";
    bench.tessera(&["validate", "run.yaml", "model=dbfs:/FileStore/model"]).refused(&["model: ", copy]);
}
