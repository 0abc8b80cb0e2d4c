//! Between the host and wherever a queue works. On the CPU values are used where they lie. On a GPU what is read or changed now
//! and then is copied, and the host waits; what every step needs goes through a [`Staging`], and nobody waits.

use std::borrow::Cow;

use crate::buffer::{Arena, Buffer, View, ViewMut};
use crate::check;
use crate::dtype::Element;
use crate::error::OpError;
use crate::fill;
use crate::queue::{Device, Event, Queue};

/// The elements of a view, when all that was issued to `queue` has run.
///
/// # Errors
/// When the view is of another dtype, or CUDA fails.
pub fn to_host<'a, T: Element>(queue: &Queue, view: View<'a>) -> Result<Cow<'a, [T]>, OpError> {
    match queue.device() {
        Device::Cpu => view.as_slice().map(Cow::Borrowed),
        Device::Cuda(_) => {
            let mut values = vec![T::zeroed(); view.shape().elements()];
            fill::copy(queue, view, ViewMut::of(&mut values).reshape(view.shape())?)?;
            Ok(Cow::Owned(values))
        }
    }
}

/// Lets `body` change the elements of a view on the host.
///
/// # Errors
/// When the view is of another dtype, or CUDA fails.
pub fn on_host<T: Element, R>(
    queue: &Queue,
    mut view: ViewMut<'_>,
    body: impl FnOnce(&mut [T]) -> R,
) -> Result<R, OpError> {
    match queue.device() {
        Device::Cpu => Ok(body(view.as_slice_mut()?)),
        Device::Cuda(_) => {
            let mut values = to_host(queue, view.as_view())?.into_owned();
            let result = body(&mut values);
            fill::copy(queue, View::of(&values).reshape(view.shape())?, view)?;
            Ok(result)
        }
    }
}

/// to = from, in the order of the queue; same shape and dtype. Nobody waits.
///
/// # Safety
/// Memory of the host that takes part must be kept, written by nobody else, and where it is written not read, until the queue
/// has come past the copy.
///
/// # Errors
/// When CUDA fails.
#[allow(unsafe_code)]
pub unsafe fn queue_copy(queue: &Queue, from: View<'_>, to: ViewMut<'_>) -> Result<(), OpError> {
    match queue.device() {
        Device::Cpu => fill::copy(queue, from, to),
        Device::Cuda(stream) => {
            check::shape("transfer::queue_copy", "to", to.shape(), from.shape())?;
            check::dtype("transfer::queue_copy", "to", to.dtype(), from.dtype())?;
            stream.queue_copy(from, to)
        }
    }
}

/// A way to a GPU on which nobody waits: values are put down in memory that the GPU reads by itself, in one of two places that
/// take turns.
pub struct Staging {
    queue: Queue,
    places: [Place; 2],
}

struct Place {
    memory: Buffer,
    /// When the GPU has read it.
    read: Option<Event>,
}

impl Place {
    /// Waits until the memory can be written again.
    fn settle(&mut self) -> Result<(), OpError> {
        self.read.take().map_or(Ok(()), |read| read.synchronize())
    }
}

impl Staging {
    /// For at most `bytes` at a time, as [`Arena::cost`] counts them, on their way to where `queue` works.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn new(queue: &Queue, bytes: usize) -> Result<Self, OpError> {
        let place = || Ok::<_, OpError>(Place { memory: Buffer::staging(queue, bytes)?, read: None });
        Ok(Self { queue: queue.clone(), places: [place()?, place()?] })
    }

    /// Begins to send, when the GPU has read what was sent the time before last.
    ///
    /// # Errors
    /// When CUDA fails.
    pub fn begin(&mut self) -> Result<Sending<'_>, OpError> {
        self.places.rotate_left(1);
        let place = &mut self.places[0];
        place.settle()?;
        Ok(Sending { queue: &self.queue, arena: place.memory.arena(), read: &mut place.read })
    }
}

/// Values that are sent together; they are on their way when it is dropped.
pub struct Sending<'a> {
    queue: &'a Queue,
    arena: Arena<'a>,
    read: &'a mut Option<Event>,
}

impl Sending<'_> {
    /// to = from, which lies on the host, in the order of the queue; same shape and dtype.
    ///
    /// # Errors
    /// When there is no room, or CUDA fails.
    pub fn send(&mut self, from: View<'_>, to: ViewMut<'_>) -> Result<(), OpError> {
        match self.queue.device() {
            Device::Cpu => fill::copy(self.queue, from, to),
            Device::Cuda(stream) => {
                let mut put_down = self.arena.take(from.dtype(), from.shape())?;
                stream.queue_copy(from, put_down.reborrow())?;
                stream.queue_copy(put_down.as_view(), to)
            }
        }
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        // A GPU that has failed reads nothing any more.
        *self.read = self.queue.record().ok();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for place in &mut self.places {
            // A GPU that has failed reads nothing any more.
            let _ = place.settle();
        }
    }
}

/// A way back from a GPU: a copy is queued behind the work that makes the values, and the host reads it later.
pub struct Readback {
    memory: Buffer,
    /// When the copy is there.
    written: Option<Event>,
}

impl Readback {
    /// For `bytes` of values from where `queue` works.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn new(queue: &Queue, bytes: usize) -> Result<Self, OpError> {
        Ok(Self { memory: Buffer::staging(queue, bytes)?, written: None })
    }

    /// Queues a copy of `values`, which are as many as there is room for. The host does not wait for it.
    ///
    /// # Errors
    /// When the shapes differ, or CUDA fails.
    pub fn take(&mut self, queue: &Queue, values: View<'_>) -> Result<(), OpError> {
        self.settle()?;
        let room = self.memory.view_mut(values.dtype()).reshape(values.shape())?;
        match queue.device() {
            Device::Cpu => fill::copy(queue, values, room)?,
            Device::Cuda(stream) => stream.queue_copy(values, room)?,
        }
        self.written = Some(queue.record()?);
        Ok(())
    }

    /// What was taken last, when the queue has come past it.
    ///
    /// # Errors
    /// When CUDA fails, or what was issued before has failed.
    pub fn values<T: Element>(&mut self) -> Result<&[T], OpError> {
        self.settle()?;
        self.memory.view(T::DTYPE).as_slice()
    }

    fn settle(&mut self) -> Result<(), OpError> {
        self.written.take().map_or(Ok(()), |written| written.synchronize())
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // A GPU that has failed writes nothing any more.
        let _ = self.settle();
    }
}
