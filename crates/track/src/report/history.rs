//! The curves and tables of a run, gathered from `metrics.jsonl` in one pass.

use std::collections::BTreeMap;
use std::path::Path;

use super::thin::Point;
use crate::error::TrackError;
use crate::metrics::{MetricsLine, names, read_metrics};

/// One evaluation: metric names without their prefix, and values.
pub(super) type Evaluation = BTreeMap<String, f64>;

/// What the report shows of the metrics.
#[derive(Default)]
pub(super) struct History {
    pub loss: Vec<Point>,
    pub learning_rate: Vec<Point>,
    pub gradient_norm: Vec<Point>,
    pub tokens_per_second: Vec<Point>,
    /// Evaluations by batches done; where two were made at one point, the later.
    pub evaluations: BTreeMap<u64, Evaluation>,
    /// Batches whose loss was not a finite number.
    pub batches_without_loss: u64,
    /// The last finite value of each name on training lines.
    pub last: BTreeMap<String, f64>,
}

impl History {
    pub(super) fn read(run_folder: &Path) -> Result<Self, TrackError> {
        let mut history = Self::default();
        for line in read_metrics(run_folder)? {
            let line = line?;
            if let Some(batch) = line.batch() {
                if line.is_training() {
                    history.add_training(batch as f64, &line);
                }
                history.add_evaluation(batch, &line);
            }
        }
        Ok(history)
    }

    /// The values of one metric of the evaluations.
    pub(super) fn evaluated(&self, name: &str) -> Vec<Point> {
        let name = name.trim_start_matches(names::EVAL_PREFIX);
        let point = |(&batch, evaluation): (&u64, &Evaluation)| Some((batch as f64, *evaluation.get(name)?));
        self.evaluations.iter().filter_map(point).collect()
    }

    fn add_training(&mut self, batch: f64, line: &MetricsLine) {
        let push =
            |curve: &mut Vec<Point>, value: Option<f64>| curve.extend(value.map(|value| (batch, value)));
        let loss = line.number(names::LOSS);
        self.batches_without_loss += u64::from(loss.is_none());
        push(&mut self.loss, loss);
        push(&mut self.gradient_norm, line.number(names::GRADIENT_NORM));
        push(&mut self.tokens_per_second, line.number(names::TOKENS_PER_SECOND));
        let mut rates = line.numbers().filter(|(name, _)| name.starts_with(names::LEARNING_RATE_PREFIX));
        push(&mut self.learning_rate, rates.next().map(|(_, rate)| rate));
        for (name, value) in line.numbers() {
            match self.last.get_mut(name) {
                Some(last) => *last = value,
                None => _ = self.last.insert(name.to_owned(), value),
            }
        }
    }

    fn add_evaluation(&mut self, batch: u64, line: &MetricsLine) {
        for (name, value) in line.numbers() {
            if let Some(name) = name.strip_prefix(names::EVAL_PREFIX) {
                self.evaluations.entry(batch).or_default().insert(name.to_owned(), value);
            }
        }
    }
}
