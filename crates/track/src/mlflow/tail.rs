//! `metrics.jsonl` while it grows: the lines that have not been delivered.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tessera_files::IoContext;

use super::MlflowError;
use super::client::{MOST_METRICS, Metric};
use super::ledger::Ledger;
use crate::metrics::{FILE, MetricsLine};

/// Reads on where it stopped. It must be made after the file was cut to the checkpoint that is resumed.
pub(super) struct Tail {
    path: PathBuf,
    offset: u64,
}

impl Tail {
    pub fn new(run_folder: &Path) -> Self {
        Self { path: run_folder.join(FILE), offset: 0 }
    }

    /// Appends lines that `ledger` does not know to its pending metrics, with this time, until one call has no room for
    /// another. A resumed run computes again what a killed one had computed; such batches have been told.
    pub fn fill(&mut self, ledger: &mut Ledger, now: i64) -> Result<(), MlflowError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).context("open", &self.path)?,
        };
        let mut reader = BufReader::new(file);
        reader.seek(SeekFrom::Start(self.offset)).context("read", &self.path)?;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            reader.read_until(b'\n', &mut bytes).context("read", &self.path)?;
            if bytes.last() != Some(&b'\n') {
                return Ok(());
            }
            let line: MetricsLine = serde_json::from_slice(&bytes).map_err(|error| MlflowError::Damaged {
                path: self.path.clone(),
                reason: error.to_string(),
            })?;
            let is_new = is_new(&line, ledger);
            let metrics = if is_new { points(&line, now) } else { Vec::new() };
            if !ledger.pending.is_empty() && ledger.pending.len() + metrics.len() > MOST_METRICS {
                return Ok(());
            }
            self.offset += bytes.len() as u64;
            if is_new {
                let batch = line.batch().unwrap_or_default();
                let next =
                    if line.is_training() { &mut ledger.next_training } else { &mut ledger.next_other };
                *next = batch + 1;
                ledger.pending.extend(metrics);
            }
        }
    }
}

fn is_new(line: &MetricsLine, ledger: &Ledger) -> bool {
    let next = if line.is_training() { ledger.next_training } else { ledger.next_other };
    line.batch().is_some_and(|batch| batch >= next)
}

/// The line's values; what is not finite is `null` in the file, which MLflow knows as NaN.
fn points(line: &MetricsLine, timestamp: i64) -> Vec<Metric> {
    let step = line.batch().unwrap_or_default();
    let point = |(key, value): (&str, &Value)| {
        let value = if value.is_null() { Value::from("NaN") } else { value.clone() };
        Metric { key: key.to_owned(), value, timestamp, step }
    };
    line.values().map(point).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;
    use crate::jsonl::ResumePoint;
    use crate::metrics::{MetricsLog, Record, names};

    fn told(ledger: &Ledger) -> Vec<(String, Value, u64)> {
        let points = ledger
            .pending
            .iter()
            .filter(|point| point.key.starts_with("loss") || point.key.starts_with("metrics"));
        points.map(|point| (point.key.clone(), point.value.clone(), point.step)).collect()
    }

    #[test]
    fn each_line_is_taken_once_though_a_resumed_run_writes_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, mut tail) = (Ledger::default(), Tail::new(folder.path()));
        tail.fill(&mut ledger, 1).unwrap();
        let mut log = MetricsLog::open(folder.path(), None).unwrap();
        log.append(&Record::at(0).with(names::EVAL_ACCURACY, 0.5)).unwrap();
        log.append(&Record::training(0, 3.0)).unwrap();
        log.append(&Record::training(1, f64::NAN)).unwrap();
        tail.fill(&mut ledger, 2).unwrap();
        let loss = |value: Value, step| (names::LOSS.to_owned(), value, step);
        let accuracy = (names::EVAL_ACCURACY.to_owned(), Value::from(0.5), 0);
        assert_eq!(told(&ledger), [accuracy, loss(3.0.into(), 0), loss("NaN".into(), 1)]);
        assert!(ledger.pending.iter().all(|point| point.timestamp == 2));

        // Another process goes on after the first batch, and comes further.
        ledger.pending.clear();
        let mut log = MetricsLog::open(folder.path(), Some(ResumePoint::after(1))).unwrap();
        let mut tail = Tail::new(folder.path());
        for batch in 1..3 {
            log.append(&Record::training(batch, batch as f64)).unwrap();
        }
        tail.fill(&mut ledger, 3).unwrap();
        assert_eq!(told(&ledger), [loss(2.0.into(), 2)]);
    }

    #[test]
    fn half_a_line_waits_for_its_end_and_full_calls_for_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = File::create(folder.path().join(FILE)).unwrap();
        let (mut ledger, mut tail) = (Ledger::default(), Tail::new(folder.path()));
        let line = |batch: u64| {
            let others: String = (0..300).map(|at| format!(",\"m{at}\":{at}")).collect();
            format!("{{\"time/batch\":{batch},\"loss/train/total\":1.0{others}}}\n")
        };
        let text: String = (0..4).map(line).collect();
        let (first, rest) = text.split_at(line(0).len() * 3 / 2);
        file.write_all(first.as_bytes()).unwrap();
        tail.fill(&mut ledger, 1).unwrap();
        assert_eq!(ledger.next_training, 1);
        file.write_all(rest.as_bytes()).unwrap();
        tail.fill(&mut ledger, 1).unwrap();
        assert_eq!((ledger.next_training, ledger.pending.len()), (3, 3 * 302));
        ledger.pending.clear();
        tail.fill(&mut ledger, 1).unwrap();
        assert_eq!((ledger.next_training, ledger.pending.len()), (4, 302));
    }
}
