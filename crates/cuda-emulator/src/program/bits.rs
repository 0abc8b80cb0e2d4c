//! Moves, selections, logic, shifts and bit fields: what does not look at its operands as numbers.

use super::Compute;
use super::compute::{map1, map2, map3, per_integer, per_width};
use super::form::Form;
use super::operands::Operands;
use crate::EmulatorError;
use crate::machine::registers::{LANES, Source, Target};
use crate::ptx::{Operand, Type};

pub(super) fn decode(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    match form.base {
        "mov" => mov(form, operands),
        "and" | "or" | "xor" | "not" | "cnot" => logic(form, operands),
        "shl" | "shr" => shift(form, operands),
        "selp" => select(form, operands),
        "popc" | "clz" | "brev" | "bfind" => count(form, operands),
        "bfe" | "bfi" => field(form, operands),
        "shf" => funnel(form, operands),
        "prmt" => permute(form, operands),
        "lop3" => logic3(form, operands),
        _ => Ok(None),
    }
}

/// `mov`, with packing and unpacking by `{a, b}`.
fn mov(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    if matches!(operands.operand(0)?, Operand::Vector(_)) {
        return unpack(operands, kind);
    }
    if matches!(operands.operand(1)?, Operand::Vector(_)) {
        return pack(operands, kind);
    }
    let (target, sources) = (operands.target(0)?, operands.sources(1, kind)?);
    if kind == Type::Pred {
        return Ok(Some(map1(target, sources, |a: bool| a)));
    }
    Ok(per_width!(kind, T => map1(target, sources, |a: T| a)))
}

fn pack(operands: &mut Operands, kind: Type) -> Result<Option<Compute>, EmulatorError> {
    let target = operands.target(0)?;
    let parts = operands.vector(1, kind)?;
    Ok(match (kind.size(), &parts[..]) {
        (4, &[low, high]) => {
            Some(map2(target, [low, high], |low: u16, high: u16| u32::from(low) | u32::from(high) << 16))
        }
        (8, &[low, high]) => {
            Some(map2(target, [low, high], |low: u32, high: u32| u64::from(low) | u64::from(high) << 32))
        }
        (8, &[first, second, third, fourth]) => Some(Box::new(move |registers, mask| {
            let parts = [first, second, third, fourth].map(|part| registers.read::<u16>(part));
            let packed: [u64; LANES] = std::array::from_fn(|lane| {
                parts.iter().rev().fold(0, |packed, part| packed << 16 | u64::from(part[lane]))
            });
            registers.write(target, mask, &packed);
        })),
        _ => None,
    })
}

fn unpack(operands: &mut Operands, kind: Type) -> Result<Option<Compute>, EmulatorError> {
    let targets = operands.target_vector(0)?;
    let source = operands.source(1, kind)?;
    let count = targets.len() as u64;
    let compute: Compute = match (kind.size(), count) {
        (4, 2) | (8, 4) => Box::new(move |registers, mask| {
            let packed: [u64; LANES] = if count == 4 {
                registers.read(source)
            } else {
                registers.read::<u32>(source).map(u64::from)
            };
            for (at, target) in targets.iter().enumerate() {
                registers.write(*target, mask, &packed.map(|value| (value >> (16 * at)) as u16));
            }
        }),
        (8, 2) => Box::new(move |registers, mask| {
            let packed = registers.read::<u64>(source);
            for (at, target) in targets.iter().enumerate() {
                registers.write(*target, mask, &packed.map(|value| (value >> (32 * at)) as u32));
            }
        }),
        _ => return Ok(None),
    };
    Ok(Some(compute))
}

fn logic(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    let target = operands.target(0)?;
    if matches!(form.base, "not" | "cnot") {
        let sources = operands.sources(1, kind)?;
        return Ok(match (form.base, kind) {
            ("not", Type::Pred) => Some(map1(target, sources, |a: bool| !a)),
            ("not", _) => per_width!(kind, T => map1(target, sources, |a: T| !a)),
            _ => per_width!(kind, T => map1(target, sources, |a: T| T::from(a == 0))),
        });
    }
    let sources = operands.sources(1, kind)?;
    Ok(match (form.base, kind) {
        ("and", Type::Pred) => Some(map2(target, sources, |a: bool, b: bool| a & b)),
        ("or", Type::Pred) => Some(map2(target, sources, |a: bool, b: bool| a | b)),
        ("xor", Type::Pred) => Some(map2(target, sources, |a: bool, b: bool| a ^ b)),
        ("and", _) => per_width!(kind, T => map2(target, sources, |a: T, b: T| a & b)),
        ("or", _) => per_width!(kind, T => map2(target, sources, |a: T, b: T| a | b)),
        _ => per_width!(kind, T => map2(target, sources, |a: T, b: T| a ^ b)),
    })
}

/// A shift by the width or more gives 0, or the sign.
fn shift(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    let sources = [operands.source(1, kind)?, operands.source(2, Type::U32)?];
    let target = operands.target(0)?;
    if form.base == "shl" {
        return Ok(
            per_width!(kind, T => map2(target, sources, |a: T, by: u32| if by < T::BITS { a << by } else { 0 })),
        );
    }
    if kind.is_signed() {
        return Ok(per_integer!(kind, T => map2(target, sources, |a: T, by: u32| a >> by.min(T::BITS - 1))));
    }
    Ok(per_width!(kind, T => map2(target, sources, |a: T, by: u32| if by < T::BITS { a >> by } else { 0 })))
}

fn select(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    let [a, b] = operands.sources(1, kind)?;
    let sources = [a, b, operands.source(3, Type::Pred)?];
    let target = operands.target(0)?;
    Ok(per_width!(kind, T => map3(target, sources, |a: T, b: T, first: bool| if first { a } else { b })))
}

fn count(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    let (target, sources) = (operands.target(0)?, operands.sources(1, kind)?);
    Ok(match form.base {
        "popc" => per_width!(kind, T => map1(target, sources, |a: T| a.count_ones())),
        "clz" => per_width!(kind, T => map1(target, sources, |a: T| a.leading_zeros())),
        "brev" => per_width!(kind, T => map1(target, sources, |a: T| a.reverse_bits())),
        // The highest bit that differs from the sign; all ones where there is none.
        _ => {
            let (shift, signed) = (form.take("shiftamt"), kind.is_signed());
            per_width!(kind, T => map1(target, sources, move |a: T| {
                let magnitude = if signed && a.leading_ones() > 0 { !a } else { a };
                match (magnitude, shift) {
                    (0, _) => u32::MAX,
                    (_, true) => magnitude.leading_zeros(),
                    (_, false) => T::BITS - 1 - magnitude.leading_zeros(),
                }
            }))
        }
    })
}

/// `bfe` and `bfi`: position and length are taken modulo 256, and a field may reach past the end.
fn field(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    let (bits, signed) = (kind.size() as u32 * 8, kind.is_signed());
    let target = operands.target(0)?;
    if form.base == "bfe" {
        let sources =
            [operands.source(1, kind)?, operands.source(2, Type::U32)?, operands.source(3, Type::U32)?];
        let extract = move |value: u64, position: u32, length: u32| {
            let (position, length) = (position & 0xff, length & 0xff);
            let unused = 64 - bits;
            let extended =
                if signed { ((value << unused) as i64 >> unused) as i128 } else { i128::from(value) };
            let shifted = extended >> position.min(127);
            let sign_bit = (position + length).saturating_sub(1).min(bits - 1);
            let negative = signed && length > 0 && value >> sign_bit & 1 == 1;
            let mask = (1_u128 << length.min(64)) - 1;
            (shifted as u128 & mask | if negative { !mask } else { 0 }) as u64
        };
        return Ok(match bits {
            32 => Some(map3(target, sources, move |a: u32, position, length| {
                extract(u64::from(a), position, length) as u32
            })),
            64 => Some(map3(target, sources, extract)),
            _ => None,
        });
    }
    let [a, b] = operands.sources(1, kind)?;
    let (position, length) = (operands.source(3, Type::U32)?, operands.source(4, Type::U32)?);
    Ok(match bits {
        32 => Some(insert::<u32>(target, [a, b], [position, length], |a, b, position, length| {
            insert_bits(u64::from(a), u64::from(b), position, length) as u32
        })),
        64 => Some(insert::<u64>(target, [a, b], [position, length], insert_bits)),
        _ => None,
    })
}

/// b with `length` bits from `position` replaced by the low bits of a.
fn insert_bits(a: u64, b: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let mask = ((1_u128 << length.min(64)) - 1).checked_shl(position).unwrap_or(0) as u64;
    let shifted = u128::from(a).checked_shl(position).unwrap_or(0) as u64;
    b & !mask | shifted & mask
}

fn insert<T: crate::machine::registers::Scalar>(
    target: Target,
    [a, b]: [Source; 2],
    [position, length]: [Source; 2],
    function: impl Fn(T, T, u32, u32) -> T + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, mask| {
        let (a, b) = (registers.read::<T>(a), registers.read::<T>(b));
        let (position, length) = (registers.read::<u32>(position), registers.read::<u32>(length));
        let result = std::array::from_fn(|lane| function(a[lane], b[lane], position[lane], length[lane]));
        registers.write(target, mask, &result);
    })
}

/// `shf`: 32 bits out of the 64 of b:a.
fn funnel(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let left = form.take("l");
    if !left && !form.take("r") {
        return Ok(None);
    }
    let wraps = form.take("wrap");
    if !wraps && !form.take("clamp") {
        return Ok(None);
    }
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::B32)?);
    Ok(Some(map3(target, sources, move |a: u32, b: u32, by: u32| {
        let by = if wraps { by & 31 } else { by.min(32) };
        let pair = u64::from(b) << 32 | u64::from(a);
        (if left { pair >> (32 - by) } else { pair >> by }) as u32
    })))
}

#[derive(Clone, Copy)]
enum PermuteMode {
    Forward4,
    Backward4,
    Replicate8,
    EdgeLeft,
    EdgeRight,
    Replicate16,
}

/// `prmt`: picks four of the eight bytes of b:a; bit 3 of a selector replicates the byte's sign.
fn permute(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let mode = form.take_one(&[
        ("f4e", PermuteMode::Forward4),
        ("b4e", PermuteMode::Backward4),
        ("rc8", PermuteMode::Replicate8),
        ("ecl", PermuteMode::EdgeLeft),
        ("ecr", PermuteMode::EdgeRight),
        ("rc16", PermuteMode::Replicate16),
    ]);
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::B32)?);
    Ok(Some(map3(target, sources, move |a: u32, b: u32, selector: u32| {
        let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
        let base = selector & 3;
        let result: [u8; 4] = std::array::from_fn(|at| {
            let at = at as u32;
            let index = match mode {
                None => selector >> (4 * at) & 7,
                Some(PermuteMode::Forward4) => base + at,
                Some(PermuteMode::Backward4) => base.wrapping_sub(at) & 7,
                Some(PermuteMode::Replicate8) => base,
                Some(PermuteMode::EdgeLeft) => base.max(at),
                Some(PermuteMode::EdgeRight) => base.min(at),
                Some(PermuteMode::Replicate16) => (selector & 1) * 2 + (at & 1),
            };
            let byte = bytes[index as usize];
            let replicates_sign = mode.is_none() && selector >> (4 * at + 3) & 1 == 1;
            if replicates_sign { ((byte as i8) >> 7) as u8 } else { byte }
        });
        u32::from_le_bytes(result)
    })))
}

/// `lop3`: any function of three bits, given by its truth table.
fn logic3(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    if form.single() != Some(Type::B32) || operands.count() != 5 {
        return Ok(None);
    }
    let table = operands.constant(4)?;
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::B32)?);
    Ok(Some(map3(target, sources, move |a: u32, b: u32, c: u32| {
        (0..8).filter(|row| table >> row & 1 == 1).fold(0, |result, row: u32| {
            let pick = |value: u32, bit: u32| if row >> bit & 1 == 1 { value } else { !value };
            result | pick(a, 2) & pick(b, 1) & pick(c, 0)
        })
    })))
}
