//! Where work is issued.

use std::sync::Arc;

use crate::cuda::{self, Gpu, Stream};
use crate::error::OpError;
use crate::gemm::Factors;

/// What runs the work of a queue.
#[derive(Clone, Copy)]
pub enum Device<'a> {
    /// The host's processors.
    Cpu,
    /// A stream of a GPU.
    Cuda(&'a Stream),
}

/// Whose memory operators work in, which decides how much scratch some of them need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// The host's.
    Host,
    /// A GPU's.
    Gpu,
}

/// An ordered queue of work on a device. On the CPU an operator has run when its call returns; its loops are spread
/// over the current rayon pool. On a GPU it has been queued on a stream; clones are the same stream.
#[derive(Clone, Default)]
pub struct Queue {
    stream: Option<Arc<Stream>>,
    factors: Factors,
}

impl Queue {
    /// A queue on the host's processors.
    pub fn cpu() -> Self {
        Self::default()
    }

    /// A new stream of a GPU.
    ///
    /// # Errors
    /// When CUDA fails, or has no memory for the stream's workspace.
    pub fn cuda(gpu: &Arc<Gpu>) -> Result<Self, OpError> {
        Ok(Self { stream: Some(Arc::new(Stream::new(gpu)?)), factors: Factors::Exact })
    }

    /// The same queue, with products on the CPU that take their factors so. A GPU's take them in the dtype that they have.
    pub fn with_factors(&self, factors: Factors) -> Self {
        Self { factors, ..self.clone() }
    }

    /// How products on the CPU take their factors.
    pub fn factors(&self) -> Factors {
        self.factors
    }

    /// Another queue of the same device, whose work runs beside this one's.
    ///
    /// # Errors
    /// As [`Queue::cuda`].
    pub fn beside(&self) -> Result<Self, OpError> {
        match &self.stream {
            None => Ok(self.clone()),
            Some(stream) => Self::cuda(stream.gpu()),
        }
    }

    /// What runs the work.
    pub fn device(&self) -> Device<'_> {
        match &self.stream {
            None => Device::Cpu,
            Some(stream) => Device::Cuda(stream),
        }
    }

    /// Whose memory its operators work in.
    pub fn home(&self) -> Home {
        if self.stream.is_some() { Home::Gpu } else { Home::Host }
    }

    /// The end of what has been issued so far.
    ///
    /// # Errors
    /// When CUDA fails.
    pub fn record(&self) -> Result<Event, OpError> {
        Ok(Event(self.stream.as_ref().map(|stream| stream.record()).transpose()?))
    }

    /// What is issued from now on runs after `event`, of whatever queue. The host does not wait.
    ///
    /// # Errors
    /// When CUDA fails.
    pub fn wait(&self, event: &Event) -> Result<(), OpError> {
        match (&self.stream, &event.0) {
            (Some(stream), Some(event)) => stream.wait(event),
            (None, Some(event)) => event.synchronize(),
            (_, None) => Ok(()),
        }
    }

    /// Lets the host wait until all that was issued has run.
    ///
    /// # Errors
    /// When CUDA fails, or something that was issued has failed.
    pub fn synchronize(&self) -> Result<(), OpError> {
        match &self.stream {
            None => Ok(()),
            Some(stream) => stream.synchronize(),
        }
    }
}

/// A place in the order of a queue.
pub struct Event(Option<cuda::StreamEvent>);

impl Event {
    /// Whether the queue has come to it.
    ///
    /// # Errors
    /// When CUDA fails, or something before it has failed.
    pub fn is_complete(&self) -> Result<bool, OpError> {
        self.0.as_ref().map_or(Ok(true), cuda::StreamEvent::is_complete)
    }

    /// Lets the host wait for it.
    ///
    /// # Errors
    /// When CUDA fails, or something before it has failed.
    pub fn synchronize(&self) -> Result<(), OpError> {
        self.0.as_ref().map_or(Ok(()), cuda::StreamEvent::synchronize)
    }
}
