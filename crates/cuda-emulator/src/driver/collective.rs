//! Collectives between ranks, which are threads of one process unless a folder is named in which more meet.
//!
//! A rank's share is an entry of its stream. The last rank to come computes the result for all, in the order of
//! ranks: the bits do not depend on who was late.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use half::{bf16, f16};

use super::across::{Across, Folder};
use super::exchange::Letters;
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
    /// Where its ranks meet that are in several processes.
    pub folder: Option<Folder>,
    devices: Mutex<Vec<Option<usize>>>,
    meetings: Mutex<BTreeMap<u64, Arc<Meeting>>>,
    /// A rank has aborted: the others are told when they ask.
    broken: AtomicBool,
    pub letters: Mutex<Letters>,
    splits: Mutex<BTreeMap<u64, Split>>,
    split_changed: Condvar,
}

/// A split under way: by rank its color and key; then by color the communicator.
#[derive(Debug, Default)]
struct Split {
    wishes: Wishes,
    made: BTreeMap<i32, Arc<Communicator>>,
}

/// By rank its color and key.
type Wishes = BTreeMap<usize, (i32, i32)>;

/// What lies in a folder where a rank has aborted.
const BROKEN: &str = "broken";

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
    /// What a non-blocking rank has called and not queued yet; nothing for one that blocks.
    slow: Mutex<Option<Slow>>,
}

/// What a non-blocking rank is at.
#[derive(Default)]
struct Slow {
    calls: Vec<(u64, Work)>,
    /// How often its state must still be asked for before it has done what was called.
    asks: u32,
}

impl std::fmt::Debug for Slow {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} calls, {} asks", self.calls.len(), self.asks)
    }
}

/// How often a non-blocking rank says that it is busy.
const ASKS: u32 = 2;

impl Communicator {
    pub fn new(size: usize) -> Self {
        Self::over(size, None)
    }

    /// One whose ranks may be in several processes.
    pub fn over(size: usize, folder: Option<Folder>) -> Self {
        Self {
            size,
            folder,
            devices: Mutex::new(vec![None; size]),
            meetings: Mutex::default(),
            broken: AtomicBool::new(false),
            letters: Mutex::default(),
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
            slow: Mutex::default(),
        }))
    }

    /// The entry of this rank's next collective.
    pub fn meet(self: &Arc<Self>, part: Part) -> Work {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        if let Some(folder) = self.communicator.folder.clone() {
            return Work::MeetAcross(Arc::clone(self), Across { folder, number, part, is_sent: false });
        }
        let size = self.communicator.size;
        let new = || {
            Arc::new(Meeting { number, parts: Mutex::new(vec![None; size]), done: AtomicBool::new(false) })
        };
        let meeting = Arc::clone(lock(&self.communicator.meetings).entry(number).or_insert_with(new));
        Work::Meet(Arc::clone(self), meeting, Some(part))
    }

    /// Makes the rank non-blocking; it is still busy joining.
    pub fn never_block(&self) {
        *lock(&self.slow) = Some(Slow { calls: Vec::new(), asks: ASKS });
    }

    /// Keeps work for later, if the rank is non-blocking; gives it back if it is not, and nothing if it is busy.
    pub fn defer(&self, stream: u64, work: Work) -> Result<(), Option<Work>> {
        let mut slow = lock(&self.slow);
        match slow.as_mut() {
            None => Err(Some(work)),
            Some(slow) if slow.asks > 0 => Err(None),
            Some(slow) => {
                slow.calls.push((stream, work));
                slow.asks = ASKS;
                Ok(())
            }
        }
    }

    /// Whether the rank has not queued yet what was called; being asked brings it on.
    pub fn is_busy(&self, world: &World) -> bool {
        let mut slow = lock(&self.slow);
        let Some(slow) = slow.as_mut() else { return false };
        slow.asks = slow.asks.saturating_sub(1);
        if slow.asks == 0 {
            slow.calls.drain(..).for_each(|(stream, work)| {
                // A stream that is gone has nobody who waits.
                world.enqueue(stream, work);
            });
        }
        slow.asks > 0
    }

    /// Leaves: what this rank has queued no longer waits, and the others hear of it.
    pub fn abort(&self, world: &World) {
        self.aborted.store(true, Ordering::SeqCst);
        self.communicator.broken.store(true, Ordering::SeqCst);
        if let Some(folder) = &self.communicator.folder {
            // Where nothing can be written the others wait for their deadlines.
            let _ = folder.post(BROKEN, &[]);
        }
        world.notify();
    }

    /// Whether another rank has aborted.
    pub fn is_broken(&self) -> bool {
        let folder = self.communicator.folder.as_ref();
        self.communicator.broken.load(Ordering::SeqCst) || folder.is_some_and(|folder| folder.has(BROKEN))
    }

    /// Whether the settings want this rank never to come.
    pub fn is_hung(&self, meeting: &Meeting) -> bool {
        self.hangs_before(meeting.number)
    }

    /// The number of the next collective.
    pub fn next_number(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Whether the settings want this rank to have stopped before collective `number`.
    pub fn hangs_before(&self, number: u64) -> bool {
        self.hangs_at.is_some_and(|hangs_at| number >= hangs_at)
    }

    pub fn has_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// `ncclCommSplit`: waits for all ranks; those of a color form a communicator, ordered by key, then rank. A
    /// negative color joins none. Nothing comes back in the outer option if ranks stay away past the deadline.
    pub fn split(&self, color: i32, key: i32, world: &World) -> Option<Option<Arc<Self>>> {
        let communicator = &self.communicator;
        let number = self.next_split.fetch_add(1, Ordering::SeqCst);
        let wishes = match &communicator.folder {
            Some(folder) => self.wishes_across(folder, number, (color, key), world),
            None => self.wishes(number, (color, key), world),
        }?;
        if color < 0 {
            return Some(None);
        }
        let alike = wishes.iter().filter(|(_, (other, _))| *other == color);
        let mut members: Vec<(i32, usize)> = alike.map(|(rank, (_, key))| (*key, *rank)).collect();
        members.sort_unstable();
        let part = || {
            let folder = communicator.folder.as_ref().map(|folder| folder.part(number, color));
            Arc::new(Communicator::over(members.len(), folder))
        };
        let mut splits = lock(&communicator.splits);
        let made = splits.entry(number).or_default().made.entry(color).or_insert_with(part);
        let rank = members.iter().position(|(_, rank)| *rank == self.rank)?;
        Some(Member::join(made, rank, self.device, &world.settings))
    }

    /// What all ranks wish of a split; nothing if some stay away past the deadline.
    fn wishes(&self, number: u64, own: (i32, i32), world: &World) -> Option<Wishes> {
        let communicator = &self.communicator;
        let mut splits = lock(&communicator.splits);
        splits.entry(number).or_default().wishes.insert(self.rank, own);
        communicator.split_changed.notify_all();
        let is_incomplete = |splits: &mut BTreeMap<u64, Split>| {
            splits.get(&number).is_none_or(|split| split.wishes.len() < communicator.size)
        };
        let deadline = world.settings.deadline;
        let waited = communicator.split_changed.wait_timeout_while(splits, deadline, is_incomplete);
        let (splits, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let wishes = splits.get(&number)?.wishes.clone();
        (!timeout.timed_out()).then_some(()).or_else(|| self.say_who_is_missing(&wishes))?;
        Some(wishes)
    }

    /// The same over processes.
    fn wishes_across(
        &self,
        folder: &Folder,
        number: u64,
        (color, key): (i32, i32),
        world: &World,
    ) -> Option<Wishes> {
        let name = |rank: usize| format!("split-{number}-{rank}");
        folder.post(&name(self.rank), format!("{color} {key}").as_bytes()).ok()?;
        let (mut wishes, since) = (Wishes::new(), Instant::now());
        while wishes.len() < self.communicator.size {
            for rank in (0..self.communicator.size).filter(|rank| folder.has(&name(*rank))) {
                let text = String::from_utf8(folder.read(&name(rank)).ok()?).ok()?;
                let (color, key) = text.split_once(' ')?;
                wishes.insert(rank, (color.parse().ok()?, key.parse().ok()?));
            }
            if since.elapsed() >= world.settings.deadline {
                self.say_who_is_missing(&wishes)?;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(wishes)
    }

    fn say_who_is_missing(&self, wishes: &Wishes) -> Option<()> {
        let missing: Vec<usize> =
            (0..self.communicator.size).filter(|rank| !wishes.contains_key(rank)).collect();
        eprintln!("cuda-emulator: rank {} waits in a split that ranks {missing:?} never joined", self.rank);
        None
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
        self.done.load(Ordering::SeqCst) || member.has_aborted()
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
    let whole = shares(first, size, |rank| {
        let mut device = world.device(devices[rank]);
        device.read_input("a collective's input", parts[rank].send, first.sent_bytes(size))
    })?;
    for (rank, part) in parts.iter().enumerate() {
        world.device(devices[rank]).memory().write(part.receive, share(first, &whole, rank))?;
    }
    Ok(())
}

/// What comes of a collective whose ranks give what `read` says.
pub(super) fn shares(
    collective: Collective,
    size: usize,
    read: impl FnMut(usize) -> Result<Vec<u8>, EmulatorError>,
) -> Result<Vec<u8>, EmulatorError> {
    let mut read = read;
    if let CollectiveKind::Broadcast { root } = collective.kind {
        return read(root);
    }
    let given = (0..size).map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(match collective.kind {
        CollectiveKind::AllReduce(reduction) | CollectiveKind::ReduceScatter(reduction) => {
            collective.element.reduce(reduction, &given)
        }
        CollectiveKind::AllGather | CollectiveKind::Broadcast { .. } => given.concat(),
    })
}

/// A rank's share of that.
pub(super) fn share(collective: Collective, whole: &[u8], rank: usize) -> &[u8] {
    let bytes = collective.count * collective.element.size();
    match collective.kind {
        CollectiveKind::ReduceScatter(_) => &whole[rank * bytes..(rank + 1) * bytes],
        _ => whole,
    }
}

impl Collective {
    /// What each of `size` ranks gives.
    pub fn sent_bytes(&self, size: usize) -> usize {
        let bytes = self.count * self.element.size();
        if matches!(self.kind, CollectiveKind::ReduceScatter(_)) { bytes * size } else { bytes }
    }
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
