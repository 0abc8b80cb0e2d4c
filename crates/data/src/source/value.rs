//! What a row holds. Most of a data set's bytes are texts: they stay where they were read, if they stand there as they are, and of
//! numbers nothing is kept, since no task has a use for them.
//!
//! JSON in which an object names a key twice is refused: a parser that keeps the last of equal keys loses, without a word, a text
//! that its author may not have meant.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Keys of an object that are looked through one by one.
const FEW: usize = 16;

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value<'row> {
    Null,
    Boolean,
    Number,
    Text(Cow<'row, str>),
    List(Vec<Self>),
    Object(Fields<'row>),
}

/// Values by their names, in the order in which they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields<'row>(Vec<(Cow<'row, str>, Value<'row>)>);

impl<'row> Fields<'row> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Adds a value whose name is not there yet.
    pub(crate) fn push(&mut self, name: Cow<'row, str>, value: Value<'row>) {
        debug_assert!(!self.contains_key(&name), "two values of `{name}`");
        self.0.push((name, value));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Value<'row>> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Value<'row>> {
        self.0.iter_mut().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Value<'row>> {
        let place = self.0.iter().position(|(own, _)| own == name)?;
        Some(self.0.remove(place).1)
    }

    /// The names for a message: `` `prompt`, `response` ``.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| format!("`{name}`")).collect()
    }
}

impl Value<'_> {
    /// The same, with texts of its own.
    pub(crate) fn into_owned(self) -> Value<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        match self {
            Self::Null => Value::Null,
            Self::Boolean => Value::Boolean,
            Self::Number => Value::Number,
            Self::Text(text) => Value::Text(owned(text)),
            Self::List(values) => Value::List(values.into_iter().map(Self::into_owned).collect()),
            Self::Object(Fields(fields)) => {
                let fields = fields.into_iter().map(|(name, value)| (owned(name), value.into_owned()));
                Value::Object(Fields(fields.collect()))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'de>, E> {
        Ok(Value::Boolean)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value<'de>, E> {
        Ok(Value::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value<'de>, E> {
        Ok(Value::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::Number)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Value<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(member) = members.next_element()? {
            list.push(member);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value<'de>, A::Error> {
        let (mut object, mut many) = (Fields::default(), HashSet::new());
        while let Some(Name(name)) = entries.next_key()? {
            if object.len() == FEW {
                many.extend(object.0.iter().map(|(name, _)| name.clone()));
            }
            let again = match object.len() < FEW {
                true => object.contains_key(&name),
                false => !many.insert(name.clone()),
            };
            if again {
                return Err(A::Error::custom(format_args!("the key `{name}` is there twice in one object")));
            }
            object.push(name, entries.next_value()?);
        }
        Ok(Value::Object(object))
    }
}

/// A key of an object.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor).map(Self)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_without_escapes_are_not_copied() {
        let Value::Object(mut row) = serde_json::from_str(r#"{"plain": "a", "escaped": "\n"}"#).unwrap()
        else {
            panic!("no object")
        };
        assert!(matches!(row.remove("plain"), Some(Value::Text(Cow::Borrowed("a")))));
        assert!(matches!(row.remove("escaped"), Some(Value::Text(Cow::Owned(text))) if text == "\n"));
    }

    #[test]
    fn a_key_that_comes_again_is_found_among_few_and_many() {
        for count in [1, FEW - 1, FEW, FEW + 1, 3 * FEW] {
            let keys: Vec<_> = (0..count).map(|number| format!(r#""k{number}": 0"#)).collect();
            let object = format!("{{{}}}", keys.join(", "));
            assert!(serde_json::from_str::<Value<'_>>(&object).is_ok(), "{object}");
            for again in [0, count - 1] {
                let object = format!(r#"{{{}, "k{again}": 0}}"#, keys.join(", "));
                let error = serde_json::from_str::<Value<'_>>(&object).unwrap_err().to_string();
                assert!(error.starts_with(&format!("the key `k{again}` is there twice")), "{error}");
            }
        }
    }
}
