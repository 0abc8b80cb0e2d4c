//! One GPU: its context, what is to be known of it, and the kernels that were loaded to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::sys::CUresult::{
    CUDA_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_NO_DEVICE, CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::kernels::{FILES, toolkit};
use crate::error::OpError;

/// The lowest compute capability that the kernels are written for: bf16 on tensor cores and asynchronous copies.
const LOWEST_CAPABILITY: (i32, i32) = (8, 0);

/// Bytes of dynamic shared memory that a kernel may have without asking for more.
const SHARED_BYTES_UNASKED: usize = 48 << 10;

/// A GPU that is open in this process.
pub struct Gpu {
    context: Arc<CudaContext>,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<String, Arc<Function>>>,
    /// Of each [`Work`], how often it was queued.
    work: [AtomicU64; Work::ALL.len()],
}

/// What streams are given to do besides launches of kernels.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Product,
    Copy,
    Fill,
}

impl Work {
    const ALL: [(Self, &str); 3] = [(Self::Product, "product"), (Self::Copy, "copy"), (Self::Fill, "fill")];
}

/// A kernel, ready to launch.
pub(super) struct Function {
    pub function: CudaFunction,
    pub launches: AtomicU64,
    /// The most dynamic shared memory that was asked for.
    shared: Mutex<usize>,
}

impl Function {
    /// Sees to it that a launch may have `bytes` of dynamic shared memory.
    pub fn allow_shared(&self, bytes: usize) -> Result<(), DriverError> {
        if bytes <= SHARED_BYTES_UNASKED {
            return Ok(());
        }
        let mut allowed = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > *allowed {
            // More than an i32 no GPU has; CUDA refuses what this one has not.
            let value = i32::try_from(bytes).unwrap_or(i32::MAX);
            self.function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, value)?;
            *allowed = bytes;
        }
        Ok(())
    }
}

/// The GPUs of this machine that this build can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// None, and why: the build has no kernels, or the machine no driver or no GPU.
    None(String),
    /// So many.
    Some(usize),
}

/// Looks for GPUs, once for a process.
///
/// # Errors
/// When there are some, but what is needed to use them is missing, too old or broken.
pub fn find() -> Result<Found, OpError> {
    static FOUND: OnceLock<Result<Found, String>> = OnceLock::new();
    FOUND.get_or_init(look).clone().map_err(OpError::NoCuda)
}

/// The number of GPUs in this machine.
///
/// # Errors
/// When there is none that can be used.
pub fn count() -> Result<usize, OpError> {
    match find()? {
        Found::Some(count) => Ok(count),
        Found::None(reason) => Err(OpError::NoCuda(reason)),
    }
}

fn look() -> Result<Found, String> {
    let none = |reason: &str| Ok(Found::None(reason.to_owned()));
    if FILES.is_empty() {
        return none(
            "this build of tessera has no CUDA kernels: build it with --features cuda, which needs nvcc",
        );
    }
    // SAFETY: loading runs the initialisers of NVIDIA's libraries, which this process is about to use.
    #[allow(unsafe_code)]
    let [driver, cublas] = unsafe { [sys::is_culib_present(), cudarc::cublas::sys::is_culib_present()] };
    if !driver {
        return none("found no libcuda: install NVIDIA's driver");
    }
    match result::init().and_then(|()| result::device::get_count()) {
        Ok(0) | Err(DriverError(CUDA_ERROR_NO_DEVICE)) => none("the CUDA driver finds no GPU"),
        Err(error) => Err(format!("the CUDA driver does not start: {}", text(error))),
        Ok(count) => {
            check_driver()?;
            if !cublas {
                let remedy = "install cuBLAS of CUDA 12 or 13, add the folder that has it to LD_LIBRARY_PATH";
                return Err(format!("there are GPUs, but no libcublas: {remedy}, or set devices: cpu"));
            }
            Ok(Found::Some(usize::try_from(count).unwrap_or(0)))
        }
    }
}

/// Fails unless the driver is of the major version of the toolkit that compiled the kernels, or newer. That is enough for the
/// machine code that they hold; for a newer GPU, whose code the driver must make, [`Gpu::open`] asks the driver itself.
fn check_driver() -> Result<(), String> {
    let driver =
        driver().map_err(|error| format!("the CUDA driver does not tell its version: {}", text(error)))?;
    match toolkit() {
        Some(toolkit) if driver.0 < toolkit.0 => Err(too_old(driver, toolkit)),
        _ => Ok(()),
    }
}

/// The version of CUDA that the driver is made for, major and minor; `None` where it does not tell.
pub fn driver_version() -> Option<(i32, i32)> {
    count().ok()?;
    driver().ok()
}

fn driver() -> Result<(i32, i32), DriverError> {
    let mut version = 0;
    // SAFETY: the driver was loaded, and writes one number.
    #[allow(unsafe_code)]
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok((version / 1000, version % 1000 / 10))
}

fn too_old(driver: (i32, i32), toolkit: (i32, i32)) -> String {
    format!(
        "the CUDA driver is of CUDA {}.{}, the kernels were compiled by that of CUDA {}.{}: install a newer driver, build \
         tessera with an older toolkit, or set devices: cpu",
        driver.0, driver.1, toolkit.0, toolkit.1
    )
}

/// What the driver says of an error.
pub(super) fn text(error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let explained = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match (name, explained) {
        (Ok(name), Ok(explained)) => format!("{explained} ({name})"),
        _ => format!("{:?}", error.0),
    }
}

/// Bytes of a GPU's memory.
///
/// # Errors
/// Where [`count`] fails, or there is no such GPU.
pub fn total_memory(ordinal: usize) -> Result<usize, OpError> {
    // SAFETY: the device was got from the driver.
    #[allow(unsafe_code)]
    ask(ordinal, "asking for its memory", |device| unsafe { result::device::total_mem(device) })
}

/// What NVIDIA calls a GPU.
///
/// # Errors
/// Where [`count`] fails, or there is no such GPU.
pub fn name(ordinal: usize) -> Result<String, OpError> {
    ask(ordinal, "asking for its name", result::device::get_name)
}

/// Asks the driver about a GPU that need not be open.
fn ask<T>(
    ordinal: usize,
    doing: &'static str,
    question: impl FnOnce(sys::CUdevice) -> Result<T, DriverError>,
) -> Result<T, OpError> {
    count()?;
    let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX));
    let failed = |error: DriverError| OpError::Cuda { ordinal, doing, message: text(error) };
    device.and_then(question).map_err(failed)
}

impl Gpu {
    /// Opens a GPU of this machine, counted from 0.
    ///
    /// # Errors
    /// Where [`count`] fails, when there is no such GPU, or one that is too old.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, OpError> {
        let found = count()?;
        if ordinal >= found {
            let text = format!("there is no CUDA device {ordinal}: the driver finds {found}, counted from 0");
            return Err(OpError::NoCuda(text));
        }
        let failed =
            |error: DriverError| OpError::Cuda { ordinal, doing: "opening it", message: text(error) };
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // Waiting for the GPU must not take a core from whoever prepares data.
        context.set_blocking_synchronize().map_err(failed)?;
        let name = context.name().map_err(failed)?;
        let capability = context.compute_capability().map_err(failed)?;
        if capability < LOWEST_CAPABILITY {
            let ((major, minor), (lowest_major, lowest_minor)) = (capability, LOWEST_CAPABILITY);
            return Err(OpError::NoCuda(format!(
                "CUDA device {ordinal}, {name}, has compute capability {major}.{minor}: \
                 {lowest_major}.{lowest_minor} is needed (A100 or newer)"
            )));
        }
        let count = Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(count).map_err(failed)?;
        let gpu = Self {
            name,
            capability,
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(1).max(1),
            context,
            modules: Mutex::default(),
            functions: Mutex::default(),
            work: Default::default(),
        };
        // One file of kernels is as good as all to see whether the driver takes them.
        gpu.module("step")?;
        Ok(Arc::new(gpu))
    }

    /// Its number in this machine.
    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// What NVIDIA calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Bytes of its memory that are free, and all.
    ///
    /// # Errors
    /// When CUDA fails.
    pub fn memory(&self) -> Result<(usize, usize), OpError> {
        self.context.mem_get_info().map_err(|error| self.failed("asking for its memory", error))
    }

    pub(crate) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// The driver's context, for libraries that this crate does not know.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(crate) fn failed(&self, doing: &'static str, error: DriverError) -> OpError {
        OpError::Cuda { ordinal: self.ordinal(), doing, message: text(error) }
    }

    /// How often each kernel was launched since the GPU was opened, and how often cuBLAS was asked for a `product` and the
    /// driver for a `copy` or a `fill`. Each has its price, however little it does; what never came is left out.
    pub fn issued(&self) -> BTreeMap<String, u64> {
        let functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let launches = functions.iter().map(|(name, function)| (name.clone(), &function.launches));
        let work = Work::ALL.iter().map(|&(work, name)| (name.to_owned(), &self.work[work as usize]));
        let counts = launches.chain(work).map(|(name, count)| (name, count.load(Ordering::Relaxed)));
        counts.filter(|&(_, count)| count > 0).collect()
    }

    /// Notes that a stream was given something to do.
    pub(super) fn count(&self, work: Work) {
        self.work[work as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The kernel `name` of `file`, which is loaded when first asked for.
    pub(super) fn function(&self, file: &'static str, name: &str) -> Result<Arc<Function>, OpError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let failed = |error| self.failed("loading a kernel", error);
        let function = self.module(file)?.load_function(name).map_err(failed)?;
        let function = Arc::new(Function { function, launches: AtomicU64::new(0), shared: Mutex::new(0) });
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    fn module(&self, file: &'static str) -> Result<Arc<CudaModule>, OpError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(file) {
            return Ok(module.clone());
        }
        let known = FILES.iter().find(|(name, _)| *name == file);
        let (_, code) =
            known.ok_or_else(|| OpError::NoCuda(format!("this build has no kernels of the file {file}")))?;
        let module = self.context.load_module(Ptx::from_binary(code.to_vec()));
        let module = module.map_err(|error| match (error.0, driver(), toolkit()) {
            (
                CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
                Ok(driver),
                Some(toolkit),
            ) if driver < toolkit => OpError::NoCuda(format!(
                "CUDA device {}, {}: {}",
                self.ordinal(),
                self.name,
                too_old(driver, toolkit)
            )),
            _ => self.failed("loading kernels", error),
        })?;
        modules.insert(file, module.clone());
        Ok(module)
    }
}
