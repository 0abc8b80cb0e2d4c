//! The three places a time stands in, each with the units that it accepts and what it comes to in batches.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::{EpochLength, Fraction, Progress, RunLength, Time, TimeError};

/// How long a run is: epochs, batches, rows or tokens, above 0.
///
/// A fraction of the run would be a fraction of itself, and a run that ends by the clock would not be
/// repeatable, so neither is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingDuration(Time);

/// How often something happens: any unit, above 0, a fraction at most the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval(Time);

/// A point or span of a learning-rate schedule: any unit but the clock's, 0 included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleTime(Time);

impl EpochLength {
    /// Batches of one pass, the last one counted whole.
    pub fn batches(&self) -> u64 {
        self.samples.div_ceil(self.samples_per_batch.get())
    }

    /// Batches until so many rows have passed. Whole epochs are counted first, since their last batches may
    /// hold fewer rows.
    fn batches_for_samples(&self, samples: u64) -> u64 {
        let whole_epochs = samples.checked_div(self.samples).unwrap_or(0);
        let rest = samples.checked_rem(self.samples).unwrap_or(0);
        whole_epochs
            .saturating_mul(self.batches())
            .saturating_add(rest.div_ceil(self.samples_per_batch.get()))
    }

    /// Batches until so many tokens have passed if every batch holds the epoch's mean number of them.
    fn batches_for_tokens(&self, tokens: u64) -> u64 {
        let exact = u128::from(tokens) * u128::from(self.batches());
        u64::try_from(exact.div_ceil(u128::from(self.tokens.max(1)))).unwrap_or(u64::MAX)
    }

    /// A count in batches, rounded up; `None` for fractions and seconds, which no epoch measures. What passes
    /// the range of the type is as good as endless and stays at its end.
    fn batches_for(&self, time: Time) -> Option<u64> {
        match time {
            Time::Epochs(epochs) => Some(epochs.saturating_mul(self.batches())),
            Time::Batches(batches) => Some(batches),
            Time::Samples(samples) => Some(self.batches_for_samples(samples)),
            Time::Tokens(tokens) => Some(self.batches_for_tokens(tokens)),
            Time::Fraction(_) | Time::Seconds(_) => None,
        }
    }
}

impl TrainingDuration {
    /// The forms that a run file may give.
    pub const EXPECTED: &str =
        "a whole number above 0 of epochs, batches, rows or tokens: 1ep, 10ba, 100sp or 1_000_000tok";

    /// One pass over the data.
    pub const ONE_EPOCH: Self = Self(Time::Epochs(1));

    /// The optimizer steps of a run of this length, a started batch counted whole. Tokens are taken as spread
    /// evenly over an epoch's batches.
    pub fn total_batches(self, epoch: &EpochLength) -> u64 {
        epoch.batches_for(self.0).unwrap_or(0)
    }
}

impl Interval {
    /// The forms that a run file may give.
    pub const EXPECTED: &str =
        "an interval above 0: 1ep, 10ba, 100sp, 1_000_000tok, 30m, or a fraction of the run up to 1dur";

    /// Every epoch.
    pub const EACH_EPOCH: Self = Self(Time::Epochs(1));
    /// Once, at the end of the run.
    pub const AT_THE_END: Self = Self(Time::Fraction(Fraction::ONE));

    /// Whether it fires on the batch that led from `previous` to `current`: where a multiple of the interval
    /// was reached or passed, and always on the last batch (Composer's `create_interval_scheduler`).
    pub fn fires(self, previous: &Progress, current: &Progress, total_batches: u64) -> bool {
        current.batches >= total_batches
            || self.times_within(previous, total_batches) != self.times_within(current, total_batches)
    }

    /// Whether only the clock tells when it fires.
    pub fn is_by_the_clock(self) -> bool {
        matches!(self.0, Time::Seconds(_))
    }

    /// How many whole intervals have passed.
    fn times_within(self, progress: &Progress, total_batches: u64) -> u128 {
        let (count, length) = match self.0 {
            Time::Fraction(fraction) => return fraction.times_within(progress.batches, total_batches),
            Time::Epochs(length) => (progress.epochs, length),
            Time::Batches(length) => (progress.batches, length),
            Time::Samples(length) => (progress.samples, length),
            Time::Tokens(length) => (progress.tokens, length),
            Time::Seconds(length) => (progress.seconds, length),
        };
        u128::from(count.checked_div(length).unwrap_or(0))
    }
}

impl ScheduleTime {
    /// The forms that a run file may give.
    pub const EXPECTED: &str = "10ba, 1ep, 100sp, 1_000_000tok or a fraction of the run such as 0.02dur (the clock's units do not fit)";

    /// No time at all.
    pub const ZERO: Self = Self(Time::Batches(0));
    /// The whole run.
    pub const WHOLE_RUN: Self = Self(Time::Fraction(Fraction::ONE));
    /// The warm-up of the service: 2 % of the run.
    pub const TWO_PERCENT: Self = Self(Time::Fraction(Fraction::hundredths(2)));

    /// The same span in batches, rounded up to whole ones.
    pub fn batches(self, run: &RunLength) -> u64 {
        match self.0 {
            Time::Fraction(fraction) => fraction.of_rounded_up(run.total_batches),
            counted => run.epoch.batches_for(counted).unwrap_or(0),
        }
    }

    /// Whether the span is 0 in any run.
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl TryFrom<Time> for TrainingDuration {
    type Error = TimeError;

    fn try_from(time: Time) -> Result<Self, TimeError> {
        let fits = !time.is_zero() && !matches!(time, Time::Fraction(_) | Time::Seconds(_));
        accept(fits, time, Self::EXPECTED).map(Self)
    }
}

impl TryFrom<Time> for Interval {
    type Error = TimeError;

    fn try_from(time: Time) -> Result<Self, TimeError> {
        let beyond_run = matches!(time, Time::Fraction(fraction) if fraction.exceeds_one());
        accept(!time.is_zero() && !beyond_run, time, Self::EXPECTED).map(Self)
    }
}

impl TryFrom<Time> for ScheduleTime {
    type Error = TimeError;

    fn try_from(time: Time) -> Result<Self, TimeError> {
        accept(!matches!(time, Time::Seconds(_)), time, Self::EXPECTED).map(Self)
    }
}

fn accept(fits: bool, time: Time, expected: &str) -> Result<Time, TimeError> {
    if fits { Ok(time) } else { Err(TimeError { found: time.to_string(), expected: expected.to_owned() }) }
}

/// What the three places share: they are read from a [`Time`] and written as one.
macro_rules! written_as_time {
    ($($role:ident),+) => {$(
        impl FromStr for $role {
            type Err = TimeError;

            fn from_str(text: &str) -> Result<Self, TimeError> {
                Self::try_from(text.parse::<Time>()?)
            }
        }

        impl From<$role> for Time {
            fn from(role: $role) -> Self {
                role.0
            }
        }

        impl fmt::Display for $role {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }

        impl Serialize for $role {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}

written_as_time!(TrainingDuration, Interval, ScheduleTime);
