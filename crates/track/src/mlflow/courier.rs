//! The thread that delivers, beside a run that does not wait for it.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::MlflowClient;
use super::delivery::{Delivery, Progress};
use super::registering::Registering;
use super::{Ending, Job, MlflowError, Model, Registration, Server};

/// How long metrics gather before they are sent.
const GATHERING: Duration = Duration::from_secs(2);
/// The first pause after a failure, which doubles, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause while a run waits for its end to be told.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What whoever watches a run may want to know of its delivery.
#[derive(Debug, Clone, Copy)]
pub enum Notice<'a> {
    /// The run can be seen at this address.
    Tracked(&'a str),
    /// Something that keeps from delivering for now. It is told once.
    Trouble(&'a str),
}

/// Delivers a run until its end.
pub struct Courier {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), MlflowError>>,
}

#[derive(Default)]
struct Shared {
    wishes: Mutex<Wishes>,
    changed: Condvar,
    /// What became of the model that was to be registered.
    registered: Mutex<Option<Result<Registration, MlflowError>>>,
}

#[derive(Default, Clone)]
struct Wishes {
    reads_metrics: bool,
    /// A model to register, and where.
    model: Option<Arc<(Model, MlflowClient)>>,
    end: Option<Ending>,
    /// While the run waits.
    wait: Option<Wait>,
}

impl Wishes {
    fn are(&self, other: &Self) -> bool {
        self.end.is_some() == other.end.is_some()
            && self.model.is_some() == other.model.is_some()
            && self.reads_metrics == other.reads_metrics
    }
}

#[derive(Clone, Copy)]
struct Wait {
    since: Instant,
    /// How long is waited for a server that does not answer.
    patience: Duration,
}

impl Wait {
    fn now(patience: Duration) -> Self {
        Self { since: Instant::now(), patience }
    }
}

impl Shared {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.wishes());
        self.changed.notify_all();
    }

    /// Waits for so long, or until something else is wished than `known`.
    fn wait(&self, known: &Wishes, most: Duration) {
        drop(self.changed.wait_timeout_while(self.wishes(), most, |wishes| wishes.are(known)));
    }

    /// Says what became of the model.
    fn answer(&self, registered: Result<Registration, MlflowError>) {
        *self.registered.lock().unwrap_or_else(PoisonError::into_inner) = Some(registered);
        self.change(|wishes| (wishes.model, wishes.wait) = (None, None));
    }
}

impl Courier {
    /// Begins to deliver the run in `folder`. Where the server must be there at the start, its absence is an error; else it is
    /// told, and tried again. What will not pass by itself is an error in any case.
    ///
    /// # Errors
    /// For a server that refuses, one that is away where it must not be, and a damaged ledger.
    pub fn start(
        job: Job,
        folder: &Path,
        may_be_away: bool,
        notify: impl Fn(Notice<'_>) + Send + 'static,
    ) -> Result<Self, MlflowError> {
        let mut delivery = Delivery::open(job, folder)?;
        match delivery.check() {
            Err(error) if error.passes() && may_be_away => {}
            checked => checked?,
        }
        let shared = Arc::new(Shared::default());
        let hers = shared.clone();
        let thread =
            thread::Builder::new().name("mlflow".into()).spawn(move || work(delivery, &hers, &notify));
        Ok(Self { shared, thread: thread.map_err(MlflowError::Start)? })
    }

    /// Metrics are in their file from now on: what an interrupted run had written too much is cut.
    pub fn read_metrics(&self) {
        self.shared.change(|wishes| wishes.reads_metrics = true);
    }

    /// Registers a model at the server of the registry, and waits for that as [`Self::finish`] waits.
    ///
    /// # Errors
    /// What kept the model from being registered.
    pub fn register(
        &self,
        model: Model,
        registry: Server,
        patience: Duration,
    ) -> Result<Registration, MlflowError> {
        let wish = Arc::new((model, MlflowClient::new(registry)?));
        self.shared.change(|wishes| {
            wishes.reads_metrics = true;
            (wishes.model, wishes.wait) = (Some(wish), Some(Wait::now(patience)));
        });
        let mut wishes = self.shared.wishes();
        while wishes.model.is_some() && !self.thread.is_finished() {
            // Looked at now and then: a thread that has failed gives no answer.
            let waited = self.shared.changed.wait_timeout(wishes, GATHERING);
            wishes = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(wishes);
        let answer = self.shared.registered.lock().unwrap_or_else(PoisonError::into_inner).take();
        answer.unwrap_or_else(|| Err(failed()))
    }

    /// Waits until everything has arrived, as long as something does; gives up after `patience` of failures in a row. What is left stays
    /// where it is.
    ///
    /// # Errors
    /// What kept the rest from arriving.
    pub fn finish(self, ending: Ending, patience: Duration) -> Result<(), MlflowError> {
        self.shared.change(|wishes| {
            wishes.reads_metrics = true;
            (wishes.end, wishes.wait) = (Some(ending), Some(Wait::now(patience)));
        });
        self.thread.join().unwrap_or_else(|_| Err(failed()))
    }
}

fn failed() -> MlflowError {
    MlflowError::Start(std::io::Error::other("the thread has failed; its last words are above"))
}

fn work(mut delivery: Delivery, shared: &Shared, notify: &dyn Fn(Notice<'_>)) -> Result<(), MlflowError> {
    let (mut pause, mut told, mut is_tracked) = (FIRST_PAUSE, None, false);
    let (mut failing_since, mut registering) = (None, Registering::default());
    loop {
        let wishes = shared.wishes().clone();
        if wishes.reads_metrics {
            delivery.read_metrics();
        }
        // What is told of the machine meanwhile would be taken for progress with the model.
        if wishes.end.is_none() && wishes.model.is_none() {
            delivery.look_at_machine();
        }
        let advanced = match &wishes.model {
            Some(wish) => delivery.register(&wish.0, &wish.1, &mut registering).map(|registered| {
                if let Some(registered) = registered {
                    shared.answer(Ok(registered));
                }
                Progress::Some
            }),
            None => delivery.advance(wishes.end),
        };
        if let (false, Some(address)) = (is_tracked, delivery.address()) {
            is_tracked = true;
            notify(Notice::Tracked(&address));
        }
        match advanced {
            Ok(Progress::Some) => {
                (pause, told, failing_since) = (FIRST_PAUSE, None, None);
                // A run that is quicker than its server shall not keep it busy with small calls.
                if wishes.wait.is_none() && wishes.reads_metrics {
                    shared.wait(&wishes, GATHERING / 4);
                }
            }
            Ok(Progress::All) if wishes.end.is_some() => return Ok(()),
            Ok(Progress::All) => {
                failing_since = None;
                shared.wait(&wishes, GATHERING);
            }
            Err(error) => {
                // From the first failure in a row: one call with a large file may itself take longer than the patience.
                let failing_since = *failing_since.get_or_insert_with(Instant::now);
                let is_over = wishes.wait.is_some_and(|Wait { since, patience }| {
                    !error.passes() || since.max(failing_since).elapsed() >= patience
                });
                if is_over && wishes.model.is_some() {
                    shared.answer(Err(error));
                    continue;
                }
                if is_over && !matches!(error, MlflowError::NoArtifacts { .. }) {
                    return Err(error);
                }
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    notify(Notice::Trouble(&text));
                    told = Some(text);
                }
                shared.wait(&wishes, if wishes.wait.is_some() { pause.min(LAST_PAUSE) } else { pause });
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);
    const HOLDING: Duration = Duration::from_millis(500);

    /// A server that holds the first call which says how the run ended for longer than the patience, and then hangs up.
    fn server() -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            let mut has_failed = false;
            for stream in listener.incoming().flatten() {
                answer(&stream, &mut has_failed);
            }
        });
        address
    }

    fn answer(stream: &TcpStream, has_failed: &mut bool) {
        let mut reader = BufReader::new(stream);
        let mut lines = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let Some(request) = lines.next() else { return };
        let length = lines
            .find_map(|line| Some(line.to_ascii_lowercase().strip_prefix("content-length: ")?.to_owned()));
        lines.for_each(drop);
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        if String::from_utf8_lossy(&body).contains("FINISHED") && !std::mem::replace(has_failed, true) {
            return thread::sleep(HOLDING);
        }
        let said = match request.split([' ', '?']).nth(1).unwrap().rsplit('/').next().unwrap() {
            "get-by-name" => r#"{"experiment": {"experiment_id": "1"}}"#,
            "create" => r#"{"run": {"info": {"run_id": "r", "artifact_uri": "mlflow-artifacts:/1"}}}"#,
            _ => "{}",
        };
        let head = format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", said.len());
        let _ = { stream }.write_all((head + said).as_bytes());
    }

    #[test]
    fn one_long_attempt_that_fails_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let job = Job {
            server: Server::find(Some(&server()), |_| None).unwrap(),
            experiment: "/e".into(),
            run_name: "r".into(),
            parameters: Vec::new(),
            tags: Vec::new(),
            datasets: Vec::new(),
            uploads: false,
            system_metrics: false,
            resumes: false,
        };
        let courier = Courier::start(job, folder.path(), false, |_| {}).unwrap();
        courier.finish(Ending::Finished, PATIENCE).unwrap();
    }
}
