//! How values of a column are written, as far as text can be made of them.

use std::borrow::Cow;

use serde_json::Number;

use crate::source::value::Value;

/// An encoding that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// UTF-8: `str`, and `bytes` that are.
    Text,
    Json,
    /// The digits of a number.
    Digits,
    Int8,
    Int16,
    Int32,
    Int64,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Float32,
    Float64,
}

impl Encoding {
    /// The encoding of this name, if it is one that is read.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "str" | "bytes" => Self::Text,
            "json" => Self::Json,
            "str_int" | "str_float" | "str_decimal" => Self::Digits,
            "int" | "int64" => Self::Int64,
            "int8" => Self::Int8,
            "int16" => Self::Int16,
            "int32" => Self::Int32,
            "uint8" => Self::Uint8,
            "uint16" => Self::Uint16,
            "uint32" => Self::Uint32,
            "uint64" => Self::Uint64,
            "float32" => Self::Float32,
            "float64" => Self::Float64,
            _ => return None,
        })
    }

    /// The value in `bytes`. `Err` says what is wrong with it.
    pub(super) fn value(self, bytes: &[u8]) -> Result<Value<'static>, String> {
        match self {
            Self::Text => return Ok(Value::Text(Cow::Owned(text(bytes)?.to_owned()))),
            Self::Json => {
                let value: Value<'_> =
                    serde_json::from_str(text(bytes)?).map_err(|error| format!("broken JSON: {error}"))?;
                return Ok(value.into_owned());
            }
            Self::Digits => {
                let digits = text(bytes)?;
                digits.parse::<Number>().map_err(|_| format!("{digits:?} is no number"))?;
            }
            Self::Int8 | Self::Uint8 => exact::<1>(bytes).map(|_| ())?,
            Self::Int16 | Self::Uint16 => exact::<2>(bytes).map(|_| ())?,
            Self::Int32 | Self::Uint32 => exact::<4>(bytes).map(|_| ())?,
            Self::Int64 | Self::Uint64 => exact::<8>(bytes).map(|_| ())?,
            Self::Float32 => finite(f32::from_le_bytes(exact(bytes)?).into())?,
            Self::Float64 => finite(f64::from_le_bytes(exact(bytes)?))?,
        }
        Ok(Value::Number)
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "bytes that are not UTF-8".to_owned())
}

fn exact<const SIZE: usize>(bytes: &[u8]) -> Result<[u8; SIZE], String> {
    bytes.try_into().map_err(|_| format!("{} bytes in place of {SIZE}", bytes.len()))
}

fn finite(value: f64) -> Result<(), String> {
    if value.is_finite() { Ok(()) } else { Err(format!("{value} is no number of JSON")) }
}
