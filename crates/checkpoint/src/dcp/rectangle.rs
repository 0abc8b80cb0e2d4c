//! Rectangular parts of tensors, the only parts DCP can name, and how flat ranges relate to them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// A box inside a tensor: where it begins and how far it extends, dimension by dimension.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rectangle {
    /// First index in each dimension.
    pub offsets: Vec<usize>,
    /// Extent in each dimension.
    pub sizes: Vec<usize>,
}

impl Rectangle {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.sizes.iter().product()
    }

    fn meets(&self, other: &Self) -> bool {
        let mut dimensions = self.offsets.iter().zip(&self.sizes).zip(other.offsets.iter().zip(&other.sizes));
        dimensions.all(|((&start, &size), (&other_start, &other_size))| {
            start < other_start + other_size && other_start < start + size
        })
    }
}

/// The rectangles that together are the elements `start..start + length` of a row-major tensor, in order: each
/// one's elements follow those of the one before. At most one for a vector, three for a matrix, five for a 3-D
/// tensor. `None` if the range passes the tensor's end.
pub fn rectangles(shape: &[usize], start: usize, length: usize) -> Option<Vec<Rectangle>> {
    let elements = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent))?;
    let end = start.checked_add(length).filter(|&end| end <= elements)?;
    let mut parts = Vec::new();
    if length > 0 {
        split(shape, start, end, &mut Vec::new(), &mut parts);
    }
    Some(parts)
}

/// Adds the rectangles of `start..end`, which is not empty, within the sub-tensor at the indices `outer`.
fn split(shape: &[usize], start: usize, end: usize, outer: &mut Vec<usize>, parts: &mut Vec<Rectangle>) {
    let Some((_, inner)) = shape.split_first() else {
        return parts.push(Rectangle { offsets: outer.clone(), sizes: vec![1; outer.len()] });
    };
    let row: usize = inner.iter().product();
    let mut position = start;
    while position < end {
        let (index, within) = (position / row, position % row);
        if within == 0 && end - position >= row {
            let rows = (end - position) / row;
            let offsets = outer.iter().copied().chain([index]).chain(inner.iter().map(|_| 0)).collect();
            let sizes = outer.iter().map(|_| 1).chain([rows]).chain(inner.iter().copied()).collect();
            parts.push(Rectangle { offsets, sizes });
            position += rows * row;
        } else {
            let stop = row.min(within + end - position);
            outer.push(index);
            split(inner, within, stop, outer, parts);
            outer.pop();
            position += stop - within;
        }
    }
}

/// Why rectangles do not make up a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoverFault {
    /// A rectangle is not within the shape.
    #[error("the part at {0:?} reaches outside")]
    Outside(Vec<usize>),
    /// Two rectangles share elements.
    #[error("the parts at {0:?} and {1:?} overlap")]
    Overlap(Vec<usize>, Vec<usize>),
    /// Some elements are in no rectangle.
    #[error("{missing} of {elements} elements are missing")]
    Hole {
        /// How many are in none.
        missing: usize,
        /// How many there are.
        elements: usize,
    },
    /// More elements than can be counted.
    #[error("it has more elements than memory has addresses")]
    TooLarge,
}

/// Checks that `parts` are disjoint and together the whole of `shape`.
pub(crate) fn check_cover(shape: &[usize], parts: &[&Rectangle]) -> Result<(), CoverFault> {
    // Empty dimensions are left out, so that the product of any of the extents can be counted.
    let most = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent.max(1)));
    if most.is_none_or(|most| most > isize::MAX as usize) {
        return Err(CoverFault::TooLarge);
    }
    let elements: usize = shape.iter().product();
    for part in parts {
        let fits =
            part.offsets.len() == shape.len()
                && part.sizes.len() == shape.len()
                && part.offsets.iter().zip(&part.sizes).zip(shape).all(|((&offset, &size), &extent)| {
                    offset.checked_add(size).is_some_and(|end| end <= extent)
                });
        if !fits {
            return Err(CoverFault::Outside(part.offsets.clone()));
        }
    }
    let mut filled: Vec<_> = parts.iter().filter(|part| part.elements() > 0).collect();
    // A sweep along the dimension that is cut most: only parts that reach the present place can overlap there.
    let starts =
        |&dimension: &usize| parts.iter().map(|part| part.offsets[dimension]).collect::<BTreeSet<_>>().len();
    let along = (0..shape.len()).max_by_key(starts);
    let span = |part: &Rectangle| along.map_or((0, 1), |along| (part.offsets[along], part.sizes[along]));
    filled.sort_by_key(|part| span(part).0);
    let mut reaching: Vec<&Rectangle> = Vec::new();
    let mut covered = 0_usize;
    for part in filled {
        let place = span(part).0;
        reaching.retain(|other| {
            let (start, size) = span(other);
            start + size > place
        });
        if let Some(other) = reaching.iter().find(|other| other.meets(part)) {
            return Err(CoverFault::Overlap(other.offsets.clone(), part.offsets.clone()));
        }
        reaching.push(part);
        covered += part.elements();
    }
    if covered < elements {
        return Err(CoverFault::Hole { missing: elements - covered, elements });
    }
    Ok(())
}

/// A stretch of elements that is consecutive both in the tensor and in the rectangle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// First element, counted in the tensor.
    pub(crate) in_tensor: usize,
    /// The same element, counted in the rectangle.
    pub(crate) in_part: usize,
    /// How many.
    pub(crate) length: usize,
}

/// The stretches of `part` that lie in the elements `start..end` of a tensor of `shape`, in order. The rectangle
/// lies within the shape.
pub(crate) fn stretches<'a>(
    shape: &'a [usize],
    part: &'a Rectangle,
    start: usize,
    end: usize,
) -> impl Iterator<Item = Stretch> + 'a {
    // Rows run through the innermost dimensions that the part spans wholly, and the next one out.
    let whole = shape.iter().zip(&part.sizes).rev().take_while(|(extent, size)| extent == size).count();
    let outer = shape.len().saturating_sub(whole + 1);
    let run: usize = part.sizes[outer..].iter().product();
    let runs = part.elements().checked_div(run).unwrap_or(0);
    let position = move |index: usize| position_of_run(shape, part, outer, index);
    let first = partition_point(runs, |index| position(index) + run <= start);
    (first..runs).map(move |index| (index, position(index))).take_while(move |&(_, place)| place < end).map(
        move |(index, place)| {
            let in_tensor = place.max(start);
            let length = (place + run).min(end) - in_tensor;
            Stretch { in_tensor, in_part: index * run + (in_tensor - place), length }
        },
    )
}

/// Where in the tensor the `index`-th run of a rectangle begins; runs lie in the dimensions from `outer` on.
fn position_of_run(shape: &[usize], part: &Rectangle, outer: usize, index: usize) -> usize {
    let (mut rest, mut place, mut stride) = (index, 0, 1);
    for dimension in (0..shape.len()).rev() {
        let mut coordinate = part.offsets[dimension];
        if dimension < outer {
            coordinate += rest % part.sizes[dimension];
            rest /= part.sizes[dimension];
        }
        place += coordinate * stride;
        stride *= shape[dimension];
    }
    place
}

/// The first of `0..count` for which `before` does not hold; it holds for a beginning of them.
fn partition_point(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SHAPES: [&[usize]; 9] =
        [&[], &[1], &[7], &[3, 4], &[1, 5], &[5, 1], &[3, 2, 4], &[2, 3, 1, 2], &[4, 0, 2]];

    /// Flat positions of a rectangle's elements, found by visiting every element of the tensor.
    fn positions(shape: &[usize], part: &Rectangle) -> Vec<usize> {
        let elements: usize = shape.iter().product();
        let inside = |flat: usize| {
            let mut rest = flat;
            (0..shape.len()).rev().all(|dimension| {
                let coordinate = rest % shape[dimension];
                rest /= shape[dimension];
                (part.offsets[dimension]..part.offsets[dimension] + part.sizes[dimension])
                    .contains(&coordinate)
            })
        };
        (0..elements).filter(|&flat| inside(flat)).collect()
    }

    #[test]
    fn every_range_of_every_shape_is_its_rectangles_in_order() {
        for shape in SHAPES {
            let elements: usize = shape.iter().product();
            let most = [1, 1, 3, 5, 7][shape.len()];
            for start in 0..=elements {
                for end in start..=elements {
                    let parts = rectangles(shape, start, end - start).unwrap();
                    assert!(parts.len() <= most, "{shape:?} {start}..{end}: {parts:?}");
                    let found: Vec<_> = parts.iter().flat_map(|part| positions(shape, part)).collect();
                    assert_eq!(found, (start..end).collect::<Vec<_>>(), "{shape:?}");
                    assert!(parts.iter().all(|part| part.elements() > 0));
                }
            }
            assert_eq!(rectangles(shape, 0, elements + 1), None);
            assert_eq!(rectangles(shape, usize::MAX, 2), None);
        }
    }

    #[test]
    fn ranges_cover_and_their_faults_are_found() {
        let mut parts = rectangles(&[3, 2, 4], 0, 7).unwrap();
        parts.extend(rectangles(&[3, 2, 4], 7, 12).unwrap());
        let check = |parts: &[Rectangle]| check_cover(&[3, 2, 4], &parts.iter().collect::<Vec<_>>());
        assert_eq!(check(&parts), Err(CoverFault::Hole { missing: 5, elements: 24 }));
        parts.extend(rectangles(&[3, 2, 4], 19, 5).unwrap());
        assert_eq!(check(&parts), Ok(()));
        parts.push(rectangles(&[3, 2, 4], 23, 1).unwrap().remove(0));
        assert!(matches!(check(&parts), Err(CoverFault::Overlap(..))));
        parts.push(Rectangle { offsets: vec![2, 0, 0], sizes: vec![2, 1, 1] });
        assert!(matches!(check(&parts), Err(CoverFault::Outside(_))));
        let vast = Rectangle { offsets: vec![0; 3], sizes: vec![0, 1 << 40, 1 << 40] };
        assert_eq!(check_cover(&[0, 1 << 40, 1 << 40], &[&vast]), Err(CoverFault::TooLarge));
        let columns = [0, 2].map(|column| Rectangle { offsets: vec![0, column], sizes: vec![3, 2] });
        assert_eq!(check_cover(&[3, 4], &[&columns[1], &columns[0]]), Ok(()));
    }

    #[test]
    fn stretches_of_any_part_and_range_are_its_elements() {
        for shape in SHAPES {
            let elements: usize = shape.iter().product();
            for part in all_parts(shape) {
                let whole = positions(shape, &part);
                for start in 0..=elements {
                    for end in start..=elements {
                        let found: Vec<_> = stretches(shape, &part, start, end)
                            .flat_map(|piece| {
                                (0..piece.length).map(move |at| (piece.in_tensor + at, piece.in_part + at))
                            })
                            .collect();
                        let wanted: Vec<_> = whole
                            .iter()
                            .enumerate()
                            .filter(|(_, flat)| (start..end).contains(*flat))
                            .map(|(index, &flat)| (flat, index))
                            .collect();
                        assert_eq!(found, wanted, "{shape:?} {part:?} {start}..{end}");
                    }
                }
            }
        }
    }

    fn all_parts(shape: &[usize]) -> Vec<Rectangle> {
        let mut parts = vec![Rectangle { offsets: vec![], sizes: vec![] }];
        for &extent in shape {
            let longer = |part: &Rectangle, offset: usize, size: usize| Rectangle {
                offsets: part.offsets.iter().copied().chain([offset]).collect(),
                sizes: part.sizes.iter().copied().chain([size]).collect(),
            };
            let spans: Vec<_> = (0..=extent).flat_map(|a| (1..=extent - a).map(move |n| (a, n))).collect();
            parts = parts.iter().flat_map(|part| spans.iter().map(|&(a, n)| longer(part, a, n))).collect();
        }
        parts
    }
}
