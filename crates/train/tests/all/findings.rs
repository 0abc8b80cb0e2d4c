//! What the first of several processes finds at a url is what the others read, whatever has been put there since, and what training
//! finds there is what evaluation reads.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tessera_train::observe::{Observer, Silent, Split, Update};
use tessera_train::plan::{Findings, Prepared, resolve};

use crate::tiny::Tiny;

/// A server of one file that can be replaced; its address.
fn server(content: &Arc<Mutex<Vec<u8>>>) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = format!("http://{}/train.jsonl", listener.local_addr().unwrap());
    let content = content.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(&stream, &content.lock().unwrap());
        }
    });
    address
}

fn answer(stream: &TcpStream, content: &[u8]) {
    let mut lines = BufReader::new(stream.take(1 << 16)).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let head = format!(
        "HTTP/1.1 200 OK\r\nETag: \"{0}\"\r\nContent-Length: {0}\r\nLast-Modified: Tue, 01 Sep 2026 00:00:00 GMT\r\n\
         Connection: close\r\n\r\n",
        content.len()
    );
    let body = if request.starts_with("HEAD") { &[][..] } else { content };
    let _ = { stream }.write_all(&[head.as_bytes(), body].concat());
}

fn prepared(tiny: &Tiny, url: &str, findings: Option<Findings>) -> Prepared {
    let observer: Arc<dyn Observer> = Arc::new(Silent);
    let resolved = resolve(tiny.spec(&[&format!("train_data_path={url}")]), &observer).unwrap();
    let resolved = match findings {
        Some(findings) => resolved.of_findings(findings).unwrap(),
        None => resolved,
    };
    resolved.prepare(&observer).unwrap()
}

#[test]
fn what_one_process_finds_the_others_read() {
    let tiny = Tiny::new();
    let content = Arc::new(Mutex::new(fs::read(tiny.path("train.jsonl")).unwrap()));
    let url = server(&content);
    let first = prepared(&tiny, &url, None);
    // As it is told to the others.
    let told = serde_json::to_vec(&first.findings).unwrap();

    let more = [fs::read(tiny.path("train.jsonl")).unwrap(), fs::read(tiny.path("eval.jsonl")).unwrap()];
    *content.lock().unwrap() = more.concat();
    let later = prepared(&tiny, &url, None);
    assert_ne!(later.train.identity(), first.train.identity());
    let follower = prepared(&tiny, &url, Some(serde_json::from_slice(&told).unwrap()));
    assert_eq!(follower.train.identity(), first.train.identity());
    assert_eq!(follower.findings, first.findings);
}

/// Puts other rows at the url once those to train on have been read.
struct Replacing {
    content: Arc<Mutex<Vec<u8>>>,
    rows: Vec<u8>,
}

impl Observer for Replacing {
    fn observe(&self, update: Update<'_>) {
        if matches!(update, Update::Prepared(Split::Train, _)) {
            self.content.lock().unwrap().clone_from(&self.rows);
        }
    }
}

#[test]
fn evaluation_reads_what_training_has_found_at_the_same_place() {
    let tiny = Tiny::new();
    let content = Arc::new(Mutex::new(fs::read(tiny.path("train.jsonl")).unwrap()));
    let url = server(&content);
    let rows = fs::read(tiny.path("eval.jsonl")).unwrap();
    let replacing = Arc::new(Replacing { content: content.clone(), rows: rows.clone() });
    let observer: Arc<dyn Observer> = replacing;
    let spec = tiny.spec(&[&format!("train_data_path={url}"), &format!("eval_data_path={url}")]);
    let prepared = resolve(spec, &observer).unwrap().prepare(&observer).unwrap();
    let (eval, _) = prepared.eval.as_ref().unwrap();
    assert_eq!(*content.lock().unwrap(), rows);
    assert_eq!(eval.pins(), prepared.train.pins());
    assert_eq!(eval.pins()[0].rows, 64);
}
