//! libcuda: initialisation, devices, contexts, error texts.

use std::ffi::{c_char, c_int, c_uint};

use super::put;
use super::world::{
    INVALID_CONTEXT, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, NO_DEVICE, SUCCESS, code, context_device,
    current_device, set_current_device, world,
};
use crate::driver::Failure;

/// Bytes of `CUuuid`.
const UUID: usize = 16;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(_flags: c_uint) -> u32 {
    if world().device_count() == 0 { NO_DEVICE } else { SUCCESS }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    unsafe { put(version, world().settings.driver as c_int) };
    SUCCESS
}

fn device_index(device: c_int) -> Option<usize> {
    usize::try_from(device).ok().filter(|index| *index < world().device_count())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    unsafe { put(count, world().device_count() as c_int) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32 {
    if device_index(ordinal).is_none() {
        return INVALID_DEVICE;
    }
    unsafe { put(device, ordinal) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> u32 {
    if device_index(device).is_none() || length < 1 || name.is_null() {
        return INVALID_DEVICE;
    }
    let text = b"Tessera CUDA emulator";
    let count = text.len().min(length as usize - 1);
    for (at, byte) in text[..count].iter().chain([&0]).enumerate() {
        // SAFETY: the caller gives `length` bytes, and at most count + 1 of them are written.
        unsafe { name.add(at).write(*byte as c_char) };
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; UUID], device: c_int) -> u32 {
    let Some(index) = device_index(device) else { return INVALID_DEVICE };
    let mut bytes = *b"tessera-emulator";
    bytes[UUID - 1] = index as u8;
    unsafe { put(uuid, bytes) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; UUID], device: c_int) -> u32 {
    unsafe { cuDeviceGetUuid(uuid, device) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> u32 {
    if device_index(device).is_none() {
        return INVALID_DEVICE;
    }
    unsafe { put(bytes, world().settings.memory as usize) };
    SUCCESS
}

/// Those of an A100, on which sm_80 code runs, where they matter; with another compute capability what that needs.
fn attribute(number: c_uint) -> Option<c_int> {
    let capability = world().settings.capability as c_int;
    Some(match number {
        1 => 1024,             // threads of a block
        2 | 3 => 1024,         // its extents in x, y
        4 => 64,               // and z
        5 => c_int::MAX,       // a grid's extents in x
        6 | 7 => 65535,        // and y, z
        8 => 48 << 10,         // shared memory of a block
        9 => 64 << 10,         // constant memory
        10 => 32,              // threads of a warp
        12 | 82 => 65536,      // registers of a block, of a multiprocessor
        13 | 36 => 1_410_000,  // clocks in kHz
        16 => 108,             // multiprocessors
        31 | 40 | 41 => 1,     // concurrent kernels, copy engines, unified addresses
        37 => 5120,            // bits of the memory bus
        38 => 40 << 20,        // L2
        39 => 2048,            // threads of a multiprocessor
        75 => capability / 10, // compute capability
        76 => capability % 10, // its minor
        // Shared memory of a multiprocessor, of a block that asked.
        81 | 97 => {
            if capability < 90 {
                163 << 10
            } else {
                227 << 10
            }
        }
        115 => 1, // memory pools
        11 | 14 | 15 | 17..=30 | 32..=35 | 42..=74 | 77..=80 | 83..=96 | 98..=114 | 116..=160 => 0,
        _ => return None,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, number: c_uint, device: c_int) -> u32 {
    let (Some(_), Some(found)) = (device_index(device), attribute(number)) else { return INVALID_VALUE };
    unsafe { put(value, found) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) -> u32 {
    if device_index(device).is_none() || device_index(peer).is_none() {
        return INVALID_DEVICE;
    }
    unsafe { put(can, 0) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) -> u32 {
    let Some(index) = device_index(device) else { return INVALID_DEVICE };
    unsafe { put(context, index as u64 + 1) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32 {
    if device_index(device).is_some() { SUCCESS } else { INVALID_DEVICE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxDestroy_v2(context: u64) -> u32 {
    if context_device(context).is_some() { SUCCESS } else { INVALID_CONTEXT }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut u64) -> u32 {
    unsafe { put(context, current_device().map_or(0, |device| device as u64 + 1)) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: u64) -> u32 {
    let device = context_device(context);
    if device.is_none() && context != 0 {
        return INVALID_CONTEXT;
    }
    set_current_device(device);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(device: *mut c_int) -> u32 {
    let Some(index) = current_device() else { return INVALID_CONTEXT };
    unsafe { put(device, index as c_int) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> u32 {
    let Some(device) = current_device() else { return INVALID_CONTEXT };
    code(world().synchronise_device(device))
}

/// How the host waits does not matter here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetFlags(_flags: c_uint) -> u32 {
    if current_device().is_some() { SUCCESS } else { INVALID_CONTEXT }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> u32 {
    unsafe {
        put(least, 0);
        put(greatest, -5);
    }
    SUCCESS
}

/// Name and meaning of a result.
fn texts(result: u32) -> Option<(&'static std::ffi::CStr, &'static std::ffi::CStr)> {
    Some(match result {
        SUCCESS => (c"CUDA_SUCCESS", c"no error"),
        INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        super::world::OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        NO_DEVICE => (c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
        INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        super::world::INVALID_IMAGE => {
            (c"CUDA_ERROR_INVALID_IMAGE", c"device kernel image is invalid: not PTX")
        }
        INVALID_CONTEXT => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        super::world::UNCORRECTABLE_ECC => {
            (c"CUDA_ERROR_ECC_UNCORRECTABLE", c"uncorrectable ECC error encountered")
        }
        super::world::INVALID_PTX => (c"CUDA_ERROR_INVALID_PTX", c"the PTX is invalid"),
        INVALID_HANDLE => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        super::world::NOT_FOUND => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        super::world::NOT_READY => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        super::world::LAUNCH_TIMEOUT => {
            (c"CUDA_ERROR_LAUNCH_TIMEOUT", c"nothing has moved within the deadline: see standard error")
        }
        super::world::LAUNCH_FAILED => {
            (c"CUDA_ERROR_LAUNCH_FAILED", c"the emulator found a fault: see standard error")
        }
        super::world::NOT_SUPPORTED => (c"CUDA_ERROR_NOT_SUPPORTED", c"the emulator does not have this"),
        _ => return None,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(result: u32, text: *mut *const c_char) -> u32 {
    let Some((_, meaning)) = texts(result) else { return INVALID_VALUE };
    unsafe { put(text, meaning.as_ptr()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(result: u32, text: *mut *const c_char) -> u32 {
    let Some((name, _)) = texts(result) else { return INVALID_VALUE };
    unsafe { put(text, name.as_ptr()) };
    SUCCESS
}

/// The error that the current device got stuck with.
pub(super) fn stuck() -> Option<Failure> {
    current_device().and_then(|device| world().failure(device))
}
