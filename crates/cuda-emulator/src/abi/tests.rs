//! The C functions as a program calls them, one after the other. The world behind them is the process's: nothing here
//! may make its device fail.
#![allow(clippy::unwrap_used)]

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

use super::cublas::{cublasCreate_v2, cublasDestroy_v2, cublasGemmEx, cublasSetStream_v2};
use super::cuda_context::*;
use super::cuda_memory::*;
use super::cuda_module::*;
use super::cuda_stream::*;
use super::curand::{curandCreateGenerator, curandGenerateNormal, curandSetPseudoRandomGeneratorSeed};
use super::nccl::*;

const SCALE: &CStr = c".version 8.0
.target sm_80
.address_size 64
.global .align 4 .u32 factor = 3;
.visible .entry scale(.param .u64 data, .param .u32 count)
{
    .reg .b64 %d<4>;
    .reg .b32 %r<6>;
    .reg .pred %p;
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r1, %r1, %r2, %r3;
    ld.param.u32 %r2, [count];
    setp.ge.u32 %p, %r1, %r2;
    @%p bra END;
    ld.param.u64 %d1, [data];
    mad.wide.u32 %d1, %r1, 4, %d1;
    ld.global.u32 %r4, [%d1];
    ld.global.u32 %r5, [factor];
    mul.lo.u32 %r4, %r4, %r5;
    st.global.u32 [%d1], %r4;
END:
    ret;
}";

/// A context on device 0, and a stream.
unsafe fn start() -> u64 {
    unsafe {
        let (mut device, mut context, mut stream) = (0, 0, 0);
        assert_eq!(cuInit(0), 0);
        assert_eq!(cuDeviceGet(&mut device, 0), 0);
        assert_eq!(cuDevicePrimaryCtxRetain(&mut context, device), 0);
        assert_eq!(cuCtxSetCurrent(context), 0);
        assert_eq!(cuStreamCreate(&mut stream, 1), 0);
        stream
    }
}

unsafe fn upload<T>(values: &[T], stream: u64) -> u64 {
    unsafe {
        let mut pointer = 0;
        let bytes = size_of_val(values);
        assert_eq!(cuMemAllocAsync(&mut pointer, bytes, stream), 0);
        assert_eq!(cuMemcpyHtoDAsync_v2(pointer, values.as_ptr().cast(), bytes, stream), 0);
        pointer
    }
}

unsafe fn download<T: Copy + Default>(pointer: u64, count: usize, stream: u64) -> Vec<T> {
    unsafe {
        let mut values = vec![T::default(); count];
        let bytes = size_of_val(&values[..]);
        assert_eq!(cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), pointer, bytes, stream), 0);
        values
    }
}

#[test]
fn a_kernel_is_loaded_launched_and_unloaded() {
    unsafe {
        let stream = start();
        let (mut module, mut function, mut factor, mut bytes) = (0, 0, 0, 0);
        assert_eq!(cuModuleLoadData(&mut module, SCALE.as_ptr().cast()), 0);
        assert_eq!(cuModuleGetFunction(&mut function, module, c"scale".as_ptr()), 0);
        assert_eq!(cuModuleGetFunction(&mut function, module, c"other".as_ptr()), 500);
        assert_eq!(cuModuleGetGlobal_v2(&mut factor, &mut bytes, module, c"factor".as_ptr()), 0);
        assert_eq!((bytes, cuMemsetD32Async(factor, 5, 1, stream)), (4, 0));
        let data = upload(&[1_u32, 2, 3, 4, 5], stream);
        let (mut pointer, mut count) = (data, 5_u32);
        let mut parameters: [*mut c_void; 2] = [(&raw mut pointer).cast(), (&raw mut count).cast()];
        let launch = |function, block| {
            cuLaunchKernel(function, 2, 1, 1, block, 1, 1, 0, stream, parameters.as_mut_ptr(), null_mut())
        };
        let mut launch = launch;
        assert_eq!(launch(function, 4), 0);
        assert_eq!(launch(function, 2000), 1);
        assert_eq!(launch(12345, 4), 400);
        assert_eq!(download::<u32>(data, 5, stream), [5, 10, 15, 20, 25]);
        assert_eq!(cuFuncSetAttribute(function, 8, 100 << 10), 0);
        assert_eq!(cuModuleUnload(module), 0);
        assert_eq!(cuModuleUnload(module), 400);
        assert_eq!(cuMemFreeAsync(data, stream), 0);
        assert_eq!(cuStreamSynchronize(stream), 0);
        assert_eq!(cuMemFree_v2(data), 1);
        assert_eq!(cuModuleLoadData(&mut module, c"\x7fELF".as_ptr().cast()), 200);
        assert_eq!(cuStreamDestroy_v2(stream), 0);
        assert_eq!(cuStreamSynchronize(stream), 400);
    }
}

#[test]
fn pinned_copies_are_made_when_the_stream_comes_to_them() {
    unsafe {
        let stream = start();
        let (mut pinned, mut event) = (null_mut(), 0);
        assert_eq!(cuMemHostAlloc(&mut pinned, 8, 0), 0);
        let values = pinned.cast::<u32>();
        values.write(1);
        let mut device = 0;
        assert_eq!(cuMemAlloc_v2(&mut device, 4), 0);
        assert_eq!(cuMemcpyHtoDAsync_v2(device, pinned, 4, stream), 0);
        // Too early: the copy has not run, and will find this.
        values.write(2);
        assert_eq!(cuMemcpyDtoHAsync_v2(values.add(1).cast(), device, 4, stream), 0);
        assert_eq!(cuEventCreate(&mut event, 0), 0);
        assert_eq!(cuEventRecord(event, stream), 0);
        assert_eq!(values.add(1).read(), 0);
        assert_eq!(cuEventSynchronize(event), 0);
        assert_eq!((values.add(1).read(), cuEventQuery(event), cuStreamQuery(stream)), (2, 0, 0));
        assert_eq!(cuEventDestroy_v2(event), 0);
        assert_eq!(cuMemFreeHost(pinned), 0);
        assert_eq!(cuMemFreeHost(pinned), 1);
        assert_eq!(cuMemFree_v2(device), 0);
    }
}

#[test]
fn a_kernel_changes_mapped_memory_of_the_host() {
    unsafe {
        let stream = start();
        let (mut module, mut function) = (0, 0);
        assert_eq!(cuModuleLoadData(&mut module, SCALE.as_ptr().cast()), 0);
        assert_eq!(cuModuleGetFunction(&mut function, module, c"scale".as_ptr()), 0);
        let (mut plain, mut mapped, mut pointer, mut again) = (null_mut(), null_mut(), 0, 0);
        assert_eq!(cuMemHostAlloc(&mut plain, 8, 0), 0);
        assert_eq!(cuMemHostGetDevicePointer_v2(&mut pointer, plain, 0), 1);
        // It is no memory of the device: beside it there are only the few bytes of tests that run at the same time.
        const LARGE: usize = 256 << 20;
        let (mut free_before, mut free, mut total) = (0, 0, 0);
        assert_eq!(cuMemGetInfo_v2(&mut free_before, &mut total), 0);
        assert_eq!(cuMemHostAlloc(&mut mapped, LARGE, 2), 0);
        assert_eq!(cuMemHostGetDevicePointer_v2(&mut pointer, mapped, 0), 0);
        assert_eq!(cuMemHostGetDevicePointer_v2(&mut again, mapped, 0), 0);
        assert_eq!(cuMemGetInfo_v2(&mut free, &mut total), 0);
        assert_eq!(pointer, again);
        assert!(free_before.abs_diff(free) < LARGE / 2, "{free_before} {free}");
        assert_eq!(cuMemFree_v2(pointer), 1);

        let values = mapped.cast::<u32>();
        values.write(4);
        values.add(1).write(7);
        let mut count = 2_u32;
        let mut parameters: [*mut c_void; 2] = [(&raw mut pointer).cast(), (&raw mut count).cast()];
        let launched =
            cuLaunchKernel(function, 1, 1, 1, 4, 1, 1, 0, stream, parameters.as_mut_ptr(), null_mut());
        assert_eq!((launched, cuStreamSynchronize(stream)), (0, 0));
        assert_eq!((values.read(), values.add(1).read()), (12, 21));
        assert_eq!(download::<u32>(pointer, 2, stream), [12, 21]);

        assert_eq!((cuMemFreeHost(mapped), cuMemFreeHost(plain)), (0, 0));
        assert_eq!(cuModuleUnload(module), 0);
    }
}

#[test]
fn products_and_random_numbers_run_in_their_streams() {
    unsafe {
        let stream = start();
        let mut handle = 0;
        assert_eq!(cublasCreate_v2(&mut handle), 0);
        assert_eq!(cublasSetStream_v2(handle, stream), 0);
        let (a, b, c) =
            (upload(&[1.0_f32, 2.0], stream), upload(&[3.0_f32, 4.0], stream), upload(&[9.0_f32; 4], stream));
        let (alpha, beta) = (1.0_f32, 0.0_f32);
        let product = cublasGemmEx(
            handle,
            0,
            0,
            2,
            2,
            1,
            (&raw const alpha).cast(),
            a,
            0,
            2,
            b,
            0,
            1,
            (&raw const beta).cast(),
            c,
            0,
            2,
            68,
            99,
        );
        assert_eq!(product, 0);
        assert_eq!(download::<f32>(c, 4, stream), [3.0, 6.0, 4.0, 8.0]);
        assert_eq!((cublasDestroy_v2(handle), cublasDestroy_v2(handle)), (0, 1));

        let mut generator = 0;
        assert_eq!(curandCreateGenerator(&mut generator, 100), 0);
        assert_eq!(curandSetPseudoRandomGeneratorSeed(generator, 7), 0);
        let numbers = upload(&vec![0.0_f32; 4096], stream);
        // The generator works on the default stream.
        assert_eq!(cuStreamSynchronize(stream), 0);
        assert_eq!(curandGenerateNormal(generator, numbers, 4096, 1.0, 2.0), 0);
        assert_eq!(cuCtxSynchronize(), 0);
        let drawn = download::<f32>(numbers, 4096, stream);
        let mean = drawn.iter().sum::<f32>() / 4096.0;
        let variance = drawn.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 4096.0;
        assert!((mean - 1.0).abs() < 0.15 && (variance - 4.0).abs() < 0.4, "{mean} {variance}");
    }
}

#[test]
fn a_communicator_of_one_reduces_to_itself() {
    unsafe {
        let stream = start();
        let mut id = std::mem::MaybeUninit::uninit();
        assert_eq!(ncclGetUniqueId(id.as_mut_ptr()), 0);
        let (mut handle, mut count, mut error) = (0, 0, 9);
        assert_eq!(ncclCommInitRank(&mut handle, 1, id.assume_init(), 0), 0);
        assert_eq!((ncclCommCount(handle, &mut count), count), (0, 1));
        let data = upload(&[4.0_f32], stream);
        assert_eq!(ncclAllReduce(data, data, 1, 7, 4, handle, stream), 0);
        assert_eq!(ncclAllReduce(data, data, 1, 77, 4, handle, stream), 4);
        assert_eq!(download::<f32>(data, 1, stream), [4.0]);
        assert_eq!((ncclCommGetAsyncError(handle, &mut error), error), (0, 0));
        assert_eq!((ncclCommAbort(handle), ncclCommAbort(handle)), (0, 4));
    }
}

#[test]
fn a_communicator_that_does_not_block_is_slow_to_queue() {
    unsafe {
        let stream = start();
        let mut id = std::mem::MaybeUninit::uninit();
        assert_eq!(ncclGetUniqueId(id.as_mut_ptr()), 0);
        // Size, magic, version, blocking; the rest is not read.
        let mut configuration = [48_u32, 0, 0xcafe_beef, 21_700, 0, 0, 0, 0, 0, 0, 0, 0];
        let (mut handle, mut error) = (0, 9);
        let id = id.assume_init();
        assert_eq!(ncclCommInitRankConfig(&mut handle, 1, id, 0, configuration.as_mut_ptr().cast()), 7);
        let (data, lost) = (upload(&[4.0_f32], stream), upload(&[5.0_f32], stream));
        assert_eq!(ncclAllReduce(data, lost, 1, 7, 0, handle, stream), 5, "it is still joining");
        assert_eq!((ncclCommGetAsyncError(handle, &mut error), error), (0, 7));
        assert_eq!((ncclCommGetAsyncError(handle, &mut error), error), (0, 0));
        let sum = upload(&[0.0_f32], stream);
        assert_eq!(ncclAllReduce(data, sum, 1, 7, 0, handle, stream), 7);
        assert_eq!(download::<f32>(sum, 1, stream), [0.0], "the stream has nothing to do yet");
        assert_eq!((ncclCommGetAsyncError(handle, &mut error), error), (0, 7));
        assert_eq!((ncclCommGetAsyncError(handle, &mut error), error), (0, 0));
        assert_eq!(download::<f32>(sum, 1, stream), [4.0]);
        configuration[2] = 0;
        assert_eq!(ncclCommInitRankConfig(&mut handle, 1, id, 0, configuration.as_mut_ptr().cast()), 4);
    }
}

#[test]
fn messages_of_a_group_are_sent_at_its_end() {
    unsafe {
        let stream = start();
        let mut id = std::mem::MaybeUninit::uninit();
        assert_eq!(ncclGetUniqueId(id.as_mut_ptr()), 0);
        let mut handle = 0;
        assert_eq!(ncclCommInitRank(&mut handle, 1, id.assume_init(), 0), 0);
        let (given, got) = (upload(&[4.0_f32], stream), upload(&[0.0_f32], stream));
        assert_eq!((ncclGroupStart(), ncclRecv(got, 1, 7, 0, handle, stream)), (0, 0));
        assert_eq!(download::<f32>(got, 1, stream), [0.0], "its sender may come later");
        assert_eq!((ncclSend(given, 1, 7, 0, handle, stream), ncclGroupEnd()), (0, 0));
        assert_eq!(download::<f32>(got, 1, stream), [4.0]);
        assert_eq!((ncclSend(given, 1, 7, 1, handle, stream), ncclGroupEnd()), (4, 5));
    }
}

#[test]
fn what_is_absent_says_so() {
    assert_eq!(super::absent::cuGraphLaunch(), 801);
    assert_eq!(super::absent::cublasLtMatmul(), 15);
    unsafe {
        let mut text = std::ptr::null();
        assert_eq!(cuGetErrorString(719, &mut text), 0);
        assert!(CStr::from_ptr(text).to_str().unwrap().contains("the emulator found a fault"));
    }
}
