//! Maps of the tree read key by key, with every mistake collected instead of the first one thrown.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use super::error::{Origin, Problem, ProblemKind};
use super::keyword::Keyword;
use super::tree::{Entry, Node, Value};
use crate::time::{Time, TimeError};

/// How alike two keys must be for one to be offered for the other (`strsim`'s normalised measure, 0 to 1).
const ALIKE: f64 = 0.6;

/// A value that was read, or the form that was expected in its place.
pub(super) type Read<T> = Result<T, String>;

/// One map while its keys are being read.
pub(super) struct MapReader<'tree> {
    entries: &'tree [Entry],
    origin: &'tree Origin,
    /// The dotted name of this map and its dot; nothing for the whole file.
    prefix: String,
    asked: Vec<&'static str>,
    /// Whose keys these are, where `name` says so.
    owner: Owner,
    problems: Vec<Problem>,
}

/// Which keys a map may hold depends on its `name` in some.
enum Owner {
    /// The map itself: no name.
    Map,
    /// What this name stands for.
    Named(&'static str),
    /// A name that does not exist: no other key can be judged.
    Unknown,
}

impl<'tree> MapReader<'tree> {
    /// A reader of the file's own map.
    pub(super) fn new(entries: &'tree [Entry], origin: &'tree Origin) -> Self {
        Self::below(entries, origin, String::new())
    }

    fn below(entries: &'tree [Entry], origin: &'tree Origin, prefix: String) -> Self {
        Self { entries, origin, prefix, asked: Vec::new(), owner: Owner::Map, problems: Vec::new() }
    }

    /// The value of `name`, which decides what other keys there are.
    pub(super) fn name<K: Keyword>(&mut self, default: K) -> K {
        let mistakes = self.problems.len();
        let name = self.optional("name", keyword).unwrap_or(default);
        let exists = self.problems.len() == mistakes;
        self.owner = if exists { Owner::Named(name.word()) } else { Owner::Unknown };
        name
    }

    /// The value of a key that may be left out. `null` counts as left out.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Node) -> Read<T>,
    ) -> Option<T> {
        let node = self.node(key)?;
        match read(node) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.unfit(key, node, expected);
                None
            }
        }
    }

    /// The value of a key that must be given.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&Node) -> Read<T>,
    ) -> Option<T> {
        self.demand(key, expected);
        self.optional(key, read)
    }

    /// Reports a key that must be given, if it is not.
    pub(super) fn demand(&mut self, key: &'static str, expected: &str) {
        if self.node(key).is_none() {
            let kind = ProblemKind::Missing { expected: expected.to_owned() };
            let key = format!("{}{key}", self.prefix);
            self.problems.push(Problem { origin: self.origin.clone(), key, kind });
        }
    }

    /// The value of a key that is a map, read by `read`.
    pub(super) fn map<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut MapReader<'_>) -> T,
    ) -> Option<T> {
        let node = self.node(key)?;
        let Value::Map(entries) = &node.value else {
            self.unfit(key, node, "a map of keys and values, such as {name: …}".to_owned());
            return None;
        };
        let prefix = format!("{}{key}.", self.prefix);
        let mut inner = MapReader::below(entries, &node.origin, prefix);
        let value = read(&mut inner);
        self.problems.extend(inner.finish());
        Some(value)
    }

    /// The value of a key that is a list of maps, each read by `read`; `None` if it is anything else or empty.
    pub(super) fn maps<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut MapReader<'_>) -> T,
    ) -> Option<Vec<T>> {
        let node = self.node(key)?;
        let Value::List(nodes) = &node.value else { return None };
        let mut values = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let name = format!("{key}.{index}");
            let Value::Map(entries) = &node.value else {
                self.unfit(&name, node, "a map, such as {path: …, weight: …}".to_owned());
                continue;
            };
            let mut inner = MapReader::below(entries, &node.origin, format!("{}{name}.", self.prefix));
            values.push(read(&mut inner));
            self.problems.extend(inner.finish());
        }
        (!nodes.is_empty()).then_some(values)
    }

    /// Reports that a value, though of the right type, does not fit its neighbours.
    pub(super) fn refuse(&mut self, key: &'static str, expected: String) {
        if let Some(node) = self.node(key) {
            self.unfit(key, node, expected);
        }
    }

    /// Every mistake in this map, once all its keys were asked for: so the rest are unknown.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        let mut earlier_origins = HashMap::new();
        for entry in self.entries {
            let key = format!("{}{}", self.prefix, entry.key);
            let kind = match earlier_origins.insert(entry.key.as_str(), &entry.origin) {
                Some(earlier) => Some(ProblemKind::Repeated { earlier: earlier.clone() }),
                None if self.asked.contains(&entry.key.as_str()) => None,
                None => self.unknown(&entry.key),
            };
            let Some(kind) = kind else { continue };
            self.problems.push(Problem { origin: entry.origin.clone(), key, kind });
        }
        self.problems
    }

    fn node(&mut self, key: &'static str) -> Option<&'tree Node> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (entry.node.value != Value::Null).then_some(&entry.node)
    }

    fn unfit(&mut self, key: &str, node: &Node, expected: String) {
        let kind = ProblemKind::Unfit { found: node.shown(), expected };
        self.problems.push(Problem {
            origin: node.origin.clone(),
            key: format!("{}{key}", self.prefix),
            kind,
        });
    }

    fn unknown(&self, key: &str) -> Option<ProblemKind> {
        let owner = match self.owner {
            Owner::Map => None,
            Owner::Named(name) => Some(name.to_owned()),
            Owner::Unknown => return None,
        };
        let likeness = |known: &str| strsim::normalized_damerau_levenshtein(key, known);
        let nearest = self.asked.iter().max_by(|left, right| likeness(left).total_cmp(&likeness(right)));
        let suggestion = nearest.filter(|known| likeness(known) >= ALIKE);
        Some(ProblemKind::UnknownKey {
            owner,
            suggestion: suggestion.map(|known| format!("{}{known}", self.prefix)),
            known: self.asked.iter().map(|known| (*known).to_owned()).collect(),
        })
    }
}

/// Text that is not empty.
pub(super) fn text(node: &Node) -> Read<String> {
    match &node.value {
        Value::Text(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err("text (in quotes where it looks like a number or true/false)".to_owned()),
    }
}

/// `true` or `false`.
pub(super) fn boolean(node: &Node) -> Read<bool> {
    match node.value {
        Value::Boolean(value) => Ok(value),
        _ => Err("true or false".to_owned()),
    }
}

/// A whole number of at least `minimum` that the type holds.
pub(super) fn whole<T: TryFrom<u64>>(minimum: u64) -> impl Fn(&Node) -> Read<T> {
    move |node| {
        let value = match node.value {
            Value::Integer(value) => u64::try_from(value).ok().filter(|value| *value >= minimum),
            _ => None,
        };
        value
            .and_then(|value| T::try_from(value).ok())
            .ok_or_else(|| format!("a whole number of at least {minimum}, below 2^{}", u64::BITS))
    }
}

/// A whole number above 0.
pub(super) fn count(node: &Node) -> Read<NonZeroUsize> {
    let expected = "a whole number of at least 1";
    whole(1)(node).ok().and_then(NonZeroUsize::new).ok_or_else(|| expected.to_owned())
}

/// A finite number that `fits`, described by `expected`.
pub(super) fn number(fits: impl Fn(f64) -> bool, expected: &'static str) -> impl Fn(&Node) -> Read<f64> {
    move |node| {
        let value = match node.value {
            Value::Float(value) => value,
            Value::Integer(value) => value as f64,
            _ => return Err(expected.to_owned()),
        };
        if value.is_finite() && fits(value) { Ok(value) } else { Err(expected.to_owned()) }
    }
}

/// A list of which every element is read by `read`.
pub(super) fn list<T>(read: impl Fn(&Node) -> Read<T>, each: &'static str) -> impl Fn(&Node) -> Read<Vec<T>> {
    move |node| match &node.value {
        Value::List(nodes) => nodes
            .iter()
            .map(|node| read(node).map_err(|_| format!("a list of {each}, but it holds {}", node.shown())))
            .collect(),
        _ => Err(format!("a list of {each}")),
    }
}

/// One of a setting's words.
pub(super) fn keyword<K: Keyword>(node: &Node) -> Read<K> {
    let Value::Text(text) = &node.value else { return Err(K::words()) };
    K::ALL.iter().copied().find(|value| value.word() == text).ok_or_else(K::words)
}

/// A time in a role of its own; a whole number counts epochs.
pub(super) fn time<T: TryFrom<Time, Error = TimeError>>(expected: &'static str) -> impl Fn(&Node) -> Read<T> {
    move |node| {
        let time = match &node.value {
            Value::Integer(epochs) => {
                u64::try_from(*epochs).map(Time::Epochs).map_err(|_| expected.to_owned())?
            }
            Value::Text(text) => text.parse().map_err(|error: TimeError| error.expected)?,
            _ => return Err(expected.to_owned()),
        };
        T::try_from(time).map_err(|error| error.expected)
    }
}
