//! Time in a run: how long it is, how often something happens, where the learning rate bends.
//!
//! A time is a count of a unit, written as Composer writes it: `1ep`, `10ba`, `100sp`, `1_000_000tok`, a
//! fraction `0.5dur` of the whole run, or wall-clock time, `90sec` or `1h30m`. Counts and fractions are kept
//! exactly, so that an interval of `0.1dur` fires on the batch that a reader expects and not on its neighbour.
//! Three types say which units make sense where: [`TrainingDuration`], [`Interval`] and [`ScheduleTime`].

mod number;
mod roles;
#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use number::Decimal;
pub use number::Fraction;
pub use roles::{Interval, ScheduleTime, TrainingDuration};

/// A time string's text or unit is not what its place needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found `{found}`, expected {expected}")]
pub struct TimeError {
    /// The time as it was written.
    pub found: String,
    /// The forms that its place accepts, with examples.
    pub expected: String,
}

/// A count of one unit of time. A whole number without a unit counts epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Passes over the data: `ep`.
    Epochs(u64),
    /// Optimizer steps: `ba`.
    Batches(u64),
    /// Rows of the packed data: `sp`.
    Samples(u64),
    /// Tokens that are not padding: `tok`.
    Tokens(u64),
    /// A part of the whole run: `dur`.
    Fraction(Fraction),
    /// Wall-clock seconds of training: `sec`, or hours, minutes and seconds as `1h30m`.
    Seconds(u64),
}

/// What one pass over the data holds. It is known before the first step, since packing is done by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochLength {
    /// Packed rows.
    pub samples: u64,
    /// Rows of one batch; an epoch's last batch may hold fewer.
    pub samples_per_batch: NonZeroU64,
    /// Tokens that are not padding.
    pub tokens: u64,
}

/// What a whole run holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunLength {
    /// Optimizer steps of the whole run.
    pub total_batches: u64,
    /// One pass over the data.
    pub epoch: EpochLength,
}

/// How far a run has come, counted from its first start, resumes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Completed epochs.
    pub epochs: u64,
    /// Completed batches.
    pub batches: u64,
    /// Packed rows trained on.
    pub samples: u64,
    /// Tokens trained on that were not padding.
    pub tokens: u64,
    /// Wall-clock seconds of training.
    pub seconds: u64,
}

/// The units as they are written; none ends with another.
const UNITS: [&str; 7] = ["iter", "sec", "tok", "dur", "ep", "ba", "sp"];

impl FromStr for Time {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let expected = |expected: &str| TimeError { found: text.to_owned(), expected: expected.to_owned() };
        let lower = text.trim().to_ascii_lowercase();
        if let Some(seconds) = clock_seconds(&lower) {
            return Ok(Self::Seconds(seconds));
        }
        let (number, unit) =
            UNITS.iter().find_map(|unit| Some((lower.strip_suffix(unit)?, *unit))).ok_or_else(|| {
                expected("a number with a unit: 1ep, 10ba, 100sp, 1_000_000tok, 0.5dur, 90sec or 1h30m")
            })?;
        let number = Decimal::parse(number.trim_end())
            .ok_or_else(|| expected(&format!("a number of at least 0 before `{unit}`, such as 1{unit}")))?;
        if unit == "dur" {
            return Fraction::new(number)
                .map(Self::Fraction)
                .ok_or_else(|| expected("a fraction of the run with at most 19 decimals, such as 0.5dur"));
        }
        let whole = number.whole().ok_or_else(|| {
            expected(&format!(
                "a whole number before `{unit}`, at most {}; fractions go with `dur`",
                u64::MAX
            ))
        })?;
        match unit {
            "ep" => Ok(Self::Epochs(whole)),
            "ba" => Ok(Self::Batches(whole)),
            "sp" => Ok(Self::Samples(whole)),
            "tok" => Ok(Self::Tokens(whole)),
            "sec" => Ok(Self::Seconds(whole)),
            _ => Err(expected("epochs (ep) or batches (ba): `iter` has no meaning of its own here")),
        }
    }
}

impl Time {
    /// Whether nothing is counted.
    fn is_zero(self) -> bool {
        match self {
            Self::Fraction(fraction) => fraction.is_zero(),
            Self::Epochs(count)
            | Self::Batches(count)
            | Self::Samples(count)
            | Self::Tokens(count)
            | Self::Seconds(count) => count == 0,
        }
    }
}

/// Seconds in a clock form: hours, minutes, seconds in this order, each at most once (`1h30m`, `45m`, `90s`).
fn clock_seconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut seconds = 0_u64;
    for (letter, length) in [('h', 3600), ('m', 60), ('s', 1)] {
        let Some((count, after)) = rest.split_once(letter) else { continue };
        let count: u64 = count.parse().ok()?;
        seconds = seconds.checked_add(count.checked_mul(length)?)?;
        rest = after;
    }
    (rest.is_empty() && !text.is_empty()).then_some(seconds)
}

impl fmt::Display for Time {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epochs(count) => write!(out, "{count}ep"),
            Self::Batches(count) => write!(out, "{count}ba"),
            Self::Samples(count) => write!(out, "{count}sp"),
            Self::Tokens(count) => write!(out, "{count}tok"),
            Self::Fraction(fraction) => write!(out, "{fraction}dur"),
            Self::Seconds(count) => write!(out, "{count}sec"),
        }
    }
}
