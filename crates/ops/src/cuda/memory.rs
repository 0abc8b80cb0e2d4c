//! Allocations: in a GPU's memory, in host memory that it copies from and to by itself, and in host memory that its kernels
//! read and write.
//!
//! Freeing memory that kernels use waits until the GPU has done what was issued, so that nothing which is still queued finds
//! its memory gone. Host memory that is only copied takes part only in copies that somebody waits for.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
use cudarc::driver::{DriverError, result, sys};

use super::gpu::Gpu;
use crate::error::OpError;
use crate::memory::DeviceBytes;

/// An allocation in a GPU's memory.
pub(crate) struct DeviceMemory {
    gpu: Arc<Gpu>,
    /// 0 where nothing is allocated.
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocates zeroed memory.
    pub fn zeroed(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self, OpError> {
        let context = gpu.context();
        let mut memory = Self { gpu: gpu.clone(), address: 0, bytes };
        if bytes == 0 {
            return Ok(memory);
        }
        context.bind_to_thread().map_err(|error| gpu.failed("allocating memory", error))?;
        // SAFETY: the allocation is zeroed before anybody gets its address, and freed once, in `drop`.
        #[allow(unsafe_code)]
        let allocated = unsafe {
            result::malloc_sync(bytes).and_then(|address| {
                memory.address = address;
                result::memset_d8_sync(address, 0, bytes)
            })
        };
        match allocated.and_then(|()| context.synchronize()) {
            Ok(()) => Ok(memory),
            Err(error) => Err(out_of_memory(gpu, bytes, error)),
        }
    }

    /// All of it.
    pub fn bytes(&self) -> DeviceBytes<'_> {
        DeviceBytes::new(self.gpu.ordinal(), self.address, self.bytes)
    }
}

/// An allocation that failed, with what the device has.
fn out_of_memory(gpu: &Gpu, bytes: usize, error: DriverError) -> OpError {
    match gpu.memory() {
        Ok((free, total)) if error.0 == CUDA_ERROR_OUT_OF_MEMORY => {
            OpError::OutOfDeviceMemory { ordinal: gpu.ordinal(), bytes, free, total }
        }
        _ => gpu.failed("allocating memory", error),
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.address == 0 {
            return;
        }
        // A device that has failed gives nothing back; the process is about to end.
        if self.gpu.context().synchronize().is_ok() {
            // SAFETY: nothing is queued any more, and the views of this memory are gone.
            #[allow(unsafe_code)]
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// An allocation in host memory that stays where it is, so that the GPU copies from and to it beside other work.
pub(crate) struct PinnedMemory {
    gpu: Arc<Gpu>,
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone; its address has nothing to do with a thread.
#[allow(unsafe_code)]
unsafe impl Send for PinnedMemory {}
// SAFETY: as above; shared references only read.
#[allow(unsafe_code)]
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Allocates zeroed memory.
    pub fn zeroed(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self, OpError> {
        Self::with_flags(gpu, bytes, 0)
    }

    fn with_flags(gpu: &Arc<Gpu>, bytes: usize, flags: u32) -> Result<Self, OpError> {
        let failed = |error| gpu.failed("pinning host memory", error);
        gpu.context().bind_to_thread().map_err(failed)?;
        // CUDA allocates nothing of no size.
        let room = bytes.max(1);
        // SAFETY: the memory is written before anybody reads it, and freed once, in `drop`.
        #[allow(unsafe_code)]
        let start = unsafe {
            let start = result::malloc_host(room, flags).map_err(|error| match error {
                DriverError(CUDA_ERROR_OUT_OF_MEMORY) => OpError::OutOfMemory { bytes },
                error => failed(error),
            })?;
            start.cast::<u8>().write_bytes(0, room);
            start
        };
        Ok(Self { gpu: gpu.clone(), start, bytes })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` initialised bytes are there for as long as this value is.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.start.cast(), self.bytes)
        }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow is exclusive.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.start.cast(), self.bytes)
        }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.gpu.context().bind_to_thread().is_ok() {
            // SAFETY: the slices of this memory are gone, and so is every copy: whoever queued one has waited for it.
            #[allow(unsafe_code)]
            let _ = unsafe { result::free_host(self.start) };
        }
    }
}

/// An allocation in host memory that kernels read and write over the bus, as if it were the GPU's own.
pub(crate) struct MappedMemory {
    memory: PinnedMemory,
    /// Where the GPU finds it.
    address: u64,
}

impl MappedMemory {
    /// Allocates zeroed memory.
    pub fn zeroed(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self, OpError> {
        let memory = PinnedMemory::with_flags(gpu, bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP)?;
        let mut address = 0;
        // SAFETY: the memory was allocated just now, to be mapped, and the address is written before it is read.
        #[allow(unsafe_code)]
        let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, memory.start, 0) };
        mapped.result().map_err(|error| gpu.failed("mapping host memory", error))?;
        Ok(Self { memory, address })
    }

    /// All of it, as the host sees it. What kernels write must have been waited for.
    pub fn on_host(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// All of it, as kernels see it.
    pub fn bytes(&self) -> DeviceBytes<'_> {
        DeviceBytes::new(self.memory.gpu.ordinal(), self.address, self.memory.bytes)
    }
}

impl Drop for MappedMemory {
    fn drop(&mut self) {
        // A device that has failed uses nothing any more.
        let _ = self.memory.gpu.context().synchronize();
    }
}
