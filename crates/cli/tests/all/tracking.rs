//! Programs that follow a run: what they can be asked, and what is refused before the run begins. What a real MLflow server
//! and TensorBoard know of runs is held by `scripts/test-mlflow`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use crate::signals::Background;
use crate::support::{Bench, names};

/// A port that nobody listens at.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn a_scrape_in_the_middle_of_a_run_gets_its_metrics() {
    let bench = Bench::new();
    let port = free_port();
    let key = format!("metrics_port={port}");
    let arguments = ["train", "run.yaml", "training_duration=200ba", "save_interval=1dur", &key];
    let run = Background::start(&bench, &arguments);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    for part in [
        "200 OK",
        "# TYPE tessera_loss_train_total gauge\n",
        "tessera_throughput_tokens_per_sec{run=\"tiny\"} ",
        "tessera_metrics_eval_LanguageCrossEntropy{run=\"tiny\"} ",
    ] {
        assert!(answer.contains(part), "{part:?} is not in: {answer}");
    }
    let taken = bench.tessera(&["train", "run.yaml", "run_name=other", &key]);
    taken.failed(3, &["metrics_port: cannot listen at port", &port.to_string()]);
    run.send(&["TERM"]);
    assert_eq!(run.end().code, Some(143));
}

#[test]
fn event_files_are_written_where_they_are_asked_for() {
    let bench = Bench::new();
    bench.tessera(&["train", "run.yaml", "training_duration=2ba"]).printed();
    assert!(!bench.path("runs/tiny/tensorboard").exists());
    bench
        .tessera(&["train", "run.yaml", "training_duration=2ba", "tensorboard=true", "run_name=b"])
        .printed();
    let files = names(&bench.path("runs/b/tensorboard"));
    assert!(files.len() == 1 && files[0].starts_with("events.out.tfevents."), "{files:?}");
}

#[test]
fn a_tracking_server_that_cannot_be_used_is_refused_before_the_run() {
    let benches = [("train", Bench::new()), ("validate", Bench::new())];
    let refused = |keys: &[&str], code, parts: &[&str]| {
        for (subcommand, bench) in &benches {
            let mut command = bench.command(&[&[*subcommand, "run.yaml"], keys].concat());
            for variable in ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DATABRICKS_TOKEN"] {
                command.env_remove(variable);
            }
            crate::support::ended(command).failed(code, parts);
            // Who only looks at others does so last.
            let tokenised = *subcommand == "train" && bench.path("runs/.cache").exists();
            assert!(!tokenised, "the data was tokenised");
        }
    };
    refused(&["experiment_path=/a"], 2, &["MLFLOW_TRACKING_URI", "mlflow.tracking_uri"]);
    refused(&["mlflow.unreachable=buffer"], 2, &["mlflow", "experiment_path"]);
    let server = |uri: &str| format!("mlflow.tracking_uri={uri}");
    refused(&["experiment_path=/a", &server("mlruns")], 2, &["`mlruns`", "http://localhost:5000"]);
    refused(&["experiment_path=/a", &server("databricks")], 2, &["DATABRICKS_"]);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    refused(&["experiment_path=/a", &server(&nobody)], 4, &[&nobody, "cannot be reached"]);
    refused(&["register_to=main"], 2, &["register_to", "catalog.schema.model", "hf://org/name"]);
    refused(&["register_to=main.models"], 2, &["register_to", "experiment_path beside it"]);
    refused(&["register_to=hf://org/name"], 2, &["org/name", "HF_HUB_OFFLINE is set"]);
}
