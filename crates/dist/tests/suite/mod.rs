//! What every engine must do, as one rank of it sees it. Every rank of a group calls these together; expectations are
//! sums and copies written out naively.

use std::sync::{Arc, Mutex, RwLock};

use tessera_dist::{
    Degrees, DistError, Exchange, Group, Mesh, Operation, Residency, Unit, UnitSize, UnitState, Units, Wire,
};
use tessera_ops::{Buffer, DType, Queue, ViewMut};

const WIRES: [Wire; 2] = [Wire::Fp32, Wire::Bf16];

/// The whole suite.
pub fn run(group: Box<dyn Group>) {
    sums_and_copies(group.as_ref());
    bytes(group.as_ref());
    blocks(group.as_ref());
    asynchronous_order(group.as_ref());
    traffic(group.as_ref());
    refusals(group.as_ref());
    parts(group.as_ref());
    units_of_any_residency(group);
}

fn buffer(values: &[f32]) -> Buffer {
    let mut buffer = Buffer::zeroed(size_of_val(values)).unwrap();
    buffer.view_mut(DType::F32).as_slice_mut::<f32>().unwrap().copy_from_slice(values);
    buffer
}

fn values(buffer: &Buffer) -> &[f32] {
    buffer.view(DType::F32).as_slice().unwrap()
}

/// What rank `rank` has at `index`: no two are alike, and sums of them are not exact, so their order shows.
fn value(rank: usize, index: usize) -> f32 {
    ((rank * 7919 + index) as f32).sin() * 10_f32.powi(index as i32 % 7)
}

pub fn shard(rank: usize, length: usize) -> Arc<RwLock<UnitState>> {
    let master: Vec<f32> = (0..length).map(|index| value(rank, index)).collect();
    Arc::new(RwLock::new(UnitState { master: buffer(&master), moments: Vec::new() }))
}

fn sums_and_copies(group: &dyn Group) {
    let (queue, rank, ranks) = (Queue::cpu(), group.rank(), group.world_size());
    // From nothing over odd ones to what no transport moves in one piece.
    for length in [0, 1, 7, 4097, 12_345, (1 << 20) / ranks + 3] {
        let room = Buffer::zeroed((length * ranks + 5) * 4).unwrap();
        let full = group
            .all_gather(&queue, 3, DType::F32, length * ranks, &shard(rank, length), room)
            .unwrap()
            .wait()
            .unwrap();
        let mut expected: Vec<f32> =
            (0..ranks).flat_map(|rank| (0..length).map(move |index| value(rank, index))).collect();
        expected.extend([0.0; 5]);
        assert!(values(&full) == expected, "gathered {length}");

        for wire in WIRES {
            // Nothing travels where there is nobody else.
            let arrives = |value: f32| if group.lends() { value } else { wire.round(value) };
            let gradient: Vec<f32> = (0..length * ranks).map(|index| value(rank, index)).collect();
            let sum =
                |index: usize| (0..ranks).map(|rank| arrives(value(rank, index))).fold(0.0, |a, b| a + b);
            let slice = Arc::new(Mutex::new(buffer(&vec![1.0; length])));
            let back = group
                .reduce_scatter(&queue, 3, length * ranks, buffer(&gradient), &slice, wire)
                .unwrap()
                .wait()
                .unwrap();
            assert!(values(&back) == gradient, "the gradient itself stays");
            let expected: Vec<f32> = (0..length).map(|index| 1.0 + sum(rank * length + index)).collect();
            assert!(values(&slice.lock().unwrap()) == expected, "reduced {length} in {wire:?}");

            let own: Vec<f32> = (0..length).map(|index| value(rank, index)).collect();
            let own = Arc::new(Mutex::new(buffer(&own)));
            group.all_reduce_gradient(3, &own, wire).unwrap().wait().unwrap();
            let expected: Vec<f32> = (0..length).map(|index| arrives(sum(index))).collect();
            assert!(values(&own.lock().unwrap()) == expected, "summed {length} in {wire:?}");
        }
    }
    let mut few = [rank as f64, 0.5, f64::from(1 << 20)];
    group.all_reduce(&queue, ViewMut::of(&mut few)).unwrap().wait().unwrap();
    assert_eq!(few, [(0..ranks).sum::<usize>() as f64, 0.5 * ranks as f64, (ranks << 20) as f64]);
}

fn bytes(group: &dyn Group) {
    let (rank, ranks) = (group.rank(), group.world_size());
    let of = |rank: usize| vec![rank as u8; rank * 3];
    let all = group.all_gather_bytes("plans", of(rank)).unwrap().wait().unwrap();
    assert_eq!(all, (0..ranks).map(of).collect::<Vec<_>>());
    for root in 0..ranks {
        let bytes = group.broadcast("id", root, of(rank)).unwrap().wait().unwrap();
        assert_eq!(bytes, of(root));
    }
    group.barrier("end").unwrap().wait().unwrap();
}

fn blocks(group: &dyn Group) {
    let (queue, rank, ranks) = (Queue::cpu(), group.rank(), group.world_size());
    for block in [0, 1, 5, 300_000] {
        let elements = block * ranks;
        let given: Vec<f32> = (0..elements).map(|index| value(rank, index)).collect();
        let exchange = Exchange { given: buffer(&given), got: Buffer::zeroed(elements * 4 + 8).unwrap() };
        let exchange = group.all_to_all(&queue, "heads", elements, exchange).unwrap().wait().unwrap();
        let mut expected: Vec<f32> = (0..ranks)
            .flat_map(|from| (0..block).map(move |index| value(from, rank * block + index)))
            .collect();
        expected.extend([0.0; 2]);
        assert!(values(&exchange.got) == expected, "blocks of {block}");
        assert!(values(&exchange.given) == given);
    }
}

/// Collectives are made in the order of their calls, whatever the order in which they are waited for, and however far
/// ahead a rank is.
fn asynchronous_order(group: &dyn Group) {
    let (queue, rank, ranks) = (Queue::cpu(), group.rank(), group.world_size());
    let gradient = Arc::new(Mutex::new(buffer(&[0.0; 3])));
    std::thread::sleep(std::time::Duration::from_millis(5 * rank as u64));
    let mut pending = Vec::new();
    for turn in 0..20 {
        let full: Vec<f32> = (0..3 * ranks).map(|index| (index + turn) as f32).collect();
        pending.push(
            group.reduce_scatter(&queue, turn, 3 * ranks, buffer(&full), &gradient, Wire::Fp32).unwrap(),
        );
    }
    let barrier = group.barrier("all queued").unwrap();
    while let Some(last) = pending.pop() {
        drop(last.wait().unwrap());
    }
    barrier.wait().unwrap();
    let expected =
        [0, 1, 2].map(|index| (0..20).map(|turn| ((rank * 3 + index + turn) * ranks) as f32).sum::<f32>());
    assert_eq!(values(&gradient.lock().unwrap()), expected);
    let Some(recorder) = group.recorder() else { return };
    let records = recorder.records();
    assert!(records.iter().enumerate().all(|(place, record)| record.sequence == place as u64));
    assert!(records.windows(2).all(|pair| pair[0].finished <= pair[1].started && pair[1].started.is_some()));
}

/// (N − 1)/N of the bytes of every gather and reduction, as the plan says, and not one more.
fn traffic(group: &dyn Group) {
    let Some(recorder) = group.recorder() else { return };
    let (queue, rank, ranks) = (Queue::cpu(), group.rank(), group.world_size());
    let sent = || {
        let of = |operation| recorder.totals(operation).bytes_sent;
        [Operation::AllGather, Operation::ReduceScatter, Operation::AllReduce, Operation::AllToAll].map(of)
    };
    let before = sent();
    let length = 999;
    let full = Buffer::zeroed(length * ranks * 4).unwrap();
    let full = group
        .all_gather(&queue, 0, DType::F32, length * ranks, &shard(rank, length), full)
        .unwrap()
        .wait()
        .unwrap();
    let gradient = Arc::new(Mutex::new(Buffer::zeroed(length * 4).unwrap()));
    let reduce = |full, wire| {
        group.reduce_scatter(&queue, 0, length * ranks, full, &gradient, wire).unwrap().wait().unwrap()
    };
    let full = reduce(full, Wire::Fp32);
    let got = Buffer::zeroed(full.len()).unwrap();
    let exchange = Exchange { given: full, got };
    drop(group.all_to_all(&queue, "heads", length * ranks, exchange).unwrap().wait().unwrap());
    group.all_reduce(&queue, ViewMut::of(&mut [0.0_f64; 3])).unwrap().wait().unwrap();
    let after = sent();
    let others = (ranks - 1) as u64;
    let share = others * length as u64 * 4;
    assert_eq!(std::array::from_fn(|kind| after[kind] - before[kind]), [share, share, others * 24, share]);
    reduce(Buffer::zeroed(length * ranks * 4).unwrap(), Wire::Bf16);
    assert_eq!(sent()[1] - after[1], share / 2, "half of the bytes");
    for (length, wire) in
        [0, 1, 3, 1000, 1001, 12_345, (1 << 20) + 1].into_iter().zip(WIRES.into_iter().cycle())
    {
        let planned = 2 * others * (length * wire.size()) as u64;
        assert_eq!(sent_by_all(group, length, wire), planned, "{length} elements in {wire:?}");
    }
}

/// Bytes that all ranks together send to sum a gradient.
fn sent_by_all(group: &dyn Group, length: usize, wire: Wire) -> u64 {
    let recorder = group.recorder().unwrap();
    let sent = || recorder.totals(Operation::AllReduceGradient).bytes_sent;
    let before = sent();
    let gradient = Arc::new(Mutex::new(Buffer::zeroed(length * 4).unwrap()));
    group.all_reduce_gradient(0, &gradient, wire).unwrap().wait().unwrap();
    let mut all = [(sent() - before) as f64];
    group.all_reduce(&Queue::cpu(), ViewMut::of(&mut all)).unwrap().wait().unwrap();
    all[0] as u64
}

/// What cannot be is refused before a peer waits for it.
fn refusals(group: &dyn Group) {
    let ranks = group.world_size();
    if ranks == 1 {
        return;
    }
    let exchange = Exchange { given: buffer(&[0.0; 3]), got: buffer(&[0.0; 3]) };
    let refused = group.all_to_all(&Queue::cpu(), "heads", ranks + 1, exchange);
    assert!(matches!(refused, Err(DistError::Extent { .. })));
    assert!(matches!(group.broadcast("id", ranks, Vec::new()), Err(DistError::Extent { .. })));
}

/// Groups split off are groups of the right ranks.
fn parts(group: &dyn Group) {
    let (rank, ranks) = (group.rank(), group.world_size());
    let part = group.split("odd and even", rank % 2).unwrap();
    let members: Vec<usize> = (0..ranks).filter(|other| other % 2 == rank % 2).collect();
    assert_eq!((part.world_size(), members[part.rank()]), (members.len(), rank));
    let mut sum = [rank as f64];
    part.all_reduce(&Queue::cpu(), ViewMut::of(&mut sum)).unwrap().wait().unwrap();
    assert_eq!(sum, [members.iter().sum::<usize>() as f64]);
    assert_eq!(part.lends(), members.len() == 1);
}

const ELEMENTS: [usize; 3] = [5, 9, 7];

fn weight(unit: usize, index: usize) -> f32 {
    (unit * 100 + index + 1) as f32
}

/// This rank's share of units of [`ELEMENTS`], and the slots around it.
pub fn units(mesh: impl Into<Mesh>, residency: Residency) -> Units {
    let mesh = mesh.into();
    let (rank, ranks) = (mesh.shard().rank(), mesh.shard().world_size());
    let units = ELEMENTS.iter().enumerate().map(|(index, &elements)| {
        let unit = Unit::zeroed(&Queue::cpu(), UnitSize { elements, decayed: 2 }, ranks, 2).unwrap();
        let mut state = unit.state().write().unwrap();
        let mut master = state.master.view_mut(DType::F32);
        let slice = master.as_slice_mut::<f32>().unwrap();
        let first = rank * slice.len();
        for (place, master) in slice.iter_mut().enumerate().filter(|(place, _)| first + place < elements) {
            *master = weight(index, first + place);
        }
        drop(state);
        unit
    });
    let units = units.collect();
    Units::new(&Queue::cpu(), mesh, units, DType::F32, residency, Wire::default()).unwrap()
}

/// What the step loop does: unit after unit, the next one on its way. `rank` is this rank's in the world.
pub fn go_through(units: &Units, rank: usize) {
    let queue = Queue::cpu();
    let order = [0, 1, 2, 0, 2, 1, 0];
    for (place, index) in order.into_iter().enumerate() {
        let weights = units.weights(&queue, index).unwrap();
        if let Some(&next) = order.get(place + 1) {
            units.prefetch(&queue, next).unwrap();
        }
        let expected: Vec<f32> = (0..ELEMENTS[index]).map(|element| weight(index, element)).collect();
        assert_eq!(weights.view().unwrap().as_slice::<f32>().unwrap(), expected);
        let mut gradient = units.gradient(&queue, index).unwrap();
        let mut view = gradient.view_mut().unwrap();
        let slice = view.as_slice_mut::<f32>().unwrap();
        slice.iter_mut().enumerate().for_each(|(element, sum)| *sum += (element + rank) as f32);
        units.reduce(&queue, index, gradient).unwrap();
    }
    units.finish_reductions().unwrap();
}

/// The gradient that [`go_through`] leaves on a rank of the shard group, over `world` ranks.
pub fn expected_gradient(units: &Units, index: usize, world: usize) -> Vec<f32> {
    let (rank, length) = (units.group().rank(), ELEMENTS[index].div_ceil(units.group().world_size()));
    let uses = [3, 2, 2][index];
    let ranks_sum = world * (world - 1) / 2;
    (rank * length..(rank + 1) * length)
        .map(
            |element| if element < ELEMENTS[index] { uses * (element * world + ranks_sum) } else { 0 } as f32,
        )
        .collect()
}

fn check_gradients(units: &Units, world: usize) {
    for (index, unit) in units.iter().enumerate() {
        assert_eq!(values(&unit.gradient().lock().unwrap()), expected_gradient(units, index, world));
    }
}

/// Gathered units are the lent ones, and changed masters are gathered again.
fn units_of_any_residency(group: Box<dyn Group>) {
    let (rank, world) = (group.rank(), group.world_size());
    let mesh = Mesh::new(group, Degrees { shard: world, replicate: 1, context: 1 }).unwrap();
    for residency in [Residency::WhileUsed, Residency::WholeStep] {
        let units = units(mesh.clone(), residency);
        go_through(&units, rank);
        check_gradients(&units, world);
        let gathered =
            || units.group().recorder().map(|recorder| recorder.totals(Operation::AllGather).calls);
        let before = gathered();
        drop(units.weights(&Queue::cpu(), 0).unwrap());
        assert_eq!(gathered(), before, "unit 0 was used last and is still there");
        units.weights_changed().unwrap();
        let mut state = units.unit(0).state().write().unwrap();
        state.master.view_mut(DType::F32).as_slice_mut::<f32>().unwrap().fill(8.0);
        drop(state);
        let weights = units.weights(&Queue::cpu(), 0).unwrap();
        assert_eq!(weights.view().unwrap().as_slice::<f32>().unwrap(), [8.0; ELEMENTS[0]]);
    }
}

/// With several copies of the model every rank ends with its slice of the sum over all.
pub fn replicas(group: Box<dyn Group>, degrees: Degrees) {
    let (rank, world) = (group.rank(), group.world_size());
    let mesh = Mesh::new(group, degrees).unwrap();
    assert_eq!(mesh.shard().world_size(), degrees.shard * degrees.context);
    assert_eq!(mesh.replicate().world_size(), degrees.replicate);
    assert_eq!(mesh.context().world_size(), degrees.context);
    assert_eq!(mesh.replicate().rank(), rank / (degrees.shard * degrees.context));
    let units = units(mesh, Residency::WhileUsed);
    go_through(&units, rank);
    check_gradients(&units, world);
    // Without a new gradient there is nothing to sum again.
    units.finish_reductions().unwrap();
    check_gradients(&units, world);
}
