//! Streams in any order that CUDA allows, and collectives between threads.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use half::bf16;

use super::{
    Collective, CollectiveKind, Communicator, Element, Event, Exchange, Failure, Folder, Member, Message,
    Part, Reduction, Settings, Work, World, lock,
};
use crate::DevicePointer;

fn world(devices: usize, seed: u64) -> World {
    World::new(Settings { devices, seed, deadline: Duration::from_millis(300), ..Settings::default() })
}

/// Two streams, of which the second needs what the first does; the order in which they ran.
fn order_of(seed: u64, with_event: bool) -> Vec<&'static str> {
    let world = world(1, seed);
    let ran = Arc::new(Mutex::new(Vec::new()));
    let note = |name: &'static str| {
        let ran = Arc::clone(&ran);
        Work::Run(Box::new(move |_| {
            lock(&ran).push(name);
            Ok(())
        }))
    };
    let [first, second] = [world.create_stream(0), world.create_stream(0)];
    let event = Arc::new(Event::default());
    assert!(world.enqueue(first, note("early")));
    assert!(world.enqueue(first, note("produce")));
    world.record(&event, first);
    assert!(!event.is_complete());
    if with_event {
        world.wait(&event, second);
    }
    assert!(world.enqueue(second, note("consume")));
    assert!(lock(&ran).is_empty(), "nothing runs before someone waits");
    world.synchronise_stream(second).unwrap();
    world.synchronise_device(0).unwrap();
    assert!(event.is_complete());

    lock(&ran).clone()
}

#[test]
fn a_missing_event_wait_shows_for_some_seed() {
    let with_event: Vec<_> = (0..20).map(|seed| order_of(seed, true)).collect();
    assert!(with_event.iter().all(|order| order == &["early", "produce", "consume"]));
    let without: Vec<_> = (0..20).map(|seed| order_of(seed, false)).collect();
    assert!(without.iter().any(|order| order[2] != "consume"));
    assert!(without.iter().all(|order| {
        let place = |name| order.iter().position(|found| *found == name);
        place("early") < place("produce")
    }));
}

#[test]
fn waiting_for_an_event_that_is_never_reached_ends_at_the_deadline() {
    let world = world(1, 0);
    let [first, second] = [world.create_stream(0), world.create_stream(0)];
    let (a, b) = (Arc::new(Event::default()), Arc::new(Event::default()));
    // An event that was not recorded yet does not hold anything up.
    world.wait(&a, first);
    world.synchronise_stream(first).unwrap();
    // Two streams that wait for each other do.
    a.recorded.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    world.wait(&a, first);
    world.record(&b, first);
    world.wait(&b, second);
    assert!(world.enqueue(second, Work::Record(a, 1)));
    assert_eq!(world.synchronise_stream(second), Err(Failure::Timeout));
}

#[test]
fn a_full_device_first_does_what_is_queued() {
    let world = World::new(Settings { memory: 1 << 20, ..Settings::default() });
    let stream = world.create_stream(0);
    let first = world.allocate(0, 900 << 10).unwrap();
    let task = move |world: &World| world.device(0).free(DevicePointer(first));
    assert!(world.enqueue(stream, Work::Run(Box::new(task))));
    world.allocate(0, 900 << 10).unwrap();
    assert!(world.allocate(0, 900 << 10).unwrap_err().to_string().starts_with("out of device memory"));
}

const STORE: &str = ".version 8.0\n.target sm_80\n.address_size 64\n.entry store(.param .u64 to)\n{\n\
    .reg .b64 a;\nld.param.u64 a, [to];\nst.global.u32 [a], 1;\nret;\n}\n";

#[test]
fn a_fault_or_a_lost_device_is_sticky_and_leaves_the_others_alone() {
    let settings = Settings { devices: 2, fail: Some((1, 1)), ..Settings::default() };
    let world = World::new(settings);
    let launch = |device: usize, offset: u64| {
        let module = world.device(device).load_module(STORE).unwrap();
        let address = world.device(device).alloc(4).unwrap().0 + offset;
        let parameters = address.to_le_bytes().to_vec();
        let function = module.function("store").unwrap();
        assert!(world.launch(world.default_stream(device), function, [[1; 3]; 2], 0, parameters));
        world.synchronise_device(device)
    };
    assert_eq!(launch(1, 0), Ok(()));
    assert_eq!(launch(0, 4), Err(Failure::Launch));
    assert_eq!(world.synchronise_device(0), Err(Failure::Launch));
    assert_eq!(launch(1, 0), Err(Failure::Lost));
    assert!(world.summary().contains("\nstore\t1\t"), "{}", world.summary());
}

/// Runs `rank` on a thread for each of four devices.
fn on_ranks<T: Send>(world: &World, rank: impl Fn(Arc<Member>, u64) -> T + Sync) -> Vec<T> {
    let communicator = Arc::new(Communicator::new(4));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|index| {
                let member = Member::join(&communicator, index, index, &world.settings).unwrap();
                let (rank, stream) = (&rank, world.create_stream(index));
                scope.spawn(move || rank(member, stream))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Every rank's result of a collective over what it sends.
fn collective<T: bytemuck::Pod + Send + Sync>(
    kind: CollectiveKind,
    element: Element,
    count: usize,
    received: usize,
    send: impl Fn(usize) -> Vec<T> + Sync,
) -> Vec<Vec<T>> {
    let world = world(4, 9);
    on_ranks(&world, |member, stream| {
        let input = world.device(member.rank).upload(&send(member.rank)).unwrap();
        let output = world.device(member.rank).alloc((received * size_of::<T>()) as u64).unwrap();
        let part = Part { collective: Collective { kind, element, count }, send: input.0, receive: output.0 };
        assert!(world.enqueue(stream, member.meet(part)));
        world.synchronise_stream(stream).unwrap();

        world.device(member.rank).download(output, received).unwrap()
    })
}

#[test]
fn collectives_give_every_rank_its_share() {
    let sum = collective(CollectiveKind::AllReduce(Reduction::Sum), Element::F32, 2, 2, |rank| {
        vec![rank as f32, 10.0]
    });
    assert_eq!(sum, vec![vec![6.0, 40.0]; 4]);
    let share = collective(CollectiveKind::ReduceScatter(Reduction::Average), Element::F64, 1, 1, |rank| {
        (0..4).map(|at| (rank * at) as f64).collect()
    });
    assert_eq!(share, [[0.0], [1.5], [3.0], [4.5]]);
    let all = collective(CollectiveKind::AllGather, Element::Bf16, 2, 8, |rank| {
        [rank as f32, -1.0].map(bf16::from_f32).to_vec()
    });
    let expected: Vec<bf16> = [0.0, -1.0, 1.0, -1.0, 2.0, -1.0, 3.0, -1.0].map(bf16::from_f32).to_vec();
    assert_eq!(all, vec![expected; 4]);
    let root =
        collective(CollectiveKind::Broadcast { root: 2 }, Element::U32, 1, 1, |rank| vec![rank as u32]);
    assert_eq!(root, [[2]; 4]);
    let least = collective(CollectiveKind::AllReduce(Reduction::Minimum), Element::I32, 1, 1, |rank| {
        vec![-(rank as i32)]
    });
    assert_eq!(least, [[-3]; 4]);
}

fn reduction_of(world: &World, member: &Arc<Member>, count: usize) -> Work {
    let buffer = world.device(member.device).upload(&[1.0_f32; 8]).unwrap().0;
    let kind = CollectiveKind::AllReduce(Reduction::Sum);
    let collective = Collective { kind, element: Element::F32, count };
    member.meet(Part { collective, send: buffer, receive: buffer })
}

#[test]
fn a_rank_that_never_comes_is_reported_and_an_abort_frees_the_others() {
    let world = world(4, 0);
    let results = on_ranks(&world, |member, stream| {
        if member.rank == 3 {
            return None;
        }
        assert!(world.enqueue(stream, reduction_of(&world, &member, 8)));
        let waited = world.synchronise_stream(stream);
        member.abort(&world);
        let freed = world.synchronise_stream(stream);
        Some((waited, freed, member.is_broken()))
    });
    assert_eq!(results[3], None);
    let waited: Vec<_> = results.iter().flatten().map(|(waited, ..)| *waited).collect();
    assert!(waited.contains(&Err(Failure::Timeout)), "{waited:?}");
    assert!(results.iter().flatten().all(|(_, freed, broken)| freed.is_ok() && *broken));
}

#[test]
fn a_rank_can_be_made_to_hang() {
    let settings = Settings {
        devices: 4,
        hang: Some((1, 1)),
        deadline: Duration::from_millis(300),
        ..Settings::default()
    };
    let world = World::new(settings);
    let results = on_ranks(&world, |member, stream| {
        assert!(world.enqueue(stream, reduction_of(&world, &member, 8)));
        let first = world.synchronise_stream(stream);
        assert!(world.enqueue(stream, reduction_of(&world, &member, 8)));
        (first, world.synchronise_stream(stream))
    });
    assert!(results.iter().all(|result| *result == (Ok(()), Err(Failure::Timeout))), "{results:?}");
}

#[test]
fn ranks_that_disagree_fail() {
    let world = world(4, 0);
    let results = on_ranks(&world, |member, stream| {
        let count = if member.rank == 2 { 4 } else { 8 };
        assert!(world.enqueue(stream, reduction_of(&world, &member, count)));
        world.synchronise_stream(stream)
    });
    assert!(results.contains(&Err(Failure::Launch)), "{results:?}");
}

/// What each of four ranks receives from the others, which send their own numbers: `(from, to)` is `10 * from + to`.
fn messages(with: impl Fn(&mut Vec<Message>, usize) + Sync) -> Vec<Result<Vec<f32>, Failure>> {
    let world = world(4, 5);
    on_ranks(&world, |member, stream| {
        let values: Vec<f32> = (0..4).map(|to| (10 * member.rank + to) as f32).collect();
        let given = world.device(member.device).upload(&values).unwrap().0;
        let got = world.device(member.device).upload(&[-1.0_f32; 4]).unwrap();
        let (element, count) = (Element::F32, 1);
        let mut messages = Vec::new();
        for peer in (0..4).filter(|peer| *peer != member.rank) {
            let place = 4 * peer as u64;
            messages.push(Message::Send { to: peer, from: given + place, element, count });
            messages.push(Message::Receive { from: peer, into: got.0 + place, element, count });
        }
        with(&mut messages, member.rank);
        assert!(world.enqueue(stream, Work::Exchange(Arc::clone(&member), Exchange::new(&member, messages))));
        world.synchronise_stream(stream)?;
        Ok(world.device(member.device).download(got, 4).unwrap())
    })
}

#[test]
fn a_group_of_messages_ends_when_all_have_come() {
    let received = messages(|_, _| {});
    for (rank, received) in received.into_iter().enumerate() {
        let expected = |from| if from == rank { -1.0 } else { (10 * from + rank) as f32 };
        assert_eq!(received.unwrap(), (0..4).map(expected).collect::<Vec<_>>());
    }
}

#[test]
fn messages_that_do_not_fit_fail() {
    let never_sent = messages(|messages, rank| {
        if rank == 2 {
            messages.retain(|message| !matches!(message, Message::Send { to: 1, .. }));
        }
    });
    assert_eq!(never_sent[1], Err(Failure::Timeout));
    assert!(never_sent[0].is_ok());
    let of_another_kind = messages(|messages, rank| {
        if let (2, Some(Message::Send { element, .. })) = (rank, messages.first_mut()) {
            *element = Element::I32;
        }
    });
    assert_eq!(of_another_kind[0], Err(Failure::Launch));
}

/// Two ranks, each in a world of its own that shares a folder with the other, as two processes do.
fn in_two_worlds<T: Send>(rank: impl Fn(&World, Arc<Member>, u64) -> T + Sync) -> Vec<T> {
    let folder = std::env::temp_dir().join(format!("tessera-emulator-{}", std::process::id()));
    let folder = (0..).map(|number| folder.with_extension(number.to_string()));
    let folder = folder.into_iter().find(|folder| std::fs::create_dir(folder).is_ok()).unwrap();
    let ranks = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|index| {
                let (rank, folder) = (&rank, &folder);
                scope.spawn(move || {
                    let deadline = Duration::from_millis(300);
                    let settings =
                        Settings { meet: Some(folder.clone()), deadline, seed: index, ..Settings::default() };
                    let world = World::new(settings);
                    let meeting = Some(Folder::new(folder, "7".to_owned()));
                    let communicator = Arc::new(Communicator::over(2, meeting));
                    let member = Member::join(&communicator, index as usize, 0, &world.settings).unwrap();
                    let stream = world.create_stream(0);
                    rank(&world, member, stream)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    std::fs::remove_dir_all(folder).unwrap();
    ranks
}

#[test]
fn ranks_of_several_processes_meet_in_a_folder() {
    let results = in_two_worlds(|world, member, stream| {
        let own = world.device(0).upload(&[member.rank as f32 + 1.0, 5.0]).unwrap();
        let whole = |kind| Part {
            collective: Collective { kind, element: Element::F32, count: 2 },
            send: own.0,
            receive: own.0,
        };
        assert!(world.enqueue(stream, member.meet(whole(CollectiveKind::AllReduce(Reduction::Sum)))));
        assert!(world.enqueue(stream, member.meet(whole(CollectiveKind::Broadcast { root: 1 }))));
        let (peer, element, count) = (1 - member.rank, Element::F32, 1);
        let messages = vec![
            Message::Send { to: peer, from: own.0, element, count },
            Message::Receive { from: peer, into: own.0 + 4, element, count },
        ];
        assert!(world.enqueue(stream, Work::Exchange(Arc::clone(&member), Exchange::new(&member, messages))));
        world.synchronise_stream(stream).unwrap();
        let split = member.split(4, -(member.rank as i32), world).unwrap().unwrap();
        (world.device(0).download::<f32>(own, 2).unwrap(), split.rank, split.communicator.size)
    });
    assert_eq!(results, [(vec![3.0, 3.0], 1, 2), (vec![3.0, 3.0], 0, 2)]);
}

#[test]
fn a_rank_of_another_process_that_never_comes_or_aborts_is_noticed() {
    let results = in_two_worlds(|world, member, stream| {
        if member.rank == 1 {
            return None;
        }
        assert!(world.enqueue(stream, reduction_of(world, &member, 8)));
        let waited = world.synchronise_stream(stream);
        member.abort(world);
        Some((waited, world.synchronise_stream(stream), member.is_broken()))
    });
    assert_eq!(results, [Some((Err(Failure::Timeout), Ok(()), true)), None]);
}

#[test]
fn a_split_orders_ranks_by_key() {
    let world = world(4, 0);
    let results = on_ranks(&world, |member, _| {
        let color = if member.rank == 3 { -1 } else { member.rank as i32 % 2 };
        let new = member.split(color, -(member.rank as i32), &world).unwrap();
        new.map(|new| (new.communicator.size, new.rank))
    });
    assert_eq!(results, [Some((2, 1)), Some((1, 0)), Some((2, 0)), None]);
}
