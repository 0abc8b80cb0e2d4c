// Layer normalisation without a bias (Ba, Kiros and Hinton 2016, arXiv:1607.06450); crates/ops/src/layer_norm.rs.
//
// forward:  m = mean(x),  s = 1/sqrt(mean((x − m)²) + ε),  y = (x − m)·s·w
// backward: g = dy·w,  z = (x − m)·s,  dx += s·(g − mean(g) − z·mean(g·z)),  dw += Σₜ dy·z
// x, y, dy, dx [T, H] and w [H] in fp32 or bf16; m, s [T], dw [H] fp32. The variance is taken of the centred values.
//
// Launch, partial sums of dw and shared memory: as rms_norm.cu.

#include "common/reduce.cuh"
#include "common/rows.cuh"

constexpr int THREADS = 256;

extern __shared__ uint4 shared_bytes[];

template <int N, typename T>
__device__ __forceinline__ void forward_rows(const T *x, const T *weight, float epsilon, T *y, float *means,
                                             float *inverse_deviations, uint32_t rows, uint32_t width) {
    T *kept_weight = reinterpret_cast<T *>(shared_bytes), *kept_x = kept_weight + padded<T>(width);
    copy_columns<N>(weight, kept_weight, width);
    for (uint32_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const uint64_t start = static_cast<uint64_t>(row) * width;
        float total = 0, squares = 0;
        for_own_columns<N>(width, [&](uint32_t column) {
            const Pack<T, N> values = pack<N>(x + start + column);
            pack<N>(kept_x + column) = values;
            for (T value : values.values) total += to_float(value);
        });
        const float mean = block_sum(total) / width;
        for_own_columns<N>(width, [&](uint32_t column) {
            float values[N];
            load<N>(kept_x + column, values);
            for (float value : values) squares = fmaf(value - mean, value - mean, squares);
        });
        const float s = rsqrtf(block_sum(squares) / width + epsilon);
        for_own_columns<N>(width, [&](uint32_t column) {
            float values[N], factors[N];
            load<N>(kept_x + column, values);
            load<N>(kept_weight + column, factors);
            for (int i = 0; i < N; i++) values[i] = (values[i] - mean) * s * factors[i];
            store<N>(y + start + column, values);
        });
        if (threadIdx.x == 0) {
            means[row] = mean;
            inverse_deviations[row] = s;
        }
    }
}

template <int N, typename T>
__device__ __forceinline__ void backward_rows(const T *dy, const T *x, const T *weight, const float *means,
                                              const float *inverse_deviations, T *dx, float *partial, uint32_t rows,
                                              uint32_t width) {
    T *kept_weight = reinterpret_cast<T *>(shared_bytes), *kept_x = kept_weight + padded<T>(width);
    T *kept_dy = kept_x + padded<T>(width);
    float *dweight = reinterpret_cast<float *>(kept_dy + padded<T>(width));
    copy_columns<N>(weight, kept_weight, width);
    for_own_columns<N>(width, [&](uint32_t column) { store<N>(dweight + column, {}); });
    for (uint32_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const uint64_t start = static_cast<uint64_t>(row) * width;
        const float mean = means[row], s = inverse_deviations[row];
        float total = 0, products = 0;
        for_own_columns<N>(width, [&](uint32_t column) {
            const Pack<T, N> dy_values = pack<N>(dy + start + column), x_values = pack<N>(x + start + column);
            pack<N>(kept_dy + column) = dy_values;
            pack<N>(kept_x + column) = x_values;
            float factors[N], sums[N];
            load<N>(kept_weight + column, factors);
            load<N>(dweight + column, sums);
            for (int i = 0; i < N; i++) {
                const float dy_value = to_float(dy_values.values[i]);
                const float z = (to_float(x_values.values[i]) - mean) * s;
                total += dy_value * factors[i];
                products = fmaf(dy_value * factors[i], z, products);
                sums[i] = fmaf(dy_value, z, sums[i]);
            }
            store<N>(dweight + column, sums);
        });
        const float mean_g = block_sum(total) / width, mean_gz = block_sum(products) / width;
        for_own_columns<N>(width, [&](uint32_t column) {
            float gradients[N], dy_values[N], x_values[N], factors[N];
            load<N>(dx + start + column, gradients);
            load<N>(kept_dy + column, dy_values);
            load<N>(kept_x + column, x_values);
            load<N>(kept_weight + column, factors);
            for (int i = 0; i < N; i++) {
                gradients[i] += s * (dy_values[i] * factors[i] - mean_g - (x_values[i] - mean) * s * mean_gz);
            }
            store<N>(dx + start + column, gradients);
        });
    }
    copy_columns<N>(dweight, partial + static_cast<uint64_t>(blockIdx.x) * width, width);
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        layer_norm_forward_##SUFFIX(const T *x, const T *weight, float epsilon, T *y, float *means,                  \
                                    float *inverse_deviations, uint32_t rows, uint32_t width) {                      \
        if (wide_rows<T>(width, x, weight, y)) {                                                                     \
            forward_rows<WIDE<T>>(x, weight, epsilon, y, means, inverse_deviations, rows, width);                    \
        } else {                                                                                                     \
            forward_rows<1>(x, weight, epsilon, y, means, inverse_deviations, rows, width);                          \
        }                                                                                                            \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        layer_norm_backward_##SUFFIX(const T *dy, const T *x, const T *weight, const float *means,                   \
                                     const float *inverse_deviations, T *dx, float *partial, uint32_t rows,          \
                                     uint32_t width) {                                                               \
        if (wide_rows<T>(width, dy, x, weight, dx, partial)) {                                                       \
            backward_rows<WIDE<T>>(dy, x, weight, means, inverse_deviations, dx, partial, rows, width);              \
        } else {                                                                                                     \
            backward_rows<1>(dy, x, weight, means, inverse_deviations, dx, partial, rows, width);                    \
        }                                                                                                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
