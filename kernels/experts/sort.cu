// Ordering slots by expert, stably; crates/ops/src/experts/sort.rs.
//
// slots[i] is the slot at sorted row i, places[slot] the sorted row of a slot, and expert e has the sorted rows
// offsets[e]..offsets[e + 1]; within an expert, slots rise. chosen, slots, places [T·k], offsets [E + 1], all u32.
//
// Launch: E blocks of 1024 threads, block e placing the slots of expert e. It first counts the slots of the experts
// before it, which is where its own begin; the list is short and stays in the cache. No atomics: places never depend
// on who came first.

#include "../common/reduce.cuh"

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / LANES;

extern "C" __global__ void __launch_bounds__(THREADS)
    experts_sort(const uint32_t *chosen, uint32_t *slots, uint32_t *places, uint32_t *offsets, uint32_t count) {
    __shared__ uint32_t warp_counts[WARPS];
    const uint32_t own = blockIdx.x, lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    uint32_t before = 0;
    for (uint32_t slot = threadIdx.x; slot < count; slot += THREADS) before += chosen[slot] < own;
    uint32_t next = block_sum(before);
    if (threadIdx.x == 0) offsets[own] = next;
    for (uint32_t first = 0; first < count; first += THREADS) {
        const uint32_t slot = first + threadIdx.x;
        const bool mine = slot < count && chosen[slot] == own;
        const uint32_t lanes = __ballot_sync(ALL_LANES, mine);
        if (lane == 0) warp_counts[warp] = __popc(lanes);
        __syncthreads();
        const uint32_t found = lane < WARPS ? warp_counts[lane] : 0;
        const uint32_t earlier = warp_sum(lane < warp ? found : 0), all = warp_sum(found);
        if (mine) {
            const uint32_t row = next + earlier + __popc(lanes & ((1u << lane) - 1));
            slots[row] = slot;
            places[slot] = row;
        }
        next += all;
        __syncthreads();
    }
    if (own == gridDim.x - 1 && threadIdx.x == 0) offsets[own + 1] = next;
}
