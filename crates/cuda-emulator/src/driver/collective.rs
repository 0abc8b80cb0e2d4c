//! Collectives between ranks that are threads of one process.
//!
//! A rank's share is an entry of its stream. The last rank to come computes the result for all, in the order of
//! ranks: the bits do not depend on who was late.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use half::{bf16, f16};

use super::{Settings, Work, World, lock};
use crate::EmulatorError;
use crate::number::Half;

/// What all ranks must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Collective {
    pub kind: CollectiveKind,
    pub element: Element,
    /// Elements: of the whole for all-reduce and broadcast, of one rank's share for the others.
    pub count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CollectiveKind {
    AllReduce(Reduction),
    ReduceScatter(Reduction),
    AllGather,
    Broadcast { root: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    Sum,
    Product,
    Maximum,
    Minimum,
    Average,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    U8,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

/// A rank's share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub collective: Collective,
    pub send: u64,
    pub receive: u64,
}

/// One collective of a communicator.
#[derive(Debug)]
pub(crate) struct Meeting {
    number: u64,
    parts: Mutex<Vec<Option<Part>>>,
    done: AtomicBool,
}

/// What the ranks of a communicator share.
#[derive(Debug)]
pub(crate) struct Communicator {
    pub size: usize,
    devices: Mutex<Vec<Option<usize>>>,
    meetings: Mutex<BTreeMap<u64, Arc<Meeting>>>,
    /// A rank has aborted: the others are told when they ask.
    broken: AtomicBool,
    splits: Mutex<BTreeMap<u64, Split>>,
    split_changed: Condvar,
}

/// A split under way: by rank its color and key; then by color the communicator.
#[derive(Debug, Default)]
struct Split {
    wishes: BTreeMap<usize, (i32, i32)>,
    made: BTreeMap<i32, Arc<Communicator>>,
}

/// A rank's end of a communicator.
#[derive(Debug)]
pub(crate) struct Member {
    pub communicator: Arc<Communicator>,
    pub rank: usize,
    pub device: usize,
    next: AtomicU64,
    next_split: AtomicU64,
    aborted: AtomicBool,
    hangs_at: Option<u64>,
}

impl Communicator {
    pub fn new(size: usize) -> Self {
        Self {
            size,
            devices: Mutex::new(vec![None; size]),
            meetings: Mutex::default(),
            broken: AtomicBool::new(false),
            splits: Mutex::default(),
            split_changed: Condvar::new(),
        }
    }
}

impl Member {
    /// Joins as `rank`; nothing if that rank is taken or does not exist.
    pub fn join(
        communicator: &Arc<Communicator>,
        rank: usize,
        device: usize,
        settings: &Settings,
    ) -> Option<Arc<Self>> {
        let mut devices = lock(&communicator.devices);
        let place = devices.get_mut(rank).filter(|place| place.is_none())?;
        *place = Some(device);
        Some(Arc::new(Self {
            communicator: Arc::clone(communicator),
            rank,
            device,
            next: AtomicU64::new(0),
            next_split: AtomicU64::new(0),
            aborted: AtomicBool::new(false),
            hangs_at: settings.hang.filter(|(hung, _)| *hung == rank).map(|(_, number)| number),
        }))
    }

    /// The entry of this rank's next collective.
    pub fn meet(self: &Arc<Self>, part: Part) -> Work {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let size = self.communicator.size;
        let new = || {
            Arc::new(Meeting { number, parts: Mutex::new(vec![None; size]), done: AtomicBool::new(false) })
        };
        let meeting = Arc::clone(lock(&self.communicator.meetings).entry(number).or_insert_with(new));
        Work::Meet(Arc::clone(self), meeting, Some(part))
    }

    /// Leaves: what this rank has queued no longer waits, and the others hear of it.
    pub fn abort(&self, world: &World) {
        self.aborted.store(true, Ordering::SeqCst);
        self.communicator.broken.store(true, Ordering::SeqCst);
        world.notify();
    }

    /// Whether another rank has aborted.
    pub fn is_broken(&self) -> bool {
        self.communicator.broken.load(Ordering::SeqCst)
    }

    /// Whether the settings want this rank never to come.
    pub fn is_hung(&self, meeting: &Meeting) -> bool {
        self.hangs_at.is_some_and(|number| meeting.number >= number)
    }

    /// `ncclCommSplit`: waits for all ranks; those of a color form a communicator, ordered by key, then rank. A
    /// negative color joins none. Nothing comes back in the outer option if ranks stay away past the deadline.
    pub fn split(&self, color: i32, key: i32, world: &World) -> Option<Option<Arc<Self>>> {
        let communicator = &self.communicator;
        let number = self.next_split.fetch_add(1, Ordering::SeqCst);
        let mut splits = lock(&communicator.splits);
        splits.entry(number).or_default().wishes.insert(self.rank, (color, key));
        communicator.split_changed.notify_all();
        let complete = |splits: &mut BTreeMap<u64, Split>| {
            splits.get(&number).is_none_or(|split| split.wishes.len() < communicator.size)
        };
        let deadline = world.settings.deadline;
        let waited = communicator.split_changed.wait_timeout_while(splits, deadline, complete);
        let (mut splits, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let split = splits.get_mut(&number)?;
        if timeout.timed_out() {
            let missing: Vec<usize> =
                (0..communicator.size).filter(|rank| !split.wishes.contains_key(rank)).collect();
            eprintln!(
                "cuda-emulator: rank {} waits in a split that ranks {missing:?} never joined",
                self.rank
            );
            return None;
        }
        if color < 0 {
            return Some(None);
        }
        let mut members: Vec<(i32, usize)> = (split.wishes.iter())
            .filter(|(_, (other, _))| *other == color)
            .map(|(rank, (_, key))| (*key, *rank))
            .collect();
        members.sort_unstable();
        let made = split.made.entry(color).or_insert_with(|| Arc::new(Communicator::new(members.len())));
        let rank = members.iter().position(|(_, rank)| *rank == self.rank)?;
        Some(Member::join(made, rank, self.device, &world.settings))
    }
}

impl Meeting {
    /// A rank comes; the last one does the work for all.
    pub fn arrive(&self, member: &Member, part: Part, world: &World) -> Result<(), EmulatorError> {
        let mut parts = lock(&self.parts);
        parts[member.rank] = Some(part);
        let Some(all) = parts.iter().copied().collect::<Option<Vec<Part>>>() else { return Ok(()) };
        drop(parts);
        let devices: Option<Vec<usize>> = lock(&member.communicator.devices).iter().copied().collect();
        let result = run(&all, &devices.unwrap_or_default(), world);
        self.done.store(true, Ordering::SeqCst);
        lock(&member.communicator.meetings).remove(&self.number);
        result
    }

    /// Whether a rank has nothing more to wait for.
    pub fn is_over_for(&self, member: &Member) -> bool {
        self.done.load(Ordering::SeqCst) || member.aborted.load(Ordering::SeqCst)
    }

    /// What a rank that waits here waits for.
    pub fn describe(&self, member: &Member) -> String {
        let missing: Vec<usize> = (lock(&self.parts).iter().enumerate())
            .filter(|(_, part)| part.is_none())
            .map(|(rank, _)| rank)
            .collect();
        format!(
            "collective {} as rank {}, to which ranks {missing:?} have not come",
            self.number, member.rank
        )
    }
}

fn run(parts: &[Part], devices: &[usize], world: &World) -> Result<(), EmulatorError> {
    let first = parts[0].collective;
    if let Some((rank, other)) = parts.iter().enumerate().find(|(_, part)| part.collective != first) {
        let problem = format!("rank 0 calls {first:?} and rank {rank} calls {:?}", other.collective);
        return Err(EmulatorError::Collective { problem });
    }
    let size = parts.len();
    let bytes = first.count * first.element.size();
    let sent = match first.kind {
        CollectiveKind::ReduceScatter(_) => bytes * size,
        _ => bytes,
    };
    let read = |rank: usize| -> Result<Vec<u8>, EmulatorError> {
        world.device(devices[rank]).read_input("a collective's input", parts[rank].send, sent)
    };
    let whole = match first.kind {
        CollectiveKind::Broadcast { root } => read(root)?,
        CollectiveKind::AllGather => {
            let shares = (0..size).map(read).collect::<Result<Vec<_>, _>>()?;
            shares.concat()
        }
        CollectiveKind::AllReduce(reduction) | CollectiveKind::ReduceScatter(reduction) => {
            let inputs = (0..size).map(read).collect::<Result<Vec<_>, _>>()?;
            first.element.reduce(reduction, &inputs)
        }
    };
    for (rank, part) in parts.iter().enumerate() {
        let result = match first.kind {
            CollectiveKind::ReduceScatter(_) => &whole[rank * bytes..(rank + 1) * bytes],
            _ => &whole,
        };
        world.device(devices[rank]).memory().write(part.receive, result)?;
    }
    Ok(())
}

impl Element {
    pub fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Element by element over the ranks, in their order. 16-bit floats are added in f32, as NCCL does, and rounded
    /// after each rank.
    fn reduce(self, reduction: Reduction, inputs: &[Vec<u8>]) -> Vec<u8> {
        let ranks = inputs.len();
        match self {
            Self::F32 => fold(
                inputs,
                f32::from_le_bytes,
                f32::to_le_bytes,
                |a, b| reduction.floats(a, b),
                |sum| {
                    if reduction == Reduction::Average { sum / ranks as f32 } else { sum }
                },
            ),
            Self::F64 => fold(
                inputs,
                f64::from_le_bytes,
                f64::to_le_bytes,
                |a, b| reduction.doubles(a, b),
                |sum| {
                    if reduction == Reduction::Average { sum / ranks as f64 } else { sum }
                },
            ),
            Self::F16 => reduce_halves::<f16>(inputs, f16::from_le_bytes, f16::to_le_bytes, reduction),
            Self::Bf16 => reduce_halves::<bf16>(inputs, bf16::from_le_bytes, bf16::to_le_bytes, reduction),
            Self::U8 => fold(
                inputs,
                u8::from_le_bytes,
                u8::to_le_bytes,
                |a, b| reduction.integers(i128::from(a), i128::from(b)) as u8,
                |sum| if reduction == Reduction::Average { sum / ranks as u8 } else { sum },
            ),
            Self::U32 => fold(
                inputs,
                u32::from_le_bytes,
                u32::to_le_bytes,
                |a, b| reduction.integers(i128::from(a), i128::from(b)) as u32,
                |sum| if reduction == Reduction::Average { sum / ranks as u32 } else { sum },
            ),
            Self::I32 => fold(
                inputs,
                i32::from_le_bytes,
                i32::to_le_bytes,
                |a, b| reduction.integers(i128::from(a), i128::from(b)) as i32,
                |sum| if reduction == Reduction::Average { sum / ranks as i32 } else { sum },
            ),
            Self::U64 => fold(
                inputs,
                u64::from_le_bytes,
                u64::to_le_bytes,
                |a, b| reduction.integers(i128::from(a), i128::from(b)) as u64,
                |sum| if reduction == Reduction::Average { sum / ranks as u64 } else { sum },
            ),
            Self::I64 => fold(
                inputs,
                i64::from_le_bytes,
                i64::to_le_bytes,
                |a, b| reduction.integers(i128::from(a), i128::from(b)) as i64,
                |sum| if reduction == Reduction::Average { sum / ranks as i64 } else { sum },
            ),
        }
    }
}

impl Reduction {
    fn floats(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Sum | Self::Average => a + b,
            Self::Product => a * b,
            Self::Maximum => a.max(b),
            Self::Minimum => a.min(b),
        }
    }

    fn doubles(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Sum | Self::Average => a + b,
            Self::Product => a * b,
            Self::Maximum => a.max(b),
            Self::Minimum => a.min(b),
        }
    }

    fn integers(self, a: i128, b: i128) -> i128 {
        match self {
            Self::Sum | Self::Average => a + b,
            Self::Product => a.wrapping_mul(b),
            Self::Maximum => a.max(b),
            Self::Minimum => a.min(b),
        }
    }
}

fn fold<T: Copy, const SIZE: usize>(
    inputs: &[Vec<u8>],
    from: fn([u8; SIZE]) -> T,
    to: fn(T) -> [u8; SIZE],
    join: impl Fn(T, T) -> T,
    finish: impl Fn(T) -> T,
) -> Vec<u8> {
    let numbers = |bytes: &Vec<u8>| -> Vec<T> {
        bytes.as_chunks::<SIZE>().0.iter().map(|chunk| from(*chunk)).collect()
    };
    let sum = inputs
        .iter()
        .map(numbers)
        .reduce(|sum, next| sum.into_iter().zip(next).map(|(sum, next)| join(sum, next)).collect());
    sum.unwrap_or_default().into_iter().flat_map(|value| to(finish(value))).collect()
}

fn reduce_halves<H: Half>(
    inputs: &[Vec<u8>],
    from: fn([u8; 2]) -> H,
    to: fn(H) -> [u8; 2],
    reduction: Reduction,
) -> Vec<u8> {
    let ranks = inputs.len() as f64;
    let join = |a: H, b: H| H::narrow(f64::from(reduction.floats(a.widen(), b.widen())));
    let finish = |sum: H| {
        if reduction == Reduction::Average { H::narrow(f64::from(sum.widen()) / ranks) } else { sum }
    };
    fold(inputs, from, to, join, finish)
}
