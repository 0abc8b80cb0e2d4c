//! Matrix products by cuBLAS, in row-major terms.
//!
//! cuBLAS has columns first. A row-major matrix is its own transpose there, so C = A·B is asked for as Cᵀ = Bᵀ·Aᵀ. Inputs
//! are bf16 or fp32, sums are fp32, and fp32 inputs are not rounded to TF32: that is cuBLAS's own default.

use std::ffi::c_void;
use std::sync::PoisonError;

use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasMath_t, cublasOperation_t,
    cublasSetMathMode, cublasSetWorkspace_v2, cudaDataType,
};

use super::gpu::Work;
use super::memory::DeviceMemory;
use super::stream::{Stream, WORKSPACE_BYTES};
use crate::buffer::{View, ViewMut};
use crate::dtype::DType;
use crate::error::OpError;

/// cuBLAS's own state for one stream. With a workspace that nobody else uses, its results have the same bits every time.
pub(super) struct Blas {
    handle: cublasHandle_t,
    _workspace: DeviceMemory,
}

// SAFETY: cuBLAS lets any thread use a handle, one at a time; a stream's handle is behind a lock.
#[allow(unsafe_code)]
unsafe impl Send for Blas {}

impl Blas {
    pub fn new(stream: &Stream) -> Result<Self, OpError> {
        stream.bind()?;
        let workspace = DeviceMemory::zeroed(stream.gpu(), WORKSPACE_BYTES)?;
        let failed = |error| failed(stream, "making a cuBLAS handle", error);
        let handle = result::create_handle().map_err(failed)?;
        let blas = Self { handle, _workspace: workspace };
        // SAFETY: handle, stream and workspace live until this value is dropped. cudarc's two modules have types of their
        // own for one and the same stream.
        #[allow(unsafe_code)]
        unsafe {
            result::set_stream(handle, stream.raw().cu_stream().cast()).map_err(failed)?;
            let address = blas._workspace.bytes().address() as *mut c_void;
            cublasSetWorkspace_v2(handle, address, WORKSPACE_BYTES).result().map_err(failed)?;
            // A product that is split along its inner dimension must not add its parts in bf16.
            let mode = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            cublasSetMathMode(handle, mode).result().map_err(failed)?;
        }
        Ok(blas)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle was made by `new` and is destroyed once.
        #[allow(unsafe_code)]
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(stream: &Stream, doing: &'static str, error: CublasError) -> OpError {
    OpError::Cuda { ordinal: stream.gpu().ordinal(), doing, message: format!("{:?}", error.0) }
}

/// A factor of a product: a contiguous matrix of full rows, or the transpose of one.
pub(crate) struct Operand<'a> {
    pub view: View<'a>,
    pub transposed: bool,
}

/// C = A·B, or C += A·B, for A `[rows, inner]`, B `[inner, columns]`, after transposition.
pub(crate) struct Product<'a> {
    pub operator: &'static str,
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
    pub a: Operand<'a>,
    pub b: Operand<'a>,
    pub adds: bool,
}

impl Stream {
    /// Queues a product whose extents are those of its matrices.
    pub(crate) fn product(&self, product: Product<'_>, c: &mut ViewMut<'_>) -> Result<(), OpError> {
        let Product { operator, rows, columns, inner, a, b, adds } = product;
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        if inner == 0 {
            return if adds { Ok(()) } else { self.zero(operator, c) };
        }
        let kind = |argument, dtype| {
            self.variant(operator, argument, dtype)?;
            Ok(if dtype == DType::BF16 { cudaDataType::CUDA_R_16BF } else { cudaDataType::CUDA_R_32F })
        };
        let (a_kind, b_kind) = (kind("a", a.view.dtype())?, kind("b", b.view.dtype())?);
        let c_kind = kind("c", c.dtype())?;
        if a_kind != b_kind {
            let (found, expected) = (b.view.dtype(), a.view.dtype().name());
            return Err(OpError::DType { operator, argument: "b", found, expected });
        }
        let pointer = |argument, view| self.address(operator, argument, view).map(|at| at as *mut c_void);
        let (a_at, b_at, c_at) = (pointer("a", a.view)?, pointer("b", b.view)?, pointer("c", c.as_view())?);
        let extent = |value: usize| i32::try_from(value).map_err(|_| OpError::Extent { operator, value });
        let (m, n, k) = (extent(columns)?, extent(rows)?, extent(inner)?);
        // The distance of rows, as they lie.
        let (a_stride, b_stride) = (if a.transposed { n } else { k }, if b.transposed { k } else { m });
        let way = |operand: &Operand<'_>| match operand.transposed {
            false => cublasOperation_t::CUBLAS_OP_N,
            true => cublasOperation_t::CUBLAS_OP_T,
        };
        let (alpha, beta) = (1.0_f32, if adds { 1.0_f32 } else { 0.0 });
        let blas = self.blas()?.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = blas.handle;
        self.bind()?;
        self.gpu().count(Work::Product);
        // SAFETY: the pointers lie on this GPU, in matrices of these extents, as the operator has checked; the factors are
        // read before the call returns.
        #[allow(unsafe_code)]
        let queued = unsafe {
            result::gemm_ex(
                handle,
                way(&b),
                way(&a),
                m,
                n,
                k,
                std::ptr::from_ref(&alpha).cast(),
                b_at,
                b_kind,
                b_stride,
                a_at,
                a_kind,
                a_stride,
                std::ptr::from_ref(&beta).cast(),
                c_at,
                c_kind,
                m,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        queued.map_err(|error| failed(self, "a matrix product", error))
    }
}
