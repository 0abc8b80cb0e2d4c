//! The C functions: raw pointers in, calls of [`driver`](crate::driver) out.
//!
//! All `unsafe` of the crate is here. Each function trusts its caller as the real one does: pointers to results are
//! writable, host pointers cover the bytes that a copy names (until it has run, if they are pinned), strings end with
//! a zero. Handles are numbers that are looked up, never pointers that are followed, so a wrong one gives an error.
//! A panic cannot unwind into C: it ends the process, with its message.
#![allow(unsafe_code, non_snake_case)]
#![allow(clippy::too_many_arguments, reason = "the signatures are NVIDIA's")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the module's paragraph is the contract of every function in it"
)]

mod cublas;
mod cuda_context;
mod cuda_memory;
mod cuda_module;
mod cuda_stream;
mod curand;
mod fat_binary;
mod nccl;
mod world;

#[cfg(test)]
mod tests;

/// Functions that the libraries have and the emulator does not: generated from `symbols.txt` by `build.rs`.
mod absent {
    include!(concat!(env!("OUT_DIR"), "/absent.rs"));
}

/// Writes a result through a pointer that the caller gave, if it gave one.
unsafe fn put<T>(place: *mut T, value: T) {
    if !place.is_null() {
        // SAFETY: the caller of the C function promises that its result pointers are writable.
        unsafe { place.write(value) };
    }
}

/// A pointer into the host's memory that queued work uses later.
#[derive(Clone, Copy)]
struct HostPointer(*mut u8);

// SAFETY: a queued copy may run on any thread; the host promises to leave the bytes alone until it waited for it.
unsafe impl Send for HostPointer {}

impl HostPointer {
    unsafe fn read(self, bytes: usize) -> Vec<u8> {
        // SAFETY: the caller of the C function promises that the range is readable.
        unsafe { std::slice::from_raw_parts(self.0, bytes) }.to_vec()
    }

    unsafe fn write(self, data: &[u8]) {
        // SAFETY: the caller of the C function promises that the range is writable.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.0, data.len()) };
    }
}
