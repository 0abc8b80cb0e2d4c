//! All units of a model as the step loop uses them: two slots for gathered weights and two for gradients serve the
//! whole model, so that one unit arrives or leaves while the loop computes with another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use tessera_ops::{Buffer, DType, Queue, View, ViewMut, fill};

use crate::error::DistError;
use crate::group::{Group, Handle};
use crate::unit::{Unit, UnitState};

/// The number of units that can be gathered, or reduced, at a time.
const SLOTS: usize = 2;

/// A buffer for the whole of one unit, and what is still under way in it.
struct Slot {
    buffer: Buffer,
    /// The unit whose weights are, or will be, in the buffer.
    unit: Option<usize>,
    pending: Option<Handle>,
}

/// The units of a model, as one rank of a group holds them.
pub struct Units {
    group: Box<dyn Group>,
    units: Vec<Unit>,
    /// Empty in a group that lends.
    weight_slots: Vec<RwLock<Slot>>,
    /// Empty in a group that lends.
    gradient_slots: Vec<Mutex<Slot>>,
    /// Gradients handed out so far: they take the slots in turn.
    gradients: AtomicUsize,
}

impl Units {
    /// Takes the units, and allocates the slots that the group needs.
    pub fn new(group: Box<dyn Group>, units: Vec<Unit>) -> Result<Self, DistError> {
        let world_size = group.world_size();
        let largest = units.iter().map(|unit| unit.size.shard(world_size) * world_size).max().unwrap_or(0);
        let slots = if group.lends() { 0 } else { SLOTS };
        let slot = || -> Result<Slot, DistError> {
            let buffer = Buffer::zeroed(largest * DType::F32.size())?;
            Ok(Slot { buffer, unit: None, pending: None })
        };
        let weight_slots = (0..slots).map(|_| slot().map(RwLock::new)).collect::<Result<_, _>>()?;
        let gradient_slots = (0..slots).map(|_| slot().map(Mutex::new)).collect::<Result<_, _>>()?;
        Ok(Self { group, units, weight_slots, gradient_slots, gradients: AtomicUsize::new(0) })
    }

    /// The group that shares the units.
    pub fn group(&self) -> &dyn Group {
        self.group.as_ref()
    }

    /// The units, in the order of the model.
    pub fn iter(&self) -> std::slice::Iter<'_, Unit> {
        self.units.iter()
    }

    /// One unit.
    pub fn unit(&self, index: usize) -> &Unit {
        &self.units[index]
    }

    /// Starts to gather a unit's weights, so that they are there when [`Units::weights`] asks. At most one other unit's
    /// weights may be held meanwhile: there are two slots.
    pub fn prefetch(&self, queue: &Queue, index: usize) -> Result<(), DistError> {
        if self.weight_slots.is_empty() || self.slot_of(index)?.is_some() {
            return Ok(());
        }
        let mut slot = self.free_slot(index)?;
        if let Some(pending) = slot.pending.take() {
            pending.wait()?;
        }
        let unit = &self.units[index];
        let state = unit.state.read().map_err(|_| DistError::Abandoned { unit: index })?;
        let length = unit.size.shard(self.group.world_size()) * self.group.world_size();
        let full = slot.buffer.view_mut(DType::F32).range(0, length)?;
        let handle = self.group.all_gather(queue, state.master.view(DType::F32), full)?;
        slot.pending = Some(handle);
        slot.unit = Some(index);
        Ok(())
    }

    /// The slot that holds, or is to hold, a unit's weights.
    fn slot_of(&self, index: usize) -> Result<Option<&RwLock<Slot>>, DistError> {
        for slot in &self.weight_slots {
            if slot.read().map_err(|_| DistError::Abandoned { unit: index })?.unit == Some(index) {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// A slot that nobody holds, to be filled with unit `index`.
    fn free_slot(&self, index: usize) -> Result<RwLockWriteGuard<'_, Slot>, DistError> {
        for slot in &self.weight_slots {
            match slot.try_write() {
                Ok(slot) => return Ok(slot),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Poisoned(_)) => return Err(DistError::Abandoned { unit: index }),
            }
        }
        Err(DistError::NoFreeSlot { unit: index })
    }

    /// A unit's weights: those of the masters since the last change. Gathers them now if they were not prefetched.
    pub fn weights(&self, queue: &Queue, index: usize) -> Result<Weights<'_>, DistError> {
        let abandoned = || DistError::Abandoned { unit: index };
        let elements = self.units[index].size.elements;
        if self.weight_slots.is_empty() {
            let state = self.units[index].state.read().map_err(|_| abandoned())?;
            return Ok(Weights { source: Source::Lent(state), elements });
        }
        self.prefetch(queue, index)?;
        let slot = self.slot_of(index)?.ok_or(DistError::NoFreeSlot { unit: index })?;
        if let Some(pending) = slot.write().map_err(|_| abandoned())?.pending.take() {
            pending.wait()?;
        }
        Ok(Weights { source: Source::Gathered(slot.read().map_err(|_| abandoned())?), elements })
    }

    /// Forgets gathered weights: the masters have changed.
    pub fn weights_changed(&self) -> Result<(), DistError> {
        for (index, slot) in self.weight_slots.iter().enumerate() {
            slot.write().map_err(|_| DistError::Abandoned { unit: index })?.unit = None;
        }
        Ok(())
    }

    /// Where a unit's gradient is to be added. In a group that gathers it starts at zero each time.
    pub fn gradient(&self, queue: &Queue, index: usize) -> Result<Gradient<'_>, DistError> {
        let abandoned = || DistError::Abandoned { unit: index };
        let elements = self.units[index].size.elements;
        let turn = self.gradients.fetch_add(1, Ordering::Relaxed) % SLOTS;
        let Some(slot) = self.gradient_slots.get(turn) else {
            let buffer = self.units[index].gradient.lock().map_err(|_| abandoned())?;
            return Ok(Gradient { target: Target::Lent(buffer), elements });
        };
        let mut slot = slot.lock().map_err(|_| abandoned())?;
        if let Some(pending) = slot.pending.take() {
            pending.wait()?;
        }
        let length = self.units[index].size.shard(self.group.world_size()) * self.group.world_size();
        fill::zero(queue, slot.buffer.view_mut(DType::F32).range(0, length)?)?;
        Ok(Gradient { target: Target::Slot(slot), elements })
    }

    /// Starts to add a complete gradient into the shards of all ranks.
    pub fn reduce(&self, queue: &Queue, index: usize, gradient: Gradient<'_>) -> Result<(), DistError> {
        let Target::Slot(mut slot) = gradient.target else { return Ok(()) };
        let unit = &self.units[index];
        let length = unit.size.shard(self.group.world_size()) * self.group.world_size();
        let mut shard = unit.gradient.lock().map_err(|_| DistError::Abandoned { unit: index })?;
        let full = slot.buffer.view(DType::F32).range(0, length)?;
        let handle = self.group.reduce_scatter(queue, full, shard.view_mut(DType::F32))?;
        slot.pending = Some(handle);
        Ok(())
    }

    /// Waits until every gradient that was to be reduced is in the shards.
    pub fn finish_reductions(&self) -> Result<(), DistError> {
        for (index, slot) in self.gradient_slots.iter().enumerate() {
            let mut slot = slot.lock().map_err(|_| DistError::Abandoned { unit: index })?;
            if let Some(pending) = slot.pending.take() {
                pending.wait()?;
            }
        }
        Ok(())
    }
}

/// The whole of a unit's weights, for as long as they are used.
pub struct Weights<'a> {
    source: Source<'a>,
    elements: usize,
}

enum Source<'a> {
    Lent(RwLockReadGuard<'a, UnitState>),
    Gathered(RwLockReadGuard<'a, Slot>),
}

impl Weights<'_> {
    /// The weights as one flat vector.
    pub fn view(&self) -> Result<View<'_>, DistError> {
        let buffer = match &self.source {
            Source::Lent(state) => &state.master,
            Source::Gathered(slot) => &slot.buffer,
        };
        Ok(buffer.view(DType::F32).range(0, self.elements)?)
    }
}

/// The whole of a unit's gradient, for as long as it is being added to.
pub struct Gradient<'a> {
    target: Target<'a>,
    elements: usize,
}

enum Target<'a> {
    Lent(MutexGuard<'a, Buffer>),
    Slot(MutexGuard<'a, Slot>),
}

impl Gradient<'_> {
    /// The gradient as one flat vector.
    pub fn view_mut(&mut self) -> Result<ViewMut<'_>, DistError> {
        let buffer = match &mut self.target {
            Target::Lent(buffer) => &mut **buffer,
            Target::Slot(slot) => &mut slot.buffer,
        };
        Ok(buffer.view_mut(DType::F32).range(0, self.elements)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::group::Single;
    use crate::unit::UnitSize;

    /// A group of one that moves everything through the slots, as larger groups must.
    struct Copying;

    impl Group for Copying {
        fn rank(&self) -> usize {
            0
        }

        fn world_size(&self) -> usize {
            1
        }

        fn lends(&self) -> bool {
            false
        }

        fn all_gather(&self, queue: &Queue, shard: View<'_>, full: ViewMut<'_>) -> Result<Handle, DistError> {
            Single.all_gather(queue, shard, full)
        }

        fn reduce_scatter(
            &self,
            queue: &Queue,
            full: View<'_>,
            shard: ViewMut<'_>,
        ) -> Result<Handle, DistError> {
            Single.reduce_scatter(queue, full, shard)
        }

        fn all_reduce(&self, queue: &Queue, values: ViewMut<'_>) -> Result<Handle, DistError> {
            Single.all_reduce(queue, values)
        }
    }

    fn units(group: Box<dyn Group>) -> Units {
        let units = [5, 9, 7].map(|elements| {
            let unit = Unit::zeroed(UnitSize { elements, decayed: 2 }, 1, 2).unwrap();
            let mut state = unit.state.write().unwrap();
            state.master.view_mut(DType::F32).as_slice_mut::<f32>().unwrap().fill(elements as f32);
            drop(state);
            unit
        });
        Units::new(group, units.into()).unwrap()
    }

    #[test]
    fn gathered_units_are_the_lent_ones() {
        let queue = Queue::cpu();
        for units in [units(Box::new(Single)), units(Box::new(Copying))] {
            let order = [0, 1, 2, 0, 2, 1, 0];
            for (place, index) in order.into_iter().enumerate() {
                let weights = units.weights(&queue, index).unwrap();
                if let Some(&next) = order.get(place + 1) {
                    units.prefetch(&queue, next).unwrap();
                }
                let expected = [5, 9, 7][index];
                assert_eq!(
                    weights.view().unwrap().as_slice::<f32>().unwrap(),
                    vec![expected as f32; expected]
                );
                let mut gradient = units.gradient(&queue, index).unwrap();
                gradient.view_mut().unwrap().as_slice_mut::<f32>().unwrap()[0] += 1.0;
                units.reduce(&queue, index, gradient).unwrap();
            }
            units.finish_reductions().unwrap();
            let sums = units
                .iter()
                .map(|unit| unit.gradient.lock().unwrap().view(DType::F32).as_slice::<f32>().unwrap()[0]);
            assert_eq!(sums.collect::<Vec<_>>(), [3.0, 2.0, 2.0]);
        }
    }

    #[test]
    fn changed_masters_are_gathered_again() {
        let queue = Queue::cpu();
        let units = units(Box::new(Copying));
        drop(units.weights(&queue, 0).unwrap());
        let mut state = units.unit(0).state.write().unwrap();
        state.master.view_mut(DType::F32).as_slice_mut::<f32>().unwrap().fill(1.0);
        drop(state);
        units.weights_changed().unwrap();
        let weights = units.weights(&queue, 0).unwrap();
        assert_eq!(weights.view().unwrap().as_slice::<f32>().unwrap()[0], 1.0);
    }
}
