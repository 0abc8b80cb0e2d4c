//! Collectives over one MPI communicator.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{AddAssign, Range};
use std::rc::Rc;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use bytemuck::{Pod, cast_slice_mut};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use mpi::datatype::{Equivalence, Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::request::{Request, Scope, scope};
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use mpi::{Count, Rank};
use tessera_ops::{Buffer, DType};

use super::abort_if_wanted;
use crate::error::DistError;
use crate::group::Exchange;
use crate::host::{Peers, Transport, add_in_order, check_extent, lock, narrow, parts_of, read, share};
use crate::recorder::Call;
use crate::slots::PIECE;
use crate::unit::UnitState;
use crate::wire::Wire;

/// How long completion is asked for without a pause. Open MPI's own waiting never pauses and would take a core from the
/// compute.
const EAGER: Duration = Duration::from_micros(50);
/// The shortest pause after that, and the longest. In between, a pause is this part of what was waited already: so much later
/// than it could is the end of a long wait seen, and a long wait costs next to nothing.
const PAUSES: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(1)];
const PAUSE_PART: u32 = 10;

/// A communicator.
pub(super) struct MpiTransport {
    // The communicator goes before the last reference to the universe, which ends MPI.
    communicator: SimpleCommunicator,
    shared: Rc<Shared>,
    sent: u64,
}

/// What the communicators of a process share.
struct Shared {
    _universe: Universe,
    /// They take turns with it.
    pieces: RefCell<Pieces>,
}

/// What pieces are packed into.
#[derive(Default)]
struct Pieces {
    given: Vec<f32>,
    got: Vec<f32>,
}

impl Pieces {
    /// The rooms for what is given and for what is got, each of at least [`PIECE`] elements.
    fn of<T: Packed>(&mut self) -> (&mut [T], &mut [T]) {
        (cast_slice_mut(&mut self.given), cast_slice_mut(&mut self.got))
    }
}

/// What a gradient's elements are packed into.
trait Packed: Equivalence + Pod {
    fn pack(values: &[f32], into: &mut [Self]);

    fn unpack(self) -> f32;
}

impl Packed for f32 {
    fn pack(values: &[f32], into: &mut [f32]) {
        into.copy_from_slice(values);
    }

    fn unpack(self) -> f32 {
        self
    }
}

/// The bits of a bf16.
impl Packed for u16 {
    fn pack(values: &[f32], into: &mut [u16]) {
        into.iter_mut().zip(values).for_each(|(bits, &value)| *bits = bf16::from_f32(value).to_bits());
    }

    fn unpack(self) -> f32 {
        bf16::from_bits(self).to_f32()
    }
}

/// Waits for a request, for as long as it takes.
fn complete<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>) {
    let since = Instant::now();
    while let Err(unfinished) = request.test() {
        request = unfinished;
        abort_if_wanted();
        match since.elapsed() {
            waited if waited < EAGER => thread::yield_now(),
            waited => thread::sleep((waited / PAUSE_PART).clamp(PAUSES[0], PAUSES[1])),
        }
    }
}

impl MpiTransport {
    pub fn new(universe: Universe) -> Self {
        let communicator = universe.world();
        Self::over(communicator, Rc::new(Shared { _universe: universe, pieces: RefCell::default() }))
    }

    fn over(communicator: SimpleCommunicator, shared: Rc<Shared>) -> Self {
        Self { communicator, shared, sent: 0 }
    }

    /// The extents that the ranks bring to `call`, if all are in it. MPI itself would join whatever they call.
    fn meet(&self, call: &Call, extent: usize) -> Result<Vec<usize>, DistError> {
        let mut hasher = DefaultHasher::new();
        call.hash(&mut hasher);
        let header = [hasher.finish(), extent as u64];
        let mut headers = vec![0_u64; header.len() * self.world_size()];
        scope(|scope| complete(self.communicator.immediate_all_gather_into(scope, &header, &mut headers)));
        let headers = || headers.chunks_exact(header.len());
        if headers().all(|other| other[0] == header[0]) {
            return Ok(headers().map(|header| header[1] as usize).collect());
        }
        Err(self.mismatch(call, &headers().map(|header| header[0]).collect::<Vec<_>>()))
    }

    /// The same, of ranks that must bring equal extents.
    fn meet_with(&self, call: &Call, what: &'static str, extent: usize) -> Result<(), DistError> {
        self.meet(call, extent)?.into_iter().try_for_each(|other| check_extent(call, what, other, extent))
    }

    /// What the ranks call instead of the same: they tell one another, for all have seen by now that they differ.
    fn mismatch(&self, call: &Call, hashes: &[u64]) -> DistError {
        let own = (SimpleCommunicator::world().rank() as usize, call.clone());
        let Some(differs) = hashes.iter().position(|hash| *hash != hashes[self.rank()]) else {
            return DistError::Mpi("ranks that make the same collectives were told that they do not");
        };
        // Plain numbers and strings have a JSON form.
        let mut text = serde_json::to_vec(&own).unwrap_or_default();
        let mut lengths = vec![0_u64; self.world_size()];
        let length = [text.len() as u64];
        scope(|scope| complete(self.communicator.immediate_all_gather_into(scope, &length, &mut lengths)));
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        text.resize(longest, b' ');
        let mut texts = vec![0_u8; longest * self.world_size()];
        scope(|scope| {
            complete(self.communicator.immediate_all_gather_into(scope, &text[..], &mut texts[..]))
        });
        match serde_json::from_slice(&texts[differs * longest..][..longest]) {
            Ok(other) => DistError::Mismatch { one: own, other },
            Err(_) => DistError::Mpi("ranks do not make the same collectives, and one does not say which"),
        }
    }

    /// Elements of a rank's part of a piece.
    fn part(&self) -> usize {
        (PIECE / self.world_size()).max(1)
    }

    /// got = what all ranks give, in their order; `got` is as many times as long as there are ranks.
    fn gather_into<T: Equivalence>(&mut self, given: &[T], got: &mut [T]) {
        scope(|scope| complete(self.communicator.immediate_all_gather_into(scope, given, got)));
        self.sent += (size_of_val(given) * (self.world_size() - 1)) as u64;
    }

    /// whole = what all ranks have in it, each in its own of the equal slices.
    fn gather_slices<T: Packed>(&mut self, whole: &mut [T], pieces: &mut Pieces) {
        let (given_room, got_room) = pieces.of::<T>();
        let (rank, ranks) = (self.rank(), self.world_size());
        let slice = whole.len() / ranks;
        for range in parts_of(0..slice, self.part()) {
            let (start, length) = (range.start, range.len());
            let (given, got) = (&mut given_room[..length], &mut got_room[..length * ranks]);
            given.copy_from_slice(&whole[rank * slice + start..][..length]);
            self.gather_into(given, got);
            for (slice, part) in whole.chunks_exact_mut(slice).zip(got.chunks_exact(length)) {
                slice[start..start + length].copy_from_slice(part);
            }
        }
    }

    /// got = what all ranks give to this one.
    fn exchange_into<T: Equivalence>(&mut self, given: &[T], got: &mut [T]) {
        scope(|scope| complete(self.communicator.immediate_all_to_all_into(scope, given, got)));
        self.sent += (size_of_val(given) / self.world_size() * (self.world_size() - 1)) as u64;
    }

    /// shard += this rank's slices of `slices`, of which every rank has one for each, piece by piece.
    fn add_slices<T: Packed>(&mut self, slices: &[f32], shard: &mut [f32], pieces: &mut Pieces) {
        let (given_room, got_room) = pieces.of::<T>();
        for range in parts_of(0..shard.len(), self.part()) {
            let (start, length) = (range.start, range.len());
            let extent = length * self.world_size();
            let (given, got) = (&mut given_room[..extent], &mut got_room[..extent]);
            for (part, slice) in given.chunks_exact_mut(length).zip(slices.chunks_exact(shard.len())) {
                T::pack(&slice[start..start + length], part);
            }
            self.exchange_into(given, got);
            add_parts(got, &mut shard[start..start + length], T::unpack);
        }
    }

    /// piece = the sum of `piece` over all ranks. Each rank sums one share, then all take the shares.
    fn sum<T: Packed>(&mut self, piece: &mut [f32], pieces: &mut Pieces) {
        let (rank, ranks) = (self.rank(), self.world_size());
        let shares = Parts::new((0..ranks).map(|index| share(piece.len(), index, ranks)));
        let own = share(piece.len(), rank, ranks);
        let length = own.len();
        let parts = Parts::new((0..ranks).map(|index| index * length..(index + 1) * length));
        let (given, got) = pieces.of::<T>();
        let given = &mut given[..piece.len()];
        T::pack(piece, given);
        let from = Partition::new(&*given, &shares.counts[..], &shares.displacements[..]);
        let mut all =
            PartitionMut::new(&mut got[..length * ranks], &parts.counts[..], &parts.displacements[..]);
        scope(|scope| {
            complete(self.communicator.immediate_all_to_all_varcount_into(scope, &from, &mut all));
        });
        let sums = &mut piece[own];
        sums.fill(0.0);
        add_parts(&got[..length * ranks], sums, T::unpack);
        let sums_given = &mut given[..length];
        T::pack(sums, sums_given);
        let mut whole =
            PartitionMut::new(&mut got[..piece.len()], &shares.counts[..], &shares.displacements[..]);
        scope(|scope| {
            complete(self.communicator.immediate_all_gather_varcount_into(scope, &*sums_given, &mut whole));
        });
        piece.iter_mut().zip(&*got).for_each(|(value, &got)| *value = T::unpack(got));
        self.sent += ((piece.len() - length + length * (ranks - 1)) * size_of::<T>()) as u64;
    }

    /// The buffers for pieces. They are put back with [`Self::keep_pieces`].
    fn take_pieces(&self) -> Pieces {
        let mut pieces = self.shared.pieces.take();
        pieces.given.resize(PIECE, 0.0);
        pieces.got.resize(PIECE, 0.0);
        pieces
    }

    fn keep_pieces(&self, pieces: Pieces) {
        self.shared.pieces.replace(pieces);
    }

    fn share(&mut self, root: usize, bytes: &mut [u8]) {
        if self.rank() == root {
            self.sent += (bytes.len() * (self.world_size() - 1)) as u64;
        }
        for piece in bytes.chunks_mut(PIECE * DType::F32.size()) {
            let root = self.communicator.process_at_rank(root as Rank);
            scope(|scope| complete(root.immediate_broadcast_into(scope, piece)));
        }
    }
}

/// Where the ranks' parts of a buffer lie, as MPI wants it told.
struct Parts {
    counts: Vec<Count>,
    displacements: Vec<Count>,
}

impl Parts {
    /// Parts of a piece, which is short enough.
    fn new(ranges: impl Iterator<Item = Range<usize>>) -> Self {
        let (counts, displacements) =
            ranges.map(|range| (range.len() as Count, range.start as Count)).unzip();
        Self { counts, displacements }
    }
}

/// into += the sum of the equal parts of `got`, in their order.
fn add_parts<S: Copy, T: Copy + Default + AddAssign>(got: &[S], into: &mut [T], value: impl Fn(S) -> T) {
    if !into.is_empty() {
        add_in_order(&got.chunks_exact(into.len()).collect::<Vec<_>>(), into, value);
    }
}

impl Transport for MpiTransport {
    fn rank(&self) -> usize {
        self.communicator.rank() as usize
    }

    fn world_size(&self) -> usize {
        self.communicator.size() as usize
    }

    fn peers(&self) -> Option<Arc<dyn Peers>> {
        None
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
        self.meet_with(call, "a rank's unit", elements)?;
        let state = read(call, shard)?;
        let master = state.master.view(DType::F32).as_slice::<f32>()?;
        check_extent(call, "the shard", master.len(), elements / self.world_size())?;
        let mut whole = full.view_mut(dtype).range(0, elements)?;
        narrow(master, &mut whole.reborrow().range(self.rank() * master.len(), master.len())?)?;
        drop(state);
        let mut scratch = self.take_pieces();
        match dtype {
            DType::BF16 => {
                let bits: &mut [u16] = whole.as_slice_mut::<bf16>()?.reinterpret_cast_mut();
                self.gather_slices(bits, &mut scratch);
            }
            _ => self.gather_slices(whole.as_slice_mut::<f32>()?, &mut scratch),
        }
        self.keep_pieces(scratch);
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
        self.meet_with(call, "a rank's unit", elements)?;
        let mut shard = lock(call, shard)?;
        let mut shard = shard.view_mut(DType::F32);
        let shard = shard.as_slice_mut::<f32>()?;
        check_extent(call, "the shard", shard.len(), elements / self.world_size())?;
        let slices = full.view(DType::F32).range(0, elements)?.as_slice::<f32>()?;
        let mut scratch = self.take_pieces();
        match wire {
            Wire::Fp32 => self.add_slices::<f32>(slices, shard, &mut scratch),
            Wire::Bf16 => self.add_slices::<u16>(slices, shard, &mut scratch),
        }
        self.keep_pieces(scratch);
        Ok(full)
    }

    fn all_reduce_gradient(
        &mut self,
        call: &Call,
        gradient: &Arc<Mutex<Buffer>>,
        wire: Wire,
    ) -> Result<(), DistError> {
        let mut gradient = lock(call, gradient)?;
        let mut gradient = gradient.view_mut(DType::F32);
        let gradient = gradient.as_slice_mut::<f32>()?;
        self.meet_with(call, "a replica's gradient", gradient.len())?;
        let mut scratch = self.take_pieces();
        for piece in gradient.chunks_mut(self.part() * self.world_size()) {
            match wire {
                Wire::Fp32 => self.sum::<f32>(piece, &mut scratch),
                Wire::Bf16 => self.sum::<u16>(piece, &mut scratch),
            }
        }
        self.keep_pieces(scratch);
        Ok(())
    }

    fn all_reduce(&mut self, call: &Call, values: Vec<f64>) -> Result<Vec<f64>, DistError> {
        self.meet_with(call, "a rank's values", values.len())?;
        let mut all = vec![0.0; values.len() * self.world_size()];
        self.gather_into(&values, &mut all);
        let mut sums = vec![0.0; values.len()];
        add_parts(&all, &mut sums, |value| value);
        Ok(sums)
    }

    fn all_to_all(&mut self, call: &Call, block: usize, exchange: Exchange) -> Result<Exchange, DistError> {
        self.meet_with(call, "a rank's block", block)?;
        let Exchange { given: from, got: mut to } = exchange;
        let elements = block * self.world_size();
        let blocks = from.view(DType::F32).range(0, elements)?.as_slice::<f32>()?;
        let mut into = to.view_mut(DType::F32).range(0, elements)?;
        let into = into.as_slice_mut::<f32>()?;
        let mut scratch = self.take_pieces();
        for range in parts_of(0..block, self.part()) {
            let (start, length) = (range.start, range.len());
            let extent = length * self.world_size();
            let (given, got) = (&mut scratch.given[..extent], &mut scratch.got[..extent]);
            for (part, block) in given.chunks_exact_mut(length).zip(blocks.chunks_exact(block)) {
                part.copy_from_slice(&block[start..start + length]);
            }
            self.exchange_into(given, got);
            for (block, part) in into.chunks_exact_mut(block).zip(got.chunks_exact(length)) {
                block[start..start + length].copy_from_slice(part);
            }
        }
        self.keep_pieces(scratch);
        Ok(Exchange { given: from, got: to })
    }

    fn broadcast(&mut self, call: &Call, root: usize, mut bytes: Vec<u8>) -> Result<Vec<u8>, DistError> {
        let length = self.meet(call, bytes.len())?[root];
        bytes.resize(length, 0);
        self.share(root, &mut bytes);
        Ok(bytes)
    }

    fn all_gather_bytes(&mut self, call: &Call, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, DistError> {
        let lengths = self.meet(call, bytes.len())?;
        let mut all: Vec<Vec<u8>> = lengths.into_iter().map(|length| vec![0; length]).collect();
        all[self.rank()] = bytes;
        for (root, bytes) in all.iter_mut().enumerate() {
            self.share(root, bytes);
        }
        Ok(all)
    }

    fn barrier(&mut self, call: &Call) -> Result<(), DistError> {
        self.meet(call, 0).map(drop)
    }

    fn split(&mut self, call: &Call, colour: usize) -> Result<Box<dyn Transport>, DistError> {
        self.meet(call, 0)?;
        let colour = Rank::try_from(colour).map_err(|_| DistError::Mpi("a colour must fit 31 bits"))?;
        let part = self.communicator.split_by_color(Color::with_value(colour));
        let part = part.ok_or(DistError::Mpi("a split gave this rank no group"))?;
        Ok(Box::new(Self::over(part, self.shared.clone())))
    }
}
