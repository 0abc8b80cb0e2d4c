//! The parameter table: which parameters a model has, what they are called in a Hugging Face folder, and where they lie
//! in the flat units. Sharding, checkpoints, export and planning work from this table and know no family.
//!
//! A unit is a list of segments, a segment one tensor as the operators use it: the query, key and value weights lie
//! behind one another without a gap and are one matrix of one product. Segments with weight decay lie first.

use std::ops::Range;

use tessera_ops::{OpError, Shape, View, ViewMut};

/// Segments begin at multiples of this many elements: 256 bytes of fp32.
const SEGMENT_ALIGNMENT: usize = 64;

/// How a parameter starts when a model is trained from scratch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    /// Normally distributed around 0 with this deviation.
    Normal(f64),
    /// All the same value.
    Constant(f32),
}

/// A tensor of the Hugging Face folder, or the part of one that lies in a unit: where a tensor holds all experts, those of
/// one unit are a range of its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// The tensor's name there.
    pub name: String,
    /// The whole tensor's shape there.
    pub shape: Vec<usize>,
    /// The elements of the tensor, in row-major order, that this parameter is.
    pub part: Range<usize>,
    /// How it starts when trained from scratch.
    pub initial: Initial,
}

impl Parameter {
    /// The number of elements that lie in the unit.
    pub fn elements(&self) -> usize {
        self.part.len()
    }
}

/// Parameters that the operators see as one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// The shape as the operators see it; the parameters fill it in row-major order.
    pub shape: Shape,
    /// Whether weight decay applies.
    pub decayed: bool,
    /// The parameters, one behind the other.
    pub parameters: Vec<Parameter>,
}

impl Segment {
    /// A segment of one parameter. Weight decay applies to parameters of two or more dimensions.
    pub fn of<const RANK: usize>(name: String, shape: [usize; RANK], initial: Initial) -> Self {
        let part = 0..shape.iter().product();
        let parameter = Parameter { name, shape: shape.to_vec(), part, initial };
        Self { shape: shape.into(), decayed: RANK >= 2, parameters: vec![parameter] }
    }

    /// A segment of some rows of a tensor that is seen as a matrix of `columns` columns, whatever its shape on disk. Weight
    /// decay applies.
    pub fn rows(
        name: String,
        shape: Vec<usize>,
        rows: Range<usize>,
        columns: usize,
        initial: Initial,
    ) -> Self {
        let part = rows.start * columns..rows.end * columns;
        let parameter = Parameter { name, shape, part, initial };
        Self { shape: [rows.len(), columns].into(), decayed: true, parameters: vec![parameter] }
    }

    /// Parameters of equally wide rows (or vectors) as one.
    pub fn joined(parts: Vec<Segment>) -> Self {
        let decayed = parts.iter().all(|part| part.decayed);
        let rows = parts.iter().map(|part| part.shape.extents()[0]).sum();
        let shape = match parts.first().map(|part| part.shape.extents()) {
            Some(&[_, columns]) => [rows, columns].into(),
            _ => [rows].into(),
        };
        let parameters = parts.into_iter().flat_map(|part| part.parameters).collect();
        Self { shape, decayed, parameters }
    }
}

/// The segments of a unit in the making.
#[derive(Debug, Default)]
pub(crate) struct Segments(Vec<Segment>);

impl Segments {
    /// Adds one, and returns its number.
    pub(crate) fn add(&mut self, segment: Segment) -> usize {
        self.0.push(segment);
        self.0.len() - 1
    }
}

impl From<Segments> for Vec<Segment> {
    fn from(segments: Segments) -> Self {
        segments.0
    }
}

/// Where a parameter lies in its unit.
#[derive(Debug, Clone, Copy)]
pub struct Placed<'a> {
    /// The parameter.
    pub parameter: &'a Parameter,
    /// The unit's element at which it begins.
    pub start: usize,
}

/// The part of a parameter that lies in one rank's slice of its unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece<'a> {
    /// The parameter.
    pub parameter: &'a Parameter,
    /// The piece's first element, counted in row-major order of the whole tensor.
    pub first: usize,
    /// Elements of the unit's parameters that lie before the piece, gaps not counted.
    pub before: usize,
    /// Where the piece lies, in elements of the slice.
    pub place: Range<usize>,
}

/// The table of one unit.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitTable {
    segments: Vec<Segment>,
    starts: Vec<usize>,
    elements: usize,
}

impl UnitTable {
    /// Lays the segments out one behind the other, each at an aligned place, those with weight decay first. They keep their
    /// numbers.
    pub fn new(segments: Vec<Segment>) -> Self {
        let (mut elements, mut starts) = (0, vec![0; segments.len()]);
        for decayed in [true, false] {
            for (segment, start) in segments.iter().zip(&mut starts) {
                if segment.decayed == decayed {
                    *start = elements;
                    elements += segment.shape.elements().next_multiple_of(SEGMENT_ALIGNMENT);
                }
            }
        }
        Self { segments, starts, elements }
    }

    /// Elements of the whole unit, gaps included.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The number of first elements to which weight decay applies.
    pub fn decayed(&self) -> usize {
        let undecayed = self.segments.iter().zip(&self.starts).find(|(segment, _)| !segment.decayed);
        undecayed.map_or(self.elements, |(_, &start)| start)
    }

    /// The parameters and where they begin.
    pub fn parameters(&self) -> impl Iterator<Item = Placed<'_>> {
        self.segments.iter().zip(&self.starts).flat_map(|(segment, &start)| {
            segment.parameters.iter().scan(start, |next, parameter| {
                let start = *next;
                *next += parameter.elements();
                Some(Placed { parameter, start })
            })
        })
    }

    /// The parts of parameters that lie in the unit's elements `slice`.
    pub fn pieces(&self, slice: Range<usize>) -> impl Iterator<Item = Piece<'_>> {
        let mut before = 0;
        self.parameters().filter_map(move |Placed { parameter, start }| {
            let parameters_before = before;
            before += parameter.elements();
            let from = start.max(slice.start);
            let to = (start + parameter.elements()).min(slice.end);
            (from < to).then(|| Piece {
                parameter,
                first: parameter.part.start + from - start,
                before: parameters_before + from - start,
                place: from - slice.start..to - slice.start,
            })
        })
    }

    /// The segments of a flat unit, as tensors.
    pub fn views<'a>(&self, flat: View<'a>) -> Result<Vec<View<'a>>, OpError> {
        self.segments
            .iter()
            .zip(&self.starts)
            .map(|(segment, &start)| flat.range(start, segment.shape.elements())?.reshape(segment.shape))
            .collect()
    }

    /// The segments of a flat unit, as mutable tensors.
    pub fn views_mut<'a>(&self, flat: ViewMut<'a>) -> Result<Vec<ViewMut<'a>>, OpError> {
        let mut rest = flat;
        let mut views = Vec::with_capacity(self.segments.len());
        for index in self.order() {
            let Segment { shape, .. } = self.segments[index];
            let (taken, behind) = rest.split_at(shape.elements().next_multiple_of(SEGMENT_ALIGNMENT))?;
            views.push((index, taken.range(0, shape.elements())?.reshape(shape)?));
            rest = behind;
        }
        views.sort_by_key(|&(index, _)| index);
        Ok(views.into_iter().map(|(_, view)| view).collect())
    }

    /// The segments' numbers in the order in which they lie.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.segments.len()).collect();
        order.sort_by_key(|&index| self.starts[index]);
        order
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_decayed_lies_first_and_numbers_stay() {
        let vector = |name: &str| Segment::of(name.into(), [3], Initial::Constant(1.0));
        let matrix = |name: &str| Segment::of(name.into(), [2, 3], Initial::Constant(1.0));
        let table = UnitTable::new(vec![vector("a"), matrix("b"), vector("c"), matrix("d")]);
        assert_eq!((table.elements(), table.decayed()), (256, 128));
        let mut flat: Vec<f32> = (0..256_u16).map(f32::from).collect();
        let firsts = |views: &[View<'_>]| -> Vec<f32> {
            views.iter().map(|view| view.as_slice::<f32>().unwrap()[0]).collect()
        };
        assert_eq!(firsts(&table.views(View::of(&flat)).unwrap()), [128.0, 0.0, 192.0, 64.0]);
        let views = table.views_mut(ViewMut::of(&mut flat)).unwrap();
        let views: Vec<_> = views.iter().map(ViewMut::as_view).collect();
        assert_eq!(firsts(&views), [128.0, 0.0, 192.0, 64.0]);
    }

    #[test]
    fn parts_of_one_tensor_lie_where_the_unit_wants_them() {
        let rows = |name: &str, rows| Segment::rows(name.into(), vec![6, 2], rows, 2, Initial::Constant(0.0));
        let table = UnitTable::new(vec![Segment::joined(vec![
            rows("w1", 2..4),
            rows("v1", 2..4),
            rows("w1", 4..6),
            rows("v1", 4..6),
        ])]);
        let pieces: Vec<_> = table
            .pieces(3..13)
            .map(|piece| (&*piece.parameter.name, piece.first, piece.before, piece.place))
            .collect();
        assert_eq!(
            pieces,
            [("w1", 7, 3, 0..1), ("v1", 4, 4, 1..5), ("w1", 8, 8, 5..9), ("v1", 8, 12, 9..10)]
        );
    }

    #[test]
    fn joined_parameters_are_one_tensor_and_keep_their_places() {
        let normal = Initial::Normal(0.02);
        let table = UnitTable::new(vec![
            Segment::joined(vec![
                Segment::of("q".into(), [3, 5], normal),
                Segment::of("k".into(), [2, 5], normal),
            ]),
            Segment::of("norm".into(), [5], Initial::Constant(1.0)),
        ]);
        assert_eq!((table.elements(), table.decayed()), (128, 64));
        let places: Vec<_> =
            table.parameters().map(|placed| (&*placed.parameter.name, placed.start)).collect();
        assert_eq!(places, [("q", 0), ("k", 15), ("norm", 64)]);
        let pieces: Vec<_> =
            table.pieces(10..70).map(|piece| (&*piece.parameter.name, piece.first, piece.place)).collect();
        assert_eq!(pieces, [("q", 10, 0..5), ("k", 0, 5..15), ("norm", 0, 54..59)]);
        let mut flat: Vec<f32> = (0..128_u8).map(f32::from).collect();
        let views = table.views(View::of(&flat)).unwrap();
        assert_eq!(views[0].shape().extents(), [5, 5]);
        assert_eq!(views[1].as_slice::<f32>().unwrap()[0], 64.0);
        let mut views = table.views_mut(ViewMut::of(&mut flat)).unwrap();
        assert_eq!(views[1].as_slice_mut::<f32>().unwrap()[4], 68.0);
    }
}
