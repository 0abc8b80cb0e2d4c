// Rows shared out to the threads of a block.
#pragma once

#include "pack.cuh"

// Calls body(column) for the packs of N columns of a row that belong to this thread: the same ones in every row, so
// that what a thread keeps of its columns in shared memory needs no barrier.
template <int N, typename Body>
__device__ __forceinline__ void for_own_columns(uint32_t width, Body body) {
    for (uint32_t column = threadIdx.x * N; column < width; column += blockDim.x * N) body(column);
}

template <int N, typename T>
__device__ __forceinline__ void copy_columns(const T *from, T *to, uint32_t width) {
    for_own_columns<N>(width, [&](uint32_t column) {
#pragma unroll
        for (int i = 0; i < N; i += ACCESS<N, T>) {
            pack<ACCESS<N, T>>(to + column + i) = pack<ACCESS<N, T>>(from + column + i);
        }
    });
}

// Copies a row with the whole block; `from` and `to` begin rows of matrices of this width.
template <typename T>
__device__ __forceinline__ void copy_row(const T *from, T *to, uint32_t width) {
    if (wide_rows<T>(width, from, to)) {
        copy_columns<WIDE<T>>(from, to, width);
    } else {
        copy_columns<1>(from, to, width);
    }
}

// The elements of a row of shared memory, rounded up so that the next one is aligned.
template <typename T>
__device__ __forceinline__ uint32_t padded(uint32_t width) {
    return (width + WIDE<T> - 1) / WIDE<T> * WIDE<T>;
}
