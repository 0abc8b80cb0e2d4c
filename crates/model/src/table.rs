//! The parameter table: which parameters a model has, what they are called in a Hugging Face folder, and where they lie
//! in the flat units. Sharding, checkpoints, export and planning work from this table and know no family.
//!
//! A unit is a list of segments, a segment one tensor as the operators use it: the query, key and value weights lie
//! behind one another without a gap and are one matrix of one product. Segments with weight decay come first.

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

/// One tensor of the Hugging Face folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name there.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// How it starts when trained from scratch.
    pub initial: Initial,
}

impl Parameter {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
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
        let parameter = Parameter { name, shape: shape.to_vec(), initial };
        Self { shape: shape.into(), decayed: RANK >= 2, parameters: vec![parameter] }
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
    /// The parameter's first element in the slice, counted in row-major order.
    pub first: usize,
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
    /// Lays the segments out one behind the other, each at an aligned place. Those with weight decay must come first.
    pub fn new(segments: Vec<Segment>) -> Self {
        debug_assert!(segments.is_sorted_by_key(|segment| !segment.decayed));
        let mut elements = 0;
        let starts = segments
            .iter()
            .map(|segment| {
                let start = elements;
                elements += segment.shape.elements().next_multiple_of(SEGMENT_ALIGNMENT);
                start
            })
            .collect();
        Self { segments, starts, elements }
    }

    /// Elements of the whole unit, gaps included.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The number of first elements to which weight decay applies.
    pub fn decayed(&self) -> usize {
        let undecayed = self.segments.iter().position(|segment| !segment.decayed);
        undecayed.map_or(self.elements, |index| self.starts[index])
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
        self.parameters().filter_map(move |Placed { parameter, start }| {
            let from = start.max(slice.start);
            let to = (start + parameter.elements()).min(slice.end);
            let place = || from - slice.start..to - slice.start;
            (from < to).then(|| Piece { parameter, first: from - start, place: place() })
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
        for segment in &self.segments {
            let elements = segment.shape.elements();
            let (taken, behind) = rest.split_at(elements.next_multiple_of(SEGMENT_ALIGNMENT))?;
            views.push(taken.range(0, elements)?.reshape(segment.shape)?);
            rest = behind;
        }
        Ok(views)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
