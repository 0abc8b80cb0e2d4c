// Picking rows of a matrix and putting them back; crates/ops/src/rows.rs.
//
// gather: y[i] = x[index(i)];  scatter: x[index(i)] = y[i], each index at most once. x [T, H], y [C, H], fp32 or bf16;
// index [C] u32, below T. embedding::forward is the gather of the table's rows.
//
// Launch: C blocks of 256 threads.

#include "common/rows.cuh"

constexpr int THREADS = 256;

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        rows_gather_##SUFFIX(const T *x, const uint32_t *index, T *y, uint32_t width) {                              \
        const uint64_t row = index[blockIdx.x];                                                                      \
        copy_row(x + row * width, y + static_cast<uint64_t>(blockIdx.x) * width, width);                             \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        rows_scatter_##SUFFIX(const T *y, const uint32_t *index, T *x, uint32_t width) {                             \
        const uint64_t row = index[blockIdx.x];                                                                      \
        copy_row(y + static_cast<uint64_t>(blockIdx.x) * width, x + row * width, width);                             \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
