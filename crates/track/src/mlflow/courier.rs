//! The thread that delivers, beside a run that does not wait for it.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::delivery::{Delivery, Progress};
use super::{Ending, Job, MlflowError};

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
}

#[derive(Default, Clone, Copy)]
struct Wishes {
    reads_metrics: bool,
    end: Option<End>,
}

#[derive(Clone, Copy)]
struct End {
    ending: Ending,
    asked: Instant,
    /// How long is waited for a server that does not answer.
    patience: Duration,
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
    fn wait(&self, known: Wishes, most: Duration) {
        let same = |wishes: &mut Wishes| {
            wishes.end.is_some() == known.end.is_some() && wishes.reads_metrics == known.reads_metrics
        };
        drop(self.changed.wait_timeout_while(self.wishes(), most, same));
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

    /// Waits until everything has arrived, as long as something does; gives up after `patience` without. What is left stays
    /// where it is.
    ///
    /// # Errors
    /// What kept the rest from arriving.
    pub fn finish(self, ending: Ending, patience: Duration) -> Result<(), MlflowError> {
        let end = End { ending, asked: Instant::now(), patience };
        self.shared.change(|wishes| {
            wishes.reads_metrics = true;
            wishes.end = Some(end);
        });
        let failed =
            || MlflowError::Start(std::io::Error::other("the thread has failed; its last words are above"));
        self.thread.join().unwrap_or_else(|_| Err(failed()))
    }
}

fn work(mut delivery: Delivery, shared: &Shared, notify: &dyn Fn(Notice<'_>)) -> Result<(), MlflowError> {
    let (mut pause, mut told, mut is_tracked) = (FIRST_PAUSE, None, false);
    let mut last_progress = Instant::now();
    loop {
        let wishes = *shared.wishes();
        if wishes.reads_metrics {
            delivery.read_metrics();
        }
        if wishes.end.is_none() {
            delivery.look_at_machine();
        }
        let advanced = delivery.advance(wishes.end.map(|end| end.ending));
        if let (false, Some(address)) = (is_tracked, delivery.address()) {
            is_tracked = true;
            notify(Notice::Tracked(&address));
        }
        match advanced {
            Ok(Progress::Some) => {
                (pause, told, last_progress) = (FIRST_PAUSE, None, Instant::now());
                // A run that is quicker than its server shall not keep it busy with small calls.
                if wishes.end.is_none() && wishes.reads_metrics {
                    shared.wait(wishes, GATHERING / 4);
                }
            }
            Ok(Progress::All) if wishes.end.is_some() => return Ok(()),
            Ok(Progress::All) => shared.wait(wishes, GATHERING),
            Err(error) => {
                if let Some(End { asked, patience, .. }) = wishes.end
                    && !matches!(error, MlflowError::NoArtifacts { .. })
                    && (!error.passes() || asked.max(last_progress).elapsed() >= patience)
                {
                    return Err(error);
                }
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    notify(Notice::Trouble(&text));
                    told = Some(text);
                }
                shared.wait(wishes, if wishes.end.is_some() { pause.min(LAST_PAUSE) } else { pause });
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
