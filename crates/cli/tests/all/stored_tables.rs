//! Delta tables in an object store, of which a stand-in listens here.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::stored_runs::server::{Fault, Server};
use crate::stored_runs::{command, tessera};
use crate::support::{Bench, ended};
use crate::tables::fixtures;
use crate::volumes::server::Server as Workspace;

/// Puts the files below a folder into the store.
fn put(server: &Server, folder: &Path, place: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let place = format!("{place}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            put(server, &path, &place);
        } else {
            server.put(&place, fs::read(path).unwrap());
        }
    }
}

#[test]
fn a_table_is_read_whatever_its_files_are_called() {
    let (bench, server) = (Bench::new(), Server::new());
    put(&server, &fixtures().join("pairs"), "lake/pairs");
    let columns = "columns={prompt: prompt, response: language}";
    let source = "delta:s3://bucket/lake/pairs";
    let both = [format!("train_data_path={source}"), format!("eval_data_path={source}")];
    let task = "task_type=INSTRUCTION_FINETUNE";
    let said =
        tessera(&bench, &server, &["validate", "run.yaml", task, columns, &both[0], &both[1]]).printed();
    assert!(said.contains("30 examples"), "{said}");
    assert!(server.requests().iter().any(|request| request.contains("language%3Dde%2520at/part")));
}

#[test]
fn files_of_a_table_are_not_read_as_such() {
    let (bench, server) = (Bench::new(), Server::new());
    put(&server, &fixtures().join("texts"), "lake/a/texts");
    let rows = fs::read(fixtures().join("texts.0.jsonl")).unwrap();
    for name in ["lake/rows.jsonl", "rows/a.jsonl", "rows/_delta_log_old.jsonl", "rows/_b/_delta_log/0.json"]
    {
        server.put(name, rows.clone());
    }
    let validate = |source: &str| {
        let both = [format!("train_data_path={source}"), format!("eval_data_path={source}")];
        tessera(
            &bench,
            &server,
            &["validate", "run.yaml", "task_type=CONTINUED_PRETRAIN", &both[0], &both[1]],
        )
    };
    for source in ["lake/a/texts", "lake", "lake/*/texts/*.parquet", "lake/a/*/part-*", "lake/a/texts/*"] {
        let table = "a Delta table to be named as one: delta:s3://bucket/lake/a/texts";
        validate(&format!("s3://bucket/{source}")).refused(&[table]);
    }
    assert!(!server.requests().iter().any(|request| request.starts_with("GET /bucket/lake")));
    for source in ["s3://bucket/rows", "s3://bucket/lake/*.jsonl"] {
        let said = validate(source).printed();
        assert!(said.contains("20 examples"), "{said}");
    }
}

#[test]
fn credentials_that_expire_on_the_way_are_asked_for_again() {
    let (bench, server, workspace) = (Bench::new(), Server::new(), Workspace::start("dapi-s3cret"));
    put(&server, &fixtures().join("conversations"), "lake/chat");
    let table = json!({
        "table_type": "MANAGED", "data_source_format": "DELTA", "storage_location": "s3://bucket/lake/chat", "table_id": "1",
    });
    let keys = json!({"access_key_id": "id", "secret_access_key": "t-s3cret", "session_token": "u-s3cret"});
    workspace.catalog("tables/main.default.chat", &table.to_string());
    workspace.catalog("temporary-table-credentials", &json!({ "aws_temp_credentials": keys }).to_string());
    let validate = || {
        let mut command =
            command(&bench, &server, &["validate", "run.yaml", "train_data_path=main.default.chat"]);
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command.env("DATABRICKS_HOST", workspace.address()).env("DATABRICKS_TOKEN", "dapi-s3cret");
        let ended = ended(command);
        assert!(!format!("{ended:?}").contains("s3cret"), "{ended:?}");
        ended
    };
    let mut files = server.names().into_iter().filter(|name| name.contains("/part-"));
    let last = files.next_back().unwrap();
    server.fail(&last, vec![Fault::Status(400, "ExpiredToken"); 2]);
    let said = validate().printed();
    assert!(said.contains("main.default.chat: 42 examples"), "{said}");
    let credentials = "POST /api/2.1/unity-catalog/temporary-table-credentials";
    assert_eq!(workspace.asked(credentials), 3);
    // What had come was not fetched again.
    let gets = server.requests().into_iter().filter(|request| request.starts_with("GET /bucket/lake"));
    let mut gets: Vec<_> = gets.collect();
    let all = gets.len();
    gets.dedup();
    assert_eq!((all, gets.len()), (4 + 7 + 2, 4 + 7));

    // Those that are never good are not asked for without end.
    fs::remove_dir_all(bench.path("runs/.cache")).unwrap();
    server.fail(&last, vec![Fault::Status(400, "ExpiredToken"); 1000]);
    validate().refused(&["the credentials have expired", "run the same command again"]);
    assert_eq!(workspace.asked(credentials), 3 + 1 + 24);
}
