//! `cvt`: between integers, between floats, and from one to the other, with their rounding and saturation.

use half::{bf16, f16};

use super::Compute;
use super::compute::{map1, map2};
use super::float::{ROUNDINGS, flush, saturate};
use super::form::Form;
use super::operands::Operands;
use crate::EmulatorError;
use crate::machine::registers::{LANES, Mask, Registers, Source, Target};
use crate::number::{BF16, F16, Half, Rounding, TF32, bf16_from_f32, to_f32};
use crate::ptx::Type;

pub(super) fn decode(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    if form.base != "cvt" {
        return Ok(None);
    }
    let &[to, from] = form.types() else { return Ok(None) };
    let target = operands.target(0)?;
    if matches!(to, Type::Bf16x2 | Type::F16x2) {
        return pack(form, operands, to, from);
    }
    let source = operands.source(1, from)?;
    let modifiers = Modifiers::take(form);
    Ok(match (class(to), class(from)) {
        (Class::Integer, Class::Integer) => {
            Some(integer_to_integer(target, source, to, from, modifiers.saturates))
        }
        (Class::Float, Class::Integer) => Some(integer_to_float(target, source, to, from, modifiers)),
        (Class::Integer, Class::Float) => float_to_integer(target, source, to, from, modifiers),
        (Class::Float, Class::Float) => float_to_float(target, source, to, from, modifiers),
        _ => None,
    })
}

#[derive(Clone, Copy)]
struct Modifiers {
    rounding: Rounding,
    to_integer: Option<Rounding>,
    saturates: bool,
    flushes: bool,
    rectifies: bool,
}

impl Modifiers {
    fn take(form: &mut Form) -> Self {
        let to_integer = form.take_one(&[
            ("rni", Rounding::NearestEven),
            ("rzi", Rounding::Zero),
            ("rmi", Rounding::Down),
            ("rpi", Rounding::Up),
        ]);
        let rounding = form.take_one(&ROUNDINGS);
        let away = form.take("rna").then_some(Rounding::NearestAway);
        Self {
            rounding: rounding.or(away).unwrap_or(Rounding::NearestEven),
            to_integer,
            saturates: form.take("sat"),
            flushes: form.take("ftz"),
            rectifies: form.take("relu"),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Integer,
    Float,
    Other,
}

fn class(kind: Type) -> Class {
    match kind {
        Type::F16 | Type::Bf16 | Type::Tf32 | Type::F32 | Type::F64 => Class::Float,
        Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::S8 | Type::S16 | Type::S32 | Type::S64 => {
            Class::Integer
        }
        _ => Class::Other,
    }
}

/// Integers of any type, extended to 64 bits by their sign.
fn read_integers(registers: &Registers, source: Source, kind: Type) -> [u64; LANES] {
    match kind {
        Type::U8 | Type::B8 => registers.read::<u8>(source).map(u64::from),
        Type::S8 => registers.read::<i8>(source).map(|value| i64::from(value) as u64),
        Type::U16 | Type::B16 => registers.read::<u16>(source).map(u64::from),
        Type::S16 => registers.read::<i16>(source).map(|value| i64::from(value) as u64),
        Type::U32 | Type::B32 => registers.read::<u32>(source).map(u64::from),
        Type::S32 => registers.read::<i32>(source).map(|value| i64::from(value) as u64),
        _ => registers.read::<u64>(source),
    }
}

/// Stores the low bits; what is narrower than 32 bits is extended to them.
fn write_integers(registers: &mut Registers, target: Target, mask: Mask, kind: Type, values: &[u64; LANES]) {
    match kind {
        Type::U8 => registers.write(target, mask, &values.map(|value| value as u8)),
        Type::S8 => registers.write(target, mask, &values.map(|value| value as i8)),
        Type::U16 | Type::S16 => registers.write(target, mask, &values.map(|value| value as u16)),
        Type::U32 | Type::S32 => registers.write(target, mask, &values.map(|value| value as u32)),
        _ => registers.write(target, mask, values),
    }
}

/// The numbers that a type holds.
fn range(kind: Type) -> (i128, i128) {
    let bits = kind.size() * 8;
    if kind.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn exact(value: u64, kind: Type) -> i128 {
    if kind.is_signed() { i128::from(value as i64) } else { i128::from(value) }
}

fn integer_to_integer(target: Target, source: Source, to: Type, from: Type, saturates: bool) -> Compute {
    let (least, most) = range(to);
    Box::new(move |registers, mask| {
        let mut values = read_integers(registers, source, from);
        if saturates {
            values = values.map(|value| exact(value, from).clamp(least, most) as u64);
        }
        write_integers(registers, target, mask, to, &values);
    })
}

fn integer_to_float(target: Target, source: Source, to: Type, from: Type, modifiers: Modifiers) -> Compute {
    let nearest = modifiers.rounding == Rounding::NearestEven;
    match (to, from) {
        (Type::F32, Type::S32) if nearest => map1(target, [source], |value: i32| value as f32),
        (Type::F32, Type::U32) if nearest => map1(target, [source], |value: u32| value as f32),
        _ => Box::new(move |registers, mask| {
            let integers = read_integers(registers, source, from);
            let values =
                integers.map(|value| odd_f64(exact(value, from), to == Type::F64, modifiers.rounding));
            write_floats(registers, target, mask, to, &values, modifiers);
        }),
    }
}

/// An integer as f64: rounded in the direction wanted if that is the result, else to odd for the rounding to come.
fn odd_f64(value: i128, is_result: bool, rounding: Rounding) -> f64 {
    let nearest = value as f64;
    let back = nearest as i128;
    if back == value || is_result && rounding == Rounding::NearestEven {
        return nearest;
    }
    let magnitude_too_large = (back > value) == (value > 0);
    let truncated = if magnitude_too_large { f64::from_bits(nearest.to_bits() - 1) } else { nearest };
    if !is_result {
        return f64::from_bits(truncated.to_bits() | 1);
    }
    let outward = matches!((rounding, value > 0), (Rounding::Up, true) | (Rounding::Down, false));
    if outward { f64::from_bits(truncated.to_bits() + 1) } else { truncated }
}

fn read_floats(registers: &Registers, source: Source, kind: Type, flushes: bool) -> [f64; LANES] {
    match kind {
        Type::F16 => registers.read::<f16>(source).map(|value| f64::from(value.widen())),
        Type::Bf16 => registers.read::<bf16>(source).map(|value| f64::from(value.widen())),
        Type::F64 => registers.read::<f64>(source),
        _ if flushes => registers.read::<f32>(source).map(|value| f64::from(flush(value))),
        _ => registers.read::<f32>(source).map(f64::from),
    }
}

fn write_floats(
    registers: &mut Registers,
    target: Target,
    mask: Mask,
    kind: Type,
    values: &[f64; LANES],
    modifiers: Modifiers,
) {
    let finish = |value: f64| {
        let value = if modifiers.rectifies && value < 0.0 { 0.0 } else { value };
        if modifiers.saturates && !(0.0..=1.0).contains(&value) {
            return if value > 1.0 { 1.0 } else { 0.0 };
        }
        value
    };
    let rounding = modifiers.rounding;
    let nan = |value: f64| if value.is_nan() { f32::from_bits(0x7fff_ffff) } else { value as f32 };
    match kind {
        Type::F16 => {
            let values = values.map(|value| f16::exactly(F16.round(finish(value), rounding)));
            registers.write(target, mask, &values);
        }
        Type::Bf16 => {
            let values = values.map(|value| bf16::exactly(BF16.round(finish(value), rounding)));
            registers.write(target, mask, &values);
        }
        Type::Tf32 => {
            registers.write(target, mask, &values.map(|value| nan(TF32.round(finish(value), rounding))));
        }
        Type::F64 => registers.write(target, mask, &values.map(finish)),
        _ => {
            let flushes = modifiers.flushes;
            let round = |value| to_f32(finish(value), rounding);
            registers.write(
                target,
                mask,
                &values.map(|value| if flushes { flush(round(value)) } else { round(value) }),
            );
        }
    }
}

fn to_integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::NearestEven => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// Out-of-range numbers saturate and NaN is 0, as the hardware does even without `.sat`.
fn float_to_integer(
    target: Target,
    source: Source,
    to: Type,
    from: Type,
    modifiers: Modifiers,
) -> Option<Compute> {
    let rounding = modifiers.to_integer?;
    let (least, most) = range(to);
    Some(Box::new(move |registers, mask| {
        let values = read_floats(registers, source, from, modifiers.flushes);
        let integers = values.map(|value| (to_integral(value, rounding) as i128).clamp(least, most) as u64);
        write_integers(registers, target, mask, to, &integers);
    }))
}

fn float_to_float(
    target: Target,
    source: Source,
    to: Type,
    from: Type,
    modifiers: Modifiers,
) -> Option<Compute> {
    let plain =
        !modifiers.saturates && !modifiers.flushes && !modifiers.rectifies && modifiers.to_integer.is_none();
    if plain && modifiers.rounding == Rounding::NearestEven {
        match (to, from) {
            (Type::Bf16, Type::F32) => return Some(map1(target, [source], bf16_from_f32)),
            (Type::F32, Type::F16) => return Some(map1(target, [source], f16::widen)),
            (Type::F32, Type::Bf16) => return Some(map1(target, [source], bf16::widen)),
            (Type::F64, Type::F32) => return Some(map1(target, [source], |value: f32| f64::from(value))),
            (Type::F32, Type::F32) => return Some(map1(target, [source], |value: f32| value)),
            _ => {}
        }
    }
    if plain && from == to && to == Type::F64 {
        return Some(map1(target, [source], |value: f64| value));
    }
    if modifiers.to_integer.is_none() && to == Type::F32 && from == Type::F32 && modifiers.saturates {
        return Some(map1(target, [source], saturate));
    }
    Some(Box::new(move |registers, mask| {
        let mut values = read_floats(registers, source, from, modifiers.flushes);
        if let Some(rounding) = modifiers.to_integer {
            values = values.map(|value| to_integral(value, rounding));
        }
        write_floats(registers, target, mask, to, &values, modifiers);
    }))
}

/// `cvt.rn.bf16x2.f32 d, a, b`: a goes to the high half.
fn pack(
    form: &mut Form,
    operands: &mut Operands,
    to: Type,
    from: Type,
) -> Result<Option<Compute>, EmulatorError> {
    if from != Type::F32 || operands.count() != 3 {
        return Ok(None);
    }
    let modifiers = Modifiers::take(form);
    let (target, sources) = (operands.target(0)?, operands.sources(1, from)?);
    let rounding = modifiers.rounding;
    let rectify = move |value: f32| if modifiers.rectifies && value < 0.0 { 0.0 } else { value };
    let join = |high: u16, low: u16| u32::from(high) << 16 | u32::from(low);
    Ok(Some(match to {
        Type::Bf16x2 if rounding == Rounding::NearestEven => map2(target, sources, move |a: f32, b: f32| {
            join(bf16_from_f32(rectify(a)).to_bits(), bf16_from_f32(rectify(b)).to_bits())
        }),
        Type::Bf16x2 => map2(target, sources, move |a: f32, b: f32| {
            let narrow = |value| bf16::exactly(BF16.round(f64::from(rectify(value)), rounding)).to_bits();
            join(narrow(a), narrow(b))
        }),
        _ => map2(target, sources, move |a: f32, b: f32| {
            let narrow = |value| f16::exactly(F16.round(f64::from(rectify(value)), rounding)).to_bits();
            join(narrow(a), narrow(b))
        }),
    }))
}
