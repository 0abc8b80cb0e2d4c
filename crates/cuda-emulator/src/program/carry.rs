//! Arithmetic with the carry flag (`add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`), of which numbers wider
//! than a register are made.

use super::Compute;
use super::form::Form;
use super::operands::Operands;
use crate::EmulatorError;
use crate::machine::registers::{LANES, Mask, Source, Target};
use crate::ptx::Type;

pub(super) fn decode(form: &mut Form, operands: &mut Operands) -> Result<Option<Compute>, EmulatorError> {
    let base = form.base;
    if !matches!(base, "add" | "addc" | "sub" | "subc" | "mad" | "madc") {
        return Ok(None);
    }
    let writes_carry = form.take("cc");
    let reads_carry = matches!(base, "addc" | "subc" | "madc");
    if !writes_carry && !reads_carry {
        return Ok(None);
    }
    let Some(kind @ (Type::U32 | Type::S32 | Type::B32 | Type::U64 | Type::S64)) = form.single() else {
        return Ok(None);
    };
    let bits = kind.size() * 8;
    let product = base.starts_with("mad");
    let subtracts = base.starts_with("sub");
    let high = product && form.take("hi");
    if product && !high && !form.take("lo") {
        return Ok(None);
    }
    let [a, b] = operands.sources(1, kind)?;
    let c = if product { operands.source(3, kind)? } else { Source::Constant(0) };
    let target = operands.target(0)?;
    let flag = operands.decoder.carry_flag();
    let signed = kind.is_signed();
    let ones = u64::MAX >> (64 - bits);
    Ok(Some(Box::new(move |registers, mask| {
        let read = |source| -> [u64; LANES] {
            if bits == 64 { registers.read(source) } else { registers.read::<u32>(source).map(u64::from) }
        };
        let (a, b, c) = (read(a), read(b), read(c));
        let carry_in = if reads_carry { registers.predicate(flag, false) } else { 0 };
        let mut result = [0_u64; LANES];
        let mut carry_out: Mask = 0;
        for lane in 0..LANES {
            let carry = carry_in >> lane & 1;
            let (first, second) = if product {
                (half_product(a[lane], b[lane], bits, signed, high), c[lane])
            } else {
                (a[lane], b[lane])
            };
            let exact = if subtracts {
                u128::from(first).wrapping_sub(u128::from(second)).wrapping_sub(u128::from(carry))
            } else {
                u128::from(first) + u128::from(second) + u128::from(carry)
            };
            result[lane] = exact as u64 & ones;
            carry_out |= Mask::from(exact >> bits != 0) << lane;
        }
        match bits {
            64 => registers.write(target, mask, &result),
            _ => write_narrow(registers, target, mask, &result),
        }
        if writes_carry {
            registers.set_predicate(flag, mask, carry_out);
        }
    })))
}

fn write_narrow(
    registers: &mut crate::machine::registers::Registers,
    target: Target,
    mask: Mask,
    values: &[u64; LANES],
) {
    registers.write(target, mask, &values.map(|value| value as u32));
}

/// The low or the high half of a product of two numbers of `bits` bits.
fn half_product(a: u64, b: u64, bits: u64, signed: bool, high: bool) -> u64 {
    let extend = |value: u64| {
        let unused = 64 - bits;
        if signed { i128::from((value << unused) as i64 >> unused) } else { i128::from(value) }
    };
    let product = extend(a).wrapping_mul(extend(b));
    (if high { product >> bits } else { product }) as u64 & (u64::MAX >> (64 - bits))
}
