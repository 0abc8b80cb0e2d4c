//! Collectives over one MPI communicator.

use std::ops::AddAssign;
use std::rc::Rc;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use mpi::Rank;
use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::request::{Request, Scope, scope};
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use tessera_ops::{Buffer, DType};

use crate::error::DistError;
use crate::group::Exchange;
use crate::host::{Peers, Transport, add_in_order, check_extent, lock, read};
use crate::recorder::Call;
use crate::unit::UnitState;

/// Elements that go through MPI at a time, over all ranks: few enough for its 32-bit counts, enough to fill a link.
const PIECE: usize = 1 << 20;
/// How long completion is asked for without a pause, and the pause after that. Open MPI's own waiting never pauses
/// and would take a core from the compute.
const EAGER: Duration = Duration::from_micros(200);
const PAUSE: Duration = Duration::from_micros(50);

/// A communicator, with what pieces are packed into.
pub(super) struct MpiTransport {
    // The communicator goes before the last reference to the universe, which ends MPI.
    communicator: SimpleCommunicator,
    universe: Rc<Universe>,
    given: Vec<f32>,
    got: Vec<f32>,
    sent: u64,
}

/// Waits for a request, for as long as it takes.
fn complete<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>) {
    let since = Instant::now();
    while let Err(unfinished) = request.test() {
        request = unfinished;
        if since.elapsed() < EAGER { thread::yield_now() } else { thread::sleep(PAUSE) }
    }
}

impl MpiTransport {
    pub fn new(universe: Universe) -> Self {
        Self::over(universe.world(), Rc::new(universe))
    }

    fn over(communicator: SimpleCommunicator, universe: Rc<Universe>) -> Self {
        Self { communicator, universe, given: Vec::new(), got: Vec::new(), sent: 0 }
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

    /// got = what all ranks give to this one.
    fn exchange_into(&mut self, given: &[f32], got: &mut [f32]) {
        scope(|scope| complete(self.communicator.immediate_all_to_all_into(scope, given, got)));
        self.sent += (size_of_val(given) / self.world_size() * (self.world_size() - 1)) as u64;
    }

    /// The buffers for pieces with room for `part` elements of each rank.
    fn take_pieces(&mut self, part: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut given, mut got) = (std::mem::take(&mut self.given), std::mem::take(&mut self.got));
        given.resize(part * self.world_size(), 0.0);
        got.resize(part * self.world_size(), 0.0);
        (given, got)
    }

    fn keep_pieces(&mut self, given: Vec<f32>, got: Vec<f32>) {
        (self.given, self.got) = (given, got);
    }

    /// into += the sum of what the ranks give to this one.
    fn reduce_into(&mut self, given: &[f32], got: &mut [f32], into: &mut [f32]) {
        self.exchange_into(given, got);
        add_parts(got, into);
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

    /// The lengths of what all ranks have.
    fn lengths(&mut self, length: usize) -> Vec<usize> {
        let mut lengths = vec![0_u64; self.world_size()];
        self.gather_into(&[length as u64], &mut lengths);
        lengths.into_iter().map(|length| length as usize).collect()
    }
}

/// into += the sum of the equal parts of `got`, in their order.
fn add_parts<T: Copy + Default + AddAssign>(got: &[T], into: &mut [T]) {
    if !into.is_empty() {
        add_in_order(&got.chunks_exact(into.len()).collect::<Vec<_>>(), into);
    }
}

/// The parts of equal slices that a piece is made of: where it starts in each slice, and its length.
fn pieces(slice: usize, part: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..slice).step_by(part).map(move |start| (start, part.min(slice - start)))
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
        elements: usize,
        shard: &Arc<RwLock<UnitState>>,
        mut full: Buffer,
    ) -> Result<Buffer, DistError> {
        let state = read(call, shard)?;
        let master = state.master.view(DType::F32).as_slice::<f32>()?;
        check_extent(call, "the shard", master.len(), elements / self.world_size())?;
        let mut view = full.view_mut(DType::F32).range(0, elements)?;
        let full_slice = view.as_slice_mut::<f32>()?;
        let (given, mut got) = self.take_pieces(self.part());
        for (start, length) in pieces(master.len(), self.part()) {
            let got = &mut got[..length * self.world_size()];
            self.gather_into(&master[start..start + length], got);
            for (slice, part) in full_slice.chunks_exact_mut(master.len()).zip(got.chunks_exact(length)) {
                slice[start..start + length].copy_from_slice(part);
            }
        }
        self.keep_pieces(given, got);
        drop(state);
        Ok(full)
    }

    fn reduce_scatter(
        &mut self,
        call: &Call,
        elements: usize,
        full: Buffer,
        shard: &Mutex<Buffer>,
    ) -> Result<Buffer, DistError> {
        let mut shard = lock(call, shard)?;
        let mut shard = shard.view_mut(DType::F32);
        let shard = shard.as_slice_mut::<f32>()?;
        check_extent(call, "the shard", shard.len(), elements / self.world_size())?;
        let slices = full.view(DType::F32).range(0, elements)?.as_slice::<f32>()?;
        let (mut given, mut got) = self.take_pieces(self.part());
        for (start, length) in pieces(shard.len(), self.part()) {
            let extent = length * self.world_size();
            for (part, slice) in given.chunks_exact_mut(length).zip(slices.chunks_exact(shard.len())) {
                part.copy_from_slice(&slice[start..start + length]);
            }
            self.reduce_into(&given[..extent], &mut got[..extent], &mut shard[start..start + length]);
        }
        self.keep_pieces(given, got);
        Ok(full)
    }

    /// Piece by piece: each rank sums a part, then all take the parts. The last piece is filled up with zeros.
    fn all_reduce_gradient(&mut self, call: &Call, gradient: &Arc<Mutex<Buffer>>) -> Result<(), DistError> {
        let mut gradient = lock(call, gradient)?;
        let mut gradient = gradient.view_mut(DType::F32);
        let gradient = gradient.as_slice_mut::<f32>()?;
        let part = self.part().min(gradient.len().div_ceil(self.world_size())).max(1);
        let (mut given, mut got) = self.take_pieces(part);
        for piece in gradient.chunks_mut(part * self.world_size()) {
            given.fill(0.0);
            given[..piece.len()].copy_from_slice(piece);
            let mut sums = vec![0.0; part];
            self.reduce_into(&given, &mut got, &mut sums);
            self.gather_into(&sums, &mut got);
            piece.copy_from_slice(&got[..piece.len()]);
        }
        self.keep_pieces(given, got);
        Ok(())
    }

    fn all_reduce(&mut self, call: &Call, values: Vec<f64>) -> Result<Vec<f64>, DistError> {
        for length in self.lengths(values.len()) {
            check_extent(call, "a rank's values", length, values.len())?;
        }
        let mut all = vec![0.0; values.len() * self.world_size()];
        self.gather_into(&values, &mut all);
        let mut sums = vec![0.0; values.len()];
        add_parts(&all, &mut sums);
        Ok(sums)
    }

    fn all_to_all(&mut self, _: &Call, block: usize, exchange: Exchange) -> Result<Exchange, DistError> {
        let Exchange { given: from, got: mut to } = exchange;
        let elements = block * self.world_size();
        let blocks = from.view(DType::F32).range(0, elements)?.as_slice::<f32>()?;
        let mut into = to.view_mut(DType::F32).range(0, elements)?;
        let into = into.as_slice_mut::<f32>()?;
        let (mut given, mut got) = self.take_pieces(self.part());
        for (start, length) in pieces(block, self.part()) {
            let extent = length * self.world_size();
            for (part, block) in given.chunks_exact_mut(length).zip(blocks.chunks_exact(block)) {
                part.copy_from_slice(&block[start..start + length]);
            }
            self.exchange_into(&given[..extent], &mut got[..extent]);
            for (block, part) in into.chunks_exact_mut(block).zip(got.chunks_exact(length)) {
                block[start..start + length].copy_from_slice(part);
            }
        }
        self.keep_pieces(given, got);
        Ok(Exchange { given: from, got: to })
    }

    fn broadcast(&mut self, _: &Call, root: usize, mut bytes: Vec<u8>) -> Result<Vec<u8>, DistError> {
        let length = self.lengths(bytes.len())[root];
        bytes.resize(length, 0);
        self.share(root, &mut bytes);
        Ok(bytes)
    }

    fn all_gather_bytes(&mut self, _: &Call, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, DistError> {
        let mut all: Vec<Vec<u8>> =
            self.lengths(bytes.len()).into_iter().map(|length| vec![0; length]).collect();
        all[self.rank()] = bytes;
        for (root, bytes) in all.iter_mut().enumerate() {
            self.share(root, bytes);
        }
        Ok(all)
    }

    fn barrier(&mut self, _: &Call) -> Result<(), DistError> {
        complete(self.communicator.immediate_barrier());
        Ok(())
    }

    fn split(&mut self, _: &Call, colour: usize) -> Result<Box<dyn Transport>, DistError> {
        let colour = Rank::try_from(colour).map_err(|_| DistError::Mpi("a colour must fit 31 bits"))?;
        let part = self.communicator.split_by_color(Color::with_value(colour));
        let part = part.ok_or(DistError::Mpi("a split gave this rank no group"))?;
        Ok(Box::new(Self::over(part, self.universe.clone())))
    }
}
