//! Loads, stores, atomics, asynchronous copies, and addresses between state spaces.

use super::compute::map1;
use super::form::Form;
use super::operands::Operands;
use super::{Access, Atomic, AtomicElement, AtomicKind, CopyWait, LoadTarget, Operation};
use crate::EmulatorError;
use crate::machine::memory::window;
use crate::machine::registers::{Source, Target};
use crate::ptx::{Operand, Space, Type};

/// What only tells the hardware how to cache, or how other threads may see an access: memory here is in order.
const HINTS: &[&str] = &[
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "weak",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "gl",
    "sc",
    "noftz",
    "cache_hint",
];

const SPACES: [(&str, Space); 8] = [
    ("global", Space::Global),
    ("const", Space::Const),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("local", Space::Local),
    ("param", Space::Param),
    ("param::entry", Space::Param),
    ("param::func", Space::Param),
];

pub(super) fn decode(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    match form.base {
        "ld" | "ldu" => load(form, operands),
        "st" => store(form, operands),
        "atom" | "red" => atomic(form, operands),
        "cp" => copy(form, operands),
        "cvta" => convert_address(form, operands),
        "isspacep" => is_space(form, operands),
        "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "discard" | "applypriority"
        | "createpolicy" => {
            while form.take_one(&SPACES).is_some() {}
            form.ignore(HINTS);
            form.ignore(&["L1", "L2", "proxy", "async", "fractional"]);
            form.ignore_prefix("L2::");
            Ok(Some(Operation::Nothing))
        }
        _ => Ok(None),
    }
}

fn take_space(form: &mut Form) -> Space {
    let space = form.take_one(&SPACES).unwrap_or(Space::Generic);
    form.ignore(HINTS);
    form.ignore_prefix("L1::");
    form.ignore_prefix("L2::");
    space
}

fn take_vector(form: &mut Form) -> usize {
    form.take_one(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1)
}

fn load(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    let (space, count) = (take_space(form), take_vector(form));
    let places = operands.target_vector(0)?;
    if places.len() != count || !matches!(kind.size(), 1..=8) {
        return Ok(None);
    }
    let wide: Vec<bool> = match operands.operand(0)? {
        Operand::Vector(list) => list.iter().map(|operand| operands.is_wide(operand)).collect(),
        single => vec![operands.is_wide(single)],
    };
    let targets = places.into_iter().zip(wide).map(|(target, wide)| LoadTarget { target, wide }).collect();
    let access = Access {
        address: operands.address(1, space)?,
        width: kind.size() as usize,
        signed: kind.is_signed(),
    };
    Ok(Some(Operation::Load { access, targets }))
}

fn store(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    let (space, count) = (take_space(form), take_vector(form));
    let values = operands.vector(1, kind)?;
    if values.len() != count || !matches!(kind.size(), 1..=8) {
        return Ok(None);
    }
    let access = Access { address: operands.address(0, space)?, width: kind.size() as usize, signed: false };
    Ok(Some(Operation::Store { access, values }))
}

const ATOMICS: [(&str, AtomicKind); 10] = [
    ("add", AtomicKind::Add),
    ("min", AtomicKind::Min),
    ("max", AtomicKind::Max),
    ("and", AtomicKind::And),
    ("or", AtomicKind::Or),
    ("xor", AtomicKind::Xor),
    ("exch", AtomicKind::Exchange),
    ("cas", AtomicKind::CompareExchange),
    ("inc", AtomicKind::Increment),
    ("dec", AtomicKind::Decrement),
];

fn atomic(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    let space = take_space(form);
    let Some(operation) = form.take_one(&ATOMICS) else { return Ok(None) };
    let element = match kind {
        Type::B16 if operation == AtomicKind::CompareExchange => AtomicElement::Bits16,
        Type::U32 | Type::B32 => AtomicElement::Unsigned32,
        Type::S32 => AtomicElement::Signed32,
        Type::U64 | Type::B64 => AtomicElement::Unsigned64,
        Type::S64 => AtomicElement::Signed64,
        Type::F32 if operation == AtomicKind::Add => AtomicElement::F32,
        Type::F64 if operation == AtomicKind::Add => AtomicElement::F64,
        Type::F16 if operation == AtomicKind::Add => AtomicElement::F16,
        Type::Bf16 if operation == AtomicKind::Add => AtomicElement::Bf16,
        Type::F16x2 if operation == AtomicKind::Add => AtomicElement::F16x2,
        Type::Bf16x2 if operation == AtomicKind::Add => AtomicElement::Bf16x2,
        _ => return Ok(None),
    };
    // `red` returns nothing: its operands begin where `atom`'s address is.
    let first = usize::from(form.base == "atom");
    let target = if first == 1 { operands.target(0)? } else { Target::Nowhere };
    let swaps = operation == AtomicKind::CompareExchange;
    let swap = if swaps { operands.source(first + 2, kind)? } else { Source::Constant(0) };
    Ok(Some(Operation::Atomic(Atomic {
        address: operands.address(first, space)?,
        kind: operation,
        element,
        target,
        value: operands.source(first + 1, kind)?,
        swap,
    })))
}

/// `cp.async.cg.shared.global [d], [s], 16{, source bytes}`, and its groups.
fn copy(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    if !form.take("async") {
        return Ok(None);
    }
    if form.take("commit_group") {
        return Ok(Some(Operation::CopyCommit));
    }
    if form.take("wait_group") {
        return Ok(Some(Operation::CopyWait(CopyWait::Groups(operands.constant(0)?))));
    }
    if form.take("wait_all") {
        return Ok(Some(Operation::CopyWait(CopyWait::All)));
    }
    let to_shared = form.take("shared") || form.take("shared::cta");
    if !to_shared || !form.take("global") {
        return Ok(None);
    }
    let bypasses = form.take("cg");
    if !bypasses && !form.take("ca") {
        return Ok(None);
    }
    form.ignore_prefix("L2::");
    let bytes = operands.constant(2)?;
    if !matches!((bytes, bypasses), (16, _) | (4 | 8, false)) {
        return Ok(None);
    }
    let source_bytes = if operands.count() > 3 { Some(operands.source(3, Type::U32)?) } else { None };
    Ok(Some(Operation::CopyAsync {
        shared: operands.address(0, Space::Shared)?,
        global: operands.address(1, Space::Global)?,
        bytes: bytes as usize,
        source_bytes,
    }))
}

/// `cvta.shared` to a generic address, `cvta.to.shared` from one.
fn convert_address(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    let from_generic = form.take("to");
    let Some(space) = form.take_one(&SPACES) else { return Ok(None) };
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::U64)?);
    let start = window(space);
    Ok((form.single() == Some(Type::U64)).then(|| {
        Operation::Compute(map1(target, sources, move |address: u64| {
            if from_generic { address.wrapping_sub(start) } else { address.wrapping_add(start) }
        }))
    }))
}

fn is_space(form: &mut Form, operands: &mut Operands) -> Result<Option<Operation>, EmulatorError> {
    let Some(space) = form.take_one(&SPACES) else { return Ok(None) };
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::U64)?);
    Ok(Some(Operation::Compute(map1(target, sources, move |address: u64| {
        crate::machine::memory::space_of(address) == if space == Space::Const { Space::Global } else { space }
    }))))
}
