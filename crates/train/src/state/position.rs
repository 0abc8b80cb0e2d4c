//! How far a run has come, and the vocabulary of a checkpoint's timestamp.

use std::time::Duration;

use tessera_checkpoint::dcp::CheckpointName;
use tessera_checkpoint::dcp::pickle::{TimeDelta, Value};

use crate::time::Progress;

/// Counts since the first start of a run, resumes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Completed epochs.
    pub epoch: u64,
    /// Completed batches.
    pub batch: u64,
    /// Rows trained on.
    pub sample: u64,
    /// Tokens trained on.
    pub token: u64,
    /// Completed batches of the epoch under way.
    pub batch_in_epoch: u64,
    /// Rows of the epoch under way.
    pub sample_in_epoch: u64,
    /// Tokens of the epoch under way.
    pub token_in_epoch: u64,
    /// Time spent training.
    pub elapsed: Duration,
}

impl Position {
    /// Counts one more batch of `rows` rows and `tokens` tokens.
    pub fn advance(&mut self, rows: u64, tokens: u64, elapsed: Duration, batches_per_epoch: u64) {
        self.batch += 1;
        self.sample += rows;
        self.token += tokens;
        self.batch_in_epoch += 1;
        self.sample_in_epoch += rows;
        self.token_in_epoch += tokens;
        self.elapsed += elapsed;
        if self.batch_in_epoch == batches_per_epoch {
            self.epoch += 1;
            (self.batch_in_epoch, self.sample_in_epoch, self.token_in_epoch) = (0, 0, 0);
        }
    }

    /// The name of a checkpoint taken here.
    pub fn checkpoint_name(&self) -> CheckpointName {
        CheckpointName { epoch: self.epoch, batch: self.batch }
    }

    /// What intervals are measured by.
    pub fn progress(&self) -> Progress {
        Progress {
            epochs: self.epoch,
            batches: self.batch,
            samples: self.sample,
            tokens: self.token,
            seconds: self.elapsed.as_secs(),
        }
    }

    /// The fields of Composer's `Timestamp`, under its names. An iteration is the whole run; time is kept for the whole
    /// only.
    pub fn timestamp(&self) -> Vec<(&'static str, Value)> {
        let count = |value: u64| Value::Int(value.into());
        let elapsed = duration_value(self.elapsed);
        vec![
            ("iteration", count(0)),
            ("epoch", count(self.epoch)),
            ("batch", count(self.batch)),
            ("sample", count(self.sample)),
            ("token", count(self.token)),
            ("epoch_in_iteration", count(self.epoch)),
            ("token_in_iteration", count(self.token)),
            ("batch_in_epoch", count(self.batch_in_epoch)),
            ("sample_in_epoch", count(self.sample_in_epoch)),
            ("token_in_epoch", count(self.token_in_epoch)),
            ("total_wct", elapsed.clone()),
            ("iteration_wct", elapsed.clone()),
            ("epoch_wct", elapsed.clone()),
            ("batch_wct", elapsed),
        ]
    }

    /// Reads the fields that [`Position::timestamp`] writes, from `field`; `None` if one is missing or of another type.
    ///
    /// # Errors
    /// Those of `field`.
    pub fn from_timestamp<E>(
        mut field: impl FnMut(&str) -> Result<Option<Value>, E>,
    ) -> Result<Option<Self>, E> {
        let mut values = std::collections::HashMap::new();
        for (name, _) in Self::default().timestamp() {
            if let Some(value) = field(name)? {
                values.insert(name, value);
            }
        }
        Ok(Self::from_fields(|name| values.get(name)))
    }

    fn from_fields<'a>(field: impl Fn(&str) -> Option<&'a Value>) -> Option<Self> {
        let elapsed = match field("total_wct")? {
            Value::TimeDelta(delta) => delta_duration(*delta)?,
            _ => return None,
        };
        let count = |name: &str| u64::try_from(field(name)?.as_int()?).ok();
        Some(Self {
            epoch: count("epoch")?,
            batch: count("batch")?,
            sample: count("sample")?,
            token: count("token")?,
            batch_in_epoch: count("batch_in_epoch")?,
            sample_in_epoch: count("sample_in_epoch")?,
            token_in_epoch: count("token_in_epoch")?,
            elapsed,
        })
    }
}

const SECONDS_OF_DAY: u64 = 86_400;

fn duration_value(duration: Duration) -> Value {
    Value::TimeDelta(TimeDelta {
        days: i32::try_from(duration.as_secs() / SECONDS_OF_DAY).unwrap_or(i32::MAX),
        seconds: (duration.as_secs() % SECONDS_OF_DAY) as i32,
        microseconds: duration.subsec_micros() as i32,
    })
}

fn delta_duration(delta: TimeDelta) -> Option<Duration> {
    let [days, seconds, microseconds] =
        [delta.days, delta.seconds, delta.microseconds].map(|part| u64::try_from(part).ok());
    Some(Duration::from_secs(days? * SECONDS_OF_DAY + seconds?) + Duration::from_micros(microseconds?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_timestamp_is_read_back() {
        let mut position = Position::default();
        for _ in 0..5 {
            position.advance(8, 4000, Duration::from_micros(90_000_000_001), 3);
        }
        assert_eq!((position.epoch, position.batch_in_epoch, position.batch), (1, 2, 5));
        assert_eq!((position.sample_in_epoch, position.token_in_epoch), (16, 8000));
        let fields = position.timestamp();
        let field = |name: &str| -> Result<_, std::convert::Infallible> {
            Ok(fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()))
        };
        assert_eq!(Position::from_timestamp(field), Ok(Some(position)));
    }
}
