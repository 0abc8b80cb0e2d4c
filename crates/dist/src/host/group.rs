//! A group as the caller sees it: moves what a collective works on to the communication thread.

use std::sync::{Arc, Mutex, RwLock};

use tessera_ops::{Buffer, DType, Queue, ViewMut};

use super::transport::{Failure, Peers, Transport};
use super::worker::{Table, Worker};
use crate::error::DistError;
use crate::group::{Exchange, Group, Pending, check_root};
use crate::recorder::{Call, Label, Operation, Recorder};
use crate::single::Single;
use crate::unit::UnitState;
use crate::wire::Wire;

/// The name of the group of all ranks.
pub(crate) const WORLD: &str = "world";

/// A group of one rank's communication thread.
pub(crate) struct HostGroup {
    pub name: &'static str,
    pub rank: usize,
    pub world_size: usize,
    pub worker: Arc<Worker>,
    /// Which of the thread's transports is this group's.
    pub index: usize,
    pub peers: Option<Arc<dyn Peers>>,
}

impl HostGroup {
    fn submit<T: Send + 'static>(
        &self,
        operation: Operation,
        label: Label,
        bytes: usize,
        collective: impl FnOnce(&mut dyn Transport, &Call) -> Result<T, DistError> + Send + 'static,
    ) -> Result<Pending<T>, DistError> {
        let index = self.index;
        self.worker.submit(index, self.call(operation, label), bytes, move |table, call| {
            collective(table.transports[index].as_mut(), call)
        })
    }

    fn call(&self, operation: Operation, label: Label) -> Call {
        Call { group: self.name.into(), operation, label }
    }
}

impl Group for HostGroup {
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
        Some(&self.worker.recorder)
    }

    fn all_gather(
        &self,
        _: &Queue,
        unit: usize,
        dtype: DType,
        elements: usize,
        shard: &Arc<RwLock<UnitState>>,
        full: Buffer,
    ) -> Result<Pending<Buffer>, DistError> {
        let (bytes, shard) = (elements * dtype.size(), shard.clone());
        self.submit(Operation::AllGather, Label::Unit(unit), bytes, move |transport, call| {
            transport.all_gather(call, dtype, elements, &shard, full)
        })
    }

    fn reduce_scatter(
        &self,
        _: &Queue,
        unit: usize,
        elements: usize,
        full: Buffer,
        shard: &Arc<Mutex<Buffer>>,
        wire: Wire,
    ) -> Result<Pending<Buffer>, DistError> {
        let (bytes, shard) = (elements * DType::F32.size(), shard.clone());
        self.submit(Operation::ReduceScatter, Label::Unit(unit), bytes, move |transport, call| {
            transport.reduce_scatter(call, elements, full, &shard, wire)
        })
    }

    fn all_reduce_gradient(
        &self,
        _: &Queue,
        unit: usize,
        gradient: &Arc<Mutex<Buffer>>,
        wire: Wire,
    ) -> Result<Pending<()>, DistError> {
        let bytes = gradient.lock().map_err(|_| DistError::Abandoned { unit })?.len();
        let gradient = gradient.clone();
        self.submit(Operation::AllReduceGradient, Label::Unit(unit), bytes, move |transport, call| {
            transport.all_reduce_gradient(call, &gradient, wire)
        })
    }

    fn all_reduce(&self, _: &Queue, mut values: ViewMut<'_>) -> Result<Pending<()>, DistError> {
        let values = values.as_slice_mut::<f64>()?;
        let given = values.to_vec();
        let sums = self.submit(
            Operation::AllReduce,
            Label::named("statistics"),
            size_of_val(values),
            move |transport, call| transport.all_reduce(call, given),
        )?;
        values.copy_from_slice(&sums.wait()?);
        Ok(Pending::completed(()))
    }

    fn all_to_all(
        &self,
        _: &Queue,
        label: &'static str,
        elements: usize,
        exchange: Exchange,
    ) -> Result<Pending<Exchange>, DistError> {
        let ranks = self.world_size;
        exchange.check(|| self.call(Operation::AllToAll, Label::named(label)), elements, ranks)?;
        let bytes = elements * DType::F32.size();
        self.submit(Operation::AllToAll, Label::named(label), bytes, move |transport, call| {
            transport.all_to_all(call, elements / ranks, exchange)
        })
    }

    fn broadcast(
        &self,
        label: &'static str,
        root: usize,
        bytes: Vec<u8>,
    ) -> Result<Pending<Vec<u8>>, DistError> {
        check_root(|| self.call(Operation::Broadcast, Label::named(label)), root, self.world_size)?;
        self.submit(Operation::Broadcast, Label::named(label), bytes.len(), move |transport, call| {
            transport.broadcast(call, root, bytes)
        })
    }

    fn all_gather_bytes(
        &self,
        label: &'static str,
        bytes: Vec<u8>,
    ) -> Result<Pending<Vec<Vec<u8>>>, DistError> {
        self.submit(Operation::AllGatherBytes, Label::named(label), bytes.len(), move |transport, call| {
            transport.all_gather_bytes(call, bytes)
        })
    }

    fn barrier(&self, label: &'static str) -> Result<Pending<()>, DistError> {
        self.submit(Operation::Barrier, Label::named(label), 0, move |transport, call| {
            transport.barrier(call)
        })
    }

    fn split(&self, name: &'static str, colour: usize) -> Result<Box<dyn Group>, DistError> {
        let (parent, call) = (self.index, self.call(Operation::Split, Label::named(name)));
        let split = self.worker.submit(parent, call, 0, move |table: &mut Table, call| {
            let part = table.transports[parent].split(call, colour)?;
            let (index, rank, world_size) = (table.transports.len(), part.rank(), part.world_size());
            let peers = part.peers();
            table.transports.push(part);
            Ok((index, rank, world_size, peers))
        })?;
        let (index, rank, world_size, peers) = split.wait()?;
        if world_size == 1 {
            return Ok(Box::new(Single));
        }
        Ok(Box::new(Self { name, rank, world_size, worker: self.worker.clone(), index, peers }))
    }
}

impl Drop for HostGroup {
    fn drop(&mut self) {
        // The communication thread may stand in a collective that now never ends: it and the others are told at once.
        if std::thread::panicking()
            && let Some(peers) = &self.peers
        {
            let rank = self.worker.recorder.rank();
            peers.give_up(Failure::Lost { rank, reason: "its thread panicked".to_owned() });
        }
    }
}
