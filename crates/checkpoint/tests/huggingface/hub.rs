//! Fetching from the hub, played by a small HTTP server on the loopback interface.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use safetensors::Dtype;
use serde_json::json;
use tessera_checkpoint::huggingface::{
    HubOptions, HubSplit, HubTarget, HuggingFaceError, ModelLocation, ModelSource,
};
use tessera_files::sha256_file;

use crate::{TOKENIZER, f32_bytes, values, write_safetensors};

const ID: &str = "entity/tiny";
/// Longer than a test waits.
const LONG: Duration = Duration::from_secs(20);
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does wrong when the content of a file is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Sends a status and a text instead.
    Status(u16),
    /// Closes the connection after half of the content, as often as this.
    Cut(usize),
    /// Sends other bytes of the same length.
    Forged,
    /// Says nothing, also when it is asked about the file.
    Silent,
    /// Sends half of the content, and then nothing more.
    Stalled,
}

struct Served {
    bytes: Vec<u8>,
    etag: String,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Served>,
    faults: BTreeMap<String, Fault>,
    /// The status of the answer about the repository, if it is a refusal.
    refusal: Option<u16>,
    requests: Vec<String>,
    /// The bodies of commits, by their titles.
    commits: Vec<(String, String)>,
    /// Whether the repository is still to be made.
    lacks_repository: bool,
    /// So many times the hub says 503 instead of who is asking.
    busy: usize,
    /// So many commits are made without an answer.
    unconfirmed: usize,
}

struct Hub {
    endpoint: String,
    state: Arc<Mutex<State>>,
    cache: tempfile::TempDir,
}

impl Hub {
    /// A hub with one complete model.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_safetensors(
            &folder.path().join("model.safetensors"),
            Dtype::F32,
            &[("w", &[64], f32_bytes(&[0.5; 64]))],
        );
        let mut hub = Self::start();
        hub.add("config.json", br#"{"model_type": "llama"}"#);
        hub.add("tokenizer.json", TOKENIZER.as_bytes());
        hub.add("pytorch_model.bin", b"a pickle");
        hub.add_large(&folder.path().join("model.safetensors"));
        hub
    }

    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        Self { endpoint, state, cache: tempfile::tempdir().unwrap() }
    }

    fn add(&mut self, name: &str, bytes: &[u8]) {
        let served = Served { bytes: bytes.to_vec(), etag: format!("{:040x}", bytes.len()) };
        self.state.lock().unwrap().files.insert(name.to_owned(), served);
    }

    /// A file that the hub stores under its SHA-256.
    fn add_large(&mut self, path: &Path) {
        let served = Served { bytes: fs::read(path).unwrap(), etag: sha256_file(path).unwrap() };
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        self.state.lock().unwrap().files.insert(name, served);
    }

    fn fault(&self, name: &str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(name.to_owned(), fault);
    }

    fn options(&self) -> HubOptions {
        HubOptions {
            offline: false,
            endpoint: Some(self.endpoint.clone()),
            token: Some("secret".to_owned()),
            cache: self.cache.path().to_owned(),
            retry_delay: Duration::from_millis(1),
            silence: Duration::from_secs(30),
            progress: None,
        }
    }

    fn open(&self, options: &HubOptions) -> Result<ModelSource, HuggingFaceError> {
        ModelSource::open(&ModelLocation::parse(ID).unwrap(), options)
    }

    fn weights_error(&self) -> String {
        let Err(error) = self.open(&self.options()).unwrap().open_weights() else { panic!("weights came") };
        error.to_string()
    }

    /// Nothing of a file must be in the cache.
    fn assert_not_cached(&self, name: &str) {
        let folder = self.cache.path().join("models--entity--tiny");
        assert!(!folder.join("snapshots").join(COMMIT).join(name).exists());
        let etag = &self.state.lock().unwrap().files[name].etag;
        assert!(!folder.join("blobs").join(etag).exists());
        assert!(!folder.join(".unchecked").exists());
    }

    fn requests(&self, part: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|request| request.contains(part)).count()
    }
}

/// Answers one request of a connection and closes it.
fn answer(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(&stream);
    let mut lines = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.map(|line| line.to_ascii_lowercase()).collect();
    let length = headers.iter().find_map(|header| header.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let mut parts = request.split(' ');
    let (method, path) = (parts.next().unwrap(), parts.next().unwrap());
    let mut state = state.lock().unwrap();
    state.requests.push(format!("{method} {path}"));
    assert!(headers.iter().any(|header| header == "authorization: bearer secret"));
    let send = |status: u16, extra: &str, body: &[u8], sent: usize| {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{extra}\r\n");
        let body = if method == "HEAD" { &[][..] } else { &body[..sent] };
        let _ = (&stream).write_all(&[head.as_bytes(), body].concat());
    };
    if path == "/api/whoami-v2" && state.busy > 0 {
        state.busy -= 1;
        return send(503, "", b"", 0);
    }
    if state.lacks_repository && path == format!("/api/models/{ID}") {
        return send(404, "", b"", 0);
    }
    if let Some(answer) = written(&mut state, (method, path), &String::from_utf8(body).unwrap()) {
        match (state.refusal, answer) {
            (Some(status), _) => send(status, "", b"{\"error\": \"no\"}", 15),
            (None, Some(answer)) => send(200, "", answer.as_bytes(), answer.len()),
            // The connection is closed without a word.
            (None, None) => {}
        }
        return;
    }
    if path.starts_with("/api/") {
        let body = if path.contains("/tree/") {
            listing(&state)
        } else {
            json!({"id": ID, "sha": COMMIT}).to_string()
        };
        match state.refusal {
            Some(status) => send(status, "", b"{\"error\": \"no\"}", 15),
            None => send(200, "", body.as_bytes(), body.len()),
        }
        return;
    }
    let resolved = format!("/resolve/{COMMIT}/");
    let Some((repository, name)) = path.split_once(&resolved) else { return send(404, "", b"", 0) };
    assert!([format!("/{ID}"), format!("/datasets/{ID}")].iter().any(|known| known == repository));
    let Some(served) = state.files.get(name) else { return send(404, "", b"", 0) };
    let extra = format!("ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n", served.etag);
    let (bytes, length) = (served.bytes.clone(), served.bytes.len());
    if state.faults.get(name) == Some(&Fault::Silent) {
        drop(state);
        return std::thread::sleep(LONG);
    }
    match state.faults.get(name).copied().filter(|_| method == "GET") {
        Some(Fault::Status(status)) => send(status, &extra, b"Access to this model is restricted", 34),
        Some(Fault::Forged) => send(200, &extra, &vec![7; length], length),
        Some(Fault::Cut(times)) if times > 0 => {
            state.faults.insert(name.to_owned(), Fault::Cut(times - 1));
            send(200, &extra, &bytes, length / 2);
        }
        Some(Fault::Stalled) => {
            drop(state);
            send(200, &extra, &bytes, length / 2);
            std::thread::sleep(LONG);
        }
        _ => send(200, &extra, &bytes, length),
    }
}

/// The answer to what a client asks who puts a model into the repository, if it is that; the answer may be lost.
fn written(state: &mut State, (method, path): (&str, &str), body: &str) -> Option<Option<String>> {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let answer = match (method, path.strip_prefix(&format!("/api/models/{ID}"))) {
        (_, None) if path == "/api/whoami-v2" => json!({"name": "me", "type": "user"}),
        (_, None) if path == "/api/repos/create" => {
            let wanted = json!({"name": "tiny", "private": true, "type": "model", "organization": "entity"});
            assert_eq!(json(body), wanted);
            state.lacks_repository = false;
            json!({"url": format!("http://hub/{ID}")})
        }
        ("GET", Some(rest)) if rest.starts_with("/commits/main") => {
            let commit = |(title, _): &(String, String)| json!({"id": COMMIT, "authors": [], "date": null, "title": title, "message": ""});
            state.commits.iter().map(commit).collect()
        }
        ("POST", Some("/preupload/main")) => {
            let files = json(body)["files"].as_array().unwrap().clone();
            let regular = |file: &serde_json::Value| json!({"path": file["path"], "uploadMode": "regular"});
            json!({"files": files.iter().map(regular).collect::<Vec<_>>()})
        }
        ("POST", Some("/commit/main")) => {
            let title = json(body.lines().next().unwrap())["value"]["summary"].as_str().unwrap().to_owned();
            state.commits.push((title, body.to_owned()));
            if state.unconfirmed > 0 {
                state.unconfirmed -= 1;
                return Some(None);
            }
            json!({"commitOid": COMMIT})
        }
        _ => return None,
    };
    Some(Some(answer.to_string()))
}

fn listing(state: &State) -> String {
    let entry = |(name, served): (&String, &Served)| json!({"type": "file", "oid": "0", "size": served.bytes.len(), "path": name});
    serde_json::Value::Array(state.files.iter().map(entry).collect()).to_string()
}

#[test]
fn only_what_is_needed_is_fetched_and_only_once() {
    let hub = Hub::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let options = HubOptions {
        progress: Some(Arc::new(move |progress| {
            told.lock().unwrap().push((progress.file.to_owned(), progress.done, progress.total));
        })),
        ..hub.options()
    };
    let model = hub.open(&options).unwrap();
    assert_eq!(model.config, json!({"model_type": "llama"}));
    assert_eq!(model.tokenizer_json, TOKENIZER.as_bytes());
    assert_eq!(hub.requests("model.safetensors"), 0);
    assert_eq!(values(&*model.open_weights().unwrap(), "w"), [0.5; 64]);
    let size = hub.state.lock().unwrap().files["model.safetensors"].bytes.len() as u64;
    assert!(seen.lock().unwrap().contains(&("model.safetensors".to_owned(), size, size)));
    assert_eq!(hub.requests("pytorch_model.bin"), 0);
    assert_eq!(hub.requests("GET /entity/tiny/resolve"), 3);

    hub.open(&options).unwrap().open_weights().unwrap();
    assert_eq!(hub.requests("GET /entity/tiny/resolve"), 3);
}

#[test]
fn the_cache_serves_when_offline_or_when_the_hub_is_away() {
    let hub = Hub::new();
    let offline = HubOptions { offline: true, ..hub.options() };
    let problem = hub.open(&offline).unwrap_err().to_string();
    assert!(
        problem.contains("HF_HUB_OFFLINE is set") && problem.contains("revision main is not in the cache")
    );
    hub.open(&hub.options()).unwrap().open_weights().unwrap();
    let requests = hub.requests("");
    assert_eq!(values(&*hub.open(&offline).unwrap().open_weights().unwrap(), "w"), [0.5; 64]);
    assert_eq!(hub.requests(""), requests);
    let away = HubOptions { endpoint: Some("http://127.0.0.1:9".to_owned()), ..hub.options() };
    hub.open(&away).unwrap().open_weights().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let problem = hub.open(&HubOptions { cache: empty.path().to_owned(), ..away }).unwrap_err().to_string();
    assert!(problem.contains("the hub at http://127.0.0.1:9 cannot be reached"), "{problem}");
}

#[test]
fn a_hub_that_says_nothing_is_given_up() {
    let silence = Duration::from_millis(50);
    let hub = Hub::new();
    hub.fault("model.safetensors", Fault::Silent);
    let began = Instant::now();
    let model = hub.open(&HubOptions { silence, ..hub.options() }).unwrap();
    let Err(error) = model.open_weights() else { panic!("weights came") };
    let problem = error.to_string();
    assert!(problem.contains("nothing came for 0.05 s") && problem.contains(&hub.endpoint), "{problem}");
    hub.assert_not_cached("model.safetensors");

    // One that says nothing at all.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let kept = std::thread::spawn(move || listener.incoming().flatten().take(12).collect::<Vec<_>>());
    let empty = tempfile::tempdir().unwrap();
    let (place, cache) = (Some(endpoint.clone()), empty.path().to_owned());
    let options = HubOptions { silence, endpoint: place, cache, ..hub.options() };
    let problem = hub.open(&options).unwrap_err().to_string();
    assert!(problem.contains(&format!("the hub at {endpoint} cannot be reached")), "{problem}");
    assert!(problem.contains("or give a local folder"), "{problem}");
    let target = HubTarget::new(ID, options).unwrap();
    let problem = target.check().unwrap_err().to_string();
    assert!(problem.contains(&format!("the hub at {endpoint} cannot be reached")), "{problem}");
    assert!(began.elapsed() < LONG, "it took {:?}", began.elapsed());
    drop(kept);
}

#[test]
fn a_body_that_stops_coming_is_given_up() {
    let hub = Hub::new();
    hub.fault("model.safetensors", Fault::Stalled);
    let began = Instant::now();
    let options = HubOptions { silence: Duration::from_millis(100), ..hub.options() };
    let Err(error) = hub.open(&options).unwrap().open_weights() else { panic!("weights came") };
    assert!(began.elapsed() < LONG, "it took {:?}: {error}", began.elapsed());
    hub.assert_not_cached("model.safetensors");
}

#[test]
fn refused_content_is_an_error_and_does_not_enter_the_cache() {
    let hub = Hub::new();
    hub.fault("model.safetensors", Fault::Status(403));
    let problem = hub.weights_error();
    assert!(problem.contains("model.safetensors") && problem.contains("accept the licence"), "{problem}");
    hub.assert_not_cached("model.safetensors");
}

#[test]
fn a_broken_body_is_asked_for_again() {
    let hub = Hub::new();
    hub.fault("model.safetensors", Fault::Cut(4));
    let weights = hub.open(&hub.options()).unwrap().open_weights().unwrap();
    assert_eq!(values(&*weights, "w"), [0.5; 64]);
    let hub = Hub::new();
    hub.fault("model.safetensors", Fault::Cut(1000));
    let problem = hub.weights_error();
    assert!(problem.contains("in 5 attempts"), "{problem}");
    hub.assert_not_cached("model.safetensors");
}

#[test]
fn other_bytes_of_the_same_length_are_found_out() {
    let hub = Hub::new();
    hub.fault("model.safetensors", Fault::Forged);
    let problem = hub.weights_error();
    assert!(problem.contains("its SHA-256 is"), "{problem}");
    hub.assert_not_cached("model.safetensors");
}

#[test]
fn refusals_say_what_to_do() {
    for (status, part) in
        [(401, "set HF_TOKEN"), (403, "accept the licence"), (404, "Check the repository's name")]
    {
        let hub = Hub::new();
        hub.state.lock().unwrap().refusal = Some(status);
        let problem = hub.open(&hub.options()).unwrap_err().to_string();
        for part in [part, ID, "or give a local folder"] {
            assert!(problem.contains(part), "{status}: {part:?} is not in: {problem}");
        }
    }
}

#[test]
fn a_repository_of_pickles_is_refused() {
    let hub = Hub::new();
    hub.state.lock().unwrap().files.remove("model.safetensors");
    assert!(hub.weights_error().contains("pytorch_model.bin, a pickle"));
    assert_eq!(hub.requests("pytorch_model.bin"), 0);
}

/// A hub with a data set in three parts, of which one is in a folder.
fn data_hub() -> Hub {
    let mut hub = Hub::start();
    let card = "---\nconfigs:\n- data_files:\n  - split: train\n    path: rows/*.jsonl\n  - split: test\n    path: t.jsonl\n---\n";
    hub.add("README.md", card.as_bytes());
    hub.add("rows/b.jsonl", b"{\"text\": \"b\"}\n");
    hub.add("rows/a.jsonl", b"{\"text\": \"aa\"}\n");
    hub.add("t.jsonl", b"{\"text\": \"ttt\"}\n");
    hub
}

#[test]
fn a_split_of_a_data_set_is_fetched_once_and_found_again_without_the_hub() {
    let hub = data_hub();
    let split = HubSplit::parse(&format!("{ID}/train")).unwrap();
    let fetched = split.fetch(&hub.options()).unwrap();
    assert_eq!(fetched.commit, COMMIT);
    let names: Vec<_> = fetched
        .files
        .iter()
        .map(|path| path.strip_prefix(&fetched.folder).unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names, ["rows/a.jsonl", "rows/b.jsonl"]);
    assert_eq!(fs::read(&fetched.files[1]).unwrap(), b"{\"text\": \"b\"}\n");
    assert_eq!(hub.requests("GET /datasets/entity/tiny/resolve"), 3);
    assert_eq!(split.fetch(&hub.options()).unwrap(), fetched);
    assert_eq!(hub.requests("GET /datasets/entity/tiny/resolve"), 3);
    let offline = HubOptions { offline: true, ..hub.options() };
    assert_eq!(split.fetch(&offline).unwrap(), fetched);
    let pinned = HubSplit { revision: Some(COMMIT.to_owned()), ..split };
    assert_eq!(pinned.fetch(&offline).unwrap(), fetched);

    // What was not fetched is not taken for what is not there.
    let other = HubSplit::parse(&format!("{ID}/test")).unwrap();
    let error = other.fetch(&offline).unwrap_err().to_string();
    assert!(error.contains("t.jsonl is not in the cache"), "{error}");
    let error = HubSplit::parse(&format!("{ID}/dev")).unwrap().fetch(&hub.options()).unwrap_err().to_string();
    assert!(error.contains("there is no split dev; there are: test, train"), "{error}");
}

#[test]
fn a_data_set_that_is_refused_is_told_with_what_helps() {
    let hub = data_hub();
    hub.state.lock().unwrap().refusal = Some(401);
    let error =
        HubSplit::parse(&format!("{ID}/train")).unwrap().fetch(&hub.options()).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN") && error.contains("or give local files"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn a_name_that_leads_out_of_the_cache_is_no_file() {
    let mut hub = Hub::start();
    hub.add("../../../out/train.jsonl", b"{}\n");
    hub.add("/train.jsonl", b"{}\n");
    let error =
        HubSplit::parse(&format!("{ID}/train")).unwrap().fetch(&hub.options()).unwrap_err().to_string();
    assert!(error.contains("there are: no files of data"), "{error}");
    assert_eq!(hub.requests("/resolve/"), 0);
}

/// A folder with a small model.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    fs::write(folder.path().join("model.safetensors"), [7; 5000]).unwrap();
    folder
}

#[test]
fn a_model_is_put_into_a_repository_once() {
    let (hub, model) = (Hub::start(), model());
    let target = HubTarget::new(ID, hub.options()).unwrap();
    {
        let mut state = hub.state.lock().unwrap();
        (state.lacks_repository, state.busy) = (true, 2);
    }
    for _ in 0..2 {
        // One that is there is not made: that may be forbidden.
        target.check().unwrap();
        assert_eq!(hub.requests("POST /api/repos/create"), 1);
    }
    for unconfirmed in [1, 0] {
        hub.state.lock().unwrap().unconfirmed = unconfirmed;
        assert_eq!(target.upload(model.path(), "run a").unwrap(), COMMIT);
    }
    let commits = hub.state.lock().unwrap().commits.clone();
    let [(title, body)] = commits.as_slice() else { panic!("{} commits", commits.len()) };
    assert!(title.starts_with("run a ("), "{title}");
    let files: Vec<serde_json::Value> =
        body.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut names: Vec<_> = files.iter().map(|file| file["value"]["path"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    assert!(body.contains(r#""content":"e30=""#), "{body}");

    // Another model is another commit.
    fs::write(model.path().join("model.safetensors"), [8; 5000]).unwrap();
    target.upload(model.path(), "run a").unwrap();
    assert_eq!(hub.state.lock().unwrap().commits.len(), 2);
}

#[test]
fn what_an_earlier_model_left_in_the_repository_is_removed() {
    let (mut hub, model) = (Hub::start(), model());
    let stale = ["added_tokens.json", "chat_template.jinja", "model-00001-of-00002.safetensors"];
    let index = "model.safetensors.index.json";
    for name in
        stale.into_iter().chain([index, "config.json", "model.safetensors", "README.md", "pictures.json"])
    {
        hub.add(name, b"{}");
    }
    HubTarget::new(ID, hub.options()).unwrap().upload(model.path(), "run a").unwrap();
    let [(_, body)] = &hub.state.lock().unwrap().commits[..] else { panic!("not one commit") };
    let lines = body.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let deleted: Vec<_> = lines.filter(|line| line["key"] == "deletedFile").collect();
    let mut deleted: Vec<_> = deleted.iter().map(|line| line["value"]["path"].as_str().unwrap()).collect();
    deleted.sort_unstable();
    assert_eq!(deleted, [&stale[..], &[index]].concat());
}

#[test]
fn an_address_is_shown_without_who_is_asking() {
    let shown =
        |address: &str| HubOptions { endpoint: Some(address.to_owned()), ..HubOptions::from_env() }.address();
    assert_eq!(shown("https://me:secret@hub.example/p/?key=secret"), "https://hub.example/p");
    assert_eq!(shown("http://127.0.0.1:9"), "http://127.0.0.1:9");
}

#[test]
fn a_repository_that_may_not_be_written_is_told_with_what_helps() {
    for status in [401, 403] {
        let hub = Hub::start();
        hub.state.lock().unwrap().refusal = Some(status);
        let error = HubTarget::new(ID, hub.options()).unwrap().check().unwrap_err();
        assert!(matches!(error, HuggingFaceError::HubRefuses { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(ID) && error.contains("set HF_TOKEN to a token that may write"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let away = HubOptions { endpoint: Some("http://127.0.0.1:9".to_owned()), ..Hub::start().options() };
    let error = HubTarget::new(ID, away).unwrap().check().unwrap_err().to_string();
    assert!(error.contains("the hub at http://127.0.0.1:9 cannot be reached"), "{error}");
    let offline = HubOptions { offline: true, ..Hub::start().options() };
    let Err(error) = HubTarget::new(ID, offline) else { panic!("it is asked offline") };
    assert!(error.to_string().contains("HF_HUB_OFFLINE is set"), "{error}");
}
