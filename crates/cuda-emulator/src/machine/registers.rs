//! A warp's registers: 32 lanes of each, so that one PTX instruction is one loop over 32 numbers, which the compiler
//! makes vector instructions of.
//!
//! A 16- or 32-bit register is one row, a 64-bit one two (low words, high words), a predicate one mask.

use half::{bf16, f16};

/// Threads in a warp.
pub(crate) const LANES: usize = 32;
/// One word of each lane.
pub(crate) type Row = [u32; LANES];
/// One bit for each lane.
pub(crate) type Mask = u32;
pub(crate) const ALL_LANES: Mask = Mask::MAX;

/// The lanes of a mask, in order.
pub(crate) fn lanes(mut mask: Mask) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}

/// What an instruction reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Source {
    /// The first row of a register.
    Row(u32),
    Constant(u64),
    Predicate {
        index: u32,
        negated: bool,
    },
}

/// What an instruction writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    Row(u32),
    Predicate(u32),
    /// `_`: the result is not wanted.
    Nowhere,
}

#[derive(Debug, Clone)]
pub(crate) struct Registers {
    rows: Vec<Row>,
    predicates: Vec<Mask>,
}

impl Registers {
    /// Registers hold garbage until they are written: all ones, which is NaN as a number.
    pub fn new(rows: u32, predicates: u32) -> Self {
        Self {
            rows: vec![[u32::MAX; LANES]; rows as usize],
            predicates: vec![ALL_LANES; predicates as usize],
        }
    }

    pub fn row(&self, row: u32) -> &Row {
        &self.rows[row as usize]
    }

    pub fn row_mut(&mut self, row: u32) -> &mut Row {
        &mut self.rows[row as usize]
    }

    pub fn predicate(&self, index: u32, negated: bool) -> Mask {
        self.predicates[index as usize] ^ if negated { ALL_LANES } else { 0 }
    }

    pub fn set_predicate(&mut self, index: u32, mask: Mask, value: Mask) {
        let predicate = &mut self.predicates[index as usize];
        *predicate = *predicate & !mask | value & mask;
    }

    pub fn read<T: Scalar>(&self, source: Source) -> [T; LANES] {
        T::read(self, source)
    }

    pub fn write<T: Scalar>(&mut self, target: Target, mask: Mask, values: &[T; LANES]) {
        T::write(self, target, mask, values);
    }
}

/// A type that lanes hold.
pub(crate) trait Scalar: Copy + 'static {
    fn read(registers: &Registers, source: Source) -> [Self; LANES];
    fn write(registers: &mut Registers, target: Target, mask: Mask, values: &[Self; LANES]);
}

fn write_row(row: &mut Row, mask: Mask, value: impl Fn(usize) -> u32) {
    if mask == ALL_LANES {
        for (lane, place) in row.iter_mut().enumerate() {
            *place = value(lane);
        }
    } else {
        for (lane, place) in row.iter_mut().enumerate() {
            *place = if mask >> lane & 1 == 1 { value(lane) } else { *place };
        }
    }
}

macro_rules! narrow_scalar {
    ($($scalar:ty: $from:expr, $to:expr;)*) => {$(
        impl Scalar for $scalar {
            fn read(registers: &Registers, source: Source) -> [Self; LANES] {
                let from: fn(u32) -> Self = $from;
                match source {
                    Source::Row(row) => registers.row(row).map($from),
                    Source::Constant(bits) => [from(bits as u32); LANES],
                    Source::Predicate { index, negated } => {
                        let mask = registers.predicate(index, negated);
                        std::array::from_fn(|lane| from(mask >> lane & 1))
                    }
                }
            }

            fn write(registers: &mut Registers, target: Target, mask: Mask, values: &[Self; LANES]) {
                if let Target::Row(row) = target {
                    write_row(registers.row_mut(row), mask, |lane| $to(values[lane]));
                }
            }
        }
    )*};
}

narrow_scalar! {
    u8: |bits| bits as u8, |value: u8| u32::from(value);
    i8: |bits| bits as i8, |value: i8| i32::from(value) as u32;
    u16: |bits| bits as u16, |value: u16| u32::from(value);
    i16: |bits| bits as i16, |value: i16| u32::from(value as u16);
    u32: |bits| bits, |value: u32| value;
    i32: |bits| bits as i32, |value: i32| value as u32;
    f32: f32::from_bits, f32::to_bits;
    f16: |bits| f16::from_bits(bits as u16), |value: f16| u32::from(value.to_bits());
    bf16: |bits| bf16::from_bits(bits as u16), |value: bf16| u32::from(value.to_bits());
}

macro_rules! wide_scalar {
    ($($scalar:ty: $from:expr, $to:expr;)*) => {$(
        impl Scalar for $scalar {
            fn read(registers: &Registers, source: Source) -> [Self; LANES] {
                let from: fn(u64) -> Self = $from;
                match source {
                    Source::Row(row) => {
                        let (low, high) = (registers.row(row), registers.row(row + 1));
                        std::array::from_fn(|lane| $from(u64::from(low[lane]) | u64::from(high[lane]) << 32))
                    }
                    Source::Constant(bits) => [from(bits); LANES],
                    Source::Predicate { index, negated } => {
                        let mask = registers.predicate(index, negated);
                        std::array::from_fn(|lane| from(u64::from(mask >> lane & 1)))
                    }
                }
            }

            fn write(registers: &mut Registers, target: Target, mask: Mask, values: &[Self; LANES]) {
                if let Target::Row(row) = target {
                    write_row(registers.row_mut(row), mask, |lane| $to(values[lane]) as u32);
                    write_row(registers.row_mut(row + 1), mask, |lane| ($to(values[lane]) >> 32) as u32);
                }
            }
        }
    )*};
}

wide_scalar! {
    u64: |bits| bits, |value: u64| value;
    i64: |bits| bits as i64, |value: i64| value as u64;
    f64: f64::from_bits, f64::to_bits;
}

impl Scalar for bool {
    fn read(registers: &Registers, source: Source) -> [Self; LANES] {
        let mask = match source {
            Source::Predicate { index, negated } => registers.predicate(index, negated),
            Source::Constant(bits) => ALL_LANES * Mask::from(bits != 0),
            Source::Row(_) => 0,
        };
        std::array::from_fn(|lane| mask >> lane & 1 == 1)
    }

    fn write(registers: &mut Registers, target: Target, mask: Mask, values: &[Self; LANES]) {
        if let Target::Predicate(index) = target {
            let bits = values.iter().rev().fold(0, |bits, value| bits << 1 | Mask::from(*value));
            registers.set_predicate(index, mask, bits);
        }
    }
}
