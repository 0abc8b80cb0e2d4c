//! libcuda: device memory, pinned host memory, copies and fills.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{c_uchar, c_uint, c_ushort, c_void};

use super::cuda_context::stuck;
use super::world::{
    INVALID_CONTEXT, INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, PINNED, Pinned, SUCCESS,
    code, current_device, error_code, failure_code, report_absent, stream_of, world,
};
use super::{HostPointer, put};
use crate::driver::{Task, Work, lock};
use crate::machine::memory::{HostBytes, device_of};
use crate::{DevicePointer, EmulatorError};

/// Pages, as pinned memory has.
const PAGE: usize = 4096;

/// Queues a task; the stuck device's error comes before that.
fn enqueue(stream: u64, task: Task) -> u32 {
    if let Some(failure) = stuck() {
        return failure_code(failure);
    }
    match stream_of(stream) {
        Some(stream) if world().enqueue(stream, Work::Run(task)) => SUCCESS,
        _ => INVALID_HANDLE,
    }
}

fn synchronise(stream: u64) -> u32 {
    stream_of(stream).map_or(INVALID_HANDLE, |stream| code(world().synchronise_stream(stream)))
}

fn owner(address: u64) -> Option<usize> {
    device_of(address).filter(|device| *device < world().device_count())
}

fn no_owner(what: &'static str, address: u64, bytes: usize) -> EmulatorError {
    let problem = "no device has this address".to_owned();
    EmulatorError::Copy { what, bytes: bytes as u64, address, problem }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) -> u32 {
    let Some(device) = current_device() else { return INVALID_CONTEXT };
    if bytes == 0 {
        return INVALID_VALUE;
    }
    match world().allocate(device, bytes as u64) {
        Ok(address) => {
            unsafe { put(pointer, address) };
            SUCCESS
        }
        Err(error) => error_code(&error),
    }
}

/// The address is good at once; that the memory may be used only after this point of the stream is not watched.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(pointer: *mut u64, bytes: usize, _stream: u64) -> u32 {
    unsafe { cuMemAlloc_v2(pointer, bytes) }
}

/// Waits for the device, as the real function does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    let Some(device) = owner(address) else { return INVALID_VALUE };
    let waited = code(world().synchronise_device(device));
    match world().device(device).free(DevicePointer(address)) {
        Ok(()) => waited,
        Err(error) => error_code(&error),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: u64) -> u32 {
    let Some(device) = owner(address) else { return INVALID_VALUE };
    let code = enqueue(stream, Box::new(move |world| world.device(device).free(DevicePointer(address))));
    if code != SUCCESS {
        // A device that has failed runs no more work; its memory goes all the same.
        let _ = world().device(device).free(DevicePointer(address));
    }
    code
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    let Some(device) = current_device() else { return INVALID_CONTEXT };
    let (used, all) = (world().device(device).memory().used(), world().settings.memory);
    unsafe {
        put(free, (all - used) as usize);
        put(total, all as usize);
    }
    SUCCESS
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), PAGE).ok()
}

/// CU_MEMHOSTALLOC_DEVICEMAP.
const DEVICE_MAP: c_uint = 2;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint) -> u32 {
    let Some(layout) = layout(bytes) else { return OUT_OF_MEMORY };
    // SAFETY: the layout is not empty.
    let place = unsafe { alloc_zeroed(layout) };
    if place.is_null() {
        return OUT_OF_MEMORY;
    }
    let pinned = Pinned { bytes, mappable: flags & DEVICE_MAP != 0, mapped: None };
    lock(&PINNED).insert(place.expose_provenance(), pinned);
    unsafe { put(pointer, place.cast()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) -> u32 {
    unsafe { cuMemHostAlloc(pointer, bytes, 0) }
}

/// Where the current device finds a pinned allocation that was made to be mapped. One device may have it: two at once are not
/// kept apart here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    pointer: *mut u64,
    host: *mut c_void,
    _flags: c_uint,
) -> u32 {
    let Some(device) = current_device() else { return INVALID_CONTEXT };
    let mut pinned = lock(&PINNED);
    let Some(pinned) = pinned.get_mut(&host.addr()).filter(|pinned| pinned.mappable) else {
        return INVALID_VALUE;
    };
    let (owner, address) = *pinned.mapped.get_or_insert_with(|| {
        // SAFETY: the allocation is unmapped before it is freed; that the host leaves it alone meanwhile is its promise.
        let bytes = unsafe { HostBytes::new(host.cast(), pinned.bytes) };
        (device, world().device(device).memory().map(bytes))
    });
    if owner != device {
        report_absent("cuMemHostGetDevicePointer for a second device");
        return NOT_SUPPORTED;
    }
    unsafe { put(pointer, address) };
    SUCCESS
}

/// Queued copies and kernels may still use the memory: they are done first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(pointer: *mut c_void) -> u32 {
    if !lock(&PINNED).contains_key(&pointer.addr()) {
        return INVALID_VALUE;
    }
    let waited = (0..world().device_count()).map(|device| code(world().synchronise_device(device)));
    let waited = waited.fold(SUCCESS, u32::max);
    let Some(pinned) = lock(&PINNED).remove(&pointer.addr()) else { return INVALID_VALUE };
    if let Some((device, address)) = pinned.mapped {
        // Only this function takes the address away.
        let _ = world().device(device).memory().unmap(address);
    }
    if let Some(layout) = layout(pinned.bytes) {
        // SAFETY: cuMemHostAlloc made this allocation with this layout, and it has just left the table.
        unsafe { dealloc(pointer.cast(), layout) };
    }
    waited
}

fn is_pinned(pointer: *const c_void, bytes: usize) -> bool {
    let pinned = lock(&PINNED);
    let below = pinned.range(..=pointer.addr()).next_back();
    below.is_some_and(|(start, pinned)| pointer.addr() - start + bytes <= pinned.bytes)
}

/// From pageable memory the bytes are taken now; from pinned memory when the stream comes to the copy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: u64,
) -> u32 {
    let Some(device) = owner(to) else { return error_code(&no_owner("a copy to the device", to, bytes)) };
    let host = HostPointer(from.cast_mut().cast());
    if is_pinned(from, bytes) {
        return enqueue(
            stream,
            Box::new(move |world| {
                let host = host;
                // SAFETY: pinned memory is freed only after the queues are empty.
                let data = unsafe { host.read(bytes) };
                world.device(device).write(DevicePointer(to), &data)
            }),
        );
    }
    // SAFETY: the caller promises readable memory during the call.
    let data = unsafe { host.read(bytes) };
    enqueue(stream, Box::new(move |world| world.device(device).write(DevicePointer(to), &data)))
}

/// To pageable memory the call waits for the copy; to pinned memory it does not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64) -> u32 {
    let Some(device) = owner(from) else { return error_code(&no_owner("a copy to the host", from, bytes)) };
    let host = HostPointer(to.cast());
    let queued = enqueue(
        stream,
        Box::new(move |world| {
            let host = host;
            let data = world.device(device).read(DevicePointer(from), bytes)?;
            // SAFETY: the memory is pinned and freed only after the queues are empty, or the caller waits below.
            unsafe { host.write(&data) };
            Ok(())
        }),
    );
    if queued != SUCCESS || is_pinned(to, bytes) { queued } else { synchronise(stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> u32 {
    let (Some(target), Some(source)) = (owner(to), owner(from)) else {
        return error_code(&no_owner("a copy between devices", to.min(from), bytes));
    };
    enqueue(
        stream,
        Box::new(move |world| {
            let (data, written) = world.device(source).memory().take_out(from, bytes)?;
            world.device(target).memory().put_in(to, &data, &written)
        }),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_context: u64,
    from: u64,
    _from_context: u64,
    bytes: usize,
    stream: u64,
) -> u32 {
    unsafe { cuMemcpyDtoDAsync_v2(to, from, bytes, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> u32 {
    match unsafe { cuMemcpyHtoDAsync_v2(to, from, bytes, 0) } {
        SUCCESS => synchronise(0),
        error => error,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> u32 {
    match unsafe { cuMemcpyDtoHAsync_v2(to, from, bytes, 0) } {
        SUCCESS => synchronise(0),
        error => error,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    match unsafe { cuMemcpyDtoDAsync_v2(to, from, bytes, 0) } {
        SUCCESS => synchronise(0),
        error => error,
    }
}

fn fill(to: u64, pattern: Vec<u8>, count: usize, stream: u64) -> u32 {
    let Some(device) = owner(to) else { return error_code(&no_owner("a fill", to, pattern.len() * count)) };
    enqueue(stream, Box::new(move |world| world.device(device).memory().fill(to, &pattern, count)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(to: u64, value: c_uchar, count: usize, stream: u64) -> u32 {
    fill(to, vec![value], count, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD16Async(to: u64, value: c_ushort, count: usize, stream: u64) -> u32 {
    fill(to, value.to_le_bytes().to_vec(), count, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: u64) -> u32 {
    fill(to, value.to_le_bytes().to_vec(), count, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8_v2(to: u64, value: c_uchar, count: usize) -> u32 {
    match fill(to, vec![value], count, 0) {
        SUCCESS => synchronise(0),
        error => error,
    }
}
