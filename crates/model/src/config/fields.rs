//! Typed reading of a JSON object's fields, with the key's full name and the value in every message.

use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;

/// The largest size that is believed. Products of a handful of such sizes stay within `u128`, so that a file
/// with absurd sizes is refused by its parameter count instead of overflowing.
pub(super) const LARGEST_SIZE: u64 = 1 << 31;

/// A JSON object being read.
#[derive(Clone, Copy)]
pub(super) struct Fields<'json> {
    path: &'json Path,
    /// The dotted name of this object and its dot; nothing for the whole file.
    prefix: &'static str,
    object: &'json Map<String, Value>,
}

impl<'json> Fields<'json> {
    /// The file's own object.
    pub(super) fn of_file(path: &'json Path, json: &'json Value) -> Result<Self, ConfigError> {
        match json {
            Value::Object(object) => Ok(Self { path, prefix: "", object }),
            other => Err(ConfigError::Unfit {
                path: path.to_owned(),
                key: "the whole file".to_owned(),
                found: shown(other),
                expected: "an object of keys and values, as Hugging Face writes config.json".to_owned(),
            }),
        }
    }

    /// An object within this one. `null` counts as absent. `prefix` is the key with a dot.
    pub(super) fn object(&self, key: &str, prefix: &'static str) -> Result<Option<Self>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Self { object, prefix, path: self.path })),
            Some(other) => Err(self.unfit(key, other, "an object or null")),
        }
    }

    /// The value, unless it is absent or `null`.
    pub(super) fn get(&self, key: &str) -> Option<&'json Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be its value `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// Every key with its value.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'json str, &'json Value)> {
        self.object.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A size: a whole number above 0. How large it may be is the whole config's affair.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.read(key, "a whole number above 0", |value| {
            usize::try_from(value.as_u64()?).ok().filter(|size| *size > 0)
        })
    }

    /// A size that the file must give.
    pub(super) fn required_size(&self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?.ok_or_else(|| self.missing(key, "a whole number above 0"))
    }

    /// A finite number that `fits`, described by `expected`.
    pub(super) fn number(
        &self,
        key: &str,
        expected: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, ConfigError> {
        self.read(key, expected, |value| value.as_f64().filter(|number| number.is_finite() && fits(*number)))
    }

    /// `true` or `false`; `false` where absent.
    pub(super) fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    /// Text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'json str>, ConfigError> {
        self.read(key, "text", Value::as_str)
    }

    /// A value as `read` makes it; an error where that makes nothing of it.
    pub(super) fn read<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'json Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.unfit(key, value, expected)),
        }
    }

    /// The file's path.
    pub(super) fn path(&self) -> &'json Path {
        self.path
    }

    /// The key's full name.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(super) fn missing(&self, key: &str, expected: &str) -> ConfigError {
        ConfigError::Missing {
            path: self.path.to_owned(),
            key: self.name(key),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn unfit(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::Unfit {
            path: self.path.to_owned(),
            key: self.name(key),
            found: shown(found),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn unsupported(&self, key: &str, found: &Value, supported: &str) -> ConfigError {
        ConfigError::Unsupported {
            path: self.path.to_owned(),
            key: self.name(key),
            found: shown(found),
            supported: supported.to_owned(),
        }
    }
}

/// A value as messages show it: short ones whole, long ones by their beginning.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
