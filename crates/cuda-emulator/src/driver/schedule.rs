//! Who runs next.

use std::time::{Duration, Instant};

use super::{Event, Failure, State, Work, World, lock};
use crate::EmulatorError;

/// How often it is looked whether other processes have come.
const LOOK: Duration = Duration::from_millis(1);

/// What was found to do.
enum Taken {
    Work(u64, usize, Work),
    /// Other threads run work, or heads wait for what is not there yet.
    Nothing,
}

impl World {
    /// Runs work until the stream is empty.
    pub fn synchronise_stream(&self, stream: u64) -> Result<(), Failure> {
        let Some(device) = self.stream_device(stream) else { return Ok(()) };
        self.drive(|state| state.streams.get(&stream).is_none_or(super::Stream::is_idle))?;
        self.failure(device).map_or(Ok(()), Err)
    }

    /// Runs work until all streams of the device are empty.
    pub fn synchronise_device(&self, device: usize) -> Result<(), Failure> {
        let idle = |state: &State| {
            state.streams.values().filter(|stream| stream.device == device).all(super::Stream::is_idle)
        };
        self.drive(idle)?;
        self.failure(device).map_or(Ok(()), Err)
    }

    /// Runs work until the event has happened.
    pub fn synchronise_event(&self, event: &Event) -> Result<(), Failure> {
        self.drive(|_| event.is_complete())
    }

    /// Whether the stream is empty, after one more piece of work: whoever polls gets there.
    pub fn is_stream_idle(&self, stream: u64) -> bool {
        self.step();
        lock(&self.state).streams.get(&stream).is_none_or(super::Stream::is_idle)
    }

    /// Whether the event has happened, after one more piece of work.
    pub fn is_event_complete(&self, event: &Event) -> bool {
        self.step();
        event.is_complete()
    }

    fn step(&self) {
        let taken = lock(&self.state).take();
        if let Taken::Work(stream, device, work) = taken {
            self.run(stream, device, work);
        }
    }

    /// Runs work, of any stream, until `done`; fails if nothing moves for as long as the deadline.
    fn drive(&self, done: impl Fn(&State) -> bool) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        let (mut progress, mut since) = (state.progress, Instant::now());
        loop {
            if done(&state) {
                return Ok(());
            }
            if let Taken::Work(stream, device, work) = state.take() {
                drop(state);
                self.run(stream, device, work);
                state = lock(&self.state);
            } else {
                let left = self.settings.deadline.saturating_sub(since.elapsed());
                if left.is_zero() && progress == state.progress {
                    eprintln!(
                        "cuda-emulator: nothing has moved for {:?}: {}",
                        self.settings.deadline,
                        state.stuck()
                    );
                    return Err(Failure::Timeout);
                }
                // Nobody tells of what happens in other processes.
                let pause = if self.settings.meet.is_some() { left.min(LOOK) } else { left };
                let waited = self.changed.wait_timeout(state, pause);
                state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            }
            if progress != state.progress {
                (progress, since) = (state.progress, Instant::now());
            }
        }
    }

    fn run(&self, stream: u64, device: usize, work: Work) {
        let failed = self.failure(device).is_some();
        let mut left = None;
        let result = match work {
            Work::Record(event, version) => {
                event.complete(version);
                Ok(())
            }
            // A device that has failed does nothing more, but its queues empty.
            _ if failed => Ok(()),
            Work::Run(task) => task(self),
            Work::Wait(..) => Ok(()),
            Work::Meet(member, meeting, part) => {
                let part = part.filter(|_| !member.has_aborted());
                let arrived = part.map_or(Ok(()), |part| meeting.arrive(&member, part, self));
                // The others may not be there yet: the entry stays, without its part.
                if arrived.is_ok() && !meeting.is_over_for(&member) {
                    left = Some(Work::Meet(member, meeting, None));
                }
                arrived
            }
            Work::MeetAcross(member, mut across) => {
                let over = across.run(&member, self);
                if let Ok(false) = over {
                    left = Some(Work::MeetAcross(member, across));
                }
                over.map(drop)
            }
            Work::Exchange(member, mut exchange) => {
                let sent = exchange.send(&member, self);
                let received = sent.and_then(|()| exchange.receive(&member, self));
                if let Ok(false) = received {
                    left = Some(Work::Exchange(member, exchange));
                }
                received.map(drop)
            }
        };
        let mut state = lock(&self.state);
        state.progress += 1;
        if let Err(error) = result {
            state.fail(device, &error);
        }
        if let Some(entry) = state.streams.get_mut(&stream) {
            entry.busy = false;
            if let Some(left) = left {
                entry.queue.push_front(left);
            }
            if entry.closing && entry.queue.is_empty() {
                state.streams.remove(&stream);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Something outside the queues has changed.
    pub fn notify(&self) {
        lock(&self.state).progress += 1;
        self.changed.notify_all();
    }
}

impl super::Stream {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.busy
    }
}

impl Work {
    fn can_run(&self) -> bool {
        match self {
            Self::Run(_) | Self::Record(..) => true,
            Self::Wait(event, version) => {
                event.completed.load(std::sync::atomic::Ordering::SeqCst) >= *version
            }
            Self::Meet(member, meeting, part) => {
                part.is_some() && !member.is_hung(meeting) || meeting.is_over_for(member)
            }
            Self::MeetAcross(member, across) => across.can_run(member),
            Self::Exchange(member, exchange) => exchange.can_run(member),
        }
    }
}

impl State {
    /// Takes the head of a random stream that can go on.
    fn take(&mut self) -> Taken {
        let failures = &self.failures;
        let can_run = |stream: &super::Stream| {
            let head = stream.queue.front();
            !stream.busy && head.is_some_and(|work| failures[stream.device].is_some() || work.can_run())
        };
        let ready: Vec<u64> =
            self.streams.iter().filter(|(_, stream)| can_run(stream)).map(|(id, _)| *id).collect();
        if ready.is_empty() {
            return Taken::Nothing;
        }
        let id = ready[self.random.below(ready.len() as u64) as usize];
        let taken = self.streams.get_mut(&id).and_then(|stream| {
            let work = stream.queue.pop_front()?;
            stream.busy = true;
            Some(Taken::Work(id, stream.device, work))
        });
        taken.unwrap_or(Taken::Nothing)
    }

    fn fail(&mut self, device: usize, error: &EmulatorError) {
        eprintln!("cuda-emulator: device {device}: {error}");
        let failure = match error {
            EmulatorError::DeviceLost { .. } => Failure::Lost,
            _ => Failure::Launch,
        };
        self.failures[device].get_or_insert(failure);
    }

    /// What the heads of the queues wait for.
    fn stuck(&self) -> String {
        let describe = |(id, stream): (&u64, &super::Stream)| {
            let reason = match stream.queue.front()? {
                Work::Wait(..) => "an event that nothing records".to_owned(),
                Work::Meet(member, meeting, _) => meeting.describe(member),
                Work::MeetAcross(member, across) => format!(
                    "collective {} as rank {}, to which ranks {:?} have not come",
                    across.number,
                    member.rank,
                    across.missing(member)
                ),
                Work::Exchange(member, _) => format!("messages to rank {} that were not sent", member.rank),
                Work::Run(_) | Work::Record(..) => "a thread that runs its work".to_owned(),
            };
            Some(format!("stream {id} of device {} waits for {reason}", stream.device))
        };
        let all: Vec<String> = self.streams.iter().filter_map(describe).collect();
        if all.is_empty() { "no stream has work".to_owned() } else { all.join("; ") }
    }
}
