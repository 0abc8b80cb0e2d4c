// The squared Euclidean norm of a flat gradient; crates/ops/src/squared_norm.rs.
//
// n += Σ xᵢ². x [N] fp32, n [1] fp64. Each block adds up a piece of 65,536 elements in fp64 and leaves it in partial
// [⌈N/65536⌉] fp64; squared_norm_total adds those. The order follows from N alone.
//
// Launch: squared_norm_pieces with ⌈N/65536⌉ blocks of 256 threads, then squared_norm_total with one block of 256.

#include "common/reduce.cuh"
#include "common/rows.cuh"

constexpr int THREADS = 256;
constexpr uint32_t PIECE = 1 << 16;

template <int N>
__device__ __forceinline__ double sum_squares(const float *x, uint32_t length) {
    double total = 0;
    for_own_columns<N>(length, [&](uint32_t index) {
        float values[N];
        load<N>(x + index, values);
        for (float value : values) total = fma(static_cast<double>(value), static_cast<double>(value), total);
    });
    return total;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    squared_norm_pieces(const float *x, double *partial, uint64_t length) {
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * PIECE;
    const uint32_t count = min(length - start, static_cast<uint64_t>(PIECE));
    const double total = wide_rows<float>(count, x) ? sum_squares<WIDE<float>>(x + start, count)
                                                    : sum_squares<1>(x + start, count);
    const double sum = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    squared_norm_total(const double *partial, double *total, uint32_t pieces) {
    double own = 0;
    for (uint32_t piece = threadIdx.x; piece < pieces; piece += THREADS) own += partial[piece];
    const double sum = block_sum(own);
    if (threadIdx.x == 0) *total += sum;
}
