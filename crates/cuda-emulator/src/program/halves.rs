//! Arithmetic on f16, bf16 and pairs of them: computed in f64, where products are exact and sums rounded to odd, and
//! rounded once.

use half::{bf16, f16};

use super::Compute;
use super::compute::{map1, map2, map3};
use super::float::{maximum, minimum, saturate};
use super::form::Form;
use super::operands::Operands;
use crate::EmulatorError;
use crate::machine::registers::{Scalar, Source, Target};
use crate::number::{Half, add_to_odd};
use crate::ptx::Type;

pub(super) fn decode(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    match kind {
        Type::F16 => each::<f16>(form, operands, false),
        Type::Bf16 => each::<bf16>(form, operands, false),
        Type::F16x2 => each::<f16>(form, operands, true),
        Type::Bf16x2 => each::<bf16>(form, operands, true),
        _ => Ok(None),
    }
}

fn each<H: Half + Scalar + Bits>(
    form: &mut Form,
    operands: &mut Operands,
    packed: bool,
) -> Result<Option<Compute>, EmulatorError> {
    let base = form.base;
    if !matches!(base, "add" | "sub" | "mul" | "fma" | "neg" | "abs" | "min" | "max" | "ex2" | "tanh") {
        return Ok(None);
    }
    form.ignore(&["rn", "ftz", "approx"]);
    let finish = Finish { saturates: form.take("sat"), rectifies: form.take("relu") };
    let propagates_nan = form.take("NaN");
    let target = operands.target(0)?;
    let kind = Type::B32;
    Ok(match base {
        "neg" => Some(lift1(target, operands.sources(1, kind)?, packed, |a: H| H::of(a.bits() ^ 0x8000))),
        "abs" => Some(lift1(target, operands.sources(1, kind)?, packed, |a: H| H::of(a.bits() & 0x7fff))),
        "ex2" | "tanh" => {
            let function: fn(f64) -> f64 = if base == "ex2" { f64::exp2 } else { f64::tanh };
            Some(lift1(target, operands.sources(1, kind)?, packed, move |a: H| {
                H::narrow(function(f64::from(a.widen())))
            }))
        }
        "fma" => Some(lift3(target, operands.sources(1, kind)?, packed, move |a: H, b: H, c: H| {
            let product = f64::from(a.widen()) * f64::from(b.widen());
            finish.round(add_to_odd(product, f64::from(c.widen())))
        })),
        _ => {
            let function: fn(f64, f64) -> f64 = match (base, propagates_nan) {
                ("add", _) => |a, b| a + b,
                ("sub", _) => |a, b| a - b,
                ("mul", _) => |a, b| a * b,
                ("min", true) => |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { lesser(a, b) },
                ("max", true) => |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { greater(a, b) },
                ("min", false) => lesser,
                _ => greater,
            };
            Some(lift2(target, operands.sources(1, kind)?, packed, move |a: H, b: H| {
                finish.round(function(f64::from(a.widen()), f64::from(b.widen())))
            }))
        }
    })
}

fn lesser(a: f64, b: f64) -> f64 {
    f64::from(minimum(a as f32, b as f32))
}

fn greater(a: f64, b: f64) -> f64 {
    f64::from(maximum(a as f32, b as f32))
}

#[derive(Clone, Copy)]
struct Finish {
    saturates: bool,
    rectifies: bool,
}

impl Finish {
    fn round<H: Half>(self, value: f64) -> H {
        let value = if self.rectifies && value < 0.0 { 0.0 } else { value };
        let narrow = H::narrow(value);
        if self.saturates { H::exactly(f64::from(saturate(narrow.widen()))) } else { narrow }
    }
}

/// The bits of a 16-bit number.
trait Bits {
    fn bits(self) -> u16;
    fn of(bits: u16) -> Self;
}

impl Bits for f16 {
    fn bits(self) -> u16 {
        self.to_bits()
    }
    fn of(bits: u16) -> Self {
        Self::from_bits(bits)
    }
}

impl Bits for bf16 {
    fn bits(self) -> u16 {
        self.to_bits()
    }
    fn of(bits: u16) -> Self {
        Self::from_bits(bits)
    }
}

/// The halves of a word.
fn split<H: Bits>(word: u32) -> [H; 2] {
    [H::of(word as u16), H::of((word >> 16) as u16)]
}

fn join<H: Bits>([low, high]: [H; 2]) -> u32 {
    u32::from(low.bits()) | u32::from(high.bits()) << 16
}

fn lift1<H: Scalar + Bits>(
    target: Target,
    sources: [Source; 1],
    packed: bool,
    function: impl Fn(H) -> H + Send + Sync + 'static,
) -> Compute {
    if packed {
        map1(target, sources, move |a: u32| join(split(a).map(&function)))
    } else {
        map1(target, sources, function)
    }
}

fn lift2<H: Scalar + Bits>(
    target: Target,
    sources: [Source; 2],
    packed: bool,
    function: impl Fn(H, H) -> H + Send + Sync + 'static,
) -> Compute {
    if !packed {
        return map2(target, sources, function);
    }
    map2(target, sources, move |a: u32, b: u32| {
        let ([a0, a1], [b0, b1]) = (split(a), split(b));
        join([function(a0, b0), function(a1, b1)])
    })
}

fn lift3<H: Scalar + Bits>(
    target: Target,
    sources: [Source; 3],
    packed: bool,
    function: impl Fn(H, H, H) -> H + Send + Sync + 'static,
) -> Compute {
    if !packed {
        return map3(target, sources, function);
    }
    map3(target, sources, move |a: u32, b: u32, c: u32| {
        let ([a0, a1], [b0, b1], [c0, c1]) = (split(a), split(b), split(c));
        join([function(a0, b0, c0), function(a1, b1, c1)])
    })
}
