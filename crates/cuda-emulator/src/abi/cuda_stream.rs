//! libcuda: streams and events.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use super::cuda_context::stuck;
use super::world::{
    EVENTS, INVALID_CONTEXT, INVALID_HANDLE, INVALID_VALUE, NOT_READY, SUCCESS, code, current_device,
    event_of, failure_code, stream_of, world,
};
use super::{HostPointer, put};
use crate::driver::{Event, Work, lock};

fn status(done: bool) -> u32 {
    match stuck() {
        Some(failure) => failure_code(failure),
        None if done => SUCCESS,
        None => NOT_READY,
    }
}

/// No stream waits for the default stream of itself, whatever its flags: only events order streams here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut u64, _flags: c_uint) -> u32 {
    let Some(device) = current_device() else { return INVALID_CONTEXT };
    unsafe { put(stream, world().create_stream(device)) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut u64,
    flags: c_uint,
    _priority: c_int,
) -> u32 {
    unsafe { cuStreamCreate(stream, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: u64) -> u32 {
    if stream > 2 && world().destroy_stream(stream) { SUCCESS } else { INVALID_HANDLE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: u64) -> u32 {
    stream_of(stream).map_or(INVALID_HANDLE, |stream| code(world().synchronise_stream(stream)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: u64) -> u32 {
    stream_of(stream).map_or(INVALID_HANDLE, |stream| status(world().is_stream_idle(stream)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCtx(stream: u64, context: *mut u64) -> u32 {
    let Some(device) = stream_of(stream).and_then(|stream| world().stream_device(stream)) else {
        return INVALID_HANDLE;
    };
    unsafe { put(context, device as u64 + 1) };
    SUCCESS
}

/// Graphs are not captured here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: u64, status: *mut c_uint) -> u32 {
    if stream_of(stream).is_none() {
        return INVALID_HANDLE;
    }
    unsafe { put(status, 0) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) -> u32 {
    match (stream_of(stream), event_of(event)) {
        (Some(stream), Some(event)) if world().wait(&event, stream) => SUCCESS,
        _ => INVALID_HANDLE,
    }
}

type HostFunction = extern "C" fn(*mut c_void);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: u64,
    function: Option<HostFunction>,
    data: *mut c_void,
) -> u32 {
    let (Some(function), Some(stream)) = (function, stream_of(stream)) else { return INVALID_VALUE };
    let data = HostPointer(data.cast());
    let task = Work::Run(Box::new(move |_| {
        let data = data;
        function(data.0.cast());
        Ok(())
    }));
    if world().enqueue(stream, task) { SUCCESS } else { INVALID_HANDLE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut u64, _flags: c_uint) -> u32 {
    let handle = lock(&EVENTS).insert(Arc::new(Event::default()));
    unsafe { put(event, handle) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: u64) -> u32 {
    if lock(&EVENTS).remove(event).is_some() { SUCCESS } else { INVALID_HANDLE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: u64, stream: u64) -> u32 {
    match (stream_of(stream), event_of(event)) {
        (Some(stream), Some(event)) if world().record(&event, stream) => SUCCESS,
        _ => INVALID_HANDLE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: u64) -> u32 {
    event_of(event).map_or(INVALID_HANDLE, |event| status(world().is_event_complete(&event)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: u64) -> u32 {
    let Some(event) = event_of(event) else { return INVALID_HANDLE };
    match code(world().synchronise_event(&event)) {
        SUCCESS => stuck().map_or(SUCCESS, failure_code),
        error => error,
    }
}

/// Time as the emulator took it: it says nothing about a GPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: u64, end: u64) -> u32 {
    let (Some(start), Some(end)) = (event_of(start), event_of(end)) else { return INVALID_HANDLE };
    let (Some(from), Some(to)) = (start.time(), end.time()) else { return NOT_READY };
    unsafe { put(milliseconds, to.saturating_duration_since(from).as_secs_f32() * 1e3) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: u64, end: u64) -> u32 {
    unsafe { cuEventElapsedTime_v2(milliseconds, start, end) }
}
