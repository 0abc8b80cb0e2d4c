//! Launching a kernel: its arguments, one after the other, checked as they are given.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::result;

use super::gpu::Function;
use super::stream::Stream;
use crate::buffer::{View, ViewMut};
use crate::dtype::DType;
use crate::error::OpError;
use crate::memory::{Bytes, DeviceBytes};

/// Threads of a block, unless a kernel says otherwise.
const THREADS: usize = 256;

/// Threads of a warp.
const LANES: usize = 32;

/// Bytes that a thread moves at a time.
const ACCESS_BYTES: usize = 16;

/// Blocks of a grid, threads of a block, bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    blocks: [usize; 3],
    threads: usize,
    shared: usize,
}

impl Grid {
    pub fn of(blocks: [usize; 3]) -> Self {
        Self { blocks, threads: THREADS, shared: 0 }
    }

    pub fn blocks(blocks: usize) -> Self {
        Self::of([blocks, 1, 1])
    }

    /// For `elements` of a flat vector, of which threads take 16 bytes at a time; at most 16 blocks a multiprocessor.
    pub fn flat(stream: &Stream, dtype: DType, elements: usize) -> Self {
        let block = THREADS * ACCESS_BYTES / dtype.size();
        Self::blocks(elements.div_ceil(block).min(16 * stream.gpu().multiprocessors()))
    }

    /// With threads for `bytes` that each block moves: whole warps, in which no more idle than must.
    pub fn threads_for(self, bytes: usize) -> Self {
        let accesses = bytes.div_ceil(ACCESS_BYTES).clamp(1, THREADS);
        self.threads(accesses.next_multiple_of(LANES))
    }

    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    pub fn shared(self, shared: usize) -> Self {
        Self { shared, ..self }
    }
}

/// Whether all of these begin where a thread moves 16 bytes at a time. What lies on the host is refused at the launch.
pub(crate) fn is_aligned(views: &[View<'_>]) -> bool {
    views.iter().all(|view| match view.bytes() {
        Bytes::Device(bytes) => bytes.address().is_multiple_of(ACCESS_BYTES as u64),
        Bytes::Host(_) => true,
    })
}

/// A kernel that is about to be launched. The first thing that is wrong is told by [`Kernel::launch`].
pub(crate) struct Kernel<'a> {
    stream: &'a Stream,
    operator: &'static str,
    function: Result<Arc<Function>, OpError>,
    /// The arguments, each in the first bytes of a word: pointers, and numbers of 4 or 8 bytes.
    arguments: Vec<u64>,
}

impl Stream {
    /// The kernel `name` of `kernels/<file>.cu`, for `operator`.
    pub(crate) fn kernel(&self, operator: &'static str, file: &'static str, name: &str) -> Kernel<'_> {
        let function = self.gpu().function(file, name);
        Kernel { stream: self, operator, function, arguments: Vec::with_capacity(16) }
    }

    /// How the names of a kernel's variants for a dtype end: `f32` or `bf16`.
    pub(crate) fn variant(
        &self,
        operator: &'static str,
        argument: &'static str,
        dtype: DType,
    ) -> Result<&'static str, OpError> {
        match dtype {
            DType::F32 => Ok("f32"),
            DType::BF16 => Ok("bf16"),
            found => Err(OpError::DType { operator, argument, found, expected: "f32 or bf16" }),
        }
    }
}

impl Kernel<'_> {
    fn push(mut self, argument: Result<u64, OpError>) -> Self {
        match argument {
            Ok(argument) => self.arguments.push(argument),
            Err(error) if self.function.is_ok() => self.function = Err(error),
            Err(_) => {}
        }
        self
    }

    /// A view that the kernel reads.
    pub fn input(self, argument: &'static str, view: View<'_>, dtype: DType) -> Self {
        let address = self.stream.address(self.operator, argument, view);
        let fits = view.dtype() == dtype;
        let operator = self.operator;
        self.push(if fits {
            address
        } else {
            Err(OpError::DType { operator, argument, found: view.dtype(), expected: dtype.name() })
        })
    }

    /// A view that the kernel writes.
    pub fn output(self, argument: &'static str, view: &ViewMut<'_>, dtype: DType) -> Self {
        self.input(argument, view.as_view(), dtype)
    }

    /// A place in the stream's scratch.
    pub fn scratch(self, bytes: DeviceBytes<'_>, offset: usize) -> Self {
        self.push(Ok(bytes.address() + offset as u64))
    }

    /// A pointer to nothing.
    pub fn null(self) -> Self {
        self.push(Ok(0))
    }

    /// A number of 32 bits.
    pub fn u32(self, value: usize) -> Self {
        let operator = self.operator;
        self.push(u32::try_from(value).map(u64::from).map_err(|_| OpError::Extent { operator, value }))
    }

    /// A number of 64 bits.
    pub fn u64(self, value: usize) -> Self {
        self.push(Ok(value as u64))
    }

    /// A number in fp32, rounded from fp64.
    pub fn f32(self, value: f64) -> Self {
        self.push(Ok(u64::from((value as f32).to_bits())))
    }

    /// A number in fp64.
    pub fn f64(self, value: f64) -> Self {
        self.push(Ok(value.to_bits()))
    }

    /// Queues it. A grid without blocks is nothing to do.
    pub fn launch(mut self, grid: Grid) -> Result<(), OpError> {
        let function = self.function?;
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let operator = self.operator;
        let extent = |value: usize| u32::try_from(value).map_err(|_| OpError::Extent { operator, value });
        let [x, y, z] = grid.blocks;
        let (blocks, threads) = ((extent(x)?, extent(y)?, extent(z)?), (extent(grid.threads)?, 1, 1));
        let failed = |error| self.stream.failed("launching a kernel", error);
        self.stream.bind()?;
        function.allow_shared(grid.shared).map_err(failed)?;
        let mut pointers: Vec<*mut c_void> =
            self.arguments.iter_mut().map(|argument| std::ptr::from_mut(argument).cast()).collect();
        let raw = self.stream.raw().cu_stream();
        function.launches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the arguments are those that the kernel's file asks for, in its order; every pointer was checked to lie on
        // this GPU, in memory whose freeing waits for the stream. CUDA copies the arguments before it returns.
        #[allow(unsafe_code)]
        let launched = unsafe {
            let (function, shared) = (function.function.cu_function(), extent(grid.shared)?);
            result::launch_kernel(function, blocks, threads, shared, raw, &mut pointers)
        };
        launched.map_err(failed)
    }
}
