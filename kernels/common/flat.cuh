// Flat vectors shared out to the threads of a grid.
#pragma once

#include "pack.cuh"

// Calls body.operator()<N>(index) so that every element is in one pack: 16 bytes at a time where `is_aligned`, the
// rest one by one. Any grid does.
template <int PACK, typename Body>
__device__ __forceinline__ void for_each_pack(uint64_t length, bool is_aligned, Body body) {
    const uint64_t thread = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t threads = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    const uint64_t packs = is_aligned ? length / PACK : 0;
    for (uint64_t index = thread; index < packs; index += threads) body.template operator()<PACK>(index * PACK);
    for (uint64_t index = packs * PACK + thread; index < length; index += threads) {
        body.template operator()<1>(index);
    }
}
