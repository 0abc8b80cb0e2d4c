//! Where the first weights come from: a source on disk, read by ranges, or the seed.

use std::ops::Range;

use tessera_checkpoint::WeightSource;
use tessera_dist::{DistError, Weights};
use tessera_model::{Initial, UnitTable};
use tessera_ops::{DType, ViewMut, random, transfer};

use super::Engine;
use crate::error::TrainError;

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

impl Engine {
    /// A unit's master weights, gathered from all ranks, which all call this.
    pub fn masters(&self, unit: usize) -> Result<Weights<'_>, DistError> {
        self.units.masters(&self.queue, unit)
    }

    /// This rank's slice of a unit, in elements of the unit.
    pub fn slice(&self, unit: usize) -> Range<usize> {
        let group = self.units.group();
        let length = self.units.unit(unit).size().shard(group.world_size());
        group.rank() * length..(group.rank() + 1) * length
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
