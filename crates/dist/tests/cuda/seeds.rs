//! Streams in any order that events allow: the results are the same bits, and those of ranks on the host.

use std::thread;

use tessera_dist::{Degrees, Group, Mesh, Residency, Units, threads};
use tessera_ops::cuda::count;
use tessera_ops::{Buffer, DType, Queue, cast, fill};

use crate::suite::{self, Place};
use crate::{each_rank, passes, patience};

const STEPS: usize = 3;
const LONGEST: usize = 9;

/// A few steps, in which every value depends on all before it: the gradient of a unit is its weights and something that is
/// the rank's own, and the masters move by the reduced gradient. The host waits for nothing.
fn train(group: Box<dyn Group>, place: &Place, compute: DType, degrees: Degrees) -> Vec<u32> {
    let (rank, queue) = (group.rank(), &place.queue);
    let units = suite::units(Mesh::new(group, degrees).unwrap(), place, compute, Residency::WhileUsed);
    let own: Vec<f32> = (0..LONGEST).map(|element| ((rank * 31 + element) as f32).sin()).collect();
    let (own, mut wide) = (place.buffer(&own), place.zeroed(LONGEST * 4));
    let order = [0, 1, 2, 2, 1, 0];
    units.prefetch(queue, order[0]).unwrap();
    for _ in 0..STEPS {
        for (turn, &unit) in order.iter().enumerate() {
            let next = order.get(turn + 1).copied().filter(|&next| next != unit);
            visit(&units, queue, unit, next, &own, &mut wide);
        }
        units.finish_reductions(queue).unwrap();
        // The next step's first weights are on their way already: of the masters before the update.
        units.prefetch(queue, 1).unwrap();
        units.forget_weights().unwrap();
        for unit in units.iter() {
            let (mut state, mut gradient) = (unit.state().write().unwrap(), unit.gradient().lock().unwrap());
            fill::add(queue, gradient.view(DType::F32), state.master.view_mut(DType::F32)).unwrap();
            fill::zero(queue, gradient.view_mut(DType::F32)).unwrap();
        }
    }
    let bits = units.iter().flat_map(|unit| place.values(&unit.state().read().unwrap().master));
    bits.map(f32::to_bits).collect()
}

fn visit(units: &Units, queue: &Queue, unit: usize, next: Option<usize>, own: &Buffer, wide: &mut Buffer) {
    let weights = units.weights(queue, unit).unwrap();
    if let Some(next) = next {
        units.prefetch(queue, next).unwrap();
    }
    let mut gradient = units.gradient(queue, unit).unwrap();
    let view = weights.view().unwrap();
    let elements = view.shape().elements();
    let mut into = gradient.view_mut().unwrap();
    if view.dtype() == DType::BF16 {
        let mut wide = wide.view_mut(DType::F32).range(0, elements).unwrap();
        cast::forward(queue, view, wide.reborrow()).unwrap();
        fill::add(queue, wide.as_view(), into.reborrow()).unwrap();
    } else {
        fill::add(queue, view, into.reborrow()).unwrap();
    }
    fill::add(queue, own.view(DType::F32).range(0, elements).unwrap(), into).unwrap();
    units.reduce(queue, unit, gradient).unwrap();
}

/// The same by ranks that are threads of the host.
fn on_host(compute: DType, degrees: Degrees) -> Vec<Vec<u32>> {
    let ranks = degrees.shard * degrees.replicate * degrees.context;
    let groups = threads::groups(ranks, &patience()).unwrap();
    thread::scope(|scope| {
        let start = |group| scope.spawn(move || train(group, &Place::host(), compute, degrees));
        let ranks: Vec<_> = groups.into_iter().map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
#[ignore = "started by another test"]
fn bits_on_gpus() {
    for (shard, replicate) in [(2, 1), (3, 1), (2, 2)] {
        for compute in [DType::F32, DType::BF16] {
            let degrees = Degrees { shard, replicate, context: 1 };
            if shard * replicate > count().unwrap() {
                continue;
            }
            let found = each_rank(shard * replicate, &patience(), |group, place| {
                train(group, place, compute, degrees)
            });
            let found: Vec<_> = found.into_iter().map(Option::unwrap).collect();
            assert_eq!(found, on_host(compute, degrees), "{degrees:?}, {compute}");
        }
    }
}

#[test]
fn any_order_of_streams_gives_the_bits_of_ranks_on_the_host() {
    for seed in 0..20 {
        passes("seeds::bits_on_gpus", &[("TESSERA_EMULATOR_SEED", &seed.to_string())]);
    }
}
