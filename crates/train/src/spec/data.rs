//! Where training and evaluation data are: a path, or several with their shares.

use std::fmt;

use serde::{Serialize, Serializer};
use tessera_data::{Columns, SourceSettings};

use super::reader::{self, MapReader, Read};
use super::tree::{Node, Value};

/// What `train_data_path` or `eval_data_path` names.
#[derive(Debug, Clone, PartialEq)]
pub enum DataPath {
    /// A file, a folder, or a pattern.
    One(String),
    /// Several, mixed by their weights.
    Mix(Vec<MixedSource>),
}

/// A source among others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MixedSource {
    /// A file, a folder, or a pattern.
    pub path: String,
    /// Its share of the examples, relative to the others'.
    pub weight: f64,
    /// What its columns are called, where that is not what `columns` says for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
}

impl DataPath {
    /// What a path may be, for messages.
    pub(super) const EXPECTED: &'static str = "a .jsonl, .json, .csv or .parquet file, a folder of them or of .txt files, a pattern \
                                               such as data/*.jsonl, entity/dataset/split on the hub, dbfs:/Volumes/… on a workspace, or a list of {path: …, weight: …}";

    /// Reads the key `key`.
    pub(super) fn read(map: &mut MapReader<'_>, key: &'static str) -> Option<Self> {
        match map.maps(key, MixedSource::read) {
            Some(sources) => Some(Self::Mix(sources)),
            None => map.optional(key, one).map(Self::One),
        }
    }

    /// The sources, whose columns are called as `columns` says unless they say so themselves.
    pub fn sources(&self, columns: Option<&Columns>) -> Vec<SourceSettings> {
        let for_all = columns.cloned().unwrap_or_default();
        match self {
            Self::One(path) => vec![SourceSettings { columns: for_all, ..path.as_str().into() }],
            Self::Mix(sources) => sources
                .iter()
                .map(|source| SourceSettings {
                    columns: source.columns.clone().unwrap_or_else(|| for_all.clone()),
                    weight: source.weight,
                    ..source.path.as_str().into()
                })
                .collect(),
        }
    }
}

/// A path; an empty list reaches this too.
fn one(node: &Node) -> Read<String> {
    match node.value {
        Value::List(_) => Err("a list of at least one {path: …, weight: …}".to_owned()),
        _ => reader::text(node).map_err(|_| DataPath::EXPECTED.to_owned()),
    }
}

impl MixedSource {
    fn read(map: &mut MapReader<'_>) -> Self {
        let weight = reader::number(|weight| weight > 0.0, "a share above 0, relative to the other sources'");
        Self {
            path: map.required("path", "a file, a folder, or a pattern", reader::text).unwrap_or_default(),
            weight: map.optional("weight", weight).unwrap_or(1.0),
            columns: map.map("columns", read_columns),
        }
    }
}

/// Reads the map `columns`: the task's names with the data's.
pub(super) fn read_columns(map: &mut MapReader<'_>) -> Columns {
    let names = ["messages", "prompt", "response", "completion", "text"];
    let given = names.map(|name| Some((name.to_owned(), map.optional(name, reader::text)?)));
    Columns::new(given.into_iter().flatten().collect())
}

impl fmt::Display for DataPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(path) => formatter.write_str(path),
            Self::Mix(sources) => {
                let paths: Vec<_> = sources.iter().map(|source| source.path.as_str()).collect();
                formatter.write_str(&paths.join(" + "))
            }
        }
    }
}

impl Serialize for DataPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(path) => path.serialize(serializer),
            Self::Mix(sources) => sources.serialize(serializer),
        }
    }
}
