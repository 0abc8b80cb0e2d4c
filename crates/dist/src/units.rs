//! All units of a model as the step loop uses them: weights are asked for before they are needed, gradients are let go
//! when they are complete, and both move while the loop computes with another unit.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLockReadGuard, TryLockError};

use tessera_ops::{Buffer, DType, Queue, View, ViewMut, fill};

use crate::error::DistError;
use crate::group::Group;
use crate::mesh::Mesh;
use crate::slots::{GradientSlot, Residency, SlotPlan, WeightSlots};
use crate::unit::{Unit, UnitSize, UnitState};
use crate::wire::Wire;

/// The units of a model, as one rank holds them.
pub struct Units {
    mesh: Mesh,
    units: Vec<Unit>,
    /// The dtype of gathered weights.
    compute: DType,
    /// Empty where the masters are lent.
    weights: Mutex<WeightSlots>,
    /// Empty in a group that lends.
    gradients: Vec<Mutex<GradientSlot>>,
    /// Gradients handed out so far: they take the slots in turn.
    turn: AtomicUsize,
    /// How gradients travel.
    wire: Wire,
    /// Whether gradients came that the other replicas have not seen.
    replicas_differ: AtomicBool,
}

impl Units {
    /// Takes the units, of which each rank of the mesh's shard group owns a slice, and allocates, where `queue` works, the slots
    /// that they pass through. Gathered weights are in `compute` and stay for as long as `residency` says; gradients travel as
    /// `wire` says.
    pub fn new(
        queue: &Queue,
        mesh: impl Into<Mesh>,
        units: Vec<Unit>,
        compute: DType,
        residency: Residency,
        wire: Wire,
    ) -> Result<Self, DistError> {
        let mesh = mesh.into();
        let sizes: Vec<UnitSize> = units.iter().map(Unit::size).collect();
        let (ranks, lends) = (mesh.shard().world_size(), mesh.shard().lends());
        let plan = SlotPlan::new(&sizes, ranks, lends, compute, residency);
        let gradients = plan.gradients.iter().map(|&bytes| GradientSlot::new(queue, bytes).map(Mutex::new));
        Ok(Self {
            compute,
            weights: Mutex::new(WeightSlots::new(queue, &plan.weights, residency)?),
            gradients: gradients.collect::<Result<_, _>>()?,
            turn: AtomicUsize::new(0),
            wire,
            replicas_differ: AtomicBool::new(false),
            mesh,
            units,
        })
    }

    /// The group that shares the units.
    pub fn group(&self) -> &dyn Group {
        self.mesh.shard()
    }

    /// All groups of this rank.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The units, in the order of the model.
    pub fn iter(&self) -> std::slice::Iter<'_, Unit> {
        self.units.iter()
    }

    /// One unit.
    pub fn unit(&self, index: usize) -> &Unit {
        &self.units[index]
    }

    /// Elements of the whole unit as it is moved.
    fn padded(&self, index: usize) -> usize {
        self.units[index].size.padded(self.group().world_size())
    }

    /// Bytes of the slots' buffers, as far as nothing is under way in them: what [`SlotPlan`] planned.
    pub fn slot_bytes(&self) -> Result<usize, DistError> {
        let mut bytes = self.slots(0)?.bytes();
        for slot in &self.gradients {
            bytes += slot.lock().map_err(|_| DistError::Abandoned { unit: 0 })?.buffer.len();
        }
        Ok(bytes)
    }

    fn slots(&self, unit: usize) -> Result<MutexGuard<'_, WeightSlots>, DistError> {
        self.weights.lock().map_err(|_| DistError::Abandoned { unit })
    }

    /// Starts to gather a unit's weights, so that they are there when [`Units::weights`] asks. Where weights stay only
    /// while they are used, at most one other unit's may be held meanwhile: there are two slots.
    pub fn prefetch(&self, queue: &Queue, index: usize) -> Result<(), DistError> {
        let mut slots = self.slots(index)?;
        self.gather(&mut slots, queue, index)
    }

    fn gather(&self, slots: &mut WeightSlots, queue: &Queue, index: usize) -> Result<(), DistError> {
        if slots.is_empty() || slots.has(index) {
            return Ok(());
        }
        let (elements, state) = (self.padded(index), &self.units[index].state);
        slots.fill(index, |full| self.group().all_gather(queue, index, self.compute, elements, state, full))
    }

    /// A unit's weights: those of the masters since the last change. Gathers them now if they were not prefetched.
    pub fn weights(&self, queue: &Queue, index: usize) -> Result<Weights<'_>, DistError> {
        let (elements, dtype) = (self.units[index].size.elements, self.compute);
        let mut slots = self.slots(index)?;
        if slots.is_empty() {
            return self.lent(index);
        }
        self.gather(&mut slots, queue, index)?;
        Ok(Weights { source: Source::Gathered(slots.hold(index)?), dtype, elements })
    }

    /// The masters of a whole unit, fp32. They are for exports, between steps: where masters are not what is computed with,
    /// they pass through a slot for gradients.
    pub fn masters(&self, queue: &Queue, index: usize) -> Result<Weights<'_>, DistError> {
        if self.group().lends() {
            return self.lent(index);
        }
        if self.compute == DType::F32 {
            return self.weights(queue, index);
        }
        let (elements, state) = (self.padded(index), &self.units[index].state);
        let mut slot = self.free_gradient_slot(index)?;
        slot.settle()?;
        slot.leave(|full| self.group().all_gather(queue, index, DType::F32, elements, state, full))?;
        slot.settle()?;
        let elements = self.units[index].size.elements;
        Ok(Weights { source: Source::InGradientSlot(slot), dtype: DType::F32, elements })
    }

    /// The masters of a unit that is all this rank's.
    fn lent(&self, index: usize) -> Result<Weights<'_>, DistError> {
        let unit = &self.units[index];
        let state = unit.state.read().map_err(|_| DistError::Abandoned { unit: index })?;
        Ok(Weights { source: Source::Lent(state), dtype: DType::F32, elements: unit.size.elements })
    }

    /// Forgets gathered weights, because their masters are about to change: what is issued from now on to the queue that
    /// they were gathered for comes after every gather that reads the masters. None may be held.
    pub fn forget_weights(&self) -> Result<(), DistError> {
        self.slots(0)?.clear()
    }

    /// Lets `change` change a unit's masters, of which gathered weights are forgotten. Only where they are all this rank's own, and
    /// here, they stay: `change` is given them to write anew as well, which saves the pass over the masters that gathers them.
    pub fn change<T>(
        &self,
        index: usize,
        change: impl FnOnce(Option<ViewMut<'_>>) -> Result<T, DistError>,
    ) -> Result<T, DistError> {
        let mut slots = self.slots(index)?;
        let here = if self.group().lends() { slots.here(index)? } else { None };
        if let Some(gathered) = here {
            let elements = self.units[index].size.elements;
            return change(Some(gathered.view_mut(self.compute).range(0, elements)?));
        }
        slots.forget(index)?;
        drop(slots);
        change(None)
    }

    /// Where a unit's gradient is to be added. In a group that gathers it starts at zero each time, and two can be held.
    pub fn gradient(&self, queue: &Queue, index: usize) -> Result<Gradient<'_>, DistError> {
        let elements = self.units[index].size.elements;
        if self.gradients.is_empty() {
            let gradient = &self.units[index].gradient;
            let buffer = gradient.lock().map_err(|_| DistError::Abandoned { unit: index })?;
            return Ok(Gradient { target: Target::Lent(buffer), elements });
        }
        let mut slot = self.free_gradient_slot(index)?;
        slot.settle()?;
        fill::zero(queue, slot.buffer.view_mut(DType::F32).range(0, self.padded(index))?)?;
        Ok(Gradient { target: Target::Slot(slot), elements })
    }

    /// The slot whose gradient has had the most time to leave, of those that are not held.
    fn free_gradient_slot(&self, index: usize) -> Result<MutexGuard<'_, GradientSlot>, DistError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for offset in 0..self.gradients.len() {
            match self.gradients[(turn + offset) % self.gradients.len()].try_lock() {
                Ok(slot) => return Ok(slot),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Poisoned(_)) => return Err(DistError::Abandoned { unit: index }),
            }
        }
        Err(DistError::NoFreeSlot { unit: index })
    }

    /// Starts to add a complete gradient into the shards of all ranks.
    pub fn reduce(&self, queue: &Queue, index: usize, gradient: Gradient<'_>) -> Result<(), DistError> {
        self.replicas_differ.store(true, Ordering::Relaxed);
        let Target::Slot(mut slot) = gradient.target else { return Ok(()) };
        let (elements, shard) = (self.padded(index), &self.units[index].gradient);
        slot.leave(|full| self.group().reduce_scatter(queue, index, elements, full, shard, self.wire))
    }

    /// Ends the reductions of a step: when this returns, every shard has the sum over all ranks and replicas. Only then
    /// are the replicas summed, once for all micro-batches; the shards must be cleared before the next gradient comes.
    pub fn finish_reductions(&self, queue: &Queue) -> Result<(), DistError> {
        for (index, slot) in self.gradients.iter().enumerate() {
            slot.lock().map_err(|_| DistError::Abandoned { unit: index })?.settle()?;
        }
        let replicate = self.mesh.replicate();
        if !self.replicas_differ.swap(false, Ordering::Relaxed) || replicate.world_size() == 1 {
            return Ok(());
        }
        let sums = self.units.iter().enumerate();
        let reduce = |(index, unit): (usize, &Unit)| {
            replicate.all_reduce_gradient(queue, index, &unit.gradient, self.wire)
        };
        let sums = sums.map(reduce);
        sums.collect::<Result<Vec<_>, _>>()?.into_iter().try_for_each(|sum| sum.wait())
    }
}

/// The whole of a unit's weights, for as long as they are used.
pub struct Weights<'a> {
    source: Source<'a>,
    dtype: DType,
    elements: usize,
}

enum Source<'a> {
    Lent(RwLockReadGuard<'a, UnitState>),
    Gathered(Arc<Buffer>),
    InGradientSlot(MutexGuard<'a, GradientSlot>),
}

impl Weights<'_> {
    /// The weights as one flat vector.
    pub fn view(&self) -> Result<View<'_>, DistError> {
        let buffer = match &self.source {
            Source::Lent(state) => &state.master,
            Source::Gathered(buffer) => buffer,
            Source::InGradientSlot(slot) => &slot.buffer,
        };
        Ok(buffer.view(self.dtype).range(0, self.elements)?)
    }
}

/// The whole of a unit's gradient, for as long as it is being added to.
pub struct Gradient<'a> {
    target: Target<'a>,
    elements: usize,
}

enum Target<'a> {
    Lent(MutexGuard<'a, Buffer>),
    Slot(MutexGuard<'a, GradientSlot>),
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
