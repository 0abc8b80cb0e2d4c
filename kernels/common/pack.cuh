// Elements in registers: conversion to fp32, in which every kernel computes, and accesses of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }

// N neighbouring elements, moved by one access.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
    T values[N];
};

// Elements in 16 bytes, the widest access there is. A kernel that also moves fp32 takes fp32's number for both: eight
// fp32 of a thread would be two accesses, each of which uses half of the sectors that it touches.
template <typename T>
constexpr int WIDE = 16 / sizeof(T);

// The pack that begins at `at`, which must lie on a multiple of its size.
template <int N, typename T>
__device__ __forceinline__ Pack<T, N> &pack(T *at) {
    return *reinterpret_cast<Pack<T, N> *>(at);
}

template <int N, typename T>
__device__ __forceinline__ const Pack<T, N> &pack(const T *at) {
    return *reinterpret_cast<const Pack<T, N> *>(at);
}

// Rounds to the nearest, two values at a time where the processor can.
template <typename T, int N>
__device__ __forceinline__ Pack<T, N> rounded(const float (&values)[N]) {
    Pack<T, N> result;
    if constexpr (sizeof(T) == sizeof(float)) {
#pragma unroll
        for (int i = 0; i < N; i++) result.values[i] = values[i];
    } else if constexpr (N == 1) {
        result.values[0] = __float2bfloat16_rn(values[0]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const __nv_bfloat162 pair = __floats2bfloat162_rn(values[i], values[i + 1]);
            result.values[i] = pair.x;
            result.values[i + 1] = pair.y;
        }
    }
    return result;
}

// Accesses of at most 16 bytes each.
template <int N, typename T>
constexpr int ACCESS = N < WIDE<T> ? N : WIDE<T>;

template <int N, typename T>
__device__ __forceinline__ void load(const T *from, float (&to)[N]) {
#pragma unroll
    for (int first = 0; first < N; first += ACCESS<N, T>) {
        const Pack<T, ACCESS<N, T>> values = pack<ACCESS<N, T>>(from + first);
#pragma unroll
        for (int i = 0; i < ACCESS<N, T>; i++) to[first + i] = to_float(values.values[i]);
    }
}

template <int N, typename T>
__device__ __forceinline__ void store(T *to, const float (&from)[N]) {
#pragma unroll
    for (int first = 0; first < N; first += ACCESS<N, T>) {
        float values[ACCESS<N, T>];
#pragma unroll
        for (int i = 0; i < ACCESS<N, T>; i++) values[i] = from[first + i];
        pack<ACCESS<N, T>>(to + first) = rounded<T, ACCESS<N, T>>(values);
    }
}

// Whether all of these addresses lie on multiples of 16 bytes.
template <typename... Pointers>
__device__ __forceinline__ bool aligned(const Pointers *...at) {
    return (... | reinterpret_cast<uintptr_t>(at)) % 16 == 0;
}

// Whether matrices of `width` columns at these addresses can be moved 16 bytes at a time, row by row.
template <typename T, typename... Pointers>
__device__ __forceinline__ bool wide_rows(uint32_t width, const Pointers *...at) {
    return width % WIDE<T> == 0 && aligned(at...);
}
