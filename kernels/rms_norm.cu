// Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467); crates/ops/src/rms_norm.rs.
//
// forward:  r = 1/sqrt(mean(x²) + ε),  y = x·r·w
// backward: g = dy·w,  dx += r·g − x·r³·mean(g·x),  dw += Σₜ dy·x·r
// x, y, dy, dx [T, H] and w [H] in fp32 or bf16; r [T], dw [H] fp32.
//
// Launch: 256 threads; any number of blocks B ≤ T, each of which takes the rows b, b + B, … The backward leaves its
// block's sum of dw in partial [B, H] fp32, which bias_backward_f32 (a sum of columns) then adds to dw: one order, no
// atomics. A row is read once: it waits in shared memory for its mean, as does w for the next row.
// Shared memory, with rows of H elements rounded up to 16 bytes: forward 2 rows of T; backward 3 rows of T and one of
// fp32. A residual in front of the norm is added by the product that makes it (beta = 1), so none is fused here.

#include "common/reduce.cuh"
#include "common/rows.cuh"

constexpr int THREADS = 256;

extern __shared__ uint4 shared_bytes[];

template <int N, typename T>
__device__ __forceinline__ void forward_rows(const T *x, const T *weight, float epsilon, T *y, float *inverse_rms,
                                             uint32_t rows, uint32_t width) {
    T *kept_weight = reinterpret_cast<T *>(shared_bytes), *kept_x = kept_weight + padded<T>(width);
    copy_columns<N>(weight, kept_weight, width);
    for (uint32_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const uint64_t start = static_cast<uint64_t>(row) * width;
        float squares = 0;
        for_own_columns<N>(width, [&](uint32_t column) {
            const Pack<T, N> values = pack<N>(x + start + column);
            pack<N>(kept_x + column) = values;
            for (T value : values.values) squares = fmaf(to_float(value), to_float(value), squares);
        });
        const float r = rsqrtf(block_sum(squares) / width + epsilon);
        for_own_columns<N>(width, [&](uint32_t column) {
            float values[N], factors[N];
            load<N>(kept_x + column, values);
            load<N>(kept_weight + column, factors);
            for (int i = 0; i < N; i++) values[i] *= r * factors[i];
            store<N>(y + start + column, values);
        });
        if (threadIdx.x == 0) inverse_rms[row] = r;
    }
}

template <int N, typename T>
__device__ __forceinline__ void backward_rows(const T *dy, const T *x, const T *weight, const float *inverse_rms,
                                              T *dx, float *partial, uint32_t rows, uint32_t width) {
    T *kept_weight = reinterpret_cast<T *>(shared_bytes), *kept_x = kept_weight + padded<T>(width);
    T *kept_dy = kept_x + padded<T>(width);
    float *dweight = reinterpret_cast<float *>(kept_dy + padded<T>(width));
    copy_columns<N>(weight, kept_weight, width);
    for_own_columns<N>(width, [&](uint32_t column) { store<N>(dweight + column, {}); });
    for (uint32_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const uint64_t start = static_cast<uint64_t>(row) * width;
        const float r = inverse_rms[row];
        float products = 0;
        for_own_columns<N>(width, [&](uint32_t column) {
            const Pack<T, N> dy_values = pack<N>(dy + start + column), x_values = pack<N>(x + start + column);
            pack<N>(kept_dy + column) = dy_values;
            pack<N>(kept_x + column) = x_values;
            float factors[N], sums[N];
            load<N>(kept_weight + column, factors);
            load<N>(dweight + column, sums);
            for (int i = 0; i < N; i++) {
                const float dy_value = to_float(dy_values.values[i]), x_value = to_float(x_values.values[i]);
                products = fmaf(dy_value * factors[i], x_value, products);
                sums[i] = fmaf(dy_value * r, x_value, sums[i]);
            }
            store<N>(dweight + column, sums);
        });
        const float pull = r * r * r * (block_sum(products) / width);
        for_own_columns<N>(width, [&](uint32_t column) {
            float gradients[N], dy_values[N], x_values[N], factors[N];
            load<N>(dx + start + column, gradients);
            load<N>(kept_dy + column, dy_values);
            load<N>(kept_x + column, x_values);
            load<N>(kept_weight + column, factors);
            for (int i = 0; i < N; i++) gradients[i] += dy_values[i] * factors[i] * r - x_values[i] * pull;
            store<N>(dx + start + column, gradients);
        });
    }
    copy_columns<N>(dweight, partial + static_cast<uint64_t>(blockIdx.x) * width, width);
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        rms_norm_forward_##SUFFIX(const T *x, const T *weight, float epsilon, T *y, float *inverse_rms,              \
                                  uint32_t rows, uint32_t width) {                                                   \
        if (wide_rows<T>(width, x, weight, y)) {                                                                     \
            forward_rows<WIDE<T>>(x, weight, epsilon, y, inverse_rms, rows, width);                                  \
        } else {                                                                                                     \
            forward_rows<1>(x, weight, epsilon, y, inverse_rms, rows, width);                                        \
        }                                                                                                            \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        rms_norm_backward_##SUFFIX(const T *dy, const T *x, const T *weight, const float *inverse_rms, T *dx,        \
                                   float *partial, uint32_t rows, uint32_t width) {                                  \
        if (wide_rows<T>(width, dy, x, weight, dx, partial)) {                                                                \
            backward_rows<WIDE<T>>(dy, x, weight, inverse_rms, dx, partial, rows, width);                            \
        } else {                                                                                                     \
            backward_rows<1>(dy, x, weight, inverse_rms, dx, partial, rows, width);                                  \
        }                                                                                                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
