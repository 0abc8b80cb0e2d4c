//! f32 and f64 arithmetic. The `approx` forms are computed exactly and rounded: a GPU is off by an ulp or two there.

use super::Compute;
use super::compute::{map1, map2, map3};
use super::form::Form;
use super::operands::Operands;
use crate::EmulatorError;
use crate::machine::registers::{Source, Target};
use crate::number::{Rounding, add_to_odd, fma_f32, to_f32};
use crate::ptx::Type;

pub(super) fn decode(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    match (form.single(), form.base) {
        (Some(Type::F32), "testp") => classify(form, operands),
        (Some(Type::F32), "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign") => {
            binary(form, operands)
        }
        (Some(Type::F32), "fma" | "mad") => fused(form, operands),
        (Some(Type::F32), _) => unary(form, operands),
        (Some(Type::F64), "fma" | "mad") => {
            form.take("rn");
            let (target, sources) = (operands.target(0)?, operands.sources(1, Type::F64)?);
            Ok(Some(map3(target, sources, f64::mul_add)))
        }
        (Some(Type::F64), "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign") => {
            binary_f64(form, operands)
        }
        (Some(Type::F64), _) => unary_f64(form, operands),
        _ => Ok(None),
    }
}

pub(super) const ROUNDINGS: [(&str, Rounding); 4] =
    [("rn", Rounding::NearestEven), ("rz", Rounding::Zero), ("rm", Rounding::Down), ("rp", Rounding::Up)];

/// `.ftz` and `.sat`, as most f32 instructions have them.
#[derive(Clone, Copy)]
struct Finish {
    flushes: bool,
    saturates: bool,
}

impl Finish {
    fn take(form: &mut Form) -> Self {
        Self { flushes: form.take("ftz"), saturates: form.take("sat") }
    }

    fn input(self, value: f32) -> f32 {
        if self.flushes { flush(value) } else { value }
    }

    fn output(self, value: f32) -> f32 {
        let value = if self.flushes { flush(value) } else { value };
        if self.saturates { saturate(value) } else { value }
    }

    fn is_plain(self) -> bool {
        !self.flushes && !self.saturates
    }
}

/// Subnormal numbers to zero of the same sign.
pub(super) fn flush(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0_f32.copysign(value) } else { value }
}

/// To [0, 1]; NaN to 0.
pub(super) fn saturate(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// Without modifiers the loop over lanes is a vector instruction: that case is compiled for itself.
fn finished2(
    finish: Finish,
    target: Target,
    sources: [Source; 2],
    function: impl Fn(f32, f32) -> f32 + Copy + Send + Sync + 'static,
) -> Compute {
    if finish.is_plain() {
        return map2(target, sources, function);
    }
    map2(target, sources, move |a, b| finish.output(function(finish.input(a), finish.input(b))))
}

fn finished1(
    finish: Finish,
    target: Target,
    sources: [Source; 1],
    function: impl Fn(f32) -> f32 + Copy + Send + Sync + 'static,
) -> Compute {
    if finish.is_plain() {
        return map1(target, sources, function);
    }
    map1(target, sources, move |a| finish.output(function(finish.input(a))))
}

fn binary(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::F32)?);
    let finish = Finish::take(form);
    let rounding = form.take_one(&ROUNDINGS).unwrap_or(Rounding::NearestEven);
    let nearest = rounding == Rounding::NearestEven;
    let propagates_nan = matches!(form.base, "min" | "max") && form.take("NaN");
    let binary = |function: fn(f32, f32) -> f32| Some(finished2(finish, target, sources, function));
    Ok(match form.base {
        "add" if nearest => Some(finished2(finish, target, sources, |a, b| a + b)),
        "sub" if nearest => Some(finished2(finish, target, sources, |a, b| a - b)),
        "mul" if nearest => Some(finished2(finish, target, sources, |a, b| a * b)),
        "add" => Some(finished2(finish, target, sources, move |a, b| {
            to_f32(add_to_odd(f64::from(a), f64::from(b)), rounding)
        })),
        "sub" => Some(finished2(finish, target, sources, move |a, b| {
            to_f32(add_to_odd(f64::from(a), -f64::from(b)), rounding)
        })),
        "mul" => Some(finished2(finish, target, sources, move |a, b| {
            to_f32(f64::from(a) * f64::from(b), rounding)
        })),
        "div" if nearest => {
            form.take("approx");
            form.take("full");
            Some(finished2(finish, target, sources, |a, b| a / b))
        }
        "min" if propagates_nan => {
            binary(|a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { minimum(a, b) })
        }
        "max" if propagates_nan => {
            binary(|a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { maximum(a, b) })
        }
        "min" => Some(finished2(finish, target, sources, minimum)),
        "max" => Some(finished2(finish, target, sources, maximum)),
        // copysign d, a, b: the sign of a on b.
        "copysign" => binary(|a, b| b.copysign(a)),
        _ => None,
    })
}

/// A NaN yields to a number, and -0 is less than +0.
pub(super) fn minimum(a: f32, b: f32) -> f32 {
    if a < b || b.is_nan() || a == b && a.is_sign_negative() { a } else { b }
}

pub(super) fn maximum(a: f32, b: f32) -> f32 {
    if a > b || b.is_nan() || a == b && a.is_sign_positive() { a } else { b }
}

fn fused(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::F32)?);
    let finish = Finish::take(form);
    let rounding = form.take_one(&ROUNDINGS).unwrap_or(Rounding::NearestEven);
    if finish.is_plain() && rounding == Rounding::NearestEven {
        return Ok(Some(map3(target, sources, fma_f32)));
    }
    Ok(Some(map3(target, sources, move |a, b, c| {
        let (a, b, c) = (finish.input(a), finish.input(b), finish.input(c));
        finish.output(to_f32(add_to_odd(f64::from(a) * f64::from(b), f64::from(c)), rounding))
    })))
}

fn unary(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let function: fn(f32) -> f32 = match form.base {
        "neg" => |a| -a,
        "abs" => f32::abs,
        "rcp" => |a| 1.0 / a,
        "sqrt" => f32::sqrt,
        "rsqrt" => |a| (1.0 / f64::from(a).sqrt()) as f32,
        "sin" => |a| f64::from(a).sin() as f32,
        "cos" => |a| f64::from(a).cos() as f32,
        "lg2" => |a| f64::from(a).log2() as f32,
        "ex2" => |a| f64::from(a).exp2() as f32,
        "tanh" => |a| f64::from(a).tanh() as f32,
        _ => return Ok(None),
    };
    form.take("approx");
    form.take("rn");
    let finish = Finish::take(form);
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::F32)?);
    Ok(Some(finished1(finish, target, sources, function)))
}

fn classify(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let test: Option<fn(f32) -> bool> = form.take_one(&[
        ("finite", f32::is_finite as fn(f32) -> bool),
        ("infinite", f32::is_infinite),
        ("number", |a| !a.is_nan()),
        ("notanumber", f32::is_nan),
        ("normal", f32::is_normal),
        ("subnormal", f32::is_subnormal),
    ]);
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::F32)?);
    Ok(test.map(|test| map1(target, sources, test)))
}

fn binary_f64(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::F64)?);
    form.take("rn");
    let to_zero = matches!(form.base, "add" | "sub") && form.take("rz");
    let function: fn(f64, f64) -> f64 = match form.base {
        "add" if to_zero => add_toward_zero,
        "sub" if to_zero => |a, b| add_toward_zero(a, -b),
        "add" => |a, b| a + b,
        "sub" => |a, b| a - b,
        "mul" => |a, b| a * b,
        "div" => |a, b| a / b,
        "min" => |a, b| if a < b || b.is_nan() || a == b && a.is_sign_negative() { a } else { b },
        "max" => |a, b| if a > b || b.is_nan() || a == b && a.is_sign_positive() { a } else { b },
        _ => |a, b| b.copysign(a),
    };
    Ok(Some(map2(target, sources, function)))
}

/// What was lost in rounding to nearest says whether the result lies too far out.
fn add_toward_zero(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let from_b = sum - a;
    let error = (a - (sum - from_b)) + (b - from_b);
    let too_far = error.abs() > 0.0 && (error > 0.0) != (sum > 0.0);
    if too_far { f64::from_bits(sum.to_bits() - 1) } else { sum }
}

fn unary_f64(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let function: fn(f64) -> f64 = match form.base {
        "neg" => |a| -a,
        "abs" => f64::abs,
        "rcp" => |a| 1.0 / a,
        "sqrt" => f64::sqrt,
        "rsqrt" => |a| 1.0 / a.sqrt(),
        _ => return Ok(None),
    };
    form.take("rn");
    form.take("approx");
    form.take("ftz");
    let (target, sources) = (operands.target(0)?, operands.sources(1, Type::F64)?);
    Ok(Some(map1(target, sources, function)))
}
