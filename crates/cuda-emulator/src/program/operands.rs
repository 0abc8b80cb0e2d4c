//! An instruction's operands, resolved to the places that they name.

use super::decoder::Decoder;
use super::scope::Binding;
use super::{Address, Special};
use crate::EmulatorError;
use crate::machine::registers::{LANES, Source, Target};
use crate::ptx::{Instruction, Operand, Space, Type};

/// The operands of the instruction at hand.
pub(super) struct Operands<'d, 'm> {
    pub decoder: &'d mut Decoder<'m>,
    pub instruction: &'d Instruction,
}

impl Operands<'_, '_> {
    pub fn count(&self) -> usize {
        self.instruction.operands.len()
    }

    pub fn unsupported(&self) -> EmulatorError {
        EmulatorError::Unsupported { line: self.instruction.line, what: self.instruction.opcode.clone() }
    }

    pub fn operand(&self, index: usize) -> Result<&Operand, EmulatorError> {
        self.instruction.operands.get(index).ok_or_else(|| EmulatorError::Operand {
            line: self.instruction.line,
            opcode: self.instruction.opcode.clone(),
            found: format!("{} operands", self.instruction.operands.len()),
            expected: "more",
        })
    }

    fn wrong(&self, found: &Operand, expected: &'static str) -> EmulatorError {
        EmulatorError::Operand {
            line: self.instruction.line,
            opcode: self.instruction.opcode.clone(),
            found: format!("{found:?}"),
            expected,
        }
    }

    /// The register written by operand `index`; of a pair, the first.
    pub fn target(&self, index: usize) -> Result<Target, EmulatorError> {
        match self.operand(index)? {
            Operand::Pair(first, _) => self.target_of(first),
            other => self.target_of(other),
        }
    }

    /// The second of `%p|%q`.
    pub fn second_target(&self, index: usize) -> Result<Target, EmulatorError> {
        match self.operand(index)? {
            Operand::Pair(_, second) => self.target_of(second),
            _ => Ok(Target::Nowhere),
        }
    }

    pub fn target_of(&self, operand: &Operand) -> Result<Target, EmulatorError> {
        match operand {
            Operand::Sink => Ok(Target::Nowhere),
            Operand::Name(name) => match self.decoder.scopes.find(name) {
                Some(Binding::Register { kind: Type::Pred, place }) => Ok(Target::Predicate(place)),
                Some(Binding::Register { place, .. }) => Ok(Target::Row(place)),
                _ => Err(self.unknown(name)),
            },
            other => Err(self.wrong(other, "a register")),
        }
    }

    /// Whether a register is one of 64 bits.
    pub fn is_wide(&self, operand: &Operand) -> bool {
        let Operand::Name(name) = operand else { return true };
        match self.decoder.scopes.find(name) {
            Some(Binding::Register { kind, .. }) => kind.size() == 8,
            _ => true,
        }
    }

    fn unknown(&self, name: &str) -> EmulatorError {
        EmulatorError::UnknownName { line: self.instruction.line, name: name.to_owned() }
    }

    pub fn source(&mut self, index: usize, kind: Type) -> Result<Source, EmulatorError> {
        let operand = self.operand(index)?.clone();
        self.source_of(&operand, kind)
    }

    /// Operands `first`, `first + 1`, …, all of one type.
    pub fn sources<const COUNT: usize>(
        &mut self,
        first: usize,
        kind: Type,
    ) -> Result<[Source; COUNT], EmulatorError> {
        let mut found = [Source::Constant(0); COUNT];
        for (at, place) in found.iter_mut().enumerate() {
            *place = self.source(first + at, kind)?;
        }
        Ok(found)
    }

    pub fn source_of(&mut self, operand: &Operand, kind: Type) -> Result<Source, EmulatorError> {
        match operand {
            Operand::Integer(value) => Ok(Source::Constant(*value)),
            Operand::Float32(bits) => Ok(Source::Constant(u64::from(*bits))),
            Operand::Float64(bits) if kind == Type::F32 => {
                Ok(Source::Constant(u64::from((f64::from_bits(*bits) as f32).to_bits())))
            }
            Operand::Float64(bits) => Ok(Source::Constant(*bits)),
            Operand::Name(name) => self.named(name, 0),
            Operand::Not(name) => match self.decoder.scopes.find(name) {
                Some(Binding::Register { kind: Type::Pred, place }) => {
                    Ok(Source::Predicate { index: place, negated: true })
                }
                _ => Err(self.unknown(name)),
            },
            Operand::Address { base, offset } => match &**base {
                Operand::Name(name) => self.named(name, *offset),
                other => Err(self.wrong(other, "a variable's name")),
            },
            other => Err(self.wrong(other, "a register or a constant")),
        }
    }

    fn named(&mut self, name: &str, offset: i64) -> Result<Source, EmulatorError> {
        if name == "WARP_SZ" {
            return Ok(Source::Constant(LANES as u64));
        }
        if let Some(special) = Special::parse(name) {
            return Ok(Source::Row(self.decoder.special(special)));
        }
        match self.decoder.find(name)? {
            Some(Binding::Register { kind: Type::Pred, place }) => {
                Ok(Source::Predicate { index: place, negated: false })
            }
            Some(Binding::Register { place, .. }) => Ok(Source::Row(place)),
            Some(Binding::Memory { address, .. }) => {
                Ok(Source::Constant(address.wrapping_add_signed(offset)))
            }
            None if offset == 0 && self.decoder.is_dynamic_shared(name) => {
                Ok(Source::Row(self.decoder.special(Special::DynamicStart)))
            }
            None => Err(self.unknown(name)),
        }
    }

    /// The sources of `{a, b}`, or of one operand.
    pub fn vector(&mut self, index: usize, kind: Type) -> Result<Vec<Source>, EmulatorError> {
        match self.operand(index)?.clone() {
            Operand::Vector(list) => list.iter().map(|operand| self.source_of(operand, kind)).collect(),
            single => Ok(vec![self.source_of(&single, kind)?]),
        }
    }

    /// The targets of `{a, b}`, or of one operand.
    pub fn target_vector(&self, index: usize) -> Result<Vec<Target>, EmulatorError> {
        match self.operand(index)? {
            Operand::Vector(list) => list.iter().map(|operand| self.target_of(operand)).collect(),
            single => Ok(vec![self.target_of(single)?]),
        }
    }

    /// `[base+offset]` in `space`. What is called a parameter inside a device function lies in local memory.
    pub fn address(&mut self, index: usize, space: Space) -> Result<Address, EmulatorError> {
        let Operand::Address { base, offset } = self.operand(index)?.clone() else {
            let found = self.operand(index)?.clone();
            return Err(self.wrong(&found, "an address in brackets"));
        };
        let mut space = space;
        if let Operand::Name(name) = &*base
            && let Some(Binding::Memory { space: found, .. }) = self.decoder.find(name)?
            && space == Space::Param
        {
            space = found;
        }
        let wide = self.is_wide(&base);
        Ok(Address { space, base: self.source_of(&base, Type::U64)?, wide, offset })
    }

    /// A constant that must be in the text.
    pub fn constant(&self, index: usize) -> Result<u64, EmulatorError> {
        match self.operand(index)? {
            Operand::Integer(value) => Ok(*value),
            other => Err(self.wrong(other, "a constant")),
        }
    }
}

impl Special {
    fn parse(name: &str) -> Option<Self> {
        let (register, axis) = match name.strip_prefix('%')?.split_once('.') {
            Some((register, axis)) => (register, ["x", "y", "z"].iter().position(|known| *known == axis)?),
            None => (&name[1..], usize::MAX),
        };
        Some(match (register, axis) {
            ("tid", 0..=2) => Self::Thread(axis),
            ("ntid", 0..=2) => Self::BlockSize(axis),
            ("ctaid", 0..=2) => Self::Block(axis),
            ("nctaid", 0..=2) => Self::GridSize(axis),
            ("laneid", _) => Self::Lane,
            ("warpid", _) => Self::Warp,
            ("nwarpid", _) => Self::WarpCount,
            ("lanemask_eq", _) => Self::LanesEqual,
            ("lanemask_lt", _) => Self::LanesLess,
            ("lanemask_le", _) => Self::LanesLessEqual,
            ("lanemask_gt", _) => Self::LanesGreater,
            ("lanemask_ge", _) => Self::LanesGreaterEqual,
            ("dynamic_smem_size", _) => Self::DynamicShared,
            ("total_smem_size", _) => Self::TotalShared,
            // One multiprocessor; clocks stand still, so that a result cannot depend on them.
            ("smid" | "gridid" | "clock" | "clock_hi" | "clock64" | "globaltimer" | "globaltimer_lo", _) => {
                Self::Zero
            }
            ("nsmid", _) => Self::One,
            _ => return None,
        })
    }
}
