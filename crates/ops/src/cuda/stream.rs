//! A stream: an ordered queue of a GPU's work, with the scratch that its kernels leave partial sums in.

use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::{CudaEvent, CudaStream, DriverError, result};

use super::blas::Blas;
use super::gpu::{Gpu, Work};
use super::memory::DeviceMemory;
use crate::buffer::{View, ViewMut};
use crate::error::OpError;
use crate::memory::{Bytes, BytesMut, DeviceBytes};

/// Bytes of scratch that a stream has for its kernels' partial sums. They run one after another, so one area serves all.
pub const SCRATCH_BYTES: usize = 32 << 20;

/// Bytes that cuBLAS has for a stream that makes products: what NVIDIA recommends from Hopper on.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// An ordered queue of a GPU's work. One thread at a time issues to it: what an operator leaves in the scratch for its next
/// kernel is the stream's.
pub struct Stream {
    gpu: Arc<Gpu>,
    /// Not every stream makes products. The handle goes before the stream that it names.
    blas: OnceLock<Mutex<Blas>>,
    /// Not every stream has kernels that need it.
    scratch: OnceLock<DeviceMemory>,
    stream: Arc<CudaStream>,
}

/// A place in the order of a stream.
pub struct StreamEvent {
    gpu: Arc<Gpu>,
    event: CudaEvent,
}

impl StreamEvent {
    pub(crate) fn is_complete(&self) -> Result<bool, OpError> {
        self.event.try_is_complete().map_err(|error| self.gpu.failed("running what was queued", error))
    }

    pub(crate) fn synchronize(&self) -> Result<(), OpError> {
        self.event.synchronize().map_err(|error| self.gpu.failed("running what was queued", error))
    }
}

/// The value of a cell, which is made where there is none. Two threads may both make one; the first is kept.
fn get_or_make<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T, OpError>) -> Result<&T, OpError> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let made = make()?;
            Ok(cell.get_or_init(|| made))
        }
    }
}

impl Stream {
    /// A new stream, which runs beside all others.
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self, OpError> {
        let stream = gpu.context().new_stream().map_err(|error| gpu.failed("making a stream", error))?;
        Ok(Self { gpu: gpu.clone(), stream, scratch: OnceLock::new(), blas: OnceLock::new() })
    }

    /// Its GPU.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The driver's stream, for libraries that this crate does not know.
    pub fn raw(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn blas(&self) -> Result<&Mutex<Blas>, OpError> {
        get_or_make(&self.blas, || Blas::new(self).map(Mutex::new))
    }

    /// At least `bytes` of scratch. What one operator leaves there the next overwrites.
    pub(crate) fn scratch(&self, operator: &'static str, bytes: usize) -> Result<DeviceBytes<'_>, OpError> {
        if bytes > SCRATCH_BYTES {
            return Err(OpError::Extent { operator, value: bytes });
        }
        Ok(get_or_make(&self.scratch, || DeviceMemory::zeroed(&self.gpu, SCRATCH_BYTES))?.bytes())
    }

    /// The end of what has been issued.
    pub(crate) fn record(&self) -> Result<StreamEvent, OpError> {
        let event =
            self.stream.record_event(None).map_err(|error| self.failed("recording an event", error))?;
        Ok(StreamEvent { gpu: self.gpu.clone(), event })
    }

    pub(crate) fn wait(&self, event: &StreamEvent) -> Result<(), OpError> {
        self.stream.wait(&event.event).map_err(|error| self.failed("waiting for an event", error))
    }

    pub(crate) fn synchronize(&self) -> Result<(), OpError> {
        self.stream.synchronize().map_err(|error| self.failed("running what was queued", error))
    }

    pub(crate) fn failed(&self, doing: &'static str, error: DriverError) -> OpError {
        self.gpu.failed(doing, error)
    }

    /// Sets all bytes of a view to zero.
    pub(crate) fn zero(&self, operator: &'static str, to: &mut ViewMut<'_>) -> Result<(), OpError> {
        let bytes = to.bytes_len();
        if bytes == 0 {
            return Ok(());
        }
        let address = self.address(operator, "x", to.as_view())?;
        self.bind()?;
        self.gpu.count(Work::Fill);
        // SAFETY: the view is `bytes` long, and its memory outlives what is queued: freeing waits.
        #[allow(unsafe_code)]
        let set = unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) };
        set.map_err(|error| self.failed("zeroing memory", error))
    }

    /// Copies between views of equal sizes, wherever they lie. Where one of them lies on the host, the host waits: its borrow
    /// ends with the call.
    pub(crate) fn copy(&self, from: View<'_>, to: ViewMut<'_>) -> Result<(), OpError> {
        let within = matches!((from.bytes(), to.as_view().bytes()), (Bytes::Device(_), Bytes::Device(_)));
        self.queue_copy(from, to)?;
        if within { Ok(()) } else { self.synchronize() }
    }

    /// Queues a copy. Whoever owns memory of the host that takes part in it must keep and leave it alone until the stream has
    /// come past it.
    pub(crate) fn queue_copy(&self, from: View<'_>, to: ViewMut<'_>) -> Result<(), OpError> {
        let bytes = to.bytes_len();
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        let stream = self.stream.cu_stream();
        // SAFETY: both views are `bytes` long. Freeing memory of the device waits for what is queued; that of the host is kept
        // by the callers, of which one waits and the other owns it.
        #[allow(unsafe_code)]
        let copied = unsafe {
            match (from.bytes(), to.into_bytes()) {
                (Bytes::Host(from), BytesMut::Host(to)) => {
                    to.copy_from_slice(from);
                    return Ok(());
                }
                (Bytes::Host(from), BytesMut::Device(to)) => {
                    result::memcpy_htod_async(to.address(), from, stream)
                }
                (Bytes::Device(from), BytesMut::Host(to)) => {
                    result::memcpy_dtoh_async(to, from.address(), stream)
                }
                (Bytes::Device(from), BytesMut::Device(to)) => {
                    result::memcpy_dtod_async(to.address(), from.address(), bytes, stream)
                }
            }
        };
        self.gpu.count(Work::Copy);
        copied.map_err(|error| self.failed("copying memory", error))
    }

    /// Where a view lies, which must be in this GPU's memory; for libraries that this crate does not know.
    ///
    /// # Errors
    /// When it lies elsewhere.
    pub fn address(
        &self,
        operator: &'static str,
        argument: &'static str,
        view: View<'_>,
    ) -> Result<u64, OpError> {
        match view.bytes() {
            Bytes::Device(bytes) if bytes.ordinal() == self.gpu.ordinal() => Ok(bytes.address()),
            // A view of nothing may lie anywhere.
            _ if view.shape().elements() == 0 => Ok(0),
            _ => Err(OpError::NotOnDevice { operator, argument, ordinal: self.gpu.ordinal() }),
        }
    }

    /// Makes this thread speak to the GPU.
    ///
    /// # Errors
    /// When CUDA fails.
    pub fn bind(&self) -> Result<(), OpError> {
        self.gpu.context().bind_to_thread().map_err(|error| self.failed("binding a thread to it", error))
    }
}
