//! The reading half: the stack machine and its limits.
//!
//! Nodes live in an arena while the program runs, because it fills lists and dicts after it has put them into
//! others.

use std::collections::HashMap;

use super::opcode as op;
use super::{Global, Made, Value};

/// Deeper nesting is refused: checkpoints nest less than 20 levels, and recursion must not exhaust the stack.
pub(super) const MAX_DEPTH: usize = 100;

/// A pickle was not accepted.
#[derive(Debug, thiserror::Error)]
#[error("the pickle is refused at byte {position}: {fault}")]
pub struct PickleError {
    /// Where in the pickle.
    pub position: usize,
    /// Why.
    pub fault: PickleFault,
}

/// Why a pickle was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PickleFault {
    /// A name outside the list; nothing was run.
    #[error(
        "it asks for {module}.{name}, which is not among the types that a checkpoint may hold (nothing of it was run)"
    )]
    Forbidden {
        /// The module.
        module: String,
        /// The name in it.
        name: String,
    },
    /// The input ends too early.
    #[error("it ends in the middle")]
    Truncated,
    /// An opcode that checkpoints do not use.
    #[error("the opcode {0:#04x} does not occur in checkpoints")]
    Opcode(u8),
    /// The stack or memo does not hold what an opcode takes.
    #[error("expected {0}")]
    Expected(&'static str),
    /// Nested too deeply.
    #[error("it nests deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// A container that contains itself.
    #[error("a list, tuple, dict or instance contains itself")]
    Cycle,
    /// The tree would be much larger than its pickle.
    #[error("it expands to far more than its length")]
    TooLarge,
}

/// Reads a whole pickle of protocol 2 to 5.
///
/// # Errors
/// See [`PickleFault`]. Work and memory are proportional to the length of `bytes`.
pub fn read(bytes: &[u8]) -> Result<Value, PickleError> {
    let mut machine = Machine::new(bytes);
    let value = machine.run().and_then(|root| machine.tree(root, 0));
    value.map(|(value, _)| value).map_err(|fault| PickleError { position: machine.position, fault })
}

pub(super) type NodeId = usize;

/// A value being built.
pub(super) enum Node {
    Leaf(Value),
    List(Vec<NodeId>),
    Tuple(Vec<NodeId>),
    Dict {
        ordered: bool,
        entries: Vec<(NodeId, NodeId)>,
    },
    Object {
        global: Global,
        made: Made,
        arguments: NodeId,
        state: Option<NodeId>,
    },
    /// Its part of the tree is being made: met now, it contains itself.
    Open,
}

/// The stack machine.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    pub(super) nodes: Vec<Node>,
    pub(super) stack: Vec<NodeId>,
    marks: Vec<usize>,
    memo: HashMap<u32, NodeId>,
    /// Finished parts of the tree, with their heights.
    pub(super) finished: HashMap<NodeId, (Value, usize)>,
    /// How many elements calls may still copy: a shared argument must not be copied once per mention.
    pub(super) copies_left: usize,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            position: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            finished: HashMap::new(),
            copies_left: bytes.len().saturating_mul(4),
        }
    }

    /// Runs the program to its end and returns what it leaves.
    fn run(&mut self) -> Result<NodeId, PickleFault> {
        loop {
            let opcode = self.take(1)?[0];
            match opcode {
                op::PROTO => {
                    let version = self.take(1)?[0];
                    if !(2..=5).contains(&version) {
                        return Err(PickleFault::Expected("protocol 2, 3, 4 or 5"));
                    }
                }
                op::FRAME => drop(self.take(8)?),
                op::STOP => return self.pop(),
                op::MARK => self.marks.push(self.stack.len()),
                op::POP => drop(self.pop()?),
                op::POP_MARK => drop(self.pop_mark()?),
                op::DUP => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                op::BINPUT | op::LONG_BINPUT | op::MEMOIZE | op::BINGET | op::LONG_BINGET => {
                    self.memory(opcode)?
                }
                op::EMPTY_LIST
                | op::EMPTY_DICT
                | op::EMPTY_TUPLE
                | op::TUPLE
                | op::TUPLE1
                | op::TUPLE2
                | op::TUPLE3
                | op::APPEND
                | op::APPENDS
                | op::SETITEM
                | op::SETITEMS => self.container(opcode)?,
                op::GLOBAL
                | op::STACK_GLOBAL
                | op::INST
                | op::REDUCE
                | op::NEWOBJ
                | op::BUILD
                | op::BINPERSID => {
                    self.instance(opcode)?;
                }
                _ => {
                    let value = self.scalar(opcode)?;
                    self.push(Node::Leaf(value));
                }
            }
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], PickleFault> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let taken = rest.get(..length).ok_or(PickleFault::Truncated)?;
        self.position += length;
        Ok(taken)
    }

    /// A little-endian number of `width` bytes, at most eight.
    fn number(&mut self, width: usize) -> Result<u64, PickleFault> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// Bytes preceded by their length in `width` bytes.
    fn counted(&mut self, width: usize) -> Result<&'a [u8], PickleFault> {
        let length = self.number(width)?;
        self.take(usize::try_from(length).map_err(|_| PickleFault::Truncated)?)
    }

    fn text(&mut self, width: usize) -> Result<Value, PickleFault> {
        let bytes = self.counted(width)?;
        std::str::from_utf8(bytes).map(Value::from).map_err(|_| PickleFault::Expected("UTF-8 text"))
    }

    pub(super) fn line(&mut self) -> Result<&'a str, PickleFault> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(PickleFault::Truncated)?;
        let line = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| PickleFault::Expected("a name in UTF-8"))
    }

    pub(super) fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    pub(super) fn pop(&mut self) -> Result<NodeId, PickleFault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(PickleFault::Expected("a value on the stack"));
        }
        self.stack.pop().ok_or(PickleFault::Expected("a value on the stack"))
    }

    fn pop_mark(&mut self) -> Result<Vec<NodeId>, PickleFault> {
        let mark = self.marks.pop().ok_or(PickleFault::Expected("a mark on the stack"))?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn top(&self) -> Result<NodeId, PickleFault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&top) if self.stack.len() > floor => Ok(top),
            _ => Err(PickleFault::Expected("a value on the stack")),
        }
    }

    fn memory(&mut self, opcode: u8) -> Result<(), PickleFault> {
        let key = match opcode {
            op::MEMOIZE => u64::try_from(self.memo.len()).unwrap_or(u64::MAX),
            op::BINPUT | op::BINGET => self.number(1)?,
            _ => self.number(4)?,
        };
        let key = u32::try_from(key).map_err(|_| PickleFault::TooLarge)?;
        if matches!(opcode, op::BINGET | op::LONG_BINGET) {
            let node = *self.memo.get(&key).ok_or(PickleFault::Expected("a memo entry of that number"))?;
            self.stack.push(node);
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    fn scalar(&mut self, opcode: u8) -> Result<Value, PickleFault> {
        Ok(match opcode {
            op::NONE => Value::None,
            op::NEWTRUE => Value::Bool(true),
            op::NEWFALSE => Value::Bool(false),
            op::BININT1 => Value::from(self.number(1)?),
            op::BININT2 => Value::from(self.number(2)?),
            // Four bytes, two's complement.
            op::BININT => Value::from(i64::from(self.number(4)? as u32 as i32)),
            op::LONG1 => Value::Int(long(self.counted(1)?)?),
            op::BINFLOAT => Value::Float(f64::from_bits(self.number(8)?.swap_bytes())),
            op::SHORT_BINUNICODE => self.text(1)?,
            op::BINUNICODE => self.text(4)?,
            op::BINUNICODE8 => self.text(8)?,
            op::SHORT_BINBYTES | op::SHORT_BINSTRING => Value::Bytes(self.counted(1)?.into()),
            op::BINBYTES | op::BINSTRING => Value::Bytes(self.counted(4)?.into()),
            op::BINBYTES8 => Value::Bytes(self.counted(8)?.into()),
            _ => return Err(PickleFault::Opcode(opcode)),
        })
    }

    fn container(&mut self, opcode: u8) -> Result<(), PickleFault> {
        match opcode {
            op::EMPTY_LIST => self.push(Node::List(Vec::new())),
            op::EMPTY_DICT => self.push(Node::Dict { ordered: false, entries: Vec::new() }),
            op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            op::TUPLE => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let mut items = Vec::new();
                for _ in op::TUPLE1..=opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Node::Tuple(items));
            }
            op::APPEND => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            op::APPENDS => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            _ => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
        }
        Ok(())
    }

    fn append(&mut self, items: &[NodeId]) -> Result<(), PickleFault> {
        let top = self.top()?;
        match self.nodes.get_mut(top) {
            Some(Node::List(list)) => list.extend_from_slice(items),
            _ => return Err(PickleFault::Expected("a list to append to")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[NodeId]) -> Result<(), PickleFault> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.nodes.get_mut(top) {
            Some(Node::Dict { entries, .. }) if rest.is_empty() => {
                entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            _ => return Err(PickleFault::Expected("a dict and pairs to set in it")),
        }
        Ok(())
    }
}

/// Little-endian two's complement of any length up to 16 bytes.
fn long(bytes: &[u8]) -> Result<i128, PickleFault> {
    let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 16];
    wide.get_mut(..bytes.len())
        .ok_or(PickleFault::Expected("an int of at most 128 bits"))?
        .copy_from_slice(bytes);
    Ok(i128::from_le_bytes(wide))
}
