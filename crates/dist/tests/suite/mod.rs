//! What every engine must do, as one rank of it sees it. Every rank of a group calls these together; expectations are
//! sums and copies written out naively. Buffers lie where the engine works.

use std::sync::{Arc, Mutex, RwLock};

use half::bf16;
use tessera_dist::{
    Degrees, DistError, Exchange, Group, Mesh, Moments, Operation, Residency, Unit, UnitSize, UnitState,
    Units, Wire,
};
use tessera_ops::{Buffer, DType, Element, Queue, View, fill, transfer};

const WIRES: [Wire; 2] = [Wire::Fp32, Wire::Bf16];

/// The whole suite.
pub fn run(group: Box<dyn Group>, place: &Place) {
    sums_and_copies(group.as_ref(), place);
    narrow_gathers(group.as_ref(), place);
    bytes(group.as_ref());
    blocks(group.as_ref(), place);
    asynchronous_order(group.as_ref(), place);
    traffic(group.as_ref(), place);
    refusals(group.as_ref(), place);
    parts(group.as_ref(), place);
    units_of_any_residency(group, place);
}

/// Where a rank works.
pub struct Place {
    pub queue: Queue,
}

impl Place {
    pub fn host() -> Self {
        Self { queue: Queue::cpu() }
    }

    pub fn zeroed(&self, bytes: usize) -> Buffer {
        Buffer::on(&self.queue, bytes).unwrap()
    }

    /// A buffer of these values.
    pub fn buffer<T: Element>(&self, values: &[T]) -> Buffer {
        let mut buffer = self.zeroed(size_of_val(values));
        self.write(&mut buffer, values);
        buffer
    }

    /// Overwrites the first elements of a buffer.
    pub fn write<T: Element>(&self, buffer: &mut Buffer, values: &[T]) {
        let view = buffer.view_mut(T::DTYPE).range(0, values.len()).unwrap();
        transfer::on_host(&self.queue, view, |to: &mut [T]| to.copy_from_slice(values)).unwrap();
    }

    /// What a view holds when all that was issued has run.
    pub fn read<T: Element>(&self, view: View<'_>) -> Vec<T> {
        transfer::to_host(&self.queue, view).unwrap().into_owned()
    }

    pub fn values(&self, buffer: &Buffer) -> Vec<f32> {
        self.read(buffer.view(DType::F32))
    }

    /// The sum over the ranks of a few numbers.
    fn sum<const COUNT: usize>(&self, group: &dyn Group, values: [f64; COUNT]) -> [f64; COUNT] {
        let mut buffer = self.buffer(&values);
        group.all_reduce(&self.queue, buffer.view_mut(DType::F64)).unwrap().wait().unwrap();
        self.read(buffer.view(DType::F64)).try_into().unwrap()
    }

    pub fn shard(&self, rank: usize, length: usize) -> Arc<RwLock<UnitState>> {
        let master: Vec<f32> = (0..length).map(|index| value(rank, index)).collect();
        Arc::new(RwLock::new(UnitState { master: self.buffer(&master), moments: Vec::new() }))
    }
}

/// What rank `rank` has at `index`: no two are alike, and sums of them are not exact, so their order shows.
fn value(rank: usize, index: usize) -> f32 {
    ((rank * 7919 + index) as f32).sin() * 10_f32.powi(index as i32 % 7)
}

fn sums_and_copies(group: &dyn Group, place: &Place) {
    let (queue, rank, ranks) = (&place.queue, group.rank(), group.world_size());
    // From nothing over odd ones to what no transport moves in one piece.
    for length in [0, 1, 7, 4097, 12_345, (1 << 20) / ranks + 3] {
        let (shard, room) = (place.shard(rank, length), place.zeroed((length * ranks + 5) * 4));
        let full = group.all_gather(queue, 3, DType::F32, length * ranks, &shard, room);
        let full = full.unwrap().wait().unwrap();
        let mut expected: Vec<f32> =
            (0..ranks).flat_map(|rank| (0..length).map(move |index| value(rank, index))).collect();
        expected.extend([0.0; 5]);
        assert!(place.values(&full) == expected, "gathered {length}");

        for wire in WIRES {
            // Nothing travels where there is nobody else.
            let arrives = |value: f32| if group.lends() { value } else { wire.round(value) };
            let gradient: Vec<f32> = (0..length * ranks).map(|index| value(rank, index)).collect();
            let sum =
                |index: usize| (0..ranks).map(|rank| arrives(value(rank, index))).fold(0.0, |a, b| a + b);
            let slice = Arc::new(Mutex::new(place.buffer(&vec![1.0_f32; length])));
            let full = place.buffer(&gradient);
            let back = group.reduce_scatter(queue, 3, length * ranks, full, &slice, wire);
            assert_eq!(back.unwrap().wait().unwrap().len(), gradient.len() * 4);
            let expected: Vec<f32> = (0..length).map(|index| 1.0 + sum(rank * length + index)).collect();
            assert!(place.values(&slice.lock().unwrap()) == expected, "reduced {length} in {wire:?}");

            let own: Vec<f32> = (0..length).map(|index| value(rank, index)).collect();
            let own = Arc::new(Mutex::new(place.buffer(&own)));
            group.all_reduce_gradient(queue, 3, &own, wire).unwrap().wait().unwrap();
            let expected: Vec<f32> = (0..length).map(|index| arrives(sum(index))).collect();
            assert!(place.values(&own.lock().unwrap()) == expected, "summed {length} in {wire:?}");
        }
    }
    let few = place.sum(group, [rank as f64, 0.5, f64::from(1 << 20)]);
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

fn blocks(group: &dyn Group, place: &Place) {
    let (queue, rank, ranks) = (&place.queue, group.rank(), group.world_size());
    for block in [0, 1, 5, 300_000] {
        let elements = block * ranks;
        let given: Vec<f32> = (0..elements).map(|index| value(rank, index)).collect();
        let exchange = Exchange { given: place.buffer(&given), got: place.zeroed(elements * 4 + 8) };
        let exchange = group.all_to_all(queue, "heads", elements, exchange).unwrap().wait().unwrap();
        let mut expected: Vec<f32> = (0..ranks)
            .flat_map(|from| (0..block).map(move |index| value(from, rank * block + index)))
            .collect();
        expected.extend([0.0; 2]);
        assert!(place.values(&exchange.got) == expected, "blocks of {block}");
        assert!(place.values(&exchange.given) == given);
    }
}

/// Collectives are made in the order of their calls, whatever the order in which they are waited for, and however far
/// ahead a rank is.
fn asynchronous_order(group: &dyn Group, place: &Place) {
    let (queue, rank, ranks) = (&place.queue, group.rank(), group.world_size());
    let gradient = Arc::new(Mutex::new(place.buffer(&[0.0_f32; 3])));
    std::thread::sleep(std::time::Duration::from_millis(5 * rank as u64));
    let mut pending = Vec::new();
    for turn in 0..20 {
        let full: Vec<f32> = (0..3 * ranks).map(|index| (index + turn) as f32).collect();
        let full = place.buffer(&full);
        let reduced = group.reduce_scatter(queue, turn, 3 * ranks, full, &gradient, Wire::Fp32);
        pending.push(reduced.unwrap());
    }
    let barrier = group.barrier("all queued").unwrap();
    while let Some(last) = pending.pop() {
        drop(last.wait().unwrap());
    }
    barrier.wait().unwrap();
    let expected =
        [0, 1, 2].map(|index| (0..20).map(|turn| ((rank * 3 + index + turn) * ranks) as f32).sum::<f32>());
    assert_eq!(place.values(&gradient.lock().unwrap()), expected);
    let Some(recorder) = group.recorder() else { return };
    let records = recorder.records();
    assert!(records.iter().enumerate().all(|(place, record)| record.sequence == place as u64));
    assert!(records.windows(2).all(|pair| pair[0].finished <= pair[1].started && pair[1].started.is_some()));
}

/// Weights arrive in the dtype that they are computed with, rounded to the nearest.
fn narrow_gathers(group: &dyn Group, place: &Place) {
    let (queue, rank, ranks) = (&place.queue, group.rank(), group.world_size());
    for length in [1, 8, 4099] {
        let (shard, room) = (place.shard(rank, length), place.zeroed(length * ranks * 2));
        let full = group.all_gather(queue, 3, DType::BF16, length * ranks, &shard, room);
        let full = full.unwrap().wait().unwrap();
        let rounded = |rank| (0..length).map(move |index| bf16::from_f32(value(rank, index)));
        let expected: Vec<bf16> = (0..ranks).flat_map(rounded).collect();
        assert!(place.read::<bf16>(full.view(DType::BF16)) == expected, "gathered {length}");
    }
}

/// (N − 1)/N of the bytes of every gather and reduction, as the plan says, and not one more.
fn traffic(group: &dyn Group, place: &Place) {
    let Some(recorder) = group.recorder() else { return };
    let (queue, rank, ranks) = (&place.queue, group.rank(), group.world_size());
    let sent = || {
        let of = |operation| recorder.totals(operation).bytes_sent;
        [Operation::AllGather, Operation::ReduceScatter, Operation::AllReduce, Operation::AllToAll].map(of)
    };
    let before = sent();
    let length = 999;
    let (shard, full) = (place.shard(rank, length), place.zeroed(length * ranks * 4));
    let full = group.all_gather(queue, 0, DType::F32, length * ranks, &shard, full);
    let full = full.unwrap().wait().unwrap();
    let gradient = Arc::new(Mutex::new(place.zeroed(length * 4)));
    let reduce = |full, wire| {
        group.reduce_scatter(queue, 0, length * ranks, full, &gradient, wire).unwrap().wait().unwrap()
    };
    let full = reduce(full, Wire::Fp32);
    let got = place.zeroed(full.len());
    let exchange = Exchange { given: full, got };
    drop(group.all_to_all(queue, "heads", length * ranks, exchange).unwrap().wait().unwrap());
    place.sum(group, [0.0; 3]);
    // On a device a collective is counted when it has ended: a barrier ends after them.
    group.barrier("counted").unwrap().wait().unwrap();
    let after = sent();
    let others = (ranks - 1) as u64;
    let share = others * length as u64 * 4;
    assert_eq!(std::array::from_fn(|kind| after[kind] - before[kind]), [share, share, others * 24, share]);
    drop(reduce(place.zeroed(length * ranks * 4), Wire::Bf16));
    group.barrier("counted").unwrap().wait().unwrap();
    assert_eq!(sent()[1] - after[1], share / 2, "half of the bytes");
    for (length, wire) in
        [0, 1, 3, 1000, 1001, 12_345, (1 << 20) + 1].into_iter().zip(WIRES.into_iter().cycle())
    {
        let planned = 2 * others * (length * wire.size()) as u64;
        assert_eq!(sent_by_all(group, place, length, wire), planned, "{length} elements in {wire:?}");
    }
}

/// Bytes that all ranks together send to sum a gradient.
fn sent_by_all(group: &dyn Group, place: &Place, length: usize, wire: Wire) -> u64 {
    let recorder = group.recorder().unwrap();
    let sent = || recorder.totals(Operation::AllReduceGradient).bytes_sent;
    let before = sent();
    let gradient = Arc::new(Mutex::new(place.zeroed(length * 4)));
    group.all_reduce_gradient(&place.queue, 0, &gradient, wire).unwrap().wait().unwrap();
    group.barrier("counted").unwrap().wait().unwrap();
    place.sum(group, [(sent() - before) as f64])[0] as u64
}

/// What cannot be is refused before a peer waits for it.
fn refusals(group: &dyn Group, place: &Place) {
    let ranks = group.world_size();
    if ranks == 1 {
        return;
    }
    let exchange = Exchange { given: place.zeroed(12), got: place.zeroed(12) };
    let refused = group.all_to_all(&place.queue, "heads", ranks + 1, exchange);
    assert!(matches!(refused, Err(DistError::Extent { .. })));
    assert!(matches!(group.broadcast("id", ranks, Vec::new()), Err(DistError::Extent { .. })));
}

/// Groups split off are groups of the right ranks.
fn parts(group: &dyn Group, place: &Place) {
    let (rank, ranks) = (group.rank(), group.world_size());
    let part = group.split("odd and even", rank % 2).unwrap();
    let members: Vec<usize> = (0..ranks).filter(|other| other % 2 == rank % 2).collect();
    assert_eq!((part.world_size(), members[part.rank()]), (members.len(), rank));
    assert_eq!(place.sum(part.as_ref(), [rank as f64]), [members.iter().sum::<usize>() as f64]);
    assert_eq!(part.lends(), members.len() == 1);
}

const ELEMENTS: [usize; 3] = [5, 9, 7];

fn weight(unit: usize, index: usize) -> f32 {
    (unit * 100 + index + 1) as f32
}

/// This rank's share of units of three sizes, and the slots around it. Weights and gradients travel in `compute`.
pub fn units(mesh: impl Into<Mesh>, place: &Place, compute: DType, residency: Residency) -> Units {
    let mesh = mesh.into();
    let (rank, ranks) = (mesh.shard().rank(), mesh.shard().world_size());
    let units = ELEMENTS.iter().enumerate().map(|(index, &elements)| {
        let size = UnitSize { elements, decayed: 2 };
        let unit = Unit::zeroed(&place.queue, size, ranks, Moments { count: 2, on_host: false }).unwrap();
        let length = elements.div_ceil(ranks);
        let owned = (rank * length).min(elements)..((rank + 1) * length).min(elements);
        let master: Vec<f32> = owned.map(|element| weight(index, element)).collect();
        place.write(&mut unit.state().write().unwrap().master, &master);
        unit
    });
    let units = units.collect();
    let wire = if compute == DType::BF16 { Wire::Bf16 } else { Wire::Fp32 };
    Units::new(&place.queue, mesh, units, compute, residency, wire).unwrap()
}

/// What the step loop does: unit after unit, the next one on its way. `rank` is this rank's in the world.
pub fn go_through(units: &Units, rank: usize, place: &Place) {
    let queue = &place.queue;
    let order = [0, 1, 2, 0, 2, 1, 0];
    for (turn, index) in order.into_iter().enumerate() {
        let weights = units.weights(queue, index).unwrap();
        if let Some(&next) = order.get(turn + 1) {
            units.prefetch(queue, next).unwrap();
        }
        let expected: Vec<f32> = (0..ELEMENTS[index]).map(|element| weight(index, element)).collect();
        assert_eq!(widened(place, weights.view().unwrap()), expected);
        let mut gradient = units.gradient(queue, index).unwrap();
        let added: Vec<f32> = (0..ELEMENTS[index]).map(|element| (element + rank) as f32).collect();
        let added = place.buffer(&added);
        fill::add(queue, added.view(DType::F32), gradient.view_mut().unwrap()).unwrap();
        units.reduce(queue, index, gradient).unwrap();
    }
    units.finish_reductions(queue).unwrap();
}

/// What a view holds, in fp32.
fn widened(place: &Place, view: View<'_>) -> Vec<f32> {
    match view.dtype() {
        DType::BF16 => place.read::<bf16>(view).into_iter().map(bf16::to_f32).collect(),
        _ => place.read(view),
    }
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

fn check_gradients(units: &Units, place: &Place, world: usize) {
    for (index, unit) in units.iter().enumerate() {
        assert_eq!(place.values(&unit.gradient().lock().unwrap()), expected_gradient(units, index, world));
    }
}

/// Gathered units are the lent ones, and changed masters are gathered again.
fn units_of_any_residency(group: Box<dyn Group>, place: &Place) {
    let (rank, world, queue) = (group.rank(), group.world_size(), &place.queue);
    let mesh = Mesh::new(group, Degrees { shard: world, replicate: 1, context: 1 }).unwrap();
    for residency in [Residency::WhileUsed, Residency::WholeStep] {
        let units = units(mesh.clone(), place, DType::F32, residency);
        go_through(&units, rank, place);
        check_gradients(&units, place, world);
        let gathered =
            || units.group().recorder().map(|recorder| recorder.totals(Operation::AllGather).calls);
        let before = gathered();
        drop(units.weights(queue, 0).unwrap());
        assert_eq!(gathered(), before, "unit 0 was used last and is still there");
        units.forget_weights().unwrap();
        let elements = ELEMENTS[0].div_ceil(world);
        place.write(&mut units.unit(0).state().write().unwrap().master, &vec![8.0_f32; elements]);
        let weights = units.weights(queue, 0).unwrap();
        assert_eq!(place.read::<f32>(weights.view().unwrap()), [8.0; ELEMENTS[0]]);
    }
}

/// With several copies of the model every rank ends with its slice of the sum over all.
pub fn replicas(group: Box<dyn Group>, place: &Place, compute: DType, degrees: Degrees) {
    let (rank, world) = (group.rank(), group.world_size());
    let mesh = Mesh::new(group, degrees).unwrap();
    assert_eq!(mesh.shard().world_size(), degrees.shard * degrees.context);
    assert_eq!(mesh.replicate().world_size(), degrees.replicate);
    assert_eq!(mesh.context().world_size(), degrees.context);
    assert_eq!(mesh.replicate().rank(), rank / (degrees.shard * degrees.context));
    let units = units(mesh, place, compute, Residency::WhileUsed);
    go_through(&units, rank, place);
    check_gradients(&units, place, world);
    // Without a new gradient there is nothing to sum again.
    units.finish_reductions(&place.queue).unwrap();
    check_gradients(&units, place, world);
}
