//! A kernel decoded for execution: names resolved, calls expanded, each instruction bound to what it does.
//!
//! Arithmetic becomes a closure over its operands' places; what touches memory, other lanes or the flow of control
//! becomes a variant of [`Operation`], which [`machine`](crate::machine) executes. Device functions are expanded
//! where they are called: PTX from nvcc calls only what it could not inline, and no call stack is then needed.

mod bits;
mod carry;
mod compare;
mod compute;
mod convert;
mod decoder;
mod float;
mod form;
mod halves;
mod integer;
mod memory;
mod operands;
mod scope;
mod warp;

use crate::machine::registers::{Mask, Registers, Source, Target};
use crate::ptx::Space;

pub(crate) use decoder::decode;
pub(crate) use scope::Symbols;

/// A kernel that can be launched.
pub struct Program {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) parameter_bytes: usize,
    pub(crate) instructions: Vec<Instruction>,
    /// The opcodes as written; [`Instruction::opcode`] indexes them.
    pub(crate) opcodes: Vec<String>,
    pub(crate) specials: Vec<(Special, u32)>,
    pub(crate) rows: u32,
    pub(crate) predicates: u32,
    /// `.shared` arrays of a fixed size, in bytes; dynamic shared memory begins behind them.
    pub(crate) static_shared: u64,
    pub(crate) dynamic_alignment: u64,
    /// Bytes of each thread's `.local` memory.
    pub(crate) local_bytes: usize,
}

/// A kernel's parameter: its place among the parameter bytes.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub name: String,
    pub offset: usize,
    pub size: usize,
}

/// Registers that the hardware fills; a warp's are written once, before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    /// `%tid`, by axis.
    Thread(usize),
    BlockSize(usize),
    Block(usize),
    GridSize(usize),
    Lane,
    Warp,
    WarpCount,
    /// `%lanemask_eq`, `lt`, `le`, `gt`, `ge`.
    LanesEqual,
    LanesLess,
    LanesLessEqual,
    LanesGreater,
    LanesGreaterEqual,
    DynamicShared,
    TotalShared,
    /// Where dynamic shared memory begins.
    DynamicStart,
    Zero,
    One,
}

pub(crate) struct Instruction {
    pub guard: Option<(u32, bool)>,
    pub operation: Operation,
    pub opcode: u32,
    pub line: u32,
    /// Floating-point operations of one lane.
    pub flops: u32,
}

/// Arithmetic on the lanes of a mask.
pub(crate) type Compute = Box<dyn Fn(&mut Registers, Mask) + Send + Sync>;

pub(crate) enum Operation {
    Compute(Compute),
    Branch(usize),
    /// `brx.idx`: a lane's index picks its target.
    BranchTable {
        index: Source,
        targets: Vec<usize>,
    },
    Exit,
    Load {
        access: Access,
        targets: Vec<LoadTarget>,
    },
    Store {
        access: Access,
        values: Vec<Source>,
    },
    Atomic(Atomic),
    CopyAsync {
        shared: Address,
        global: Address,
        bytes: usize,
        source_bytes: Option<Source>,
    },
    CopyCommit,
    /// Waits until at most this many committed groups are in flight; `All` counts what was not committed too.
    CopyWait(CopyWait),
    Barrier(Barrier),
    Shuffle(Shuffle),
    Vote {
        kind: Vote,
        target: Target,
        predicate: Source,
        members: Source,
    },
    Match {
        all: bool,
        wide: bool,
        target: Target,
        predicate: Target,
        value: Source,
        members: Source,
    },
    Reduce {
        kind: AtomicKind,
        signed: bool,
        target: Target,
        value: Source,
        members: Source,
    },
    ActiveMask(Target),
    WarpBarrier {
        members: Source,
    },
    LoadMatrix {
        address: Address,
        targets: Vec<Target>,
        transposed: bool,
    },
    Multiply(Multiply),
    GroupMultiply(GroupMultiply),
    /// `__assertfail`: message, file, line, function.
    AssertFail {
        arguments: [CallArgument; 4],
    },
    /// `vprintf`: format and the buffer of arguments.
    Print {
        format: CallArgument,
        arguments: CallArgument,
        target: Option<usize>,
    },
    Trap,
    /// Fences, prefetches, sleeps: nothing to do where memory is in order.
    Nothing,
}

/// An address as an instruction writes it: a base and an offset, in a space.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub space: Space,
    pub base: Source,
    /// Whether the base is a 64-bit register.
    pub wide: bool,
    pub offset: i64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub address: Address,
    /// Bytes of one element: 1, 2, 4 or 8.
    pub width: usize,
    pub signed: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct LoadTarget {
    pub target: Target,
    /// Whether the register has 64 bits; a narrower value is extended.
    pub wide: bool,
}

pub(crate) struct Atomic {
    pub address: Address,
    pub kind: AtomicKind,
    pub element: AtomicElement,
    pub target: Target,
    pub value: Source,
    /// What `cas` stores if it found `value`.
    pub swap: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicKind {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
    Increment,
    Decrement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicElement {
    Bits16,
    Unsigned32,
    Signed32,
    Unsigned64,
    Signed64,
    F32,
    F64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum CopyWait {
    Groups(u64),
    All,
}

pub(crate) struct Barrier {
    pub number: Source,
    /// Threads that take part; all of the block's where it is absent.
    pub count: Option<Source>,
    /// `bar.arrive` does not wait.
    pub waits: bool,
    pub reduction: Option<(BarrierReduction, Target, Source)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierReduction {
    Count,
    And,
    Or,
}

pub(crate) struct Shuffle {
    pub kind: ShuffleKind,
    pub target: Target,
    pub in_range: Target,
    pub value: Source,
    pub lane: Source,
    pub clamp: Source,
    pub members: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShuffleKind {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// `mma.sync.m16n8k*` with f32 accumulators.
pub(crate) struct Multiply {
    pub element: MatrixElement,
    pub depth: usize,
    pub targets: Vec<Target>,
    pub a: Vec<Source>,
    pub b: Vec<Source>,
    pub c: Vec<Source>,
}

/// `wgmma.mma_async.m64n*k16` in bf16 with f32 accumulators.
pub(crate) struct GroupMultiply {
    /// The sums, which are read where it adds.
    pub targets: Vec<Target>,
    pub sums: Vec<Source>,
    pub left: GroupLeft,
    /// The descriptor of the right operand.
    pub right: Source,
    /// Whether the inner dimension is that operand's rows, not what its rows run along.
    pub right_is_by_rows: bool,
    pub adds: Source,
}

/// Where the left operand of a [`GroupMultiply`] is.
pub(crate) enum GroupLeft {
    Registers(Vec<Source>),
    /// Its descriptor.
    Shared(Source),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatrixElement {
    Bf16,
    F16,
    Tf32,
}

/// Where a call's argument lies in the thread's local memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallArgument {
    pub offset: usize,
    pub size: usize,
}

#[cfg(test)]
mod tests;
