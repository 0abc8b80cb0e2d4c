//! Comparisons: `setp`, `set` and `slct`.

use half::{bf16, f16};

use super::Compute;
use super::compute::{map3, per_integer, per_width};
use super::float::flush;
use super::form::Form;
use super::operands::Operands;
use crate::EmulatorError;
use crate::machine::registers::{LANES, Mask, Registers, Scalar, Source, Target};
use crate::number::Half;
use crate::ptx::Type;

pub(super) fn decode(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    match form.base {
        "setp" => set_predicate(form, operands),
        "set" => set(form, operands),
        "slct" => select_by_sign(form, operands),
        _ => Ok(None),
    }
}

/// A relation as the set of outcomes that satisfy it: less, equal, greater, unordered.
#[derive(Clone, Copy)]
struct Relation(u32);

const LESS: u32 = 1;
const EQUAL: u32 = 2;
const GREATER: u32 = 4;
const UNORDERED: u32 = 8;

impl Relation {
    const TABLE: [(&str, Self); 18] = [
        ("eq", Self(EQUAL)),
        ("ne", Self(LESS | GREATER)),
        ("lt", Self(LESS)),
        ("le", Self(LESS | EQUAL)),
        ("gt", Self(GREATER)),
        ("ge", Self(GREATER | EQUAL)),
        ("lo", Self(LESS)),
        ("ls", Self(LESS | EQUAL)),
        ("hi", Self(GREATER)),
        ("hs", Self(GREATER | EQUAL)),
        ("equ", Self(EQUAL | UNORDERED)),
        ("neu", Self(LESS | GREATER | UNORDERED)),
        ("ltu", Self(LESS | UNORDERED)),
        ("leu", Self(LESS | EQUAL | UNORDERED)),
        ("gtu", Self(GREATER | UNORDERED)),
        ("geu", Self(GREATER | EQUAL | UNORDERED)),
        ("num", Self(LESS | EQUAL | GREATER)),
        ("nan", Self(UNORDERED)),
    ];

    /// Without a branch, so that a loop over lanes is vector code.
    fn holds<T: PartialOrd>(self, a: T, b: T) -> bool {
        let outcome = (u32::from(a < b) * LESS) | (u32::from(a == b) * EQUAL) | (u32::from(a > b) * GREATER);
        let outcome = if outcome == 0 { UNORDERED } else { outcome };
        self.0 & outcome != 0
    }
}

type Comparison = Box<dyn Fn(&Registers) -> Mask + Send + Sync>;

fn comparison<T: Scalar, N: PartialOrd>(
    relation: Relation,
    [a, b]: [Source; 2],
    number: impl Fn(T) -> N + Send + Sync + 'static,
) -> Comparison {
    Box::new(move |registers| {
        let (a, b) = (registers.read::<T>(a), registers.read::<T>(b));
        let bits =
            (0..LANES).map(|lane| Mask::from(relation.holds(number(a[lane]), number(b[lane]))) << lane);
        bits.fold(0, |mask, bit| mask | bit)
    })
}

/// The comparison of a type's numbers.
fn compare(form: &mut Form, kind: Type, sources: [Source; 2]) -> Option<Comparison> {
    let relation = form.take_one(&Relation::TABLE)?;
    let flushes = form.take("ftz");
    match kind {
        Type::F32 if flushes => Some(comparison(relation, sources, flush)),
        Type::F32 => Some(comparison(relation, sources, |a: f32| a)),
        Type::F64 => Some(comparison(relation, sources, |a: f64| a)),
        Type::F16 => Some(comparison(relation, sources, f16::widen)),
        Type::Bf16 => Some(comparison(relation, sources, bf16::widen)),
        _ => per_integer!(kind, T => comparison(relation, sources, |a: T| a)),
    }
}

#[derive(Clone, Copy)]
enum Combination {
    And,
    Or,
    Xor,
}

const COMBINATIONS: [(&str, Combination); 3] =
    [("and", Combination::And), ("or", Combination::Or), ("xor", Combination::Xor)];

/// `setp.lt.and.s32 p|q, a, b, c`: p = (a < b) and c; q = not (a < b) and c.
fn set_predicate(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let Some(kind) = form.single() else { return Ok(None) };
    let Some(compare) = compare(form, kind, operands.sources(1, kind)?) else { return Ok(None) };
    let (first, second) = (operands.target(0)?, operands.second_target(0)?);
    let combination = form.take_one(&COMBINATIONS);
    let third = match combination {
        Some(_) => operands.source(3, Type::Pred)?,
        None => Source::Constant(0),
    };
    Ok(Some(Box::new(move |registers, mask| {
        let holds = compare(registers);
        let combine = |bits: Mask| match combination {
            None => bits,
            Some(Combination::And) => bits & predicate(registers, third),
            Some(Combination::Or) => bits | predicate(registers, third),
            Some(Combination::Xor) => bits ^ predicate(registers, third),
        };
        let results = [(first, combine(holds)), (second, combine(!holds))];
        for (target, bits) in results {
            if let Target::Predicate(index) = target {
                registers.set_predicate(index, mask, bits);
            }
        }
    })))
}

fn predicate(registers: &Registers, source: Source) -> Mask {
    match source {
        Source::Predicate { index, negated } => registers.predicate(index, negated),
        Source::Constant(value) => Mask::from(value != 0) * Mask::MAX,
        Source::Row(_) => 0,
    }
}

/// `set.gt.f32.f32 d, a, b`: 1.0 or all ones, as the result's type wants it.
fn set(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let &[result, kind] = form.types() else { return Ok(None) };
    let yes: u32 = match result {
        Type::F32 => 1.0_f32.to_bits(),
        Type::U32 | Type::S32 => u32::MAX,
        Type::F16 => u32::from(f16::ONE.to_bits()),
        Type::Bf16 => u32::from(bf16::ONE.to_bits()),
        Type::U16 | Type::S16 => u32::from(u16::MAX),
        _ => return Ok(None),
    };
    let target = operands.target(0)?;
    if matches!(kind, Type::F16x2 | Type::Bf16x2) {
        return Ok(None);
    }
    let Some(compare) = compare(form, kind, operands.sources(1, kind)?) else { return Ok(None) };
    Ok(Some(Box::new(move |registers, mask| {
        let holds = compare(registers);
        let values: [u32; LANES] = std::array::from_fn(|lane| if holds >> lane & 1 == 1 { yes } else { 0 });
        registers.write(target, mask, &values);
    })))
}

/// `slct d, a, b, c`: a where c ≥ 0.
fn select_by_sign(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let &[kind, sign] = form.types() else { return Ok(None) };
    form.take("ftz");
    let [a, b] = operands.sources(1, kind)?;
    let (target, sources) = (operands.target(0)?, [a, b, operands.source(3, sign)?]);
    Ok(match sign {
        Type::S32 => {
            per_width!(kind, T => map3(target, sources, |a: T, b: T, c: i32| if c >= 0 { a } else { b }))
        }
        Type::F32 => {
            per_width!(kind, T => map3(target, sources, |a: T, b: T, c: f32| if c >= 0.0 { a } else { b }))
        }
        _ => None,
    })
}
