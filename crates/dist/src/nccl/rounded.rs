//! Gradients that travel in bf16: every contribution is rounded, sums are taken in fp32 and in the order of the ranks.
//!
//! NCCL's own sums of bf16 are rounded on every hop. So ranks exchange their contributions and each sums its share by
//! itself, which moves the same bytes. Nothing is allocated: rounded values fill half of the memory that the exact ones
//! had, and what comes from the others fills the other half. A vector is narrowed and widened where it lies, piece by
//! piece, so that no piece is written where another, or it itself, is still to be read.

use tessera_ops::{Buffer, DType, OpError, Queue, View, ViewMut, cast, fill};

use super::lane::{Collective, Lane, stream};
use super::library::Span;
use crate::error::DistError;

/// A vector's first half of memory, as bf16, and the second.
type Halves<'a> = (ViewMut<'a>, ViewMut<'a>);

fn halves(values: ViewMut<'_>) -> Result<Halves<'_>, OpError> {
    let elements = values.shape().elements();
    values.of_dtype(DType::BF16).split_at(elements)
}

/// Rounds fp32 values into the first half of their memory. `scratch` is fp32, of any length that is not 0.
fn narrow(queue: &Queue, mut values: ViewMut<'_>, mut scratch: ViewMut<'_>) -> Result<(), OpError> {
    let elements = values.shape().elements();
    let first = elements.min(scratch.shape().elements());
    let mut spare = scratch.reborrow().range(0, first)?;
    fill::copy(queue, values.as_view().range(0, first)?, spare.reborrow())?;
    cast::forward(queue, spare.as_view(), values.reborrow().of_dtype(DType::BF16).range(0, first)?)?;
    let mut done = first;
    while done < elements {
        let count = done.min(elements - done);
        let (front, rest) = values.reborrow().split_at(done)?;
        let from = rest.as_view().range(0, count)?;
        cast::forward(queue, from, front.of_dtype(DType::BF16).range(done, count)?)?;
        done += count;
    }
    Ok(())
}

/// The opposite: widens what lies in the second half of the memory of as many fp32 values.
fn widen(queue: &Queue, mut values: ViewMut<'_>, mut scratch: ViewMut<'_>) -> Result<(), OpError> {
    let elements = values.shape().elements();
    let spare = scratch.shape().elements();
    let mut done = 0;
    while elements - done > spare {
        let count = (elements - done) / 2;
        // In units of fp32: what is written ends before the place where what is read begins, rounded down.
        let boundary = (elements + done) / 2;
        let (front, rest) = values.reborrow().split_at(boundary)?;
        let skipped = (elements + done) % 2;
        let from = rest.of_dtype(DType::BF16).range(skipped, count)?;
        cast::forward(queue, from.as_view(), front.range(done, count)?)?;
        done += count;
    }
    let count = elements - done;
    let mut spare = scratch.reborrow().range(0, count)?;
    let from = values.reborrow().of_dtype(DType::BF16).range(elements + done, count)?;
    cast::forward(queue, from.as_view(), spare.reborrow())?;
    fill::copy(queue, spare.as_view(), values.range(done, count)?)
}

/// sum = the sum of equal slices, in their order; fp32.
fn sum(queue: &Queue, slices: View<'_>, mut sum: ViewMut<'_>) -> Result<(), OpError> {
    let length = sum.shape().elements();
    if length == 0 {
        return Ok(());
    }
    cast::forward(queue, slices.range(0, length)?, sum.reborrow())?;
    (1..slices.shape().elements() / length)
        .try_for_each(|slice| fill::add(queue, slices.range(slice * length, length)?, sum.reborrow()))
}

impl Lane {
    /// shard += this rank's slice of the sum of what all ranks have in `whole`, rounded. `whole` then holds anything.
    pub fn add_rounded(
        &mut self,
        collective: &Collective,
        mut whole: ViewMut<'_>,
        shard: ViewMut<'_>,
    ) -> Result<(), DistError> {
        self.exchange_rounded(collective, whole.reborrow())?;
        let (queue, length) = (&self.queue, shard.shape().elements());
        let (sums, got) = halves(whole)?;
        if collective.members.len() == 1 {
            return Ok(fill::add(queue, got.as_view(), shard)?);
        }
        // What was given has gone by now, and its place has room for a sum.
        let mut sums = sums.of_dtype(DType::F32).range(0, length)?;
        sum(queue, got.as_view(), sums.reborrow())?;
        Ok(fill::add(queue, sums.as_view(), shard)?)
    }

    /// Rounds `whole` into its first half, and gets this rank's slices from all ranks into its second.
    fn exchange_rounded(&mut self, collective: &Collective, mut whole: ViewMut<'_>) -> Result<(), DistError> {
        narrow(&self.queue, whole.reborrow(), self.staging.scratch())?;
        let (given, got) = halves(whole)?;
        self.exchange(collective, given.as_view(), got)
    }

    /// values = the sum over all ranks, rounded.
    pub fn all_reduce_rounded(
        &mut self,
        collective: &Collective,
        values: &mut Buffer,
    ) -> Result<(), DistError> {
        let (ranks, rank) = (collective.members.len(), self.rank_in(collective.group));
        let values = values.view_mut(DType::F32);
        let length = values.shape().elements() / ranks;
        let (mut slices, rest) = values.split_at(length * ranks)?;
        self.exchange_rounded(collective, slices.reborrow())?;
        let (sums, mut got) = halves(slices.reborrow())?;
        if ranks > 1 {
            let mut sums = sums.of_dtype(DType::F32).range(0, length)?;
            sum(&self.queue, got.as_view(), sums.reborrow())?;
            cast::forward(&self.queue, sums.as_view(), got.reborrow().range(rank * length, length)?)?;
        }
        self.all_gather(collective, got)?;
        widen(&self.queue, slices, self.staging.scratch())?;
        self.all_reduce_few_rounded(collective, rest)
    }

    /// The same for fewer values than there are ranks: every rank gets all and sums them.
    fn all_reduce_few_rounded(
        &mut self,
        collective: &Collective,
        mut values: ViewMut<'_>,
    ) -> Result<(), DistError> {
        let (ranks, rank) = (collective.members.len(), self.rank_in(collective.group));
        let few = values.shape().elements();
        if few == 0 {
            return Ok(());
        }
        let mut scratch = self.staging.scratch().of_dtype(DType::BF16).range(0, few * ranks)?;
        cast::forward(&self.queue, values.as_view(), scratch.reborrow().range(rank * few, few)?)?;
        let span = Span::of(stream(&self.queue)?, scratch.as_view())?;
        self.call(collective.group, |stream, communicator| communicator.all_gather(stream, span))?;
        let mut all = self.staging.scratch().of_dtype(DType::BF16).range(0, few * ranks)?;
        sum(&self.queue, all.as_view(), values.reborrow())?;
        let mut rounded = all.reborrow().range(0, few)?;
        cast::forward(&self.queue, values.as_view(), rounded.reborrow())?;
        Ok(cast::forward(&self.queue, rounded.as_view(), values)?)
    }
}
