// Moving tokens into the order of the experts, and adding experts' rows back; crates/ops/src/experts/rows.rs.
//
// gather:  y[i] = x[slots[i]/k] for the group's sorted rows i
// combine: y[t] += Σ x[i] over the group's sorted rows i of token t, in rising i, rounded once
// Tokens [T, H], sorted rows [T·k, H], fp32 or bf16; slots, places [T·k] u32. The group's rows are
// offsets[first]..offsets[end], read on the device.
//
// Launch: 256 threads; gather T·k blocks, of which those outside the group end at once; combine T blocks, with k u32 of
// shared memory for the token's places.

#include "../common/rows.cuh"

constexpr int THREADS = 256;

extern __shared__ uint32_t shared_places[];

template <typename T>
__device__ __forceinline__ void gather(const T *x, const uint32_t *slots, const uint32_t *offsets, uint32_t first,
                                       uint32_t end, T *y, uint32_t choices, uint32_t width) {
    const uint32_t row = blockIdx.x;
    if (row < offsets[first] || row >= offsets[end]) return;
    const uint64_t token = slots[row] / choices;
    copy_row(x + token * width, y + static_cast<uint64_t>(row) * width, width);
}

template <int N, typename T>
__device__ __forceinline__ void add_row(const T *x, float (&sums)[N]) {
    float values[N];
    load<N>(x, values);
    for (int i = 0; i < N; i++) sums[i] += values[i];
}

// Adds the rows that `places` names inside from..end to `y`, in rising order.
template <int N, typename T>
__device__ __forceinline__ void add_rows(const T *x, const uint32_t *places, uint32_t choices, uint32_t from,
                                         uint32_t end, T *y, uint32_t width) {
    for_own_columns<N>(width, [&](uint32_t column) {
        float sums[N];
        load<N>(y + column, sums);
        for (uint32_t low = from;;) {
            uint32_t next = end;
            for (uint32_t i = 0; i < choices; i++) {
                if (places[i] >= low && places[i] < next) next = places[i];
            }
            if (next == end) break;
            add_row<N>(x + static_cast<uint64_t>(next) * width + column, sums);
            low = next + 1;
        }
        store<N>(y + column, sums);
    });
}

template <typename T>
__device__ __forceinline__ void combine(const T *x, const uint32_t *places, const uint32_t *offsets, uint32_t first,
                                        uint32_t end, T *y, uint32_t choices, uint32_t width) {
    const uint64_t token = blockIdx.x;
    const uint32_t from = offsets[first], to = offsets[end];
    bool any = false;
    for (uint32_t i = threadIdx.x; i < choices; i += THREADS) {
        const uint32_t place = places[token * choices + i];
        shared_places[i] = place;
        any |= place >= from && place < to;
    }
    if (!__syncthreads_or(any)) return;
    if (wide_rows<T>(width, x, y)) {
        add_rows<WIDE<T>>(x, shared_places, choices, from, to, y + token * width, width);
    } else {
        add_rows<1>(x, shared_places, choices, from, to, y + token * width, width);
    }
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        experts_gather_##SUFFIX(const T *x, const uint32_t *slots, const uint32_t *offsets, uint32_t first,          \
                                uint32_t end, T *y, uint32_t choices, uint32_t width) {                              \
        gather(x, slots, offsets, first, end, y, choices, width);                                                    \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        experts_combine_##SUFFIX(const T *x, const uint32_t *places, const uint32_t *offsets, uint32_t first,        \
                                 uint32_t end, T *y, uint32_t choices, uint32_t width) {                             \
        combine(x, places, offsets, first, end, y, choices, width);                                                  \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
