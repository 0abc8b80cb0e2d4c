//! Models that are registered at the end of a run, on a hub that a small HTTP server on the loopback interface plays.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use crate::support::{Bench, Ended, ended, names};

#[derive(Default)]
struct State {
    /// Whether the repository is there.
    has_repository: bool,
    /// Whether commits are refused.
    refuses_commits: bool,
    /// The titles of commits.
    commits: Vec<String>,
    /// How often it was asked for anything.
    asked: usize,
}

/// A hub with at most one repository.
struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(&stream, &mut shared.lock().unwrap());
            }
        });
        Self { address, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Runs a command with a run file that registers the model here.
    fn tessera(&self, bench: &Bench, subcommand: &str, keys: &[&str]) -> Ended {
        let arguments = [&[subcommand, "run.yaml", "register_to=hf://org/name"], keys].concat();
        let mut command = bench.command(&arguments);
        command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &self.address).env("HF_TOKEN", "secret");
        ended(command)
    }
}

/// Answers one request of a connection and closes it.
fn answer(stream: &TcpStream, state: &mut State) {
    let mut reader = BufReader::new(stream);
    let mut lines = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.map(|line| line.to_ascii_lowercase()).collect();
    let length = headers.iter().find_map(|header| header.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let (status, body) = said(&request, &body, state);
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = { stream }.write_all(&[head, body].concat().into_bytes());
}

fn said(request: &str, body: &[u8], state: &mut State) -> (u16, Value) {
    let first_line =
        || serde_json::from_slice::<Value>(body.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    let request = request.rsplit_once(' ').unwrap().0.split('?').next().unwrap();
    state.asked += 1;
    let said = match request {
        "GET /api/whoami-v2" => json!({"name": "me", "type": "user"}),
        "POST /api/repos/create" => {
            state.has_repository = true;
            json!({"url": "http://hub/org/name"})
        }
        _ if !state.has_repository => return (404, json!({"error": "not found"})),
        "GET /api/models/org/name" => json!({"id": "org/name"}),
        "GET /api/models/org/name/tree/main" => json!([]),
        "GET /api/models/org/name/commits/main" => {
            let commit = |title: &String| json!({"id": "0123", "authors": [], "date": null, "title": title, "message": ""});
            state.commits.iter().map(commit).collect()
        }
        "POST /api/models/org/name/preupload/main" => {
            let regular = |file: &Value| json!({"path": file["path"], "uploadMode": "regular"});
            json!({"files": first_line()["files"].as_array().unwrap().iter().map(regular).collect::<Vec<_>>()})
        }
        "POST /api/models/org/name/commit/main" if state.refuses_commits => {
            return (403, json!({"error": "no"}));
        }
        "POST /api/models/org/name/commit/main" => {
            state.commits.push(first_line()["value"]["summary"].as_str().unwrap().to_owned());
            json!({"commitOid": "0123"})
        }
        _ => return (404, json!({"error": request})),
    };
    (200, said)
}

#[test]
fn a_model_is_registered_once_at_each_place_and_again_when_it_is_another() {
    let (bench, hub, other) = (Bench::new(), Hub::start(), Hub::start());
    let keys = ["training_duration=2ba"];
    for _ in 0..2 {
        hub.tessera(&bench, "train", &keys).printed();
        assert_eq!(hub.state().commits.len(), 1);
    }
    other.tessera(&bench, "train", &keys).printed();
    assert_eq!((hub.state().commits.len(), other.state().commits.len()), (1, 1));

    // Another run in the same folder, whose model has the same name.
    std::fs::remove_dir_all(bench.path("runs/tiny/checkpoints")).unwrap();
    hub.tessera(&bench, "train", &["training_duration=2ba", "seed=7"]).printed();
    assert_eq!(hub.state().commits.len(), 2);
    let kept = names(&bench.path("runs/tiny"));
    for name in ["registered.json", "registered.earlier-1.json", "huggingface", "huggingface.earlier-1"] {
        assert!(kept.iter().any(|kept| kept == name), "{name} is not among {kept:?}");
    }
}

#[test]
fn a_finished_run_that_cannot_be_registered_elsewhere_says_so_in_its_events() {
    let (bench, hub) = (Bench::new(), Hub::start());
    bench.tessera(&["train", "run.yaml", "training_duration=2ba"]).printed();
    // Its answers to the check before the run are good ones.
    hub.state().refuses_commits = true;
    let last = || bench.json_lines("runs/tiny/events.jsonl").pop().unwrap();
    hub.tessera(&bench, "train", &["training_duration=2ba"])
        .failed(2, &["is not registered as hf://org/name"]);
    assert!(last()["message"].as_str().unwrap().contains("is not registered as"), "{}", last());
    hub.state().refuses_commits = false;
    hub.tessera(&bench, "train", &["training_duration=2ba"]).printed();
    assert_eq!((last()["type"].as_str(), hub.state().commits.len()), (Some("COMPLETED"), 1));
}

#[test]
fn validating_looks_at_the_hub_last_and_changes_nothing_there() {
    let (bench, hub) = (Bench::new(), Hub::start());
    let said = hub.tessera(&bench, "validate", &[]).printed();
    assert!(said.contains("the run will make org/name when it starts"), "{said}");
    assert!(!hub.state().has_repository);

    let asked = hub.state().asked;
    bench.write("train.jsonl", "{\"messages\": 1}\n");
    hub.tessera(&bench, "validate", &[]).failed(2, &["train.jsonl"]);
    assert_eq!(hub.state().asked, asked);
    hub.tessera(&bench, "train", &[]).failed(2, &["train.jsonl"]);
    assert!(hub.state().has_repository, "the run was to make it");
}
