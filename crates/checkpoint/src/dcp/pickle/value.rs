//! What a pickle holds, as a tree. Parts are shared, not copied, where the pickle shares them.

use std::sync::Arc;

use super::Global;
use crate::dcp::element::ElementType;

/// One Python value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`
    None,
    /// `bool`
    Bool(bool),
    /// `int`, of at most 128 bits
    Int(i128),
    /// `float`
    Float(f64),
    /// `str`
    Str(Arc<str>),
    /// `bytes`
    Bytes(Arc<[u8]>),
    /// `list`
    List(Arc<[Value]>),
    /// `tuple`, and `torch.Size`
    Tuple(Arc<[Value]>),
    /// `dict`
    Dict(Arc<[(Value, Value)]>),
    /// `collections.OrderedDict`
    OrderedDict(Arc<[(Value, Value)]>),
    /// `datetime.timedelta`
    TimeDelta(TimeDelta),
    /// A class or function itself
    Global(Global),
    /// A storage that lies beside the pickle
    Storage(Arc<StorageReference>),
    /// A tensor whose elements lie beside the pickle
    Tensor(Arc<TensorReference>),
    /// An instance of any other listed class
    Object(Arc<Object>),
}

/// `datetime.timedelta` in its normal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeDelta {
    /// Whole days; negative for a negative span.
    pub days: i32,
    /// Seconds, `0..86_400`.
    pub seconds: i32,
    /// Microseconds, `0..1_000_000`.
    pub microseconds: i32,
}

/// The persistent id by which a pickle refers to a record `data/<key>` of its archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageReference {
    /// The record's name under `data/`.
    pub key: Arc<str>,
    /// The type of its elements.
    pub dtype: ElementType,
    /// How many there are.
    pub elements: usize,
}

/// The arguments of `torch._utils._rebuild_tensor_v2`, as far as they say where the elements are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorReference {
    /// Where the elements lie.
    pub storage: Arc<StorageReference>,
    /// The first one, in elements.
    pub offset: usize,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// Distances, in elements.
    pub strides: Vec<usize>,
}

/// An instance of a listed class: what its constructor was to be called with, and the state set afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// The class or factory.
    pub global: Global,
    /// How the pickle makes it.
    pub made: Made,
    /// Its arguments.
    pub arguments: Value,
    /// The state given to `__setstate__` or `__dict__`.
    pub state: Option<Value>,
}

/// The two ways in which a pickle makes an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// `global(*arguments)`
    Called,
    /// `global.__new__(global, *arguments)`: without `__init__`, as classes whose state follows are made
    New,
}

impl Value {
    /// A `dict` with `str` keys.
    pub fn dict<'a>(entries: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (Self::from(key), value)).collect())
    }

    /// A `list`.
    pub fn list(items: impl IntoIterator<Item = Self>) -> Self {
        Self::List(items.into_iter().collect())
    }

    /// A `tuple`.
    pub fn tuple(items: impl IntoIterator<Item = Self>) -> Self {
        Self::Tuple(items.into_iter().collect())
    }

    /// The text of a `str`.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is an `int`.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The number, if it is an `int` that can count things.
    pub fn as_usize(&self) -> Option<usize> {
        self.as_int().and_then(|number| usize::try_from(number).ok())
    }

    /// The number, if it is a `float`.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The items of a `list` or `tuple`.
    pub fn as_items(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The entries of a `dict` or `OrderedDict`, in order.
    pub fn as_entries(&self) -> Option<&[(Self, Self)]> {
        match self {
            Self::Dict(entries) | Self::OrderedDict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value under a `str` key of a `dict` or `OrderedDict`. As in Python, the last of equal keys counts.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_entries()?.iter().rev().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// The kind of value, for error messages.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::None => "None".into(),
            Self::Bool(_) => "a bool".into(),
            Self::Int(_) => "an int".into(),
            Self::Float(_) => "a float".into(),
            Self::Str(_) => "a str".into(),
            Self::Bytes(_) => "bytes".into(),
            Self::List(_) => "a list".into(),
            Self::Tuple(_) => "a tuple".into(),
            Self::Dict(_) | Self::OrderedDict(_) => "a dict".into(),
            Self::TimeDelta(_) => "a timedelta".into(),
            Self::Global(global) => global.to_string(),
            Self::Storage(_) => "a storage".into(),
            Self::Tensor(tensor) => {
                format!("a {:?} tensor of shape {:?}", tensor.storage.dtype, tensor.shape)
            }
            Self::Object(object) => format!("a {}", object.global),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        // No machine has more than 64 address bits.
        Self::Int(number as i128)
    }
}
