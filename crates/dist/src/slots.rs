//! The buffers that units pass through, and what is in them.

use std::sync::Arc;

use tessera_ops::{Buffer, DType, Queue};

use crate::error::DistError;
use crate::group::Pending;
use crate::unit::UnitSize;

/// How many units can be under way, to or from this rank, at a time.
const SLOTS: usize = 2;

/// Elements that a process gives to others at a time, over all ranks: few enough for the 32-bit counts of MPI, enough to
/// fill a link.
pub(crate) const PIECE: usize = 1 << 20;

/// Bytes that a rank which is a process of its own packs what it gives and gets into, whatever its groups and units
/// are. Ranks that are threads work in place.
pub const PROCESS_SCRATCH_BYTES: usize = 2 * PIECE * size_of::<f32>();

/// How long gathered weights stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residency {
    /// While they are used: two buffers serve the whole model, and every use gathers again.
    #[default]
    WhileUsed,
    /// Until the masters change: every unit has a buffer of its own and is gathered once a step.
    WholeStep,
}

/// The buffers that a rank's units pass through, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPlan {
    /// For gathered weights.
    pub weights: Vec<usize>,
    /// For gradients on their way to the shards.
    pub gradients: Vec<usize>,
}

impl SlotPlan {
    /// The plan for units shared by `ranks` ranks and computed with in `compute`. A group that lends needs no slots for
    /// gradients, and none for weights where the masters are what is computed with.
    pub fn new(sizes: &[UnitSize], ranks: usize, lends: bool, compute: DType, residency: Residency) -> Self {
        let bytes = |dtype: DType| sizes.iter().map(move |size| size.padded(ranks) * dtype.size());
        let two = |dtype| vec![bytes(dtype).max().unwrap_or(0); SLOTS];
        let weights = match residency {
            _ if lends && compute == DType::F32 => Vec::new(),
            Residency::WhileUsed => two(compute),
            Residency::WholeStep => bytes(compute).collect(),
        };
        Self { weights, gradients: if lends { Vec::new() } else { two(DType::F32) } }
    }
}

/// What is in a buffer for weights.
enum Slot {
    Free(Buffer),
    Arriving {
        unit: usize,
        pending: Pending<Buffer>,
    },
    /// Held by every clone.
    Here {
        unit: usize,
        buffer: Arc<Buffer>,
    },
    /// A gather that failed has taken the buffer with it.
    Gone,
}

impl Slot {
    fn unit(&self) -> Option<usize> {
        match self {
            Slot::Arriving { unit, .. } | Slot::Here { unit, .. } => Some(*unit),
            Slot::Free(_) | Slot::Gone => None,
        }
    }

    /// In which order slots are given up: empty ones, then weights that were used, then weights that nobody has asked
    /// for yet. `None`: not at all.
    fn cost(&self) -> Option<u8> {
        match self {
            Slot::Free(_) => Some(0),
            Slot::Here { buffer, .. } => (Arc::strong_count(buffer) == 1).then_some(1),
            Slot::Arriving { .. } => Some(2),
            Slot::Gone => None,
        }
    }

    /// Forgets what is in it. Fails if that is held.
    fn clear(&mut self) -> Result<(), DistError> {
        let Some(unit) = self.unit() else { return Ok(()) };
        if self.cost().is_none() {
            return Err(DistError::StillHeld { unit });
        }
        *self = self.take()?.map_or(Self::Gone, Self::Free);
        Ok(())
    }

    /// The buffer, when nothing is under way in it any more.
    fn take(&mut self) -> Result<Option<Buffer>, DistError> {
        match std::mem::replace(self, Slot::Gone) {
            Slot::Free(buffer) => Ok(Some(buffer)),
            Slot::Arriving { pending, .. } => pending.wait().map(Some),
            Slot::Here { buffer, .. } => Ok(Arc::into_inner(buffer)),
            Slot::Gone => Ok(None),
        }
    }
}

/// The buffers for gathered weights.
pub(crate) struct WeightSlots {
    slots: Vec<Slot>,
    residency: Residency,
}

impl WeightSlots {
    pub fn new(queue: &Queue, bytes: &[usize], residency: Residency) -> Result<Self, DistError> {
        let slots = bytes.iter().map(|&bytes| Ok(Slot::Free(Buffer::on(queue, bytes)?)));
        Ok(Self { slots: slots.collect::<Result<_, DistError>>()?, residency })
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes of the buffers that nothing is under way in.
    pub fn bytes(&self) -> usize {
        let bytes = |slot: &Slot| match slot {
            Slot::Free(buffer) => buffer.len(),
            Slot::Here { buffer, .. } => buffer.len(),
            Slot::Arriving { .. } | Slot::Gone => 0,
        };
        self.slots.iter().map(bytes).sum()
    }

    /// Whether a unit is here or on its way.
    pub fn has(&self, unit: usize) -> bool {
        self.slots.iter().any(|slot| slot.unit() == Some(unit))
    }

    /// Lets `gather` fill a slot that nobody holds with a unit.
    pub fn fill(
        &mut self,
        unit: usize,
        gather: impl FnOnce(Buffer) -> Result<Pending<Buffer>, DistError>,
    ) -> Result<(), DistError> {
        let candidates = match self.residency {
            Residency::WhileUsed => &mut self.slots[..],
            Residency::WholeStep => &mut self.slots[unit..=unit],
        };
        let slot = candidates
            .iter_mut()
            .filter(|slot| slot.cost().is_some())
            .min_by_key(|slot| slot.cost())
            .ok_or(DistError::NoFreeSlot { unit })?;
        let buffer = slot.take()?.ok_or(DistError::NoFreeSlot { unit })?;
        *slot = Slot::Arriving { unit, pending: gather(buffer)? };
        Ok(())
    }

    /// A unit that has been asked for, when it has arrived; held as long as the returned reference lives.
    pub fn hold(&mut self, unit: usize) -> Result<Arc<Buffer>, DistError> {
        let place = self.slots.iter().position(|slot| slot.unit() == Some(unit));
        let place = place.ok_or(DistError::NoFreeSlot { unit })?;
        if self.residency == Residency::WhileUsed {
            // What was used last is given up last.
            self.slots[place..].rotate_left(1);
        }
        let slot = match self.residency {
            Residency::WhileUsed => self.slots.last_mut(),
            Residency::WholeStep => self.slots.get_mut(place),
        };
        let slot = slot.ok_or(DistError::NoFreeSlot { unit })?;
        if let Slot::Here { buffer, .. } = slot {
            return Ok(buffer.clone());
        }
        let buffer = Arc::new(slot.take()?.ok_or(DistError::NoFreeSlot { unit })?);
        *slot = Slot::Here { unit, buffer: buffer.clone() };
        Ok(buffer)
    }

    /// Forgets what is in the slots. Fails if a unit is held.
    pub fn clear(&mut self) -> Result<(), DistError> {
        self.slots.iter_mut().try_for_each(Slot::clear)
    }

    /// Forgets one unit. Fails if it is held.
    pub fn forget(&mut self, unit: usize) -> Result<(), DistError> {
        let mut slots = self.slots.iter_mut().filter(|slot| slot.unit() == Some(unit));
        slots.try_for_each(Slot::clear)
    }

    /// What is in the slot of a unit that is here, to be changed. Fails if it is held.
    pub fn here(&mut self, unit: usize) -> Result<Option<&mut Buffer>, DistError> {
        let mut slots = self.slots.iter_mut();
        match slots.find(|slot| slot.unit() == Some(unit)) {
            Some(Slot::Here { buffer, .. }) => {
                Arc::get_mut(buffer).map(Some).ok_or(DistError::StillHeld { unit })
            }
            _ => Ok(None),
        }
    }
}

/// A buffer for gradients that leave. It is held while its lock is.
pub(crate) struct GradientSlot {
    /// Empty while the gradient leaves.
    pub buffer: Buffer,
    pending: Option<Pending<Buffer>>,
}

impl GradientSlot {
    pub fn new(queue: &Queue, bytes: usize) -> Result<Self, DistError> {
        Ok(Self { buffer: Buffer::on(queue, bytes)?, pending: None })
    }

    /// Lets `collective` take the buffer away.
    pub fn leave(
        &mut self,
        collective: impl FnOnce(Buffer) -> Result<Pending<Buffer>, DistError>,
    ) -> Result<(), DistError> {
        let full = std::mem::replace(&mut self.buffer, Buffer::zeroed(0)?);
        self.pending = Some(collective(full)?);
        Ok(())
    }

    /// Waits until what was to leave has left.
    pub fn settle(&mut self) -> Result<(), DistError> {
        if let Some(pending) = self.pending.take() {
            self.buffer = pending.wait()?;
        }
        Ok(())
    }
}
