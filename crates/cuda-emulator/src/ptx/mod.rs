//! PTX as written: what the parser found, with names and opcodes still text.
//!
//! Parsed and decoded are different things. Nothing here is checked against an instruction's definition: that is
//! [`program`](crate::program)'s work, done for one kernel when it is asked for, so that a module may hold kernels
//! which the emulator cannot run.

mod declaration;
mod lexer;
mod parser;

use std::collections::BTreeMap;

/// A parsed module: its functions by name and the variables declared outside them.
#[derive(Debug, Default)]
pub struct Module {
    pub(crate) functions: BTreeMap<String, Function>,
    pub(crate) variables: Vec<Variable>,
}

/// An `.entry` or a `.func`; `body` is absent for one that is declared only.
#[derive(Debug)]
pub(crate) struct Function {
    pub name: String,
    pub is_entry: bool,
    pub results: Vec<Variable>,
    pub parameters: Vec<Variable>,
    pub body: Option<Vec<Statement>>,
}

#[derive(Debug)]
pub(crate) enum Statement {
    OpenScope,
    CloseScope,
    /// `.reg .b32 %r<9>, x;`: a range has a count, a name of its own has none.
    Registers {
        kind: Type,
        names: Vec<(String, Option<u32>)>,
    },
    Variable(Variable),
    Label(String),
    /// `name: .branchtargets a, b;`, the table of a `brx.idx`.
    BranchTargets {
        name: String,
        labels: Vec<String>,
    },
    Instruction(Instruction),
}

/// A declared name with its place: a kernel's parameter, a global, a shared array, a stack frame.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub name: String,
    pub space: Space,
    pub alignment: u64,
    /// In bytes; 0 for `extern .shared raw[]`, whose size the launch gives.
    pub size: u64,
    pub initial: Vec<Initial>,
    pub line: u32,
}

/// One element of an initialiser.
#[derive(Debug, Clone)]
pub(crate) enum Initial {
    Bytes(Vec<u8>),
    /// The 8-byte address of another variable.
    Address {
        symbol: String,
        offset: i64,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    pub guard: Option<Guard>,
    /// As written: `setp.lt.s32`.
    pub opcode: String,
    pub operands: Vec<Operand>,
    pub line: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub predicate: String,
    pub negated: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Name(String),
    /// Two's complement; a 32-bit use takes the low half.
    Integer(u64),
    /// `0f3F800000`.
    Float32(u32),
    /// `0d3FF0000000000000`, and a decimal fraction.
    Float64(u64),
    Address {
        base: Box<Operand>,
        offset: i64,
    },
    Vector(Vec<Operand>),
    /// `%p1|%p2`.
    Pair(Box<Operand>, Box<Operand>),
    /// `!%p1`.
    Not(String),
    /// A call's list in parentheses.
    List(Vec<Operand>),
    /// `_`.
    Sink,
}

/// A state space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
    Generic,
}

/// The types of PTX that occur; an instruction's meaning depends on them, a register only on their width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Type {
    /// The type of a name without its dot: `s32`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "b128" => Self::B128,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    /// Bytes in memory; a predicate has none.
    pub fn size(self) -> u64 {
        match self {
            Self::Pred => 0,
            Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 2,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 | Self::Tf32 | Self::F16x2 | Self::Bf16x2 => 4,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 8,
            Self::B128 => 16,
        }
    }

    pub fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }
}

#[cfg(test)]
mod tests;
