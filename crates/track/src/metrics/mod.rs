//! The run's metrics, `metrics.jsonl`: one flat JSON object a line, names as Composer logs them, exactly one line
//! with `loss/train/total` and `time/batch` for each batch.
//!
//! A training line carries the number of batches done before it (the first is 0), an evaluation line the number
//! of batches done when it was made. Evaluate before saving: then a checkpoint of `n` batches vouches for the
//! training lines below `n` and for the evaluation at `n`, and that is what resuming from it keeps.

pub mod names;
mod record;

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::TrackError;
use crate::jsonl::ResumePoint;
use crate::jsonl::{Line, LineFile, find_last, read_lines};
pub use record::{Number, Record};

/// The file's name in the run folder.
pub const FILE: &str = "metrics.jsonl";

/// Appends to a run's `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    lines: LineFile,
    next_batch: u64,
}

impl MetricsLog {
    /// Opens or creates the file in `run_folder`. A half line and every line past the checkpoint being resumed are cut.
    /// `None` starts over.
    pub fn open(run_folder: &Path, resumed: Option<ResumePoint>) -> Result<Self, TrackError> {
        let path = run_folder.join(FILE);
        let lines = match resumed {
            Some(point) => LineFile::open_while(path, |line: &MetricsLine| line.is_before(point))?,
            None => LineFile::open_empty(path)?,
        };
        Ok(Self { lines, next_batch: resumed.map_or(0, |point| point.batch) })
    }

    /// Writes one line. It survives the death of the process, though not yet a power cut.
    ///
    /// # Errors
    /// [`TrackError::BatchOrder`] for a training record of any batch but the next.
    pub fn append(&mut self, record: &Record) -> Result<(), TrackError> {
        if record.is_training() && record.batch() != self.next_batch {
            return Err(TrackError::BatchOrder { expected: self.next_batch, found: record.batch() });
        }
        self.lines.append(&[record])?;
        self.next_batch += u64::from(record.is_training());
        Ok(())
    }

    /// Makes all lines survive a power cut. Call it before a checkpoint is given its name: a checkpoint must not
    /// outlive the lines of the batches it holds.
    pub fn sync(&self) -> Result<(), TrackError> {
        Ok(self.lines.sync()?)
    }
}

/// One line of `metrics.jsonl` as read back.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct MetricsLine {
    entries: Map<String, Value>,
}

impl Line for MetricsLine {
    const EXPECTED: &'static str = r#"one flat object, {"time/batch": …, …}"#;
}

impl MetricsLine {
    /// The value under `name`; `None` where it was not computed or not finite.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.entries.get(name)?.as_f64()
    }

    /// The value of `time/batch`.
    pub fn batch(&self) -> Option<u64> {
        self.entries.get(names::BATCH)?.as_u64()
    }

    /// Whether this is the one line of a training batch.
    pub fn is_training(&self) -> bool {
        self.entries.contains_key(names::LOSS) && self.entries.contains_key(names::BATCH)
    }

    /// The names and finite values, in the order in which they were written.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, f64)> {
        self.entries.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
    }

    /// The names and values that are shown as curves: numbers, and `null` for what is not finite. An evaluation has its batch
    /// as its place; as a value it would stand beside the training line's.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, &Value)> {
        let is_training = self.is_training();
        let values = self.entries.iter().map(|(name, value)| (name.as_str(), value));
        values.filter(move |(name, _)| is_training || *name != names::BATCH)
    }

    /// Whether the line was written before the checkpoint that is resumed.
    fn is_before(&self, resumed: ResumePoint) -> bool {
        match self.batch() {
            Some(batch) if self.is_training() => batch < resumed.batch,
            Some(batch) => resumed.keeps(batch),
            None => true,
        }
    }
}

/// The metrics of a run, oldest first, read as they are asked for. A run without the file has none.
pub fn read_metrics(
    run_folder: &Path,
) -> Result<impl Iterator<Item = Result<MetricsLine, TrackError>>, TrackError> {
    read_lines(&run_folder.join(FILE))
}

/// The last training line of a run.
pub(crate) fn last_training_line(run_folder: &Path) -> Result<Option<MetricsLine>, TrackError> {
    Ok(find_last(&run_folder.join(FILE), |line: &MetricsLine| line.is_training().then(|| line.clone()))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    fn losses(folder: &Path) -> Vec<(u64, Option<f64>)> {
        read_metrics(folder)
            .unwrap()
            .map(|line| line.unwrap())
            .map(|line| (line.batch().unwrap(), line.number(names::LOSS)))
            .collect()
    }

    /// Three batches with an evaluation before and after each, then half a line.
    fn interrupted_run(folder: &Path) {
        let mut log = MetricsLog::open(folder, None).unwrap();
        log.append(&Record::at(0).with(names::EVAL_CROSS_ENTROPY, 3.0)).unwrap();
        for batch in 0..3 {
            log.append(&Record::training(batch, 2.5_f32)).unwrap();
            log.append(&Record::at(batch + 1).with(names::EVAL_CROSS_ENTROPY, 2.0)).unwrap();
        }
        log.sync().unwrap();
        let path = folder.join(FILE);
        let half = fs::read_to_string(&path).unwrap() + r#"{"time/batch":3,"loss/tr"#;
        fs::write(path, half).unwrap();
    }

    #[test]
    fn a_resumed_run_has_one_line_for_each_batch() {
        let folder = tempfile::tempdir().unwrap();
        interrupted_run(folder.path());
        let mut log = MetricsLog::open(folder.path(), Some(ResumePoint::after(2))).unwrap();
        log.append(&Record::training(2, 1.5_f32)).unwrap();
        let loss = Some(2.5);
        assert_eq!(
            losses(folder.path()),
            [(0, None), (0, loss), (1, None), (1, loss), (2, None), (2, Some(1.5))]
        );
    }

    #[test]
    fn resuming_at_the_end_keeps_every_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        interrupted_run(folder.path());
        MetricsLog::open(folder.path(), Some(ResumePoint::after(3))).unwrap();
        assert_eq!(losses(folder.path()).len(), 7);
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(text.ends_with("}\n"), "{text}");
    }

    #[test]
    fn a_run_that_starts_over_starts_empty() {
        let folder = tempfile::tempdir().unwrap();
        interrupted_run(folder.path());
        MetricsLog::open(folder.path(), None).unwrap();
        assert_eq!(losses(folder.path()), []);
    }

    #[test]
    fn a_batch_cannot_be_written_twice_or_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(folder.path(), Some(ResumePoint::after(5))).unwrap();
        log.append(&Record::training(5, 1.0)).unwrap();
        for batch in [5, 7] {
            let error = log.append(&Record::training(batch, 1.0)).unwrap_err();
            assert!(matches!(error, TrackError::BatchOrder { expected: 6, found } if found == batch));
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_still_has_its_line() {
        let folder = tempfile::tempdir().unwrap();
        MetricsLog::open(folder.path(), None).unwrap().append(&Record::training(0, f32::NAN)).unwrap();
        assert_eq!(losses(folder.path()), [(0, None)]);
        assert!(last_training_line(folder.path()).unwrap().unwrap().is_training());
    }
}
