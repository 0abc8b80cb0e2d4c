//! The driver behind the C functions: devices, streams, events and collectives, without a raw pointer.
//!
//! A stream is a queue, and nothing in it runs until someone waits. Then work is taken from the heads of all queues in
//! a seeded random order, bounded only by what CUDA promises: the order within a stream, events between streams, and
//! collectives that begin when every rank has come to them. Two streams without an event between them therefore run
//! in an order that some seed makes wrong.
//!
//! Whoever waits runs the work, on any device; a thread that waits for another's collective does not hold it up.

mod across;
mod collective;
mod exchange;
mod schedule;
mod settings;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(crate) use across::Folder;
pub(crate) use collective::{Collective, CollectiveKind, Communicator, Element, Member, Part, Reduction};
pub(crate) use exchange::{Exchange, Message};
pub(crate) use settings::Settings;

use crate::emulator::{Function, Options};
use crate::machine::Report;
use crate::random::Random;
use crate::{Emulator, EmulatorError};

/// All devices of the process and what is queued on them.
pub(crate) struct World {
    pub settings: Settings,
    devices: Vec<Mutex<Emulator>>,
    state: Mutex<State>,
    changed: Condvar,
    /// By kernel: launches, and the sum of their reports.
    reports: Mutex<BTreeMap<String, (u64, Report)>>,
    launches: Vec<AtomicU64>,
}

struct State {
    streams: BTreeMap<u64, Stream>,
    next_stream: u64,
    random: Random,
    /// By device: the error that every later call gets.
    failures: Vec<Option<Failure>>,
    /// Grows with all that happens.
    progress: u64,
}

struct Stream {
    device: usize,
    queue: VecDeque<Work>,
    /// Its head is being run.
    busy: bool,
    /// Destroyed by the user: it goes when its queue is empty.
    closing: bool,
}

/// Why a device takes no more work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A kernel faulted or did what must not be done.
    Launch,
    /// Waiting came to no end.
    Timeout,
    /// It failed because the settings said so.
    Lost,
}

pub(crate) type Task = Box<dyn FnOnce(&World) -> Result<(), EmulatorError> + Send>;

/// An entry of a stream.
pub(crate) enum Work {
    Run(Task),
    Record(Arc<Event>, u64),
    Wait(Arc<Event>, u64),
    /// A rank's share in a collective: it arrives, then waits for the others.
    Meet(Arc<Member>, Arc<collective::Meeting>, Option<Part>),
    /// The same, in a collective over processes.
    MeetAcross(Arc<Member>, across::Across),
    /// A rank's sends and receives of a group.
    Exchange(Arc<Member>, Exchange),
}

/// How often an event was recorded, and how many of those records streams have come to.
#[derive(Debug, Default)]
pub(crate) struct Event {
    recorded: AtomicU64,
    completed: AtomicU64,
    time: Mutex<Option<Instant>>,
}

impl Event {
    /// Whether the last record has happened; an event that was never recorded counts as such.
    pub fn is_complete(&self) -> bool {
        self.completed.load(Ordering::SeqCst) >= self.recorded.load(Ordering::SeqCst)
    }

    /// When it happened.
    pub fn time(&self) -> Option<Instant> {
        *lock(&self.time)
    }

    fn complete(&self, version: u64) {
        self.completed.fetch_max(version, Ordering::SeqCst);
        *lock(&self.time) = Some(Instant::now());
    }
}

/// A poisoned lock means that a thread panicked in a test: the others go on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Default streams are numbered by device from here; lower handles are CUDA's own names for them.
const FIRST_DEFAULT_STREAM: u64 = 16;
const FIRST_STREAM: u64 = 1 << 12;

impl World {
    pub fn new(settings: Settings) -> Self {
        let options = |index| Options {
            memory: settings.memory,
            seed: settings.seed.wrapping_add(index as u64),
            checks: settings.checks,
            ..Options::default()
        };
        let device = |index| Mutex::new(Emulator::numbered(index, options(index)));
        let stream = |device| Stream { device, queue: VecDeque::new(), busy: false, closing: false };
        let indices = 0..settings.devices;
        Self {
            devices: indices.clone().map(device).collect(),
            state: Mutex::new(State {
                streams: indices
                    .clone()
                    .map(|index| (FIRST_DEFAULT_STREAM + index as u64, stream(index)))
                    .collect(),
                next_stream: FIRST_STREAM,
                random: Random::new(settings.seed),
                failures: vec![None; settings.devices],
                progress: 0,
            }),
            changed: Condvar::new(),
            reports: Mutex::default(),
            launches: indices.map(|_| AtomicU64::new(0)).collect(),
            settings,
        }
    }

    pub fn device_count(&self) -> usize {
        self.devices.len()
    }

    /// The device for a moment; no other lock of the world is held meanwhile.
    pub fn device(&self, index: usize) -> MutexGuard<'_, Emulator> {
        lock(&self.devices[index])
    }

    pub fn default_stream(&self, device: usize) -> u64 {
        FIRST_DEFAULT_STREAM + device as u64
    }

    pub fn create_stream(&self, device: usize) -> u64 {
        let mut state = lock(&self.state);
        let id = state.next_stream;
        state.next_stream += 1;
        state.streams.insert(id, Stream { device, queue: VecDeque::new(), busy: false, closing: false });
        id
    }

    /// Work that is queued still runs. False for a stream that is not known.
    pub fn destroy_stream(&self, id: u64) -> bool {
        let mut state = lock(&self.state);
        let Some(stream) = state.streams.get_mut(&id) else { return false };
        stream.closing = true;
        if stream.queue.is_empty() && !stream.busy {
            state.streams.remove(&id);
        }
        true
    }

    /// The device of a stream.
    pub fn stream_device(&self, id: u64) -> Option<usize> {
        lock(&self.state).streams.get(&id).map(|stream| stream.device)
    }

    /// The error that the device got stuck with.
    pub fn failure(&self, device: usize) -> Option<Failure> {
        lock(&self.state).failures.get(device).copied().flatten()
    }

    /// Puts work at a stream's end. False for a stream that is not known.
    pub fn enqueue(&self, stream: u64, work: Work) -> bool {
        let mut state = lock(&self.state);
        let Some(stream) = state.streams.get_mut(&stream) else { return false };
        stream.queue.push_back(work);
        state.progress += 1;
        drop(state);
        self.changed.notify_all();
        true
    }

    pub fn record(&self, event: &Arc<Event>, stream: u64) -> bool {
        let version = event.recorded.fetch_add(1, Ordering::SeqCst) + 1;
        self.enqueue(stream, Work::Record(Arc::clone(event), version))
    }

    /// What comes later in the stream waits for the event's records up to now.
    pub fn wait(&self, event: &Arc<Event>, stream: u64) -> bool {
        let version = event.recorded.load(Ordering::SeqCst);
        self.enqueue(stream, Work::Wait(Arc::clone(event), version))
    }

    /// Allocates; a device that is full first gets its queued work done, which may free something.
    pub fn allocate(&self, device: usize, bytes: u64) -> Result<u64, EmulatorError> {
        let first = self.device(device).alloc(bytes);
        let pointer = match first {
            Err(EmulatorError::OutOfMemory { .. }) if self.synchronise_device(device).is_ok() => {
                self.device(device).alloc(bytes)?
            }
            other => other?,
        };
        Ok(pointer.0)
    }

    /// Queues a launch. Its hazards fail the device, as its faults do.
    pub fn launch(
        &self,
        stream: u64,
        function: Function,
        [grid, block]: [[u32; 3]; 2],
        shared_bytes: u32,
        parameters: Vec<u8>,
    ) -> bool {
        let Some(device) = self.stream_device(stream) else { return false };
        let task = move |world: &Self| {
            let number = world.launches[device].fetch_add(1, Ordering::SeqCst);
            if world.settings.fail == Some((device, number)) {
                return Err(EmulatorError::DeviceLost { device, launches: number });
            }
            let report =
                world.device(device).launch_bytes(&function, grid, block, shared_bytes, parameters)?;
            if !report.printed.is_empty() {
                print!("{}", report.printed);
            }
            let hazards: Vec<String> = report.hazards.iter().map(ToString::to_string).collect();
            let mut reports = lock(&world.reports);
            let (launches, sum) = reports.entry(function.name().to_owned()).or_default();
            *launches += 1;
            sum.add(&report);
            if hazards.is_empty() {
                Ok(())
            } else {
                Err(EmulatorError::Hazards { found: hazards.join("\n") })
            }
        };
        self.enqueue(stream, Work::Run(Box::new(task)))
    }

    /// By kernel: launches and counters; then what is still allocated.
    pub fn summary(&self) -> String {
        let mut text = String::from(
            "kernel\tlaunches\tinstructions\tread bytes\twritten bytes\tread sectors\twritten sectors\t\
             bank conflicts\tmma\tflops\n",
        );
        for (kernel, (launches, report)) in lock(&self.reports).iter() {
            let numbers = [
                *launches,
                report.issued(),
                report.global_read_bytes,
                report.global_written_bytes,
                report.global_read_sectors,
                report.global_written_sectors,
                report.bank_conflicts,
                report.matrix_multiplies,
                report.flops,
            ];
            text.push_str(kernel);
            numbers.iter().for_each(|number| text.push_str(&format!("\t{number}")));
            text.push('\n');
        }
        for index in 0..self.devices.len() {
            let live = self.device(index).live_allocations();
            text.push_str(&format!("allocations left on device {index}\t{live}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests;
