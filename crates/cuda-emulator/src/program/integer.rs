//! Integer arithmetic.

use super::Compute;
use super::compute::{map1, map2, map3, per_integer};
use super::form::Form;
use super::operands::Operands;
use crate::EmulatorError;
use crate::ptx::Type;

pub(super) fn decode(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let Some(kind) = form.types().first().copied() else { return Ok(None) };
    if form.base == "dp4a" {
        return dot_product(form, operands);
    }
    let [Type::U16 | Type::S16 | Type::U32 | Type::S32 | Type::U64 | Type::S64] = form.types() else {
        return Ok(None);
    };
    match form.base {
        "add" | "sub" | "div" | "rem" | "min" | "max" => binary(form, operands, kind),
        "neg" | "abs" => unary(form, operands, kind),
        "mul" | "mul24" => multiply(form, operands, kind),
        "mad" | "mad24" | "sad" => multiply_add(form, operands, kind),
        _ => Ok(None),
    }
}

fn unary(form: &mut Form, operands: &mut Operands, kind: Type) -> Result<Option<Compute>, EmulatorError> {
    let (target, sources) = (operands.target(0)?, operands.sources(1, kind)?);
    Ok(match form.base {
        "neg" => per_integer!(kind, T => map1(target, sources, |a: T| (0 as T).wrapping_sub(a))),
        _ => match kind {
            Type::S16 => Some(map1(target, sources, i16::wrapping_abs)),
            Type::S32 => Some(map1(target, sources, i32::wrapping_abs)),
            Type::S64 => Some(map1(target, sources, i64::wrapping_abs)),
            _ => None,
        },
    })
}

fn binary(form: &mut Form, operands: &mut Operands, kind: Type) -> Result<Option<Compute>, EmulatorError> {
    let (target, sources) = (operands.target(0)?, operands.sources(1, kind)?);
    let saturates = matches!(form.base, "add" | "sub") && form.take("sat");
    Ok(match (form.base, saturates) {
        ("add", true) if kind == Type::S32 => Some(map2(target, sources, i32::saturating_add)),
        ("sub", true) if kind == Type::S32 => Some(map2(target, sources, i32::saturating_sub)),
        (_, true) => None,
        ("add", _) => per_integer!(kind, T => map2(target, sources, |a: T, b: T| a.wrapping_add(b))),
        ("sub", _) => per_integer!(kind, T => map2(target, sources, |a: T, b: T| a.wrapping_sub(b))),
        ("min", _) => per_integer!(kind, T => map2(target, sources, |a: T, b: T| a.min(b))),
        ("max", _) => per_integer!(kind, T => map2(target, sources, |a: T, b: T| a.max(b))),
        // Division by zero has no defined value: all ones is what GPUs give. Nothing traps.
        ("div", _) => {
            per_integer!(kind, T => map2(target, sources, |a: T, b: T| if b == 0 { !0 } else { a.wrapping_div(b) }))
        }
        _ => {
            per_integer!(kind, T => map2(target, sources, |a: T, b: T| if b == 0 { !0 } else { a.wrapping_rem(b) }))
        }
    })
}

fn multiply(form: &mut Form, operands: &mut Operands, kind: Type) -> Result<Option<Compute>, EmulatorError> {
    let (target, sources) = (operands.target(0)?, operands.sources(1, kind)?);
    if form.base == "mul24" {
        return Ok(form
            .take("lo")
            .then(|| map2(target, sources, |a: u32, b: u32| low24(a).wrapping_mul(low24(b)))));
    }
    if form.take("lo") {
        return Ok(per_integer!(kind, T => map2(target, sources, |a: T, b: T| a.wrapping_mul(b))));
    }
    if form.take("wide") {
        return Ok(match kind {
            Type::U16 => Some(map2(target, sources, |a: u16, b: u16| u32::from(a) * u32::from(b))),
            Type::S16 => Some(map2(target, sources, |a: i16, b: i16| i32::from(a) * i32::from(b))),
            Type::U32 => Some(map2(target, sources, |a: u32, b: u32| u64::from(a) * u64::from(b))),
            Type::S32 => Some(map2(target, sources, |a: i32, b: i32| i64::from(a) * i64::from(b))),
            _ => None,
        });
    }
    if !form.take("hi") {
        return Ok(None);
    }
    Ok(match kind {
        Type::U16 => {
            Some(map2(target, sources, |a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16))
        }
        Type::S16 => {
            Some(map2(target, sources, |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16))
        }
        Type::U32 => Some(map2(target, sources, high_u32)),
        Type::S32 => Some(map2(target, sources, high_s32)),
        Type::U64 => Some(map2(target, sources, high_u64)),
        Type::S64 => Some(map2(target, sources, high_s64)),
        _ => None,
    })
}

fn high_u32(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

fn high_s32(a: i32, b: i32) -> i32 {
    ((i64::from(a) * i64::from(b)) >> 32) as i32
}

fn high_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

fn high_s64(a: i64, b: i64) -> i64 {
    ((i128::from(a) * i128::from(b)) >> 64) as i64
}

fn low24(value: u32) -> u32 {
    value & 0x00ff_ffff
}

fn multiply_add(
    form: &mut Form,
    operands: &mut Operands,
    kind: Type,
) -> Result<Option<Compute>, EmulatorError> {
    let (target, sources) = (operands.target(0)?, operands.sources(1, kind)?);
    if form.base == "sad" {
        return Ok(
            per_integer!(kind, T => map3(target, sources, |a: T, b: T, c: T| c.wrapping_add(a.max(b).wrapping_sub(a.min(b))))),
        );
    }
    if form.base == "mad24" {
        let compute = |a, b, c: u32| low24(a).wrapping_mul(low24(b)).wrapping_add(c);
        return Ok(form.take("lo").then(|| map3(target, sources, compute)));
    }
    if form.take("lo") {
        return Ok(
            per_integer!(kind, T => map3(target, sources, |a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c))),
        );
    }
    if form.take("wide") {
        return Ok(match kind {
            Type::U16 => Some(map3(target, sources, |a: u16, b: u16, c: u32| {
                (u32::from(a) * u32::from(b)).wrapping_add(c)
            })),
            Type::S16 => Some(map3(target, sources, |a: i16, b: i16, c: i32| {
                (i32::from(a) * i32::from(b)).wrapping_add(c)
            })),
            Type::U32 => Some(map3(target, sources, |a: u32, b: u32, c: u64| {
                (u64::from(a) * u64::from(b)).wrapping_add(c)
            })),
            Type::S32 => Some(map3(target, sources, |a: i32, b: i32, c: i64| {
                (i64::from(a) * i64::from(b)).wrapping_add(c)
            })),
            _ => None,
        });
    }
    if !form.take("hi") {
        return Ok(None);
    }
    Ok(match kind {
        Type::U32 => Some(map3(target, sources, |a, b, c: u32| high_u32(a, b).wrapping_add(c))),
        Type::S32 => Some(map3(target, sources, |a, b, c: i32| high_s32(a, b).wrapping_add(c))),
        Type::U64 => Some(map3(target, sources, |a, b, c: u64| high_u64(a, b).wrapping_add(c))),
        Type::S64 => Some(map3(target, sources, |a, b, c: i64| high_s64(a, b).wrapping_add(c))),
        _ => None,
    })
}

/// `dp4a`: four products of bytes, added to c.
fn dot_product(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let &[a_kind, b_kind] = form.types() else { return Ok(None) };
    let (a_signed, b_signed) = (a_kind.is_signed(), b_kind.is_signed());
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::B32)?);
    let byte = |value: u8, signed: bool| if signed { i32::from(value as i8) } else { i32::from(value) };
    Ok(Some(map3(target, sources, move |a: u32, b: u32, c: u32| {
        let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
        products.fold(c, |sum, (a, b)| sum.wrapping_add((byte(a, a_signed) * byte(b, b_signed)) as u32))
    })))
}
