//! A store of one bucket that speaks as much of S3's protocol as is asked of it here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub const SECRET: &str = "the-secret-key";

/// What the server does instead of sending a file.
#[derive(Clone)]
pub enum Fault {
    /// Closes the connection after a part of it.
    Cut,
    /// Does so, and has another content afterwards.
    CutAndChange,
    /// Answers with a status, and a code in a text.
    Status(u16, &'static str),
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, (Vec<u8>, u64)>,
    parts: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    faults: BTreeMap<String, Vec<Fault>>,
    requests: Vec<String>,
    sent: usize,
    writes: u64,
    time: Option<String>,
    deleted: Vec<String>,
    bare_etags: bool,
}

pub struct Server {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = shared.clone();
                std::thread::spawn(move || while serve(&stream, &state).is_some() {});
            }
        });
        Self { address, state }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn remove(&self, path: &str) {
        self.state.lock().unwrap().files.remove(path);
    }

    /// What was deleted by requests, in their order.
    pub fn deleted(&self) -> Vec<String> {
        self.state.lock().unwrap().deleted.clone()
    }

    /// Has ETags listed without their quotes, as Azure has them.
    pub fn list_bare_etags(&self) {
        self.state.lock().unwrap().bare_etags = true;
    }

    /// Has everything listed as of this time.
    pub fn set_time(&self, time: &str) {
        self.state.lock().unwrap().time = Some(time.to_owned());
    }

    /// The names of all files.
    pub fn names(&self) -> Vec<String> {
        self.state.lock().unwrap().files.keys().cloned().collect()
    }

    pub fn put(&self, path: &str, content: Vec<u8>) {
        self.state.lock().unwrap().put(path, content);
    }

    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().files.get(path).map(|(content, _)| content.clone())
    }

    pub fn fail(&self, path: &str, faults: Vec<Fault>) {
        self.state.lock().unwrap().faults.insert(path.to_owned(), faults);
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    pub fn bytes_sent(&self) -> usize {
        self.state.lock().unwrap().sent
    }
}

impl State {
    fn put(&mut self, path: &str, content: Vec<u8>) {
        self.writes += 1;
        self.files.insert(path.to_owned(), (content, self.writes));
    }
}

/// Answers one request; `None` when the connection ends.
fn serve(stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut request, mut headers) = (String::new(), BTreeMap::new());
    reader.read_line(&mut request).ok().filter(|length| *length > 0)?;
    let mut noted = request.trim().to_owned();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        let name = name.to_ascii_lowercase();
        if ["range", "if-match"].contains(&name.as_str()) {
            write!(noted, " {name}: {value}").ok()?;
        }
        headers.insert(name, value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut words = request.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = path.trim_start_matches("/bucket").trim_start_matches('/');
    let path = decoded(path);
    let mut state = state.lock().unwrap();
    state.requests.push(noted);
    match method.as_str() {
        "GET" if path.is_empty() => answer(stream, "200 OK", &[], &listing(&state, query)),
        "GET" | "HEAD" => send(stream, &mut state, &path, &headers, method == "HEAD"),
        "POST" if query.starts_with("delete") => {
            let text = String::from_utf8(body).unwrap();
            let mut body = String::from("<DeleteResult>");
            for key in text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
                state.files.remove(key);
                state.deleted.push(key.to_owned());
                write!(body, "<Deleted><Key>{key}</Key></Deleted>").ok()?;
            }
            body.push_str("</DeleteResult>");
            answer(stream, "200 OK", &[], body.as_bytes())
        }
        "POST" if query.starts_with("uploads") => {
            state.parts.insert(path, BTreeMap::new());
            let body =
                "<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>";
            answer(stream, "200 OK", &[], body.as_bytes())
        }
        "PUT" if query.contains("partNumber") => {
            let number = query.split('&').find_map(|pair| pair.strip_prefix("partNumber=")).unwrap();
            state.parts.get_mut(&path)?.insert(number.parse().unwrap(), body);
            answer(stream, "200 OK", &["ETag: \"part\"".to_owned()], b"")
        }
        "POST" => {
            let content = state.parts.remove(&path)?.into_values().flatten().collect();
            state.put(&path, content);
            let body =
                "<CompleteMultipartUploadResult><ETag>\"whole\"</ETag></CompleteMultipartUploadResult>";
            answer(stream, "200 OK", &[], body.as_bytes())
        }
        "PUT" => {
            state.put(&path, body);
            answer(stream, "200 OK", &["ETag: \"written\"".to_owned()], b"")
        }
        "DELETE" => {
            state.files.remove(&path);
            state.deleted.push(path);
            answer(stream, "204 No Content", &[], b"")
        }
        _ => answer(stream, "405 Method Not Allowed", &[], b""),
    }
}

fn listing(state: &State, query: &str) -> Vec<u8> {
    let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or_default();
    let prefix = decoded(prefix);
    let mut body = String::from("<ListBucketResult>");
    for (path, (content, version)) in state.files.iter().filter(|(path, _)| path.starts_with(&prefix)) {
        let etag = if state.bare_etags { version.to_string() } else { format!("\"{version}\"") };
        let (size, time) = (content.len(), state.time.as_deref().unwrap_or("2026-01-02T03:04:05.000Z"));
        write!(
            body,
            "<Contents><Key>{path}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag><Size>{size}</Size></Contents>"
        )
        .unwrap();
    }
    body.push_str("</ListBucketResult>");
    body.into_bytes()
}

/// A path without the escapes of a request.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, later @ ..] = rest {
        (bytes, rest) = match later {
            [high, low, later @ ..] if *first == b'%' => {
                let code = [*high, *low];
                let code = u8::from_str_radix(std::str::from_utf8(&code).unwrap(), 16).unwrap();
                ([bytes, vec![code]].concat(), later)
            }
            _ => ([bytes, vec![*first]].concat(), later),
        };
    }
    String::from_utf8(bytes).unwrap()
}

fn send(
    stream: &TcpStream,
    state: &mut State,
    path: &str,
    headers: &BTreeMap<String, String>,
    head: bool,
) -> Option<()> {
    let mut cut = false;
    let Some((content, version)) = state.files.get(path).cloned() else {
        return answer(stream, "404 Not Found", &[], b"");
    };
    let faults = state.faults.get_mut(path).filter(|faults| !head && !faults.is_empty());
    match faults.map(|faults| faults.remove(0)) {
        None => {}
        Some(Fault::Cut) => cut = true,
        Some(Fault::CutAndChange) => {
            cut = true;
            state.put(path, content.iter().rev().copied().collect());
        }
        Some(Fault::Status(status, code)) => {
            let body = format!("<Error><Code>{code}</Code><Message>No</Message></Error>");
            return answer(stream, &format!("{status} Refused"), &[], body.as_bytes());
        }
    }
    let etag = format!("\"{version}\"");
    if headers.get("if-match").is_some_and(|wanted| *wanted != etag) {
        return answer(stream, "412 Precondition Failed", &[], b"");
    }
    let mut lines = vec![format!("ETag: {etag}"), "Last-Modified: Fri, 02 Jan 2026 03:04:05 GMT".to_owned()];
    let (mut status, mut first) = ("200 OK", 0);
    if let Some(range) = headers.get("range") {
        let range = range.strip_prefix("bytes=").unwrap();
        first = range.split_once('-').unwrap().0.parse().unwrap();
        status = "206 Partial Content";
        lines.push(format!("Content-Range: bytes {first}-{}/{}", content.len() - 1, content.len()));
    }
    let body = &content[first..];
    if head {
        return headers_only(stream, status, &lines, body.len());
    }
    let sent = if cut { body.len() / 8 } else { body.len() };
    state.sent += sent;
    headers_only(stream, status, &lines, body.len())?;
    let mut stream = stream;
    stream.write_all(&body[..sent]).ok()?;
    if cut {
        stream.shutdown(Shutdown::Both).ok()?;
        return None;
    }
    Some(())
}

fn answer(stream: &TcpStream, status: &str, headers: &[String], body: &[u8]) -> Option<()> {
    headers_only(stream, status, headers, body.len())?;
    let mut stream = stream;
    stream.write_all(body).ok()
}

fn headers_only(mut stream: &TcpStream, status: &str, headers: &[String], length: usize) -> Option<()> {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n");
    headers.iter().for_each(|line| head.push_str(&format!("{line}\r\n")));
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()
}
