//! The group of one rank: it lends what it owns, and every collective is complete when its call returns.

use std::sync::{Arc, Mutex, RwLock};

use tessera_ops::{Buffer, DType, Queue, ViewMut, cast, fill};

use crate::error::DistError;
use crate::group::{Exchange, Group, Pending};
use crate::recorder::Recorder;
use crate::unit::UnitState;
use crate::wire::Wire;

/// The group of one rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Single;

impl Group for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn lends(&self) -> bool {
        true
    }

    fn recorder(&self) -> Option<&Arc<Recorder>> {
        None
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
        let state = shard.read().map_err(|_| DistError::Abandoned { unit })?;
        let (master, whole) = (state.master.view(DType::F32), full.view_mut(dtype).range(0, elements)?);
        if dtype == DType::F32 {
            fill::copy(queue, master, whole)?
        } else {
            cast::forward(queue, master, whole)?
        }
        Ok(Pending::completed(full))
    }

    fn reduce_scatter(
        &self,
        queue: &Queue,
        unit: usize,
        elements: usize,
        full: Buffer,
        shard: &Arc<Mutex<Buffer>>,
        _: Wire,
    ) -> Result<Pending<Buffer>, DistError> {
        let mut shard = shard.lock().map_err(|_| DistError::Abandoned { unit })?;
        fill::add(queue, full.view(DType::F32).range(0, elements)?, shard.view_mut(DType::F32))?;
        Ok(Pending::completed(full))
    }

    fn all_reduce_gradient(
        &self,
        _: &Queue,
        _: usize,
        _: &Arc<Mutex<Buffer>>,
        _: Wire,
    ) -> Result<Pending<()>, DistError> {
        Ok(Pending::completed(()))
    }

    fn all_reduce(&self, _: &Queue, _: ViewMut<'_>) -> Result<Pending<()>, DistError> {
        Ok(Pending::completed(()))
    }

    fn all_to_all(
        &self,
        queue: &Queue,
        _: &'static str,
        elements: usize,
        mut exchange: Exchange,
    ) -> Result<Pending<Exchange>, DistError> {
        let given = exchange.given.view(DType::F32).range(0, elements)?;
        fill::copy(queue, given, exchange.got.view_mut(DType::F32).range(0, elements)?)?;
        Ok(Pending::completed(exchange))
    }

    fn broadcast(&self, _: &'static str, _: usize, bytes: Vec<u8>) -> Result<Pending<Vec<u8>>, DistError> {
        Ok(Pending::completed(bytes))
    }

    fn all_gather_bytes(&self, _: &'static str, bytes: Vec<u8>) -> Result<Pending<Vec<Vec<u8>>>, DistError> {
        Ok(Pending::completed(vec![bytes]))
    }

    fn barrier(&self, _: &'static str) -> Result<Pending<()>, DistError> {
        Ok(Pending::completed(()))
    }

    fn split(&self, _: &'static str, _: usize) -> Result<Box<dyn Group>, DistError> {
        Ok(Box::new(Self))
    }
}
