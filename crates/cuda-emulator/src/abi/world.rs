//! What lies behind the handles: the one world of the process and its registries.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::{Arc, LazyLock, Mutex};

use crate::driver::{Event, Failure, Settings, World, lock};
use crate::emulator::Function;
use crate::{EmulatorError, Module};

/// Results of the driver's functions (`CUresult`).
pub(super) const SUCCESS: u32 = 0;
pub(super) const INVALID_VALUE: u32 = 1;
pub(super) const OUT_OF_MEMORY: u32 = 2;
pub(super) const NO_DEVICE: u32 = 100;
pub(super) const INVALID_DEVICE: u32 = 101;
pub(super) const INVALID_IMAGE: u32 = 200;
pub(super) const INVALID_CONTEXT: u32 = 201;
pub(super) const INVALID_PTX: u32 = 218;
pub(super) const UNCORRECTABLE_ECC: u32 = 214;
pub(super) const INVALID_HANDLE: u32 = 400;
pub(super) const NOT_FOUND: u32 = 500;
pub(super) const NOT_READY: u32 = 600;
pub(super) const LAUNCH_TIMEOUT: u32 = 702;
pub(super) const LAUNCH_FAILED: u32 = 719;
pub(super) const NOT_SUPPORTED: u32 = 801;

/// A module as loaded on a device.
pub(super) struct Loaded {
    pub device: usize,
    pub module: Arc<Module>,
}

/// Objects by handle. Handles grow and are not used twice.
pub(super) struct Registry<T> {
    next: u64,
    objects: BTreeMap<u64, T>,
}

impl<T> Registry<T> {
    pub const fn new() -> Self {
        // A number that no allocation, stream or small constant has.
        Self { next: 0x5000_0000_0001, objects: BTreeMap::new() }
    }

    pub fn insert(&mut self, object: T) -> u64 {
        let handle = self.next;
        self.next += 1;
        self.objects.insert(handle, object);
        handle
    }

    pub fn get(&self, handle: u64) -> Option<&T> {
        self.objects.get(&handle)
    }

    pub fn get_mut(&mut self, handle: u64) -> Option<&mut T> {
        self.objects.get_mut(&handle)
    }

    pub fn remove(&mut self, handle: u64) -> Option<T> {
        self.objects.remove(&handle)
    }
}

pub(super) static MODULES: Mutex<Registry<Loaded>> = Mutex::new(Registry::new());
/// With the device that each belongs to.
pub(super) static FUNCTIONS: Mutex<Registry<(usize, Function)>> = Mutex::new(Registry::new());
pub(super) static EVENTS: Mutex<Registry<Arc<Event>>> = Mutex::new(Registry::new());
/// Pinned ranges of host memory by their address.
pub(super) static PINNED: Mutex<BTreeMap<usize, Pinned>> = Mutex::new(BTreeMap::new());

/// A pinned range of host memory.
pub(super) struct Pinned {
    pub bytes: usize,
    /// Whether devices may read and write it by themselves.
    pub mappable: bool,
    /// The device that has it, and its address there.
    pub mapped: Option<(usize, u64)>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let (settings, problems) = Settings::read(|name| std::env::var(format!("TESSERA_EMULATOR_{name}")).ok());
    for problem in problems {
        eprintln!("cuda-emulator: {problem}");
    }
    if settings.report.is_some() {
        // SAFETY: atexit only keeps the function's address.
        unsafe { atexit(write_report) };
    }
    World::new(settings)
});

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> c_int;
}

extern "C" fn write_report() {
    if let Some(path) = &world().settings.report
        && let Err(error) = std::fs::write(path, world().summary())
    {
        eprintln!("cuda-emulator: {path}: {error}");
    }
}

pub(super) fn world() -> &'static World {
    &WORLD
}

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The device of the thread's context.
pub(super) fn current_device() -> Option<usize> {
    CURRENT.get()
}

pub(super) fn set_current_device(device: Option<usize>) {
    CURRENT.set(device);
}

/// The stream that a handle means in this thread: the small ones are CUDA's names for the default stream.
pub(super) fn stream_of(handle: u64) -> Option<u64> {
    match handle {
        0..=2 => current_device().map(|device| world().default_stream(device)),
        _ => world().stream_device(handle).map(|_| handle),
    }
}

/// The driver's code for a device's failure.
pub(super) fn failure_code(failure: Failure) -> u32 {
    match failure {
        Failure::Launch => LAUNCH_FAILED,
        Failure::Timeout => LAUNCH_TIMEOUT,
        Failure::Lost => UNCORRECTABLE_ECC,
    }
}

pub(super) fn code(result: Result<(), Failure>) -> u32 {
    result.map_or_else(failure_code, |()| SUCCESS)
}

/// Says what is wrong and gives the driver's code for it.
pub(super) fn error_code(error: &EmulatorError) -> u32 {
    eprintln!("cuda-emulator: {error}");
    match error {
        EmulatorError::OutOfMemory { .. } => OUT_OF_MEMORY,
        EmulatorError::Syntax { .. } | EmulatorError::Operand { .. } | EmulatorError::UnknownName { .. } => {
            INVALID_PTX
        }
        EmulatorError::UnknownKernel { .. } => NOT_FOUND,
        EmulatorError::Unsupported { .. } => NOT_SUPPORTED,
        EmulatorError::Launch { .. } | EmulatorError::Copy { .. } | EmulatorError::Collective { .. } => {
            INVALID_VALUE
        }
        EmulatorError::Fault { .. } | EmulatorError::Hazards { .. } => LAUNCH_FAILED,
        EmulatorError::DeviceLost { .. } => UNCORRECTABLE_ECC,
    }
}

/// A context's handle is its device's number, from 1.
pub(super) fn context_device(context: u64) -> Option<usize> {
    let index = usize::try_from(context.checked_sub(1)?).ok()?;
    (index < world().device_count()).then_some(index)
}

/// The event of a handle.
pub(super) fn event_of(handle: u64) -> Option<Arc<Event>> {
    lock(&EVENTS).get(handle).cloned()
}

/// Called by every function that is absent.
pub(super) fn report_absent(name: &str) {
    eprintln!("cuda-emulator: {name} was called, which the emulator does not have");
    if world().settings.strict {
        std::process::abort();
    }
}
