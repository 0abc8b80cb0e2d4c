//! The communication thread of a rank, and its one communication stream.
//!
//! The thread takes the rank's collectives in the order of their calls, queues each on the stream, and looks at events to
//! see how far the stream has come: that is what the recorder is told. While anything is under way it also looks for
//! what would let it wait for ever: an error of NCCL, another rank of this process that has failed or left, the
//! deadline. Then it aborts its communicators, which ends what is queued, and every later call of the rank fails.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tessera_ops::cuda::{Gpu, Stream};
use tessera_ops::{Device, Event, OpError, Queue, View, ViewMut, fill};

use super::crew::{Meeting, UnderWay};
use super::library::{Communicator, Span, Status, UniqueId};
use super::member::{Job, State};
use super::staging::Staging;
use crate::error::DistError;
use crate::recorder::Call;
use crate::waiting::Waiting;

/// How often events are looked at while something is under way: the grain of the recorder's times.
const POLL: Duration = Duration::from_micros(250);
/// How long NCCL is asked without a pause whether it has queued what was called: it rarely takes longer.
const EAGER: Duration = Duration::from_micros(200);
/// How often it is looked whether what is under way can still end.
const WATCH: Duration = Duration::from_millis(10);
/// How long NCCL may take to give something up, or to free it, before it is left to the end of the process.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A group, as the thread knows it.
pub(super) struct Circle {
    pub communicator: Communicator,
    /// Its ranks, in the world.
    pub members: Arc<[usize]>,
    /// The next of its collectives.
    pub next: Meeting,
}

impl Circle {
    /// A part of the group of a collective, which all its ranks name alike.
    pub fn part(of: Meeting, colour: usize, communicator: Communicator, members: Arc<[usize]>) -> Self {
        let mut hasher = DefaultHasher::new();
        (of, colour).hash(&mut hasher);
        Self { communicator, members, next: Meeting { group: hasher.finish(), number: 0 } }
    }
}

/// A collective that the thread has been given.
#[derive(Clone)]
pub(super) struct Collective {
    pub sequence: u64,
    pub meeting: Meeting,
    pub call: Call,
    /// Which of the rank's groups it is in.
    pub group: usize,
    /// The ranks of the group, in the world.
    pub members: Arc<[usize]>,
    /// Bytes that this rank sends to others.
    pub bytes_sent: u64,
}

/// A collective that is under way.
struct Flight {
    collective: Collective,
    /// The stream has come to it. `None` for one that the thread itself makes step by step.
    started: Option<Event>,
    has_started: bool,
    /// The stream has come past it. `None` while it is not queued as a whole.
    finished: Option<Arc<Event>>,
    /// Whoever waits for it has come to where it waits.
    awaited: Awaited,
    awaited_since: Option<Instant>,
}

/// Where in its queue a caller waits for a collective.
pub(super) type Awaited = Arc<Mutex<Option<Event>>>;

/// A collective that has been queued, and what it gives back.
pub(super) struct Queued<T> {
    pub value: T,
    pub finished: Arc<Event>,
    pub awaited: Awaited,
}

/// What the communication thread has.
pub(super) struct Lane {
    state: Arc<State>,
    pub queue: Queue,
    /// The groups, the world's first. Empty once they have been aborted.
    groups: Vec<Circle>,
    pub staging: Staging,
    flights: VecDeque<Flight>,
    /// How long the oldest flight has been the oldest.
    waiting: Waiting,
    looked: Instant,
}

/// The stream of a queue on a GPU.
pub(super) fn stream(queue: &Queue) -> Result<&Stream, OpError> {
    match queue.device() {
        Device::Cuda(stream) => Ok(stream),
        Device::Cpu => Err(OpError::NoCuda("NCCL moves what lies on GPUs, not on the host".to_owned())),
    }
}

impl Lane {
    /// Joins the other ranks, in as long as the deadline.
    pub fn join(gpu: &Arc<Gpu>, id: &UniqueId, state: Arc<State>) -> Result<Self, DistError> {
        let (rank, ranks) = (state.recorder.rank(), state.recorder.world_size());
        let queue = Queue::cuda(gpu)?;
        stream(&queue)?.bind()?;
        let staging = Staging::new(&queue, ranks)?;
        let communicator = Communicator::join(id, rank, ranks)?;
        let mut waiting = Waiting::begin();
        loop {
            match communicator.status("joining the other ranks") {
                Ok(Status::Done) => break,
                Ok(Status::UnderWay) => {}
                Err(error) => {
                    give_up(communicator);
                    return Err(error);
                }
            }
            waiting.look();
            let seconds = state.deadline.get();
            if state.crew.failure().is_some() || waiting.waited() >= seconds {
                give_up(communicator);
                return Err(DistError::Unjoined { seconds: seconds.as_secs_f64(), missing: Vec::new() });
            }
            thread::sleep(waiting.pause(WATCH));
        }
        let next = Meeting { group: 0, number: 0 };
        let groups = vec![Circle { communicator, members: (0..ranks).collect(), next }];
        let (flights, waiting, looked) = (VecDeque::new(), Waiting::begin(), Instant::now());
        Ok(Self { state, queue, groups, staging, flights, waiting, looked })
    }

    pub fn serve(mut self, jobs: &Receiver<Job>) {
        loop {
            let job = match self.flights.is_empty() {
                true => jobs.recv().map_err(RecvTimeoutError::from),
                false => jobs.recv_timeout(POLL),
            };
            match job {
                Ok(job) => job(&mut self),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look();
        }
        while !self.flights.is_empty() {
            thread::sleep(POLL);
            self.look();
        }
        self.leave();
    }

    /// Makes one collective, unless an earlier one has failed: its peers may be anywhere by now.
    pub fn make<T>(
        &mut self,
        (sequence, call, group, bytes_sent): (u64, Call, usize, u64),
        make: impl FnOnce(&mut Self, &Collective) -> Result<T, DistError>,
    ) -> Result<T, DistError> {
        self.state.check()?;
        let rank = self.rank();
        let circle = &mut self.groups[group];
        let (meeting, members) = (circle.next, circle.members.clone());
        circle.next.number += 1;
        let collective = Collective { sequence, meeting, call, group, members, bytes_sent };
        let came = self.state.crew.come(meeting, rank, &collective.call);
        let made = came.and_then(|()| make(self, &collective));
        made.map_err(|error| {
            // A rank of this process that has failed is the reason of what its peers are told by NCCL.
            let error = match (self.state.crew.failure(), error) {
                (Some(failure), DistError::Nccl { .. }) => failure.error(&collective.call),
                (_, error) => error,
            };
            self.end(error, true).unwrap_or(DistError::Ended { rank })
        })
    }

    pub fn rank(&self) -> usize {
        self.state.recorder.rank()
    }

    /// Queues a collective behind `ready`: `steps` queue its work.
    pub fn queue<T>(
        &mut self,
        collective: &Collective,
        ready: &Event,
        steps: impl FnOnce(&mut Self) -> Result<T, DistError>,
    ) -> Result<Queued<T>, DistError> {
        self.queue.wait(ready)?;
        let started = self.queue.record()?;
        let awaited = self.take_off(collective, Some(started));
        let value = steps(self)?;
        let finished = Arc::new(self.queue.record()?);
        if let Some(flight) = self.flights.back_mut() {
            flight.finished = Some(finished.clone());
        }
        Ok(Queued { value, finished, awaited })
    }

    /// Calls NCCL, and waits until it has queued what was called: only then may more be queued behind it.
    pub fn call(
        &mut self,
        group: usize,
        call: impl FnOnce(&Stream, &Communicator) -> Result<(), DistError>,
    ) -> Result<(), DistError> {
        call(stream(&self.queue)?, &self.groups[group].communicator)?;
        self.until_queued(group)
    }

    /// A view's place on this rank's GPU.
    pub fn span(&self, view: View<'_>) -> Result<Span, OpError> {
        Span::of(stream(&self.queue)?, view)
    }

    /// Queues: whole = what all ranks have in it, each in its own of the equal slices.
    pub fn all_gather(&mut self, collective: &Collective, whole: ViewMut<'_>) -> Result<(), DistError> {
        let whole = self.span(whole.as_view())?;
        self.call(collective.group, |stream, communicator| communicator.all_gather(stream, whole))
    }

    /// Queues: the i-th of the equal blocks of `got` = this rank's of the blocks that rank i gives.
    pub fn exchange(
        &mut self,
        collective: &Collective,
        given: View<'_>,
        mut got: ViewMut<'_>,
    ) -> Result<(), DistError> {
        let (rank, block) =
            (self.rank_in(collective.group), given.shape().elements() / collective.members.len());
        let own = got.reborrow().range(rank * block, block)?;
        fill::copy(&self.queue, given.range(rank * block, block)?, own)?;
        let (given, got) = (self.span(given)?, self.span(got.as_view())?);
        self.call(collective.group, |stream, communicator| communicator.exchange(stream, given, got))
    }

    /// The number of ranks in one of this one's groups.
    pub fn ranks_in(&self, group: usize) -> usize {
        self.groups[group].members.len()
    }

    /// This rank, in one of its groups.
    pub fn rank_in(&self, group: usize) -> usize {
        self.groups[group].communicator.rank()
    }

    /// Makes a collective of bytes of the host, step by step, when those before it are complete.
    pub fn step_by_step<T>(
        &mut self,
        collective: &Collective,
        steps: impl FnOnce(&mut Self) -> Result<T, DistError>,
    ) -> Result<T, DistError> {
        self.take_off(collective, None);
        while self.flights.len() > 1 {
            self.idle()?;
        }
        self.begin_to_wait();
        began(&self.state, collective);
        let value = steps(self)?;
        self.flights.clear();
        finished(&self.state, collective);
        Ok(value)
    }

    fn take_off(&mut self, collective: &Collective, started: Option<Event>) -> Awaited {
        if self.flights.is_empty() {
            self.begin_to_wait();
        }
        let awaited = Awaited::default();
        self.flights.push_back(Flight {
            collective: collective.clone(),
            started,
            has_started: false,
            finished: None,
            awaited: awaited.clone(),
            awaited_since: None,
        });
        awaited
    }

    /// Waits until NCCL has queued what was called last in a group.
    fn until_queued(&mut self, group: usize) -> Result<(), DistError> {
        let since = Instant::now();
        while self.groups[group].communicator.status("a collective")? == Status::UnderWay {
            if since.elapsed() < EAGER { thread::yield_now() } else { self.idle()? }
        }
        Ok(())
    }

    /// Splits a group by the `colours` of its ranks, of which this one's is `colour`: which group of the rank's the part is,
    /// and which of how many ranks this one is there.
    pub fn split(
        &mut self,
        collective: &Collective,
        colour: usize,
        colours: &[usize],
    ) -> Result<(usize, usize, usize), DistError> {
        let parent = &self.groups[collective.group].communicator;
        let alike = colours.iter().zip(&*collective.members).filter(|&(&other, _)| other == colour);
        let members: Arc<[usize]> = alike.map(|(_, &member)| member).collect();
        let before = colours[..parent.rank()].iter().filter(|&&other| other == colour);
        let (rank, ranks) = (before.count(), members.len());
        let part = parent.split(colour)?;
        if let Err(error) = self.until_queued(collective.group) {
            part.give_up();
            return Err(error);
        }
        let communicator = Communicator::part(part, rank, ranks);
        let index = self.groups.len();
        self.groups.push(Circle::part(collective.meeting, colour, communicator, members));
        self.until_queued(index)?;
        Ok((index, rank, ranks))
    }

    /// Waits until the stream has done all that was queued.
    pub fn until_done(&mut self) -> Result<(), DistError> {
        let done = self.queue.record()?;
        while !done.is_complete()? {
            self.idle()?;
        }
        Ok(())
    }

    fn idle(&mut self) -> Result<(), DistError> {
        self.complete()?;
        self.watch()?;
        thread::sleep(POLL);
        Ok(())
    }

    /// Looks how far the stream has come, and whether it can come further.
    fn look(&mut self) {
        if self.state.has_ended() {
            return;
        }
        if let Err(error) = self.complete().and_then(|()| self.watch()) {
            self.end(error, false);
        }
    }

    /// Tells the recorder what has begun and ended since the last look.
    fn complete(&mut self) -> Result<(), DistError> {
        for flight in &mut self.flights {
            let awaited = flight.awaited.lock().unwrap_or_else(PoisonError::into_inner);
            if let (None, Some(event)) = (flight.awaited_since, awaited.as_ref())
                && event.is_complete()?
            {
                flight.awaited_since = Some(Instant::now());
            }
        }
        while let Some(flight) = self.flights.front_mut() {
            if let (false, Some(started)) = (flight.has_started, &flight.started)
                && started.is_complete()?
            {
                flight.has_started = true;
                began(&self.state, &flight.collective);
                self.waiting = Waiting::begin();
            }
            match &flight.finished {
                Some(finished) if flight.has_started && finished.is_complete()? => {}
                _ => break,
            }
            if let Some(since) = flight.awaited_since {
                self.state.recorder.waited(flight.collective.call.operation, since.elapsed());
            }
            finished(&self.state, &flight.collective);
            self.flights.pop_front();
            self.begin_to_wait();
        }
        Ok(())
    }

    fn begin_to_wait(&mut self) {
        self.waiting = Waiting::begin();
        self.looked = Instant::now();
    }

    /// Fails if the oldest flight cannot end, or has had its time.
    fn watch(&mut self) -> Result<(), DistError> {
        let Some(flight) = self.flights.front() else { return Ok(()) };
        if self.looked.elapsed() < WATCH {
            return Ok(());
        }
        self.looked = Instant::now();
        let (crew, Collective { meeting, call, members, .. }) = (&self.state.crew, &flight.collective);
        let status =
            self.groups.iter().try_for_each(|group| group.communicator.status("a collective").map(drop));
        // Asked after NCCL, whose errors follow from what a rank of this process has told before.
        if let Some(failure) = crew.failure() {
            return Err(failure.error(call));
        }
        if let Some(rank) = crew.gone(*meeting, members) {
            return Err(DistError::Lost { rank, reason: "it left the group".to_owned(), call: call.clone() });
        }
        status?;
        self.waiting.look();
        let deadline = self.state.deadline.get();
        if self.waiting.waited() >= deadline {
            let ranks = crew.absent(*meeting, members);
            return Err(DistError::Late { ranks, call: call.clone(), seconds: deadline.as_secs_f64() });
        }
        self.waiting.pause(WATCH);
        Ok(())
    }

    /// Makes no more collectives.
    fn end(&mut self, error: DistError, is_told: bool) -> Option<DistError> {
        let told = self.state.end(error, is_told);
        self.flights.clear();
        self.groups.drain(..).for_each(|group| give_up(group.communicator));
        told
    }

    /// Leaves the groups, in good order where none has failed.
    fn leave(mut self) {
        // A GPU that has failed says so to whoever asks, and that is what the others are to hear.
        let has_run = self.queue.record().and_then(|event| event.is_complete());
        if let (Err(error), false) = (has_run, self.state.has_ended()) {
            self.end(error.into(), false);
        }
        self.state.crew.leave(self.rank());
        for group in self.groups.drain(..) {
            let communicator = group.communicator;
            let since = Instant::now();
            let mut left = communicator.finalize().and_then(|()| communicator.status("leaving a group"));
            while matches!(left, Ok(Status::UnderWay)) && since.elapsed() < PATIENCE {
                thread::sleep(POLL);
                left = communicator.status("leaving a group");
            }
            match left {
                Ok(Status::Done) => patiently(move || communicator.destroy()),
                _ => give_up(communicator),
            }
        }
    }
}

/// Tells of a collective that its rank's GPU has come to it.
fn began(state: &State, collective: &Collective) {
    let Collective { sequence, meeting, members, .. } = collective;
    state.crew.begin(*meeting, state.recorder.rank());
    let peers = UnderWay { crew: state.crew.clone(), meeting: *meeting, members: members.clone() };
    state.recorder.start(*sequence, Some(Arc::new(peers)));
}

/// Tells of a collective that it is complete.
fn finished(state: &State, collective: &Collective) {
    state.crew.finish(collective.meeting, &collective.members);
    state.recorder.finish(collective.sequence, collective.bytes_sent);
}

/// Ends whatever is under way in a group.
fn give_up(communicator: Communicator) {
    patiently(move || communicator.abort());
}

/// Does what may take for ever, and no longer waits for it when it does. What comes of it helps nobody.
fn patiently(what: impl FnOnce() -> Result<(), DistError> + Send + 'static) {
    let (tell, told) = channel();
    let started = thread::Builder::new().name("NCCL's end".to_owned()).spawn(move || {
        let _ = tell.send(what());
    });
    if started.is_ok() {
        let _ = told.recv_timeout(PATIENCE);
    }
}
