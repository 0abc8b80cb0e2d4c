//! What the lanes of a warp, or the warps of a block, do together.

use super::form::Form;
use super::operands::Operands;
use super::{
    AtomicKind, Barrier, BarrierReduction, GroupLeft, GroupMultiply, MatrixElement, Multiply, Operation,
    Shuffle, ShuffleKind, Vote,
};
use crate::EmulatorError;
use crate::machine::registers::{Source, Target};
use crate::ptx::{Space, Type};

pub(super) fn decode(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    match form.base {
        "bar" | "barrier" => barrier(form, operands),
        "shfl" => shuffle(form, operands),
        "vote" => vote(form, operands),
        "match" => match_lanes(form, operands),
        "redux" => reduce(form, operands),
        "activemask" => Ok(Some(Operation::ActiveMask(operands.target(0)?))),
        "elect" => Ok(None),
        "ldmatrix" => load_matrix(form, operands),
        "mma" => multiply(form, operands),
        "wgmma" => multiply_group(form, operands),
        "trap" => Ok(Some(Operation::Trap)),
        "brkpt" => Ok(Some(Operation::Nothing)),
        _ => Ok(None),
    }
}

fn barrier(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    if form.take("warp") {
        let synchronises = form.take("sync");
        let members = operands.source(0, Type::B32)?;
        return Ok(synchronises.then_some(Operation::WarpBarrier { members }));
    }
    form.ignore(&["cta", "aligned"]);
    let waits = form.take("sync");
    let arrives = !waits && form.take("arrive");
    let reduces = !waits && !arrives && form.take("red");
    if !waits && !arrives && !reduces {
        return Ok(None);
    }
    if !reduces {
        let number = operands.source(0, Type::U32)?;
        let count = if operands.count() > 1 { Some(operands.source(1, Type::U32)?) } else { None };
        return Ok(Some(Operation::Barrier(Barrier { number, count, waits, reduction: None })));
    }
    let kind = form.take_one(&[
        ("popc", BarrierReduction::Count),
        ("and", BarrierReduction::And),
        ("or", BarrierReduction::Or),
    ]);
    let Some(kind) = kind else { return Ok(None) };
    let last = operands.count().saturating_sub(1);
    let count = if last > 2 { Some(operands.source(2, Type::U32)?) } else { None };
    let reduction = (kind, operands.target(0)?, operands.source(last, Type::Pred)?);
    let number = operands.source(1, Type::U32)?;
    Ok(Some(Operation::Barrier(Barrier { number, count, waits: true, reduction: Some(reduction) })))
}

fn shuffle(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    let kind = form.take_one(&[
        ("up", ShuffleKind::Up),
        ("down", ShuffleKind::Down),
        ("bfly", ShuffleKind::Butterfly),
        ("idx", ShuffleKind::Index),
    ]);
    let Some(kind) = kind.filter(|_| form.take("sync")) else { return Ok(None) };
    let [value, lane, clamp, members] = operands.sources(1, Type::B32)?;
    Ok(Some(Operation::Shuffle(Shuffle {
        kind,
        target: operands.target(0)?,
        in_range: operands.second_target(0)?,
        value,
        lane,
        clamp,
        members,
    })))
}

fn vote(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    let kind = form.take_one(&[
        ("all", Vote::All),
        ("any", Vote::Any),
        ("uni", Vote::Uniform),
        ("ballot", Vote::Ballot),
    ]);
    let Some(kind) = kind.filter(|_| form.take("sync")) else { return Ok(None) };
    let (predicate, members) = (operands.source(1, Type::Pred)?, operands.source(2, Type::B32)?);
    Ok(Some(Operation::Vote { kind, target: operands.target(0)?, predicate, members }))
}

fn match_lanes(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    let all = form.take("all");
    let Some(kind @ (Type::B32 | Type::B64)) = form.single() else { return Ok(None) };
    if !all && !form.take("any") || !form.take("sync") {
        return Ok(None);
    }
    Ok(Some(Operation::Match {
        all,
        wide: kind == Type::B64,
        target: operands.target(0)?,
        predicate: operands.second_target(0)?,
        value: operands.source(1, kind)?,
        members: operands.source(2, Type::B32)?,
    }))
}

fn reduce(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    let Some(kind @ (Type::B32 | Type::U32 | Type::S32)) = form.single() else { return Ok(None) };
    let operation = form.take_one(&[
        ("add", AtomicKind::Add),
        ("min", AtomicKind::Min),
        ("max", AtomicKind::Max),
        ("and", AtomicKind::And),
        ("or", AtomicKind::Or),
        ("xor", AtomicKind::Xor),
    ]);
    let Some(operation) = operation.filter(|_| form.take("sync")) else { return Ok(None) };
    let [value, members] = operands.sources(1, kind)?;
    let target = operands.target(0)?;
    Ok(Some(Operation::Reduce { kind: operation, signed: kind.is_signed(), target, value, members }))
}

fn load_matrix(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    form.ignore(&["aligned"]);
    let count = form.take_one(&[("x1", 1), ("x2", 2), ("x4", 4)]);
    let transposed = form.take("trans");
    let shared = form.take("shared") || form.take("shared::cta");
    let known = form.take("sync") && form.take("m8n8") && form.single() == Some(Type::B16);
    let targets = operands.target_vector(0)?;
    if !known || count != Some(targets.len()) {
        return Ok(None);
    }
    let space = if shared { Space::Shared } else { Space::Generic };
    Ok(Some(Operation::LoadMatrix { address: operands.address(1, space)?, targets, transposed }))
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`, and k8, f16 and tf32.
fn multiply(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    form.ignore(&["aligned"]);
    let shape = form.take_one(&[("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16)]);
    let known = form.take("sync") && form.take("row") && form.take("col");
    let (Some(depth), true) = (shape, known) else { return Ok(None) };
    let element = match form.types() {
        [Type::F32, Type::Bf16, Type::Bf16, Type::F32] if depth >= 8 => MatrixElement::Bf16,
        [Type::F32, Type::F16, Type::F16, Type::F32] if depth >= 8 => MatrixElement::F16,
        [Type::F32, Type::Tf32, Type::Tf32, Type::F32] if depth <= 8 => MatrixElement::Tf32,
        _ => return Ok(None),
    };
    let targets: Vec<Target> = operands.target_vector(0)?;
    let [a, b, c]: [Vec<Source>; 3] =
        [operands.vector(1, Type::B32)?, operands.vector(2, Type::B32)?, operands.vector(3, Type::F32)?];
    // Registers a lane gives of A (16 × k) and B (k × 8), two 16-bit numbers or one of 32 bits each.
    let a_words = if element == MatrixElement::Tf32 { depth / 2 } else { depth / 4 };
    if targets.len() != 4 || c.len() != 4 || a.len() != a_words || b.len() != a_words / 2 {
        return Ok(None);
    }
    Ok(Some(Operation::Multiply(Multiply { element, depth, targets, a, b, c })))
}

/// `wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16` and other widths, with the left operand in registers or described,
/// and what orders it, which is nothing to do here.
fn multiply_group(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    form.ignore(&["sync", "aligned"]);
    if form.take("fence") || form.take("commit_group") || form.take("wait_group") {
        return Ok(Some(Operation::Nothing));
    }
    let columns = (8..=256).step_by(8).find(|columns| form.take(&format!("m64n{columns}k16")));
    let known = form.take("mma_async") && form.types() == [Type::F32, Type::Bf16, Type::Bf16];
    let (Some(columns), true) = (columns, known) else { return Ok(None) };
    let targets = operands.target_vector(0)?;
    let left = operands.vector(1, Type::B64)?;
    // Whether it adds, signs of the operands, whether the first one, where it is described, and the second are transposed.
    let (constants, described) = match left.len() {
        1 => (
            [operands.constant(4)?, operands.constant(5)?, operands.constant(6)?, operands.constant(7)?],
            true,
        ),
        _ => ([operands.constant(4)?, operands.constant(5)?, 0, operands.constant(6)?], false),
    };
    let [1, 1, 0, right_is_by_rows] = constants else { return Ok(None) };
    if targets.len() != columns / 2 || !matches!(left.len(), 1 | 4) {
        return Ok(None);
    }
    let left = if described { GroupLeft::Shared(left[0]) } else { GroupLeft::Registers(left) };
    Ok(Some(Operation::GroupMultiply(GroupMultiply {
        targets,
        sums: operands.vector(0, Type::F32)?,
        left,
        right: operands.source(2, Type::B64)?,
        right_is_by_rows: right_is_by_rows == 1,
        adds: operands.source(3, Type::Pred)?,
    })))
}
