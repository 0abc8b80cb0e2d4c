//! libcublas: handles and general matrix products.

use std::ffi::{c_int, c_longlong, c_uint, c_void};
use std::sync::Mutex;

use half::f16;

use super::put;
use super::world::{Registry, current_device, stream_of, world};
use crate::blas::{Matrix, MatrixType, Product};
use crate::driver::{Work, lock};

const SUCCESS: u32 = 0;
const NOT_INITIALIZED: u32 = 1;
const INVALID_VALUE: u32 = 7;
const NOT_SUPPORTED: u32 = 15;

/// `cudaDataType_t` and `cublasComputeType_t`.
const R_32F: c_uint = 0;
const R_64F: c_uint = 1;
const R_16F: c_uint = 2;
const R_16BF: c_uint = 14;
const COMPUTE_32F: c_uint = 68;
const COMPUTE_64F: c_uint = 70;

struct Handle {
    stream: u64,
}

static HANDLES: Mutex<Registry<Handle>> = Mutex::new(Registry::new());

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasCreate_v2(handle: *mut u64) -> u32 {
    if current_device().is_none() {
        return NOT_INITIALIZED;
    }
    let made = lock(&HANDLES).insert(Handle { stream: 0 });
    unsafe { put(handle, made) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasDestroy_v2(handle: u64) -> u32 {
    if lock(&HANDLES).remove(handle).is_some() { SUCCESS } else { NOT_INITIALIZED }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSetStream_v2(handle: u64, stream: u64) -> u32 {
    match lock(&HANDLES).get_mut(handle) {
        Some(found) => {
            found.stream = stream;
            SUCCESS
        }
        None => NOT_INITIALIZED,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSetWorkspace_v2(handle: u64, _workspace: u64, _bytes: usize) -> u32 {
    if lock(&HANDLES).get(handle).is_some() { SUCCESS } else { NOT_INITIALIZED }
}

/// Every product is computed as the default mode promises at least: tensor cores change nothing here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSetMathMode(handle: u64, _mode: c_uint) -> u32 {
    if lock(&HANDLES).get(handle).is_some() { SUCCESS } else { NOT_INITIALIZED }
}

fn matrix_type(kind: c_uint) -> Option<MatrixType> {
    Some(match kind {
        R_32F => MatrixType::F32,
        R_64F => MatrixType::F64,
        R_16F => MatrixType::F16,
        R_16BF => MatrixType::Bf16,
        _ => return None,
    })
}

/// α and β by the type that sums are taken in (`cublasComputeType_t`); they lie in host memory.
unsafe fn scalar(pointer: *const c_void, compute: c_uint) -> Option<f64> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller gives a number of the compute type.
    Some(unsafe {
        match compute {
            64 | 65 => f64::from(pointer.cast::<f16>().read().to_f32()),
            // In order: plain, pedantic, and with inputs that may be rounded or split.
            COMPUTE_32F | 69 | 74 | 75 | 77 | 78 => f64::from(pointer.cast::<f32>().read()),
            COMPUTE_64F | 71 => pointer.cast::<f64>().read(),
            _ => return None,
        }
    })
}

/// A matrix as the C functions describe it.
struct Operand {
    address: u64,
    element: c_uint,
    stride: c_int,
    batch_stride: c_longlong,
    operation: c_uint,
    /// Rows that its columns must have room for.
    height: c_int,
}

impl Operand {
    fn matrix(&self) -> Option<Matrix> {
        let valid = self.stride >= self.height.max(1) && self.operation <= 2;
        Some(Matrix {
            address: self.address,
            element: matrix_type(self.element)?,
            stride: usize::try_from(self.stride).ok().filter(|_| valid)?,
            batch_stride: self.batch_stride,
            transposed: self.operation != 0,
        })
    }
}

fn product(
    handle: u64,
    [a, b, c]: [Operand; 3],
    extents: [c_int; 4],
    alpha: Option<f64>,
    beta: Option<f64>,
) -> u32 {
    let Some(stream) = lock(&HANDLES).get(handle).map(|found| found.stream) else { return NOT_INITIALIZED };
    let (Some(alpha), Some(beta)) = (alpha, beta) else { return NOT_SUPPORTED };
    let (Some(a), Some(b), Some(c)) = (a.matrix(), b.matrix(), c.matrix()) else { return INVALID_VALUE };
    if extents.iter().any(|extent| *extent < 0) {
        return INVALID_VALUE;
    }
    let [m, n, k, batch] = extents.map(|extent| extent as usize);
    let product = Product { a, b, c, m, n, k, alpha, beta, batch };
    let Some(stream) = stream_of(stream) else { return NOT_INITIALIZED };
    let Some(device) = world().stream_device(stream) else { return NOT_INITIALIZED };
    let task = Work::Run(Box::new(move |world| product.run(&mut world.device(device))));
    if world().enqueue(stream, task) { SUCCESS } else { NOT_INITIALIZED }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasGemmStridedBatchedEx(
    handle: u64,
    operation_a: c_uint,
    operation_b: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    a: u64,
    type_a: c_uint,
    stride_a: c_int,
    batch_a: c_longlong,
    b: u64,
    type_b: c_uint,
    stride_b: c_int,
    batch_b: c_longlong,
    beta: *const c_void,
    c: u64,
    type_c: c_uint,
    stride_c: c_int,
    batch_c: c_longlong,
    batch: c_int,
    compute: c_uint,
    _algorithm: c_int,
) -> u32 {
    let operand =
        |address, element, stride, batch_stride, operation, [plain, transposed]: [c_int; 2]| Operand {
            address,
            element,
            stride,
            batch_stride,
            operation,
            height: if operation == 0 { plain } else { transposed },
        };
    let operands = [
        operand(a, type_a, stride_a, batch_a, operation_a, [m, k]),
        operand(b, type_b, stride_b, batch_b, operation_b, [k, n]),
        operand(c, type_c, stride_c, batch_c, 0, [m, m]),
    ];
    let (alpha, beta) = unsafe { (scalar(alpha, compute), scalar(beta, compute)) };
    product(handle, operands, [m, n, k, batch], alpha, beta)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasGemmEx(
    handle: u64,
    operation_a: c_uint,
    operation_b: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    a: u64,
    type_a: c_uint,
    stride_a: c_int,
    b: u64,
    type_b: c_uint,
    stride_b: c_int,
    beta: *const c_void,
    c: u64,
    type_c: c_uint,
    stride_c: c_int,
    compute: c_uint,
    algorithm: c_int,
) -> u32 {
    unsafe {
        cublasGemmStridedBatchedEx(
            handle,
            operation_a,
            operation_b,
            m,
            n,
            k,
            alpha,
            a,
            type_a,
            stride_a,
            0,
            b,
            type_b,
            stride_b,
            0,
            beta,
            c,
            type_c,
            stride_c,
            0,
            1,
            compute,
            algorithm,
        )
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasDgemmStridedBatched(
    handle: u64,
    operation_a: c_uint,
    operation_b: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const f64,
    a: u64,
    stride_a: c_int,
    batch_a: c_longlong,
    b: u64,
    stride_b: c_int,
    batch_b: c_longlong,
    beta: *const f64,
    c: u64,
    stride_c: c_int,
    batch_c: c_longlong,
    batch: c_int,
) -> u32 {
    let (alpha, beta) = (alpha.cast(), beta.cast());
    unsafe {
        cublasGemmStridedBatchedEx(
            handle,
            operation_a,
            operation_b,
            m,
            n,
            k,
            alpha,
            a,
            R_64F,
            stride_a,
            batch_a,
            b,
            R_64F,
            stride_b,
            batch_b,
            beta,
            c,
            R_64F,
            stride_c,
            batch_c,
            batch,
            COMPUTE_64F,
            0,
        )
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSgemmStridedBatched(
    handle: u64,
    operation_a: c_uint,
    operation_b: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const f32,
    a: u64,
    stride_a: c_int,
    batch_a: c_longlong,
    b: u64,
    stride_b: c_int,
    batch_b: c_longlong,
    beta: *const f32,
    c: u64,
    stride_c: c_int,
    batch_c: c_longlong,
    batch: c_int,
) -> u32 {
    let (alpha, beta) = (alpha.cast(), beta.cast());
    unsafe {
        cublasGemmStridedBatchedEx(
            handle,
            operation_a,
            operation_b,
            m,
            n,
            k,
            alpha,
            a,
            R_32F,
            stride_a,
            batch_a,
            b,
            R_32F,
            stride_b,
            batch_b,
            beta,
            c,
            R_32F,
            stride_c,
            batch_c,
            batch,
            COMPUTE_32F,
            0,
        )
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSgemm_v2(
    handle: u64,
    operation_a: c_uint,
    operation_b: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const f32,
    a: u64,
    stride_a: c_int,
    b: u64,
    stride_b: c_int,
    beta: *const f32,
    c: u64,
    stride_c: c_int,
) -> u32 {
    unsafe {
        cublasSgemmStridedBatched(
            handle,
            operation_a,
            operation_b,
            m,
            n,
            k,
            alpha,
            a,
            stride_a,
            0,
            b,
            stride_b,
            0,
            beta,
            c,
            stride_c,
            0,
            1,
        )
    }
}
