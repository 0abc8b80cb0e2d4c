// The bias of a linear layer; crates/ops/src/bias.rs.
//
// forward: y += b on each row;  backward: db += Σₜ dy.
// y, dy [T, N] and b [N] in fp32 or bf16; db [N] fp32. bias_backward_f32 also ends the backward of the norms: it adds
// up the sums of dw that their blocks left.
//
// Launch, forward: T blocks of 256 threads. Backward: 256 threads, a block for each 8 packs of 16 bytes of a row; a
// warp reads 128 bytes of each of 4 rows, and the 32 sums of a column are added in the order of the rows' remainders.

#include "common/rows.cuh"

constexpr int THREADS = 256;
// Packs of a row, and rows, that a block of the backward works on at once.
constexpr int PACKS = 8;
constexpr int ROWS = THREADS / PACKS;

template <int N, typename T>
__device__ __forceinline__ void add_bias(const T *bias, T *row, uint32_t width) {
    for_own_columns<N>(width, [&](uint32_t column) {
        float values[N], added[N];
        load<N>(row + column, values);
        load<N>(bias + column, added);
        for (int i = 0; i < N; i++) values[i] += added[i];
        store<N>(row + column, values);
    });
}

template <int N, typename T>
__device__ __forceinline__ void sum_columns(const T *dy, float *dbias, uint32_t rows, uint32_t width) {
    __shared__ alignas(16) float partial[ROWS][PACKS * N];
    const uint32_t first_column = blockIdx.x * PACKS * N;
    const uint32_t group = threadIdx.x / PACKS, column = first_column + threadIdx.x % PACKS * N;
    float sums[N] = {};
    if (column < width) {
#pragma unroll 4
        for (uint32_t row = group; row < rows; row += ROWS) {
            float values[N];
            load<N>(dy + static_cast<uint64_t>(row) * width + column, values);
            for (int i = 0; i < N; i++) sums[i] += values[i];
        }
    }
    store<N>(&partial[group][threadIdx.x % PACKS * N], sums);
    __syncthreads();
    const uint32_t own = first_column + threadIdx.x;
    if (threadIdx.x < PACKS * N && own < width) {
        float total = 0;
        for (int i = 0; i < ROWS; i++) total += partial[i][threadIdx.x];
        dbias[own] += total;
    }
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        bias_forward_##SUFFIX(const T *bias, T *y, uint32_t width) {                                                 \
        T *row = y + static_cast<uint64_t>(blockIdx.x) * width;                                                      \
        if (wide_rows<T>(width, bias, y)) {                                                                          \
            add_bias<WIDE<T>>(bias, row, width);                                                                     \
        } else {                                                                                                     \
            add_bias<1>(bias, row, width);                                                                           \
        }                                                                                                            \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        bias_backward_##SUFFIX(const T *dy, float *dbias, uint32_t rows, uint32_t width) {                           \
        if (wide_rows<T>(width, dy)) {                                                                               \
            sum_columns<WIDE<T>>(dy, dbias, rows, width);                                                            \
        } else {                                                                                                     \
            sum_columns<1>(dy, dbias, rows, width);                                                                  \
        }                                                                                                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
