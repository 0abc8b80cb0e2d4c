//! A group as the caller sees it: hands what a collective works on to the communication thread, with the place in the
//! caller's queue that it comes after.

use std::sync::{Arc, Mutex, RwLock};

use tessera_ops::{Buffer, DType, Queue, View, ViewMut, cast, fill};

use super::lane::{Collective, Lane, Queued, stream};
use super::library::Span;
use super::member::{Answer, Member};
use crate::error::DistError;
use crate::group::{Exchange, Group, Pending, check_root};
use crate::host::{Failure, check_extent, lock, read, share};
use crate::recorder::{Call, Label, Operation, Recorder};
use crate::single::Single;
use crate::unit::UnitState;
use crate::wire::Wire;

/// A group of one rank's communication thread.
pub(super) struct NcclGroup {
    pub name: &'static str,
    pub rank: usize,
    pub world_size: usize,
    pub member: Arc<Member>,
    /// Which of the thread's groups it is.
    pub index: usize,
}

/// Bytes of a collective.
struct Bytes {
    /// Of the buffer that it works on.
    whole: usize,
    /// That this rank sends to others.
    sent: usize,
}

impl NcclGroup {
    fn call(&self, operation: Operation, label: Label) -> Call {
        Call { group: self.name.into(), operation, label }
    }

    /// Has a collective queued after `queue`: `steps` queue its work.
    fn queue<T: Send + 'static>(
        &self,
        queue: &Queue,
        call: Call,
        bytes: Bytes,
        steps: impl FnOnce(&mut Lane, &Collective) -> Result<T, DistError> + Send + 'static,
    ) -> Result<Answer<Queued<T>>, DistError> {
        let ready = queue.record()?;
        self.member.submit(self.index, call, bytes.whole, bytes.sent, move |lane, collective| {
            lane.queue(collective, &ready, |lane| steps(lane, collective))
        })
    }

    /// Has a collective of bytes of the host made.
    fn bytes<T: Send + 'static>(
        &self,
        call: Call,
        bytes: Bytes,
        steps: impl FnOnce(&mut Lane, &Collective) -> Result<T, DistError> + Send + 'static,
    ) -> Result<Pending<T>, DistError> {
        let answer = self.member.submit(self.index, call, bytes.whole, bytes.sent, |lane, collective| {
            lane.step_by_step(collective, |lane| steps(lane, collective))
        })?;
        Ok(Pending::under_way(move || answer.wait()))
    }

    /// That of a buffer which every rank sends its own slice of to all others.
    fn slices(&self, whole: usize) -> Bytes {
        Bytes { whole, sent: whole / self.world_size * (self.world_size - 1) }
    }
}

/// What `queue` waits for where it waits.
fn pending<T: Send + 'static>(queue: &Queue, answer: Answer<Queued<T>>) -> Pending<T> {
    let queue = queue.clone();
    Pending::under_way(move || answer.order(&queue))
}

fn elements(view: View<'_>) -> usize {
    view.shape().elements()
}

impl Group for NcclGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn lends(&self) -> bool {
        false
    }

    fn recorder(&self) -> Option<&Arc<Recorder>> {
        Some(&self.member.state.recorder)
    }

    fn check(&self) -> Result<(), DistError> {
        self.member.state.check()
    }

    fn all_gather(
        &self,
        queue: &Queue,
        unit: usize,
        dtype: DType,
        elements: usize,
        shard: &Arc<RwLock<UnitState>>,
        mut full: Buffer,
    ) -> Result<Pending<Buffer>, DistError> {
        let (shard, rank, length) = (shard.clone(), self.rank, elements / self.world_size);
        let call = self.call(Operation::AllGather, Label::Unit(unit));
        let bytes = self.slices(elements * dtype.size());
        let answer = self.queue(queue, call, bytes, move |lane, collective| {
            let (call, queue) = (&collective.call, &lane.queue);
            let state = read(call, &shard)?;
            let master = state.master.view(DType::F32);
            check_extent(call, "the shard", self::elements(master), length)?;
            let mut whole = full.view_mut(dtype).range(0, elements)?;
            let own = whole.reborrow().range(rank * length, length)?;
            match dtype {
                DType::F32 => fill::copy(queue, master, own)?,
                _ => cast::forward(queue, master, own)?,
            }
            drop(state);
            lane.all_gather(collective, whole)?;
            Ok(full)
        })?;
        Ok(pending(queue, answer))
    }

    fn reduce_scatter(
        &self,
        queue: &Queue,
        unit: usize,
        elements: usize,
        mut full: Buffer,
        shard: &Arc<Mutex<Buffer>>,
        wire: Wire,
    ) -> Result<Pending<Buffer>, DistError> {
        let (shard, rank, length) = (shard.clone(), self.rank, elements / self.world_size);
        let call = self.call(Operation::ReduceScatter, Label::Unit(unit));
        let bytes = Bytes { whole: elements * DType::F32.size(), ..self.slices(elements * wire.size()) };
        let answer = self.queue(queue, call, bytes, move |lane, collective| {
            let mut shard = lock(&collective.call, &shard)?;
            let shard = shard.view_mut(DType::F32);
            check_extent(&collective.call, "the shard", self::elements(shard.as_view()), length)?;
            let whole = full.view_mut(DType::F32).range(0, elements)?;
            match wire {
                Wire::Fp32 => {
                    let span = lane.span(whole.as_view())?;
                    lane.call(collective.group, |stream, communicator| {
                        communicator.reduce_scatter(stream, span)
                    })?;
                    fill::add(&lane.queue, whole.as_view().range(rank * length, length)?, shard)?;
                }
                Wire::Bf16 => lane.add_rounded(collective, whole, shard)?,
            }
            Ok(full)
        })?;
        Ok(pending(queue, answer))
    }

    fn all_reduce_gradient(
        &self,
        queue: &Queue,
        unit: usize,
        gradient: &Arc<Mutex<Buffer>>,
        wire: Wire,
    ) -> Result<Pending<()>, DistError> {
        let whole = gradient.lock().map_err(|_| DistError::Abandoned { unit })?.len();
        let elements = whole / DType::F32.size();
        let own = share(elements, self.rank, self.world_size).len();
        // The sums of its own share, and its part in those of the others.
        let sent = (elements - own + own * (self.world_size - 1)) * wire.size();
        let (gradient, call) = (gradient.clone(), self.call(Operation::AllReduceGradient, Label::Unit(unit)));
        let answer = self.queue(queue, call, Bytes { whole, sent }, move |lane, collective| {
            let mut gradient = lock(&collective.call, &gradient)?;
            if wire == Wire::Bf16 {
                return lane.all_reduce_rounded(collective, &mut gradient);
            }
            let span = lane.span(gradient.view(DType::F32))?;
            lane.call(collective.group, |stream, communicator| communicator.all_reduce(stream, span))
        })?;
        Ok(pending(queue, answer))
    }

    fn all_reduce(&self, queue: &Queue, values: ViewMut<'_>) -> Result<Pending<()>, DistError> {
        let (view, call) = (values.as_view(), self.call(Operation::AllReduce, Label::named("statistics")));
        let whole = elements(view) * view.dtype().size();
        let span = Span::of(stream(queue)?, view)?;
        let bytes = Bytes { whole, sent: whole * (self.world_size - 1) };
        let answer = self.queue(queue, call, bytes, move |lane, collective| {
            lane.call(collective.group, |stream, communicator| communicator.all_reduce(stream, span))
        })?;
        // The view is the caller's again on return.
        answer.order(queue).map(Pending::completed)
    }

    fn all_to_all(
        &self,
        queue: &Queue,
        label: &'static str,
        elements: usize,
        mut exchange: Exchange,
    ) -> Result<Pending<Exchange>, DistError> {
        let call = self.call(Operation::AllToAll, Label::named(label));
        exchange.check(|| call.clone(), elements, self.world_size)?;
        let bytes = self.slices(elements * DType::F32.size());
        let answer = self.queue(queue, call, bytes, move |lane, collective| {
            let given = exchange.given.view(DType::F32).range(0, elements)?;
            let got = exchange.got.view_mut(DType::F32).range(0, elements)?;
            lane.exchange(collective, given, got)?;
            Ok(exchange)
        })?;
        Ok(pending(queue, answer))
    }

    fn broadcast(
        &self,
        label: &'static str,
        root: usize,
        bytes: Vec<u8>,
    ) -> Result<Pending<Vec<u8>>, DistError> {
        let call = self.call(Operation::Broadcast, Label::named(label));
        check_root(|| call.clone(), root, self.world_size)?;
        let sent = if self.rank == root { bytes.len() * (self.world_size - 1) } else { 0 };
        self.bytes(call, Bytes { whole: bytes.len(), sent }, move |lane, collective| {
            lane.broadcast(collective, root, bytes)
        })
    }

    fn all_gather_bytes(
        &self,
        label: &'static str,
        bytes: Vec<u8>,
    ) -> Result<Pending<Vec<Vec<u8>>>, DistError> {
        let call = self.call(Operation::AllGatherBytes, Label::named(label));
        let sent = bytes.len() * (self.world_size - 1);
        self.bytes(call, Bytes { whole: bytes.len(), sent }, move |lane, collective| {
            lane.all_gather_bytes(collective, &bytes)
        })
    }

    fn barrier(&self, label: &'static str) -> Result<Pending<()>, DistError> {
        let call = self.call(Operation::Barrier, Label::named(label));
        self.bytes(call, Bytes { whole: 0, sent: 0 }, |lane, collective| lane.meet(collective, 0).map(drop))
    }

    fn split(&self, name: &'static str, colour: usize) -> Result<Box<dyn Group>, DistError> {
        let call = self.call(Operation::Split, Label::named(name));
        let split = self.bytes(call, Bytes { whole: 0, sent: 0 }, move |lane, collective| {
            let colours = lane.meet(collective, colour)?;
            lane.split(collective, colour, &colours)
        })?;
        let (index, rank, world_size) = split.wait()?;
        if world_size == 1 {
            return Ok(Box::new(Single));
        }
        Ok(Box::new(Self { name, rank, world_size, member: self.member.clone(), index }))
    }
}

impl Drop for NcclGroup {
    fn drop(&mut self) {
        // The other ranks of this process are told at once; those elsewhere hear of it when this one's communicators end.
        if std::thread::panicking() {
            let rank = self.member.state.recorder.rank();
            let reason = "its thread panicked".to_owned();
            self.member.state.crew.fail(Failure::Lost { rank, reason });
        }
    }
}
