//! Where the first weights come from: a source on disk, read by ranges, or the seed.

use std::ops::Range;

use tessera_checkpoint::WeightSource;
use tessera_dist::{DistError, Weights};
use tessera_model::{Initial, UnitTable};
use tessera_ops::{DType, ViewMut, random, transfer};

use super::Engine;
use crate::error::TrainError;

/// Elements that are read at a time where they are only added up.
const SUMMED_ELEMENTS: usize = 1 << 20;

/// Fills `out` with the elements of a tensor from `first` on, all of which must be finite.
pub(crate) fn read_finite(
    source: &dyn WeightSource,
    name: &str,
    first: usize,
    out: &mut [f32],
) -> Result<(), TrainError> {
    source.read(name, first, out)?;
    match out.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(place) => Err(TrainError::NotFiniteSource {
            name: name.to_owned(),
            element: first + place,
            value: out[place],
        }),
    }
}

/// The bits of values, each multiplied by an odd number that comes of its place, added up: cheap, and different where one bit
/// is. The first of them has the place `first`.
pub(crate) fn bit_sum(values: &[f32], first: usize) -> u64 {
    let factors = (first..).map(|place| 2 * place as u64 + 1);
    let terms =
        values.iter().zip(factors).map(|(value, factor)| u64::from(value.to_bits()).wrapping_mul(factor));
    terms.fold(0, u64::wrapping_add)
}

impl Engine {
    /// A unit's master weights, gathered from all ranks, which all call this.
    pub fn masters(&self, unit: usize) -> Result<Weights<'_>, DistError> {
        self.units.masters(&self.queue, unit)
    }

    /// This rank's slice of a unit, in elements of the unit.
    pub fn slice(&self, unit: usize) -> Range<usize> {
        self.slice_of(self.units.group().rank(), unit)
    }

    /// The slice of one of the ranks that share a copy of the model.
    fn slice_of(&self, rank: usize, unit: usize) -> Range<usize> {
        let length = self.units.unit(unit).size().shard(self.units.group().world_size());
        rank * length..(rank + 1) * length
    }

    /// Calls `body` with each unit's table, slice and master weights.
    fn for_each_master(
        &self,
        mut body: impl FnMut(&UnitTable, Range<usize>, &mut [f32]) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        self.units.forget_weights()?;
        for (index, unit) in self.units.iter().enumerate() {
            let mut state = unit.state().write().map_err(|_| DistError::Abandoned { unit: index })?;
            let (table, slice) = (&self.model.units()[index], self.slice(index));
            let master = state.master.view_mut(DType::F32);
            transfer::on_host(&self.queue, master, |master| body(table, slice, master))
                .map_err(DistError::Op)??;
        }
        Ok(())
    }

    /// Fills the master weights from `source`, reading this rank's ranges only. `tables` are those of the units with the
    /// names that the source has for its tensors. `read` is called with the number of elements after each piece.
    pub fn load_weights(
        &self,
        tables: &[UnitTable],
        source: &dyn WeightSource,
        mut read: impl FnMut(usize),
    ) -> Result<(), TrainError> {
        let mut tables = tables.iter();
        self.for_each_master(|table, slice, master| {
            for piece in tables.next().unwrap_or(table).pieces(slice) {
                let master = &mut master[piece.place];
                read_finite(source, &piece.parameter.name, piece.first, master)?;
                read(master.len());
            }
            Ok(())
        })
    }

    /// What each piece of this rank's master weights adds up to, see [`bit_sum`].
    pub(crate) fn weight_sums(&self) -> Result<Vec<u64>, TrainError> {
        let mut sums = Vec::new();
        self.for_each_master(|table, slice, master| {
            sums.extend(table.pieces(slice).map(|piece| bit_sum(&master[piece.place], 0)));
            Ok(())
        })?;
        Ok(sums)
    }

    /// What each piece of a rank of this copy of the model adds up to in `source`, with the name of its tensor; `tables` as
    /// for [`Engine::load_weights`].
    pub(crate) fn weight_sums_in(
        &self,
        source: &dyn WeightSource,
        tables: &[UnitTable],
        rank: usize,
    ) -> Result<Vec<(String, u64)>, TrainError> {
        let mut room = vec![0.0; SUMMED_ELEMENTS];
        let mut sums = Vec::new();
        for (unit, table) in tables.iter().enumerate() {
            for piece in table.pieces(self.slice_of(rank, unit)) {
                let (name, length) = (&piece.parameter.name, piece.place.len());
                let mut sum = 0_u64;
                for start in (0..length).step_by(room.len()) {
                    let values = &mut room[..SUMMED_ELEMENTS.min(length - start)];
                    source.read(name, piece.first + start, values)?;
                    sum = sum.wrapping_add(bit_sum(values, start));
                }
                sums.push((name.clone(), sum));
            }
        }
        Ok(sums)
    }

    /// Fills the master weights at random, keyed on the seed and each element's place in the whole model, so that any number
    /// of ranks begins with the same weights.
    pub fn initialise(&self, seed: u64) -> Result<(), TrainError> {
        let mut before = 0;
        self.for_each_master(|table, slice, master| {
            for piece in table.pieces(slice) {
                let first = before + piece.before;
                let master = &mut master[piece.place];
                match piece.parameter.initial {
                    Initial::Constant(value) => master.fill(value),
                    Initial::Normal(deviation) => {
                        let master = ViewMut::of(master);
                        random::normal(seed, first as u64, deviation, master).map_err(DistError::Op)?;
                    }
                }
            }
            before += table.parameters().map(|placed| placed.parameter.elements()).sum::<usize>();
            Ok(())
        })
    }
}
