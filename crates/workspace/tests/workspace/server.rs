//! A stand-in for a workspace. Of its Files API: files in memory, pages of ten entries, ranges, a token, faults on demand. Of Unity
//! Catalog: answers that were put there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const PAGE: usize = 10;

/// What an answer is instead of what it should be.
#[derive(Debug, Clone)]
pub enum Fault {
    Status(u16),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// So many bytes of the file, as if they were all, whatever range is asked for.
    Whole(usize),
    /// The file has other bytes from now on.
    Change(Vec<u8>),
}

#[derive(Default)]
struct State {
    token: String,
    /// Bytes and version by path.
    files: BTreeMap<String, (Vec<u8>, u64)>,
    written: u64,
    /// What Unity Catalog answers, by path.
    catalog: BTreeMap<String, String>,
    bodies: Vec<String>,
    requests: Vec<String>,
    ranges: Vec<String>,
    faults: Vec<(String, Fault)>,
}

pub struct Server {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start(token: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { token: token.to_owned(), ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is no concern of the server.
                let _ = answer(stream, &shared);
            }
        });
        Self { address, state }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    pub fn write(&self, path: &str, bytes: &[u8]) {
        self.state.lock().unwrap().write(path, bytes);
    }

    /// What Unity Catalog has at a path.
    pub fn catalog(&self, path: &str, answer: &str) {
        self.state.lock().unwrap().catalog.insert(path.to_owned(), answer.to_owned());
    }

    pub fn bodies(&self) -> Vec<String> {
        self.state.lock().unwrap().bodies.clone()
    }

    /// The next requests that begin so get these answers.
    pub fn fail(&self, request: &str, faults: Vec<Fault>) {
        let faults = faults.into_iter().map(|fault| (request.to_owned(), fault));
        self.state.lock().unwrap().faults.extend(faults);
    }

    /// How many requests began so.
    pub fn asked(&self, request: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|made| made.starts_with(request)).count()
    }

    pub fn ranges(&self) -> Vec<String> {
        self.state.lock().unwrap().ranges.clone()
    }
}

impl State {
    fn write(&mut self, path: &str, bytes: &[u8]) {
        self.written += 1;
        self.files.insert(path.to_owned(), (bytes.to_vec(), self.written));
    }

    fn fault(&mut self, request: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|(begins, _)| request.starts_with(begins))?;
        Some(self.faults.remove(at).1)
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let headers: BTreeMap<String, String> = (&mut reader)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    let mut words = request.trim_end().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut state = state.lock().unwrap();
    state.bodies.extend((!body.is_empty()).then_some(body));
    let request = format!("{method} {target}");
    state.requests.push(request.clone());
    let range = headers.get("range").cloned();
    state.ranges.extend(range.clone());
    if headers.get("authorization") != Some(&format!("Bearer {}", state.token)) {
        return complain(stream, 401, "no such token");
    }
    let fault = state.fault(&request);
    if let Some(Fault::Status(status)) = fault {
        let message = format!("no right for {}", state.token);
        return complain(stream, status, &message);
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if let Some(path) = path.strip_prefix("/api/2.0/fs/directories") {
        return list(stream, &state, &decoded(path), query);
    }
    if let Some((_, path)) = path.split_once("/unity-catalog/") {
        return match state.catalog.get(&decoded(path)) {
            Some(answer) => {
                send(stream, "200 OK", &format!("content-length: {}", answer.len()), answer.as_bytes())
            }
            None => complain(stream, 404, "there is no such table"),
        };
    }
    let path = decoded(path.strip_prefix("/api/2.0/fs/files").unwrap_or_default());
    let Some((bytes, version)) = state.files.get(&path).cloned() else {
        return complain(stream, 404, "there is no such file");
    };
    if let Some(Fault::Change(bytes)) = &fault {
        state.write(&path, bytes);
    }
    let start =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let start = start.filter(|_| !matches!(fault, Some(Fault::Whole(_))));
    let body = match fault {
        Some(Fault::Whole(size)) => &bytes[..size],
        _ => &bytes[start.unwrap_or(0).min(bytes.len())..],
    };
    let status = if start.is_some() { "206 Partial Content" } else { "200 OK" };
    let date = format!("Sat, 28 Nov 2026 12:00:{:02} GMT", version % 60);
    let sent = match fault {
        _ if method == "HEAD" => 0,
        Some(Fault::Cut(size)) => size.min(body.len()),
        _ => body.len(),
    };
    let head = format!("content-length: {}\r\nlast-modified: {date}", body.len());
    send(stream, status, &head, &body[..sent])
}

fn list(stream: TcpStream, state: &State, folder: &str, query: &str) -> std::io::Result<()> {
    let below = format!("{}/", folder.trim_end_matches('/'));
    let mut entries = BTreeMap::new();
    for (path, (bytes, version)) in &state.files {
        let Some(rest) = path.strip_prefix(&below) else { continue };
        let (name, inside) = rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
        let entry = if inside {
            format!(r#"{{"path": "{below}{name}", "name": "{name}", "is_directory": true}}"#)
        } else {
            let size = bytes.len();
            format!(
                r#"{{"path": "{path}", "name": "{name}", "is_directory": false, "file_size": {size}, "last_modified": {version}}}"#
            )
        };
        entries.insert(name, entry);
    }
    if entries.is_empty() {
        return complain(stream, 404, "there is no such folder");
    }
    let from: usize = query.strip_prefix("page_token=").map_or(0, |token| token.parse().unwrap());
    let page: Vec<_> = entries.values().skip(from).take(PAGE).cloned().collect();
    let next = from + PAGE;
    let token =
        if next < entries.len() { format!(r#", "next_page_token": "{next}""#) } else { String::new() };
    let body = format!(r#"{{"contents": [{}]{token}}}"#, page.join(", "));
    send(stream, "200 OK", &format!("content-length: {}", body.len()), body.as_bytes())
}

fn complain(stream: TcpStream, status: u16, message: &str) -> std::io::Result<()> {
    let body = format!(r#"{{"error_code": "NO", "message": "{message}"}}"#);
    send(stream, &status.to_string(), &format!("content-length: {}", body.len()), body.as_bytes())
}

fn send(mut stream: TcpStream, status: &str, head: &str, body: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\n{head}\r\nconnection: close\r\n\r\n")?;
    stream.write_all(body)
}

fn decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, later)) = rest.split_first() {
        let code =
            later.get(..2).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        (bytes, rest) = match code.filter(|_| byte == b'%') {
            Some(code) => ([bytes, vec![code]].concat(), &later[2..]),
            None => ([bytes, vec![byte]].concat(), later),
        };
    }
    String::from_utf8(bytes).unwrap()
}
