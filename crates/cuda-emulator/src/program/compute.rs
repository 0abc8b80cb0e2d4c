//! Closures that apply a scalar function to the lanes of a mask.

use super::Compute;
use crate::machine::registers::{Scalar, Source, Target};

pub(super) fn map1<A: Scalar, D: Scalar>(
    target: Target,
    [a]: [Source; 1],
    function: impl Fn(A) -> D + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, mask| {
        let result = registers.read::<A>(a).map(&function);
        registers.write(target, mask, &result);
    })
}

pub(super) fn map2<A: Scalar, B: Scalar, D: Scalar>(
    target: Target,
    [a, b]: [Source; 2],
    function: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, mask| {
        let (a, b) = (registers.read::<A>(a), registers.read::<B>(b));
        let result = std::array::from_fn(|lane| function(a[lane], b[lane]));
        registers.write(target, mask, &result);
    })
}

pub(super) fn map3<A: Scalar, B: Scalar, C: Scalar, D: Scalar>(
    target: Target,
    [a, b, c]: [Source; 3],
    function: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, mask| {
        let (a, b, c) = (registers.read::<A>(a), registers.read::<B>(b), registers.read::<C>(c));
        let result = std::array::from_fn(|lane| function(a[lane], b[lane], c[lane]));
        registers.write(target, mask, &result);
    })
}

/// Runs the body with `$scalar` as the Rust integer of a PTX type; `None` for one that is no integer.
macro_rules! per_integer {
    ($kind:expr, $scalar:ident => $body:expr) => {
        match $kind {
            Type::U16 | Type::B16 => {
                type $scalar = u16;
                Some($body)
            }
            Type::S16 => {
                type $scalar = i16;
                Some($body)
            }
            Type::U32 | Type::B32 => {
                type $scalar = u32;
                Some($body)
            }
            Type::S32 => {
                type $scalar = i32;
                Some($body)
            }
            Type::U64 | Type::B64 => {
                type $scalar = u64;
                Some($body)
            }
            Type::S64 => {
                type $scalar = i64;
                Some($body)
            }
            _ => None,
        }
    };
}

/// As [`per_integer`], for types whose sign does not matter.
macro_rules! per_width {
    ($kind:expr, $scalar:ident => $body:expr) => {
        match $kind.size() {
            2 => {
                type $scalar = u16;
                Some($body)
            }
            4 => {
                type $scalar = u32;
                Some($body)
            }
            8 => {
                type $scalar = u64;
                Some($body)
            }
            _ => None,
        }
    };
}

pub(super) use {per_integer, per_width};
