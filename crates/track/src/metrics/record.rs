//! What goes into one line of `metrics.jsonl`.

use std::borrow::Cow;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::names;

/// A metric's value in the width it was computed in, so that it is written with as many digits as tell it from
/// its neighbours in that width and no more.
///
/// NaN and the infinities are written as `null`: JSON has no number for them, and text in their place would make
/// a column's type depend on its values. So `null` says "computed, and not a finite number"; what was not
/// computed is left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Number {
    /// A count.
    Whole(u64),
    /// A value in single precision.
    Single(f32),
    /// A value in double precision.
    Double(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f32> for Number {
    fn from(value: f32) -> Self {
        Self::Single(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Double(value)
    }
}

/// One line of `metrics.jsonl`, under construction.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    batch: u64,
    entries: Vec<(Cow<'static, str>, Number)>,
}

impl Record {
    /// The line of training batch `batch`, counted from 0, with its loss. Each batch has exactly one.
    pub fn training(batch: u64, loss: impl Into<Number>) -> Self {
        Self::at(batch).with(names::LOSS, loss)
    }

    /// A line of something measured when `batch` batches were done, as an evaluation.
    pub fn at(batch: u64) -> Self {
        let entries = vec![(Cow::Borrowed(names::BATCH), Number::Whole(batch))];
        Self { batch, entries }
    }

    /// Adds a value; a name that is there already gets the new value.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Number>) -> Self {
        let (name, value) = (name.into(), value.into());
        match self.entries.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((name, value)),
        }
        self
    }

    /// The batch it belongs to.
    pub fn batch(&self) -> u64 {
        self.batch
    }

    /// Whether this is the one line of a training batch.
    pub fn is_training(&self) -> bool {
        self.entries.iter().any(|(name, _)| name == names::LOSS)
    }

    /// The names and values, in the order in which they are written.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Number)> {
        self.entries.iter().map(|(name, value)| (name.as_ref(), *value))
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for (name, value) in &self.entries {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_are_written_in_the_shortest_form_of_their_width() {
        let record = Record::training(3, 0.1_f32)
            .with("a", 0.1_f64)
            .with("b", 0.1_f32 as f64)
            .with("c", 1e-5_f64)
            .with("d", f64::NAN)
            .with("e", f32::INFINITY)
            .with("f", u64::MAX)
            .with("a", 16_777_216_f32);
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(
            line,
            r#"{"time/batch":3,"loss/train/total":0.1,"a":16777216.0,"b":0.10000000149011612,"c":0.00001,"d":null,"e":null,"f":18446744073709551615}"#
        );
    }

    #[test]
    fn every_bit_of_a_number_comes_back() {
        for bits in [0x3dcc_cccd_u32, 0x0000_0001, 0x7f7f_ffff, 0x3f80_0001, 0xc2f6_e979] {
            let value = f32::from_bits(bits);
            let text = serde_json::to_string(&Number::Single(value)).unwrap();
            assert_eq!(text.parse::<f32>().unwrap().to_bits(), bits, "{text}");
        }
    }
}
