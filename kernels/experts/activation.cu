// The gated activation of experts, with the slot's routing weight; crates/ops/src/experts/activation.rs.
//
// forward:  a[i] = w·g·σ(g)·u for the group's sorted rows i, with w = weights[slots[i]]
// backward: du = w·da·g·σ(g),  dg = w·da·u·σ(g)·(1 + g·(1 − σ(g))),  dw[slots[i]] = Σ da·g·σ(g)·u
// gate_up [T·k, 2F], which the backward overwrites, a, da [T·k, F], fp32 or bf16; weights, dw [T, k] fp32. The group's
// rows are offsets[first]..offsets[end], read on the device.
//
// Launch: T·k blocks of 256 threads, of which those outside the group end at once.

#include "../common/gate.cuh"
#include "../common/reduce.cuh"
#include "../common/rows.cuh"

constexpr int THREADS = 256;

template <int N, typename T>
__device__ __forceinline__ void forward_row(const T *gate, const T *up, float weight, T *activation, uint32_t width) {
    for_own_columns<N>(width, [&](uint32_t column) {
        float g[N], u[N];
        load<N>(gate + column, g);
        load<N>(up + column, u);
        for (int i = 0; i < N; i++) g[i] = weight * (Gate(g[i]).silu * u[i]);
        store<N>(activation + column, g);
    });
}

// Gives this thread's part of the weight's gradient.
template <int N, typename T>
__device__ __forceinline__ float backward_row(const T *dactivation, float weight, T *gate, T *up, uint32_t width) {
    float products = 0;
    for_own_columns<N>(width, [&](uint32_t column) {
        float g[N], u[N], da[N];
        load<N>(gate + column, g);
        load<N>(up + column, u);
        load<N>(dactivation + column, da);
        for (int i = 0; i < N; i++) {
            const Gate at(g[i]);
            products = fmaf(at.silu * u[i], da[i], products);
            g[i] = weight * da[i] * u[i] * at.slope;
            u[i] = weight * da[i] * at.silu;
        }
        store<N>(gate + column, g);
        store<N>(up + column, u);
    });
    return products;
}

template <typename T>
__device__ __forceinline__ void forward(const T *gate_up, const float *weights, const uint32_t *slots,
                                        const uint32_t *offsets, uint32_t first, uint32_t end, T *activation,
                                        uint32_t width) {
    if (blockIdx.x < offsets[first] || blockIdx.x >= offsets[end]) return;
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * width;
    const T *gate = gate_up + 2 * start;
    const float weight = weights[slots[blockIdx.x]];
    if (wide_rows<T>(width, gate_up, activation)) {
        forward_row<WIDE<T>>(gate, gate + width, weight, activation + start, width);
    } else {
        forward_row<1>(gate, gate + width, weight, activation + start, width);
    }
}

template <typename T>
__device__ __forceinline__ void backward(const T *dactivation, const float *weights, const uint32_t *slots,
                                         const uint32_t *offsets, uint32_t first, uint32_t end, T *gate_up,
                                         float *dweights, uint32_t width) {
    if (blockIdx.x < offsets[first] || blockIdx.x >= offsets[end]) return;
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * width;
    T *gate = gate_up + 2 * start, *up = gate + width;
    const uint32_t slot = slots[blockIdx.x];
    const float products = wide_rows<T>(width, gate_up, dactivation)
                               ? backward_row<WIDE<T>>(dactivation + start, weights[slot], gate, up, width)
                               : backward_row<1>(dactivation + start, weights[slot], gate, up, width);
    const float gradient = block_sum(products);
    if (threadIdx.x == 0) dweights[slot] = gradient;
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        experts_activation_forward_##SUFFIX(const T *gate_up, const float *weights, const uint32_t *slots,           \
                                            const uint32_t *offsets, uint32_t first, uint32_t end, T *activation,    \
                                            uint32_t width) {                                                        \
        forward(gate_up, weights, slots, offsets, first, end, activation, width);                                    \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        experts_activation_backward_##SUFFIX(const T *dactivation, const float *weights, const uint32_t *slots,      \
                                             const uint32_t *offsets, uint32_t first, uint32_t end, T *gate_up,      \
                                             float *dweights, uint32_t width) {                                      \
        backward(dactivation, weights, slots, offsets, first, end, gate_up, dweights, width);                        \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
