// Reductions over a warp and over a block, in one order: the same bits in every run. Blocks must be whole warps.
#pragma once

#include <stdint.h>

constexpr uint32_t LANES = 32;
constexpr uint32_t ALL_LANES = 0xffffffff;

// Every lane gets the result.
template <typename V, typename Combine>
__device__ __forceinline__ V warp_reduce(V value, Combine combine) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        value = combine(value, __shfl_xor_sync(ALL_LANES, value, distance));
    }
    return value;
}

template <typename V>
__device__ __forceinline__ V warp_sum(V value) {
    return warp_reduce(value, [](V a, V b) { return a + b; });
}

// NaN is passed over.
__device__ __forceinline__ float warp_maximum(float value) {
    return warp_reduce(value, [](float a, float b) { return fmaxf(a, b); });
}

// Every thread gets the result. All threads of the block must call.
template <typename V>
__device__ __forceinline__ V block_sum(V value) {
    __shared__ V partial[LANES];
    const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    value = warp_sum(value);
    // The partial sums of an earlier call may still be read.
    __syncthreads();
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    return warp_sum(lane < blockDim.x / LANES ? partial[lane] : V(0));
}
