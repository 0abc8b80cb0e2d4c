//! Collectives as meetings at a [`Board`].

use std::ops::Range;
use std::sync::{Arc, Mutex, RwLock};

use tessera_ops::{Buffer, DType, OpError};

use super::board::Board;
use crate::error::DistError;
use crate::group::Exchange;
use crate::host::{
    Failure, Peers, Transport, add_in_order, check_extent, lock, narrow, parts_of, read, share,
};
use crate::recorder::Call;
use crate::unit::UnitState;
use crate::wire::Wire;

/// Elements that are summed while a lock is held: what fits beside other things on a stack and in the first-level cache.
const PIECE: usize = 4096;

/// One rank's place at a board.
pub(super) struct ThreadTransport {
    seat: Arc<Seat>,
    sent: u64,
}

/// What the rank's other threads may do at the board.
struct Seat {
    board: Arc<Board>,
    member: usize,
}

impl Peers for Seat {
    fn absent(&self) -> Vec<usize> {
        self.board.lacking()
    }

    fn give_up(&self, failure: Failure) {
        self.board.fail(failure);
    }
}

impl ThreadTransport {
    pub fn new(board: Arc<Board>, member: usize) -> Self {
        Self { seat: Arc::new(Seat { board, member }), sent: 0 }
    }

    fn meet<T: Send + Sync + 'static, R>(
        &self,
        call: &Call,
        payload: &Arc<T>,
        read: impl FnOnce(&[Arc<T>]) -> Result<R, DistError>,
    ) -> Result<R, DistError> {
        self.seat.board.meet(self.seat.member, call, payload, read)
    }

    /// What this rank lent to a meeting is its own again when the meeting is over.
    fn back<T>(&self, call: &Call, payload: Arc<T>) -> Result<T, DistError> {
        Arc::into_inner(payload).ok_or_else(|| DistError::Lost {
            rank: self.seat.board.ranks()[self.seat.member],
            reason: "its buffer is still in use".to_owned(),
            call: call.clone(),
        })
    }

    /// `bytes` of this rank's have gone to each of the others.
    fn count_sent(&mut self, bytes: usize) {
        self.sent += (bytes * (self.world_size() - 1)) as u64;
    }
}

impl Transport for ThreadTransport {
    fn rank(&self) -> usize {
        self.seat.member
    }

    fn world_size(&self) -> usize {
        self.seat.board.ranks().len()
    }

    fn peers(&self) -> Option<Arc<dyn Peers>> {
        Some(self.seat.clone())
    }

    fn take_sent(&mut self) -> u64 {
        std::mem::take(&mut self.sent)
    }

    fn all_gather(
        &mut self,
        call: &Call,
        dtype: DType,
        elements: usize,
        shard: &Arc<RwLock<UnitState>>,
        mut full: Buffer,
    ) -> Result<Buffer, DistError> {
        let length = elements / self.world_size();
        self.meet(call, shard, |shards| {
            let mut rest = full.view_mut(dtype);
            for shard in shards {
                let shard = read(call, shard)?;
                let master = shard.master.view(DType::F32).as_slice::<f32>()?;
                check_extent(call, "a rank's shard", master.len(), length)?;
                let (mut slice, behind) = rest.split_at(length)?;
                narrow(master, &mut slice)?;
                rest = behind;
            }
            Ok(())
        })?;
        self.count_sent(length * dtype.size());
        Ok(full)
    }

    fn reduce_scatter(
        &mut self,
        call: &Call,
        elements: usize,
        full: Buffer,
        shard: &Mutex<Buffer>,
        wire: Wire,
    ) -> Result<Buffer, DistError> {
        let full = Arc::new(full);
        let (rank, length) = (self.rank(), elements / self.world_size());
        self.meet(call, &full, |fulls| {
            let mut shard = lock(call, shard)?;
            let mut shard = shard.view_mut(DType::F32);
            let shard = shard.as_slice_mut::<f32>()?;
            check_extent(call, "the shard", shard.len(), length)?;
            let slices: Vec<&[f32]> = fulls
                .iter()
                .map(|full| slice(full, rank * length..(rank + 1) * length))
                .collect::<Result<_, _>>()?;
            // A closure of its own for each type, so that the compiler makes a loop of its own for each.
            match wire {
                Wire::Fp32 => add_in_order(&slices, shard, |value| value),
                Wire::Bf16 => add_in_order(&slices, shard, |value| Wire::Bf16.round(value)),
            }
            Ok(())
        })?;
        self.count_sent(length * wire.size());
        self.back(call, full)
    }

    /// Each rank sums one share, in its place, then all take the shares: every element is summed once and read by all.
    /// Nobody else reads what a rank writes until all are done with it, so that the locks, of which a rank holds one at
    /// a time, only say so.
    fn all_reduce_gradient(
        &mut self,
        call: &Call,
        gradient: &Arc<Mutex<Buffer>>,
        wire: Wire,
    ) -> Result<(), DistError> {
        let (rank, ranks) = (self.rank(), self.world_size());
        let elements = lock(call, gradient)?.len() / DType::F32.size();
        let own = share(elements, rank, ranks);
        self.meet(call, gradient, |gradients| {
            for other in gradients {
                let found = lock(call, other)?.len() / DType::F32.size();
                check_extent(call, "a replica's gradient", found, elements)?;
            }
            let mut sums = [0.0; PIECE];
            for range in parts_of(own.clone(), PIECE) {
                let sums = &mut sums[..range.len()];
                sums.fill(0.0);
                for other in gradients {
                    let other = lock(call, other)?;
                    let values = slice(&other, range.clone())?;
                    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += wire.round(value));
                }
                // The others get it rounded, so this rank keeps no more of it.
                sums.iter_mut().for_each(|sum| *sum = wire.round(*sum));
                write(call, gradient, range, sums)?;
            }
            Ok(())
        })?;
        self.meet(call, gradient, |gradients| {
            let mut sums = [0.0; PIECE];
            for (other, theirs) in gradients.iter().enumerate().filter(|&(other, _)| other != rank) {
                for range in parts_of(share(elements, other, ranks), PIECE) {
                    let sums = &mut sums[..range.len()];
                    sums.copy_from_slice(slice(&*lock(call, theirs)?, range.clone())?);
                    write(call, gradient, range, sums)?;
                }
            }
            Ok(())
        })?;
        let sent = (elements - own.len()) + own.len() * (ranks - 1);
        self.sent += (sent * wire.size()) as u64;
        Ok(())
    }

    fn all_reduce(&mut self, call: &Call, values: Vec<f64>) -> Result<Vec<f64>, DistError> {
        let values = Arc::new(values);
        let sums = self.meet(call, &values, |all| {
            let mut sums = vec![0.0; values.len()];
            for other in all {
                check_extent(call, "a rank's values", other.len(), sums.len())?;
            }
            let all: Vec<&[f64]> = all.iter().map(|values| values.as_slice()).collect();
            add_in_order(&all, &mut sums, |value| value);
            Ok(sums)
        })?;
        self.count_sent(values.len() * DType::F64.size());
        Ok(sums)
    }

    fn all_to_all(&mut self, call: &Call, block: usize, exchange: Exchange) -> Result<Exchange, DistError> {
        let Exchange { given, mut got } = exchange;
        let given = Arc::new(given);
        let rank = self.rank();
        self.meet(call, &given, |all| {
            let mut rest = got.view_mut(DType::F32);
            for given in all {
                let (mut from, behind) = rest.split_at(block)?;
                from.as_slice_mut::<f32>()?.copy_from_slice(slice(given, rank * block..(rank + 1) * block)?);
                rest = behind;
            }
            Ok(())
        })?;
        self.count_sent(block * DType::F32.size());
        Ok(Exchange { given: self.back(call, given)?, got })
    }

    fn broadcast(&mut self, call: &Call, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>, DistError> {
        let bytes = Arc::new(bytes);
        let received = self.meet(call, &bytes, |all| Ok(all[root].to_vec()))?;
        if self.rank() == root {
            self.count_sent(bytes.len());
        }
        Ok(received)
    }

    fn all_gather_bytes(&mut self, call: &Call, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, DistError> {
        let bytes = Arc::new(bytes);
        let all =
            self.meet(call, &bytes, |all| Ok(all.iter().map(|bytes| bytes.to_vec()).collect::<Vec<_>>()))?;
        self.count_sent(bytes.len());
        Ok(all)
    }

    fn barrier(&mut self, call: &Call) -> Result<(), DistError> {
        self.meet(call, &Arc::new(()), |_| Ok(()))
    }

    fn split(&mut self, call: &Call, colour: usize) -> Result<Box<dyn Transport>, DistError> {
        let colours = self.meet(call, &Arc::new(colour), |colours| {
            Ok(colours.iter().map(|colour| **colour).collect::<Vec<_>>())
        })?;
        let rank = self.rank();
        let same = colours.iter().enumerate().filter(|&(_, &other)| other == colour);
        let members: Vec<usize> = same.map(|(member, _)| member).collect();
        let member = members.iter().filter(|&&other| other < rank).count();
        // All bring a board; that of the first of a colour is used.
        let board = Arc::new(self.seat.board.part(&members));
        let first = colours.iter().position(|&other| other == colour).unwrap_or(rank);
        let board = self.meet(call, &board, |boards| Ok(boards[first].clone()))?;
        Ok(Box::new(Self::new(board, member)))
    }
}

impl Drop for ThreadTransport {
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        let reason = if panicked { "its communication thread panicked" } else { "it left the group" };
        let rank = self.seat.board.ranks()[self.seat.member];
        self.seat.give_up(Failure::Lost { rank, reason: reason.to_owned() });
    }
}

/// A range of a buffer's elements.
fn slice(buffer: &Buffer, range: Range<usize>) -> Result<&[f32], OpError> {
    buffer.view(DType::F32).range(range.start, range.len())?.as_slice()
}

/// Writes a range of a buffer's elements.
fn write(call: &Call, buffer: &Mutex<Buffer>, range: Range<usize>, values: &[f32]) -> Result<(), DistError> {
    let mut buffer = lock(call, buffer)?;
    let mut view = buffer.view_mut(DType::F32).range(range.start, range.len())?;
    view.as_slice_mut::<f32>()?.copy_from_slice(values);
    Ok(())
}
