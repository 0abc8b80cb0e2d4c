//! Ordering slots by expert, stably: a counting sort.
//!
//! slots\[i\] is the slot at sorted row i, places\[slot\] the sorted row of a slot, and expert e has the sorted rows
//! offsets\[e\]..offsets\[e + 1\]; within an expert, slots rise. chosen `[T, k]`, slots and places `[T·k]`, offsets `[E + 1]`,
//! all u32.

use crate::buffer::{View, ViewMut};
use crate::check;
use crate::cuda::Grid;
use crate::dtype::DType;
use crate::error::OpError;
use crate::queue::{Device, Queue};

/// Threads of a block on a GPU, which places the slots of one expert.
const THREADS: usize = 1024;

/// Sorts the slots of `chosen` by expert. On a GPU nobody checks that there are offsets for all experts that are chosen.
pub fn sort(
    queue: &Queue,
    chosen: View<'_>,
    mut slots: ViewMut<'_>,
    mut places: ViewMut<'_>,
    mut offsets: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "experts::sort";
    let (tokens, choices) = check::matrix(OPERATOR, "chosen", chosen.shape())?;
    check::shape(OPERATOR, "slots", slots.shape(), [tokens * choices])?;
    check::shape(OPERATOR, "places", places.shape(), [tokens * choices])?;
    let experts = check::vector(OPERATOR, "offsets", offsets.shape())?.saturating_sub(1);
    match queue.device() {
        Device::Cpu => {
            let chosen = chosen.as_slice::<u32>()?;
            check::indices(OPERATOR, chosen, experts)?;
            let (slots, places) = (slots.as_slice_mut::<u32>()?, places.as_slice_mut::<u32>()?);
            count(chosen, offsets.as_slice_mut::<u32>()?);
            place(chosen, slots, places, offsets.as_slice_mut::<u32>()?);
            Ok(())
        }
        Device::Cuda(stream) => stream
            .kernel(OPERATOR, "experts_sort", "experts_sort")
            .input("chosen", chosen, DType::U32)
            .output("slots", &slots, DType::U32)
            .output("places", &places, DType::U32)
            .output("offsets", &offsets, DType::U32)
            .u32(tokens * choices)
            .launch(Grid::blocks(experts).threads(THREADS)),
    }
}

/// Writes where each expert's rows begin and, behind the last expert, the number of slots.
fn count(chosen: &[u32], offsets: &mut [u32]) {
    offsets.fill(0);
    for &expert in chosen {
        offsets[expert as usize + 1] += 1;
    }
    let mut rows = 0;
    for offset in offsets {
        rows += *offset;
        *offset = rows;
    }
}

/// Puts each slot at the next free row of its expert. That moves every expert's offset on to where the next expert's
/// rows begin, so at the end the offsets move up by one.
fn place(chosen: &[u32], slots: &mut [u32], places: &mut [u32], offsets: &mut [u32]) {
    for ((slot, place), &expert) in (0..).zip(places).zip(chosen) {
        let next = &mut offsets[expert as usize];
        (*place, slots[*next as usize]) = (*next, slot);
        *next += 1;
    }
    let experts = offsets.len().saturating_sub(1);
    offsets.copy_within(..experts, 1);
    offsets[0] = 0;
}
