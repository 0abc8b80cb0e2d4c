//! Atomics: lane after lane, in a random order, so that a sum which depends on the order shows it.

use half::{bf16, f16};

use super::access::{LaneAccess, count_traffic};
use super::launch::Context;
use super::race::Kind;
use super::registers::{LANES, Mask, lanes};
use super::warp::Warp;
use crate::EmulatorError;
use crate::number::Half;
use crate::program::{Atomic, AtomicElement, AtomicKind, Instruction};

impl Warp {
    pub fn atomic(
        &mut self,
        atomic: &Atomic,
        active: Mask,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<(), EmulatorError> {
        let size = atomic.element.size();
        let read = |source| -> [u64; LANES] {
            if size == 8 {
                self.registers.read(source)
            } else {
                self.registers.read::<u32>(source).map(u64::from)
            }
        };
        let (values, swaps) = (read(atomic.value), read(atomic.swap));
        let addresses = self.addresses(&atomic.address);
        let mut order: Vec<usize> = lanes(active).collect();
        context.random.shuffle(&mut order);
        let mut old = [0_u64; LANES];
        for lane in order {
            let access = LaneAccess {
                lane,
                space: atomic.address.space,
                address: addresses[lane],
                size,
                kind: Kind::Atomic,
            };
            let place = self.locate(&access, instruction, context)?;
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(place);
            old[lane] = u64::from_le_bytes(bytes);
            let new = atomic.apply(old[lane], values[lane], swaps[lane]);
            place.copy_from_slice(&new.to_le_bytes()[..size]);
        }
        count_traffic(atomic.address.space, active, &addresses, size, Kind::Atomic, context);
        if size == 8 {
            self.registers.write(atomic.target, active, &old);
        } else {
            self.registers.write(atomic.target, active, &old.map(|value| value as u32));
        }
        Ok(())
    }
}

impl AtomicElement {
    fn size(self) -> usize {
        match self {
            Self::Bits16 | Self::F16 | Self::Bf16 => 2,
            Self::Unsigned64 | Self::Signed64 | Self::F64 => 8,
            _ => 4,
        }
    }
}

impl Atomic {
    /// What is stored where `old` was.
    fn apply(&self, old: u64, value: u64, swap: u64) -> u64 {
        let mask = u64::MAX >> (64 - 8 * self.element.size());
        match self.kind {
            AtomicKind::CompareExchange => return if old == value & mask { swap } else { old },
            AtomicKind::Exchange => return value,
            _ => {}
        }
        match self.element {
            AtomicElement::F32 => {
                u64::from((f32::from_bits(old as u32) + f32::from_bits(value as u32)).to_bits())
            }
            AtomicElement::F64 => (f64::from_bits(old) + f64::from_bits(value)).to_bits(),
            AtomicElement::F16 => {
                u64::from(add_halves(f16::from_bits, f16::to_bits, old as u16, value as u16))
            }
            AtomicElement::Bf16 => {
                u64::from(add_halves(bf16::from_bits, bf16::to_bits, old as u16, value as u16))
            }
            AtomicElement::F16x2 => add_pairs(f16::from_bits, f16::to_bits, old, value),
            AtomicElement::Bf16x2 => add_pairs(bf16::from_bits, bf16::to_bits, old, value),
            AtomicElement::Signed32 => u64::from(combine_signed(self.kind, old as i32, value as i32) as u32),
            AtomicElement::Signed64 => {
                if self.kind == AtomicKind::Min {
                    (old as i64).min(value as i64) as u64
                } else if self.kind == AtomicKind::Max {
                    (old as i64).max(value as i64) as u64
                } else {
                    combine(self.kind, old, value, u64::MAX)
                }
            }
            _ => combine(self.kind, old, value & mask, mask),
        }
    }
}

/// Signed minimum and maximum; the rest does not depend on the sign.
pub(super) fn combine_signed(kind: AtomicKind, old: i32, value: i32) -> i32 {
    match kind {
        AtomicKind::Min => old.min(value),
        AtomicKind::Max => old.max(value),
        _ => combine(kind, u64::from(old as u32), u64::from(value as u32), u64::from(u32::MAX)) as i32,
    }
}

pub(super) fn combine(kind: AtomicKind, old: u64, value: u64, mask: u64) -> u64 {
    let new = match kind {
        AtomicKind::Add => old.wrapping_add(value),
        AtomicKind::Min => old.min(value),
        AtomicKind::Max => old.max(value),
        AtomicKind::And => old & value,
        AtomicKind::Or => old | value,
        AtomicKind::Xor => old ^ value,
        AtomicKind::Increment if old >= value => 0,
        AtomicKind::Increment => old + 1,
        AtomicKind::Decrement if old == 0 || old > value => value,
        AtomicKind::Decrement => old - 1,
        AtomicKind::Exchange | AtomicKind::CompareExchange => value,
    };
    new & mask
}

fn add_halves<H: Half>(from: fn(u16) -> H, to: fn(H) -> u16, old: u16, value: u16) -> u16 {
    to(H::narrow(f64::from(from(old).widen()) + f64::from(from(value).widen())))
}

fn add_pairs<H: Half>(from: fn(u16) -> H, to: fn(H) -> u16, old: u64, value: u64) -> u64 {
    let low = add_halves(from, to, old as u16, value as u16);
    let high = add_halves(from, to, (old >> 16) as u16, (value >> 16) as u16);
    u64::from(low) | u64::from(high) << 16
}
