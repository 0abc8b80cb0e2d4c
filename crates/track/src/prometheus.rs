//! The run's newest metrics for Prometheus, in its text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Scrapes come once in many seconds, so one thread answers them one after the other. A scraper that says nothing is left
//! after a moment: it must not keep the others out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::TrackError;
use crate::metrics::{Number, Record};

/// How long a scraper may take to ask and to listen.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request.
const MOST_BYTES: usize = 8192;

/// Answers scrapes until it is dropped.
#[derive(Debug)]
pub struct Exporter {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    run: String,
    values: Mutex<BTreeMap<String, Number>>,
    is_over: AtomicBool,
}

impl Exporter {
    /// Listens at `port` of all of the machine's addresses.
    ///
    /// # Errors
    /// When another program listens there, or this one may not.
    pub fn start(port: u16, run_name: &str) -> Result<Self, TrackError> {
        let refused = |source| TrackError::Port { port, source };
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let shared = Arc::new(Shared {
            run: run_name.to_owned(),
            values: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let its = shared.clone();
        let thread = thread::Builder::new().name("metrics".into()).spawn(move || its.serve(&listener));
        Ok(Self { shared, address, thread: Some(thread.map_err(refused)?) })
    }

    /// Takes the values of a line in place of earlier ones of the same names.
    pub fn record(&self, record: &Record) {
        let mut values = self.shared.values();
        for (name, value) in record.entries() {
            match values.get_mut(name) {
                Some(known) => *known = value,
                None => drop(values.insert(name.to_owned(), value)),
            }
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread. If nobody can connect it cannot be woken, and ends with the process.
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, self.address.port()));
        if TcpStream::connect_timeout(&own, PATIENCE).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn values(&self) -> MutexGuard<'_, BTreeMap<String, Number>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            match stream {
                // A scraper that has gone asks again.
                Ok(stream) => drop(self.answer(stream)),
                // Out of file handles, say: trying at once would take a whole processor.
                Err(_) => thread::sleep(PATIENCE),
            }
        }
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = Vec::new();
        let mut piece = [0; 1024];
        let asked_at = Instant::now();
        // One that asks letter by letter keeps the others out too.
        while !request.windows(4).any(|end| end == b"\r\n\r\n")
            && request.len() < MOST_BYTES
            && asked_at.elapsed() < PATIENCE
        {
            match stream.read(&mut piece)? {
                0 => break,
                read => request.extend(&piece[..read]),
            }
        }
        let asked = String::from_utf8_lossy(&request);
        let mut words = asked.split_whitespace();
        let (status, body) = match (words.next(), words.next().and_then(|path| path.split('?').next())) {
            (Some("GET"), Some("/metrics")) => ("200 OK", self.text()),
            _ => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    }

    fn text(&self) -> String {
        let run = self.run.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let mut text = String::new();
        for (name, value) in self.values().iter() {
            let value = match value {
                Number::Whole(value) => value.to_string(),
                Number::Single(value) => shown(f64::from(*value)),
                Number::Double(value) => shown(*value),
            };
            let metric = metric_name(name);
            // Writing to a text does not fail.
            let _ = writeln!(
                text,
                "# HELP {metric} {name} of the newest line of metrics.jsonl\n# TYPE {metric} gauge\n\
                 {metric}{{run=\"{run}\"}} {value}"
            );
        }
        text
    }
}

/// A number as Prometheus writes it.
fn shown(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => value.to_string(),
    }
}

/// A metric's name with what Prometheus allows in one.
fn metric_name(name: &str) -> String {
    let allowed = |character: char| if character.is_ascii_alphanumeric() { character } else { '_' };
    format!("tessera_{}", name.chars().map(allowed).collect::<String>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::metrics::names;

    fn ask(exporter: &Exporter, request: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, exporter.address.port())).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_scrape_gets_the_newest_values() {
        let exporter = Exporter::start(0, "a \"b\"").unwrap();
        let scrape = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        assert!(ask(&exporter, scrape).ends_with("Content-Length: 0\r\nConnection: close\r\n\r\n"));
        exporter.record(&Record::training(0, 3.5).with("lr-AdamW/group0", 1.0e-5));
        exporter.record(&Record::training(1, f64::NAN).with(names::GRADIENT_NORM, f64::INFINITY));
        let answer = ask(&exporter, scrape);
        for line in [
            "HTTP/1.1 200 OK\r",
            "# TYPE tessera_loss_train_total gauge",
            "tessera_loss_train_total{run=\"a \\\"b\\\"\"} NaN",
            "tessera_l2_norm_grad_global{run=\"a \\\"b\\\"\"} +Inf",
            "tessera_lr_AdamW_group0{run=\"a \\\"b\\\"\"} 0.00001",
            "tessera_time_batch{run=\"a \\\"b\\\"\"} 1",
        ] {
            assert!(answer.lines().any(|found| found == line.trim_end()), "{line:?} is not in: {answer}");
        }
        for request in ["GET / HTTP/1.1\r\n\r\n", "POST /metrics HTTP/1.1\r\n\r\n", "\r\n\r\n"] {
            assert!(ask(&exporter, request).starts_with("HTTP/1.1 404 "), "{request:?}");
        }
    }

    #[test]
    fn whoever_asks_letter_by_letter_keeps_nobody_out() {
        let exporter = Exporter::start(0, "a").unwrap();
        let address = (Ipv4Addr::LOCALHOST, exporter.address.port());
        let is_over = AtomicBool::new(false);
        let (slow_is_there, slow_came) = std::sync::mpsc::channel();
        let answer = thread::scope(|scope| {
            scope.spawn(|| {
                let mut slow = TcpStream::connect(address).unwrap();
                slow_is_there.send(()).unwrap();
                while !is_over.load(Ordering::Relaxed) && slow.write_all(b"G").is_ok() {
                    thread::sleep(PATIENCE / 8);
                }
            });
            slow_came.recv().unwrap();
            let mut other = TcpStream::connect(address).unwrap();
            other.set_read_timeout(Some(10 * PATIENCE)).unwrap();
            other.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            let read = other.read_to_string(&mut answer);
            is_over.store(true, Ordering::Relaxed);
            read.map(|_| answer)
        });
        assert!(answer.unwrap().starts_with("HTTP/1.1 200 OK"));
    }

    #[test]
    fn a_port_in_use_is_named() {
        let exporter = Exporter::start(0, "a").unwrap();
        let port = exporter.address.port();
        let error = Exporter::start(port, "b").unwrap_err().to_string();
        assert!(error.contains("metrics_port") && error.contains(&port.to_string()), "{error}");
        drop(exporter);
        Exporter::start(port, "b").unwrap();
    }
}
