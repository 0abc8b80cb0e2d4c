//! YAML as a tree in which every value knows where it was written.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    DuplicateKeyPolicy, MessageFormatter, NonFiniteFloatPolicy, Spanned, UserMessageFormatter,
};

use super::error::{Origin, SpecError};

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

/// A YAML value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Boolean(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a map with its value. A key that is given twice makes two entries, which the reader reports.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) origin: Origin,
    pub(super) key: String,
    pub(super) node: Node,
}

/// The tree of a run file.
pub(super) fn parse_file(text: &str, path: &Path) -> Result<Node, SpecError> {
    parse(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        SpecError::Syntax { place: Origin::Line(line).place(path), message: message_of(&error) }
    })
}

/// The tree of an argument's value, every node of it written in that argument.
pub(super) fn parse_argument(text: &str, argument: &str) -> Result<Node, SpecError> {
    let origin = Origin::Argument(argument.to_owned());
    let mut node = parse(text).map_err(|error| SpecError::Syntax {
        place: format!("argument `{argument}`"),
        message: format!("{}; put the value in quotes if it is plain text", message_of(&error)),
    })?;
    node.place_at(&origin);
    Ok(node)
}

fn parse(text: &str) -> Result<Node, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        // Both entries reach the reader, whose message names both lines.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `no` and `on` are text here: a folder may be called so.
        strict_booleans: true,
        // The reader refuses them with the key and what is expected.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    // A text without any value (comments only) is what YAML calls null.
    let root: Option<Spanned<Value>> = serde_saphyr::from_str_with_options(text, options)?;
    Ok(root.map_or(Node { origin: Origin::Line(1), value: Value::Null }, Node::from))
}

/// The parser's message without its position, which the caller puts in front.
fn message_of(error: &serde_saphyr::Error) -> String {
    UserMessageFormatter.format_message(error.without_snippet()).into_owned()
}

impl Node {
    /// Says that this value and everything in it was written at `origin`.
    fn place_at(&mut self, origin: &Origin) {
        self.origin = origin.clone();
        match &mut self.value {
            Value::List(nodes) => nodes.iter_mut().for_each(|node| node.place_at(origin)),
            Value::Map(entries) => {
                for entry in entries {
                    entry.origin = origin.clone();
                    entry.node.place_at(origin);
                }
            }
            _ => {}
        }
    }

    /// The value as messages show it.
    pub(super) fn shown(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Boolean(value) => format!("`{value}`"),
            Value::Integer(value) => format!("`{value}`"),
            Value::Float(value) => format!("`{value:?}`"),
            Value::Text(text) => format!("the text `{}`", shortened(text)),
            Value::List(nodes) => format!("a list of {}", nodes.len()),
            Value::Map(_) => "a map".to_owned(),
        }
    }
}

/// The beginning of a text, as much as a line of a message bears.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { origin: Origin::Line(spanned.referenced.line()), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = access.next_element::<Spanned<Value>>()? {
            nodes.push(node.into());
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = access.next_entry::<Spanned<String>, Spanned<Value>>()? {
            let origin = Origin::Line(key.referenced.line());
            entries.push(Entry { origin, key: key.value, node: node.into() });
        }
        Ok(Value::Map(entries))
    }
}
