//! libcuda: modules, functions, launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use super::cuda_context::stuck;
use super::fat_binary;
use super::put;
use super::world::{
    FUNCTIONS, INVALID_CONTEXT, INVALID_HANDLE, INVALID_IMAGE, INVALID_VALUE, Loaded, MODULES, NOT_FOUND,
    SUCCESS, code, current_device, error_code, failure_code, stream_of, world,
};
use crate::driver::lock;
use crate::machine::DEFAULT_SHARED;

/// `CUfunction_attribute`s.
const MAX_THREADS_PER_BLOCK: c_uint = 0;
const SHARED_SIZE_BYTES: c_uint = 1;
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_uint = 8;
const PREFERRED_SHARED_MEMORY_CARVEOUT: c_uint = 9;

fn load(module: *mut u64, text: &str) -> u32 {
    let Some(device) = current_device() else { return INVALID_CONTEXT };
    let loaded = world().device(device).load_module(text);
    match loaded {
        Ok(parsed) => {
            let handle = lock(&MODULES).insert(Loaded { device, module: Arc::new(parsed) });
            unsafe { put(module, handle) };
            SUCCESS
        }
        Err(error) => error_code(&error),
    }
}

/// PTX, as text or in a fat binary; machine code cannot be emulated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut u64, image: *const c_void) -> u32 {
    if image.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives a whole image: text that ends with a zero, a fat binary as long as its header says, or machine
    // code, of which only the first bytes are read. None is shorter than four bytes.
    let text = unsafe {
        let image = image.cast::<u8>();
        match image.cast::<[u8; 4]>().read_unaligned() {
            fat_binary::MAGIC => {
                let header = image.cast::<[u8; fat_binary::HEADER]>().read_unaligned();
                fat_binary::ptx(std::slice::from_raw_parts(image, fat_binary::size(&header)))
            }
            [0x7f, b'E', b'L', b'F'] => None,
            _ => CStr::from_ptr(image.cast()).to_str().ok(),
        }
    };
    text.map_or_else(
        || {
            eprintln!(
                "cuda-emulator: the module has no PTX: compile it with nvcc --ptx, or --fatbin --no-compress"
            );
            INVALID_IMAGE
        },
        |text| load(module, text),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut u64,
    image: *const c_void,
    _count: c_uint,
    _options: *mut c_uint,
    _values: *mut *mut c_void,
) -> u32 {
    unsafe { cuModuleLoadData(module, image) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoad(module: *mut u64, path: *const c_char) -> u32 {
    if path.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives a string that ends with a zero.
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy();
    match std::fs::read_to_string(&*path) {
        Ok(text) => load(module, &text),
        Err(error) => {
            eprintln!("cuda-emulator: {path}: {error}");
            NOT_FOUND
        }
    }
}

/// Its functions stay usable by launches that are queued; its variables are freed when those have run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: u64) -> u32 {
    let Some(loaded) = lock(&MODULES).remove(module) else { return INVALID_HANDLE };
    let waited = code(world().synchronise_device(loaded.device));
    let unloaded = world().device(loaded.device).unload_module(&loaded.module);
    unloaded.map_or_else(|error| error_code(&error), |()| waited)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) -> u32 {
    if name.is_null() {
        return INVALID_VALUE;
    }
    let Some((device, module)) =
        lock(&MODULES).get(module).map(|found| (found.device, Arc::clone(&found.module)))
    else {
        return INVALID_HANDLE;
    };
    // SAFETY: the caller gives a string that ends with a zero.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    match module.function(&name) {
        Ok(found) => {
            let handle = lock(&FUNCTIONS).insert((device, found.with_shared_limit(DEFAULT_SHARED)));
            unsafe { put(function, handle) };
            SUCCESS
        }
        Err(error) => error_code(&error),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: u64,
    name: *const c_char,
) -> u32 {
    if name.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives a string that ends with a zero.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let modules = lock(&MODULES);
    let Some(loaded) = modules.get(module) else { return INVALID_HANDLE };
    let Some((place, size)) = loaded.module.variable(&name) else { return NOT_FOUND };
    unsafe {
        put(address, place.0);
        put(bytes, size as usize);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: u64, attribute: c_uint, value: c_int) -> u32 {
    let mut functions = lock(&FUNCTIONS);
    let Some((_, found)) = functions.get_mut(function) else { return INVALID_HANDLE };
    match (attribute, u64::try_from(value)) {
        (MAX_DYNAMIC_SHARED_SIZE_BYTES, Ok(bytes)) if bytes <= 227 << 10 => {
            let limit = bytes + found.static_shared_bytes();
            *found = found.clone().with_shared_limit(limit);
            SUCCESS
        }
        (PREFERRED_SHARED_MEMORY_CARVEOUT, _) => SUCCESS,
        _ => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: u64) -> u32 {
    let functions = lock(&FUNCTIONS);
    let Some((_, found)) = functions.get(function) else { return INVALID_HANDLE };
    let result = match attribute {
        MAX_THREADS_PER_BLOCK => 1024,
        SHARED_SIZE_BYTES => found.static_shared_bytes() as c_int,
        _ => return INVALID_VALUE,
    };
    unsafe { put(value, result) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetCacheConfig(function: u64, _preference: c_uint) -> u32 {
    if lock(&FUNCTIONS).get(function).is_some() { SUCCESS } else { INVALID_HANDLE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: u64,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: u64,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    if let Some(failure) = stuck() {
        return failure_code(failure);
    }
    let found = lock(&FUNCTIONS).get(function).map(|(device, function)| (*device, function.clone()));
    let (Some((device, function)), Some(stream)) = (found, stream_of(stream)) else { return INVALID_HANDLE };
    if !extra.is_null() || world().stream_device(stream) != Some(device) {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives one pointer for each parameter, to as many bytes as the parameter has.
    let bytes = function.collect_parameters(|index, size| unsafe {
        std::slice::from_raw_parts((*parameters.add(index)).cast::<u8>(), size).to_vec()
    });
    let extents = [[grid_x, grid_y, grid_z], [block_x, block_y, block_z]];
    if let Err(error) = function.check_launch(extents, shared_bytes) {
        return error_code(&error);
    }
    if world().launch(stream, function, extents, shared_bytes, bytes) { SUCCESS } else { INVALID_HANDLE }
}
