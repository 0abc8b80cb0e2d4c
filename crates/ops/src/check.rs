//! Checks that operators make of their arguments, and the choice of arithmetic by dtype.

use crate::buffer::Shape;
use crate::dtype::DType;
use crate::error::OpError;

/// Fails unless `found` is `expected`.
pub(crate) fn shape(
    operator: &'static str,
    argument: &'static str,
    found: Shape,
    expected: impl Into<Shape>,
) -> Result<(), OpError> {
    let expected = expected.into();
    if found == expected {
        return Ok(());
    }
    let found = found.extents().to_vec();
    Err(OpError::Shape { operator, argument, found, expected: format!("{expected:?}") })
}

/// Fails unless `found` is `expected`.
pub(crate) fn dtype(
    operator: &'static str,
    argument: &'static str,
    found: DType,
    expected: DType,
) -> Result<(), OpError> {
    if found == expected {
        return Ok(());
    }
    Err(OpError::DType { operator, argument, found, expected: expected.name() })
}

/// The extent of a vector.
pub(crate) fn vector(operator: &'static str, argument: &'static str, found: Shape) -> Result<usize, OpError> {
    match *found.extents() {
        [length] => Ok(length),
        _ => Err(OpError::Shape {
            operator,
            argument,
            found: found.extents().to_vec(),
            expected: "a vector".into(),
        }),
    }
}

/// The two extents of a matrix, which may have no rows but has columns.
pub(crate) fn matrix(
    operator: &'static str,
    argument: &'static str,
    found: Shape,
) -> Result<(usize, usize), OpError> {
    match *found.extents() {
        [rows, columns] if columns > 0 => Ok((rows, columns)),
        _ => Err(OpError::Shape {
            operator,
            argument,
            found: found.extents().to_vec(),
            expected: "a matrix with at least one column".into(),
        }),
    }
}

/// Fails unless `index` is below `bound`.
pub(crate) fn index(operator: &'static str, index: usize, bound: usize) -> Result<(), OpError> {
    if index < bound { Ok(()) } else { Err(OpError::Index { operator, index, bound }) }
}

/// Fails unless every index is below `bound`.
pub(crate) fn indices(operator: &'static str, indices: &[u32], bound: usize) -> Result<(), OpError> {
    indices.iter().try_for_each(|&found| index(operator, found as usize, bound))
}

/// Runs `$body` with the type name `$float` standing for the Rust type of a floating-point dtype.
macro_rules! for_float {
    ($operator:expr, $view:expr, $float:ident => $body:expr) => {
        match $view.dtype() {
            $crate::DType::F32 => {
                type $float = f32;
                $body
            }
            $crate::DType::F64 => {
                type $float = f64;
                $body
            }
            found => Err($crate::OpError::DType {
                operator: $operator,
                argument: stringify!($view),
                found,
                expected: "f32 or f64",
            }),
        }
    };
}
pub(crate) use for_float;
