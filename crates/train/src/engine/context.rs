//! Long contexts: the ranks of a context group work on the same micro-batch, each on its part of the tokens.
//!
//! A rank is handed the whole micro-batch and takes its part of the tokens, C equal parts but for the last ones: nothing is
//! padded but the blocks on the wire, so C need not divide the tokens that happen to be there. Rows and documents stay those
//! of the whole. Losses and gradients of the parts add up in the sums over all ranks as those of any other tokens do; only
//! the sums behind the load-balancing loss, which is taken of whole rows, are added within the group first.
//!
//! An exchange waits its turn behind the weights that are on their way: a rank makes its collectives one after another.

use std::cell::RefCell;
use std::ops::Range;

use tessera_dist::{DistError, Exchange, Group};
use tessera_model::config::ModelConfig;
use tessera_model::{Balance, BalanceSums, Block, Context, Model, SequenceExchange, SequenceSplit};
use tessera_ops::attention::split::share;
use tessera_ops::{Buffer, DType, OpError, Queue, View, ViewMut};

use crate::error::TrainError;

/// Fails, naming the key, unless a sequence of `context_length` tokens can be split over `ranks` ranks: they must divide it
/// and the query heads, and divide the key-value heads or be divided by them.
pub fn check_context(config: &ModelConfig, context_length: usize, ranks: usize) -> Result<(), TrainError> {
    let heads = config.heads();
    let fits = |ranks: &usize| share(heads, *ranks).is_ok() && context_length.is_multiple_of(*ranks);
    if fits(&ranks) {
        return Ok(());
    }
    let possible: Vec<String> = (1..=heads.query).filter(fits).map(|ranks| ranks.to_string()).collect();
    let expected = format!(
        "one of {}: it must divide context_length ({context_length}) and the model's {} query heads, and divide its {} \
         key-value heads or be a multiple of them",
        possible.join(", "),
        heads.query,
        heads.key_value
    );
    Err(TrainError::unsupported("parallel.context", ranks, expected))
}

/// Bytes that a rank needs more where it shares its sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextBytes {
    /// In each arena of a block, and in the scratch of its backward.
    pub arena: usize,
    /// What is laid out for the other ranks, and as much again that comes from them.
    pub exchange: usize,
}

impl ContextBytes {
    /// For at most `tokens` tokens of a sequence on each of `ranks` ranks.
    ///
    /// # Errors
    /// When the model's heads cannot be split over so many ranks.
    pub fn new(model: &Model, ranks: usize, tokens: usize) -> Result<Self, OpError> {
        if ranks == 1 {
            return Ok(Self { arena: 0, exchange: 0 });
        }
        let largest = |bytes: &dyn Fn(&Block) -> Result<usize, OpError>| {
            model.blocks().iter().try_fold(0, |largest, block| Ok::<_, OpError>(bytes(block)?.max(largest)))
        };
        Ok(Self {
            arena: largest(&|block| block.context_bytes(tokens, ranks))?,
            exchange: largest(&|block| {
                Ok(block.exchange_bytes(tokens, ranks)?.into_iter().max().unwrap_or(0))
            })?,
        })
    }

    /// The buffers of the exchange.
    pub(super) fn buffers(&self, queue: &Queue) -> Result<Exchange, OpError> {
        Ok(Exchange { given: Buffer::on(queue, self.exchange)?, got: Buffer::on(queue, self.exchange)? })
    }
}

/// Bytes that each rank of a context group sends to the others in all-to-alls while it trains on one micro-batch, of `tokens`
/// tokens in the whole group.
///
/// A block's attention exchanges S·w elements, in the dtype of the compute, with each of the C − 1 others on the way in (w: the queries, keys and
/// values of a rank's heads) and on the way out (w: their attended values), S = ⌈tokens/C⌉: once in the forward, once in the
/// backward, and, where blocks are computed again, once more in each but the last. An evaluation does the forward only.
///
/// # Errors
/// When the model's heads cannot be split over so many ranks.
pub fn context_traffic_bytes(
    model: &Model,
    ranks: usize,
    tokens: usize,
    recompute: bool,
) -> Result<u64, OpError> {
    let share = SequenceSplit::part(tokens, 0, ranks).len();
    let last = model.blocks().len().saturating_sub(1);
    model.blocks().iter().enumerate().try_fold(0, |sum, (index, block)| {
        let ways = if recompute && index < last { 3 } else { 2 };
        let there_and_back: usize = block.exchange_bytes(share, ranks)?.iter().sum();
        Ok(sum + (ways * there_and_back / ranks * (ranks - 1)) as u64)
    })
}

/// Bytes that each rank of a context group sends to the others for the load-balancing loss of one micro-batch of `rows` rows.
pub fn balance_traffic_bytes(balance: Balance, ranks: usize, rows: usize) -> u64 {
    (balance.bytes(rows) * (ranks - 1)) as u64
}

/// A rank's place among those that share its sequences.
pub(super) struct ContextPlace<'a> {
    group: &'a dyn Group,
    buffers: RefCell<&'a mut Exchange>,
}

impl<'a> ContextPlace<'a> {
    pub(super) fn new(group: &'a dyn Group, buffers: &'a mut Exchange) -> Self {
        Self { group, buffers: RefCell::new(buffers) }
    }

    /// This rank's part of a micro-batch of `whole` tokens.
    pub(super) fn part(&self, whole: usize) -> Range<usize> {
        SequenceSplit::part(whole, self.group.rank(), self.group.world_size())
    }

    /// What stages see, with the way to the other ranks if there are any.
    pub(super) fn over<'b>(&'b self, whole: usize, context: Context<'b>) -> Context<'b> {
        let alone = self.group.world_size() == 1;
        let split = SequenceSplit { exchange: self, whole, first: self.part(whole).start };
        Context { split: (!alone).then_some(split), ..context }
    }

    /// Makes the sums behind the load-balancing loss those of whole rows.
    pub(super) fn add_up(&self, queue: &Queue, sums: &mut BalanceSums<'_>) -> Result<(), DistError> {
        if self.group.world_size() == 1 {
            return Ok(());
        }
        sums.views_mut().into_iter().try_for_each(|sums| self.group.all_reduce(queue, sums)?.wait())
    }

    /// Whether it is this rank that counts what all of the group know.
    pub(super) fn counts(&self) -> bool {
        self.group.rank() == 0
    }
}

impl SequenceExchange for ContextPlace<'_> {
    fn ranks(&self) -> usize {
        self.group.world_size()
    }

    fn exchange(
        &self,
        queue: &Queue,
        label: &'static str,
        dtype: DType,
        elements: usize,
        give: &mut dyn FnMut(ViewMut<'_>) -> Result<(), OpError>,
        take: &mut dyn FnMut(View<'_>) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        let mut buffers = self.buffers.borrow_mut();
        // After a failure the group makes no more exchanges, and needs no more buffers.
        let nothing = Exchange { given: Buffer::zeroed(0)?, got: Buffer::zeroed(0)? };
        let mut exchange = std::mem::replace(&mut **buffers, nothing);
        give(exchange.given.view_mut(dtype).range(0, elements)?)?;
        // Blocks move as words of fp32, whatever is in them: heads have even sizes.
        let words = elements * dtype.size() / DType::F32.size();
        let pending = self.group.all_to_all(queue, label, words, exchange);
        let exchange =
            pending.and_then(|pending| pending.wait()).map_err(|error| OpError::Exchange(error.into()))?;
        take(exchange.got.view(dtype).range(0, elements)?)?;
        **buffers = exchange;
        Ok(())
    }
}

/// What went wrong in a stage: the failure of an exchange is that of the collective behind it.
pub(super) fn stage_error(error: OpError) -> DistError {
    match error {
        OpError::Exchange(source) => match source.downcast::<DistError>() {
            Ok(collective) => *collective,
            Err(source) => OpError::Exchange(source).into(),
        },
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_failed_exchange_is_the_failed_collective() {
        let failed = OpError::Exchange(DistError::Ended { rank: 3 }.into());
        assert!(matches!(stage_error(failed), DistError::Ended { rank: 3 }));
        let of_an_operator = OpError::OutOfMemory { bytes: 7 };
        assert!(matches!(stage_error(of_an_operator), DistError::Op(OpError::OutOfMemory { bytes: 7 })));
    }
}
