// Keeping values between −bound and bound; crates/ops/src/clamp.rs.
//
// forward:  x ← min(max(x, −bound), bound), NaN stays NaN;  backward: dx ← dx where x was inside, else 0
// x, dx [T, W] in fp32 or bf16; inside [T, ⌈W/32⌉] u32, whose bit b of word w stands for column 32·w + b.
//
// Launch: T blocks of 256 threads.

#include "common/reduce.cuh"
#include "common/rows.cuh"

constexpr int THREADS = 256;
constexpr uint32_t WORD = 32;

// Every 32/N lanes make one word, each the N bits of its own columns. All lanes of a warp stay to the end of the row.
template <int N, typename T>
__device__ __forceinline__ void clamp_row(T *row, float bound, uint32_t *inside, uint32_t width) {
    const uint32_t end = (width + WORD - 1) / WORD * WORD;
    const uint32_t warp_start = threadIdx.x / LANES * LANES * N;
    for (uint32_t start = warp_start; start < end; start += blockDim.x * N) {
        const uint32_t column = start + threadIdx.x % LANES * N;
        uint32_t word = 0;
        if (column < width) {
            float values[N];
            load<N>(row + column, values);
            for (int i = 0; i < N; i++) {
                word |= uint32_t(-bound <= values[i] && values[i] <= bound) << ((column + i) % WORD);
                values[i] = values[i] < -bound ? -bound : values[i];
                values[i] = values[i] > bound ? bound : values[i];
            }
            store<N>(row + column, values);
        }
#pragma unroll
        for (int distance = WORD / N / 2; distance > 0; distance /= 2) {
            word |= __shfl_xor_sync(ALL_LANES, word, distance);
        }
        if (column < end && column % WORD == 0) inside[column / WORD] = word;
    }
}

template <int N, typename T>
__device__ __forceinline__ void zero_outside(T *row, const uint32_t *inside, uint32_t width) {
    for_own_columns<N>(width, [&](uint32_t column) {
        const uint32_t word = inside[column / WORD];
        float values[N];
        load<N>(row + column, values);
        for (int i = 0; i < N; i++) values[i] = word >> ((column + i) % WORD) & 1 ? values[i] : 0.0f;
        store<N>(row + column, values);
    });
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        clamp_forward_##SUFFIX(T *x, float bound, uint32_t *inside, uint32_t width) {                                \
        T *row = x + static_cast<uint64_t>(blockIdx.x) * width;                                                      \
        uint32_t *words = inside + static_cast<uint64_t>(blockIdx.x) * ((width + WORD - 1) / WORD);                  \
        if (wide_rows<T>(width, x)) {                                                                                \
            clamp_row<WIDE<T>>(row, bound, words, width);                                                            \
        } else {                                                                                                     \
            clamp_row<1>(row, bound, words, width);                                                                  \
        }                                                                                                            \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        clamp_backward_##SUFFIX(T *dx, const uint32_t *inside, uint32_t width) {                                     \
        T *row = dx + static_cast<uint64_t>(blockIdx.x) * width;                                                     \
        const uint32_t *words = inside + static_cast<uint64_t>(blockIdx.x) * ((width + WORD - 1) / WORD);            \
        if (wide_rows<T>(width, dx)) {                                                                               \
            zero_outside<WIDE<T>>(row, words, width);                                                                \
        } else {                                                                                                     \
            zero_outside<1>(row, words, width);                                                                      \
        }                                                                                                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
