// The gated activation of Llama's feed-forward layer (Shazeer 2020, arXiv:2002.05202); crates/ops/src/swiglu.rs.
//
// forward:  a = g·σ(g)·u
// backward: du = da·g·σ(g),  dg = da·u·σ(g)·(1 + g·(1 − σ(g))), written over g and u
// gate_up [T, 2F] holds g then u in each row, a and da [T, F]; fp32 or bf16.
//
// Launch: T blocks of 256 threads.

#include "common/gate.cuh"
#include "common/rows.cuh"

constexpr int THREADS = 256;

template <int N, typename T>
__device__ __forceinline__ void forward_row(const T *gate, const T *up, T *activation, uint32_t width) {
    for_own_columns<N>(width, [&](uint32_t column) {
        float g[N], u[N];
        load<N>(gate + column, g);
        load<N>(up + column, u);
        for (int i = 0; i < N; i++) g[i] = Gate(g[i]).silu * u[i];
        store<N>(activation + column, g);
    });
}

template <int N, typename T>
__device__ __forceinline__ void backward_row(const T *dactivation, T *gate, T *up, uint32_t width) {
    for_own_columns<N>(width, [&](uint32_t column) {
        float g[N], u[N], da[N];
        load<N>(gate + column, g);
        load<N>(up + column, u);
        load<N>(dactivation + column, da);
        for (int i = 0; i < N; i++) {
            const Gate at(g[i]);
            g[i] = da[i] * u[i] * at.slope;
            u[i] = da[i] * at.silu;
        }
        store<N>(gate + column, g);
        store<N>(up + column, u);
    });
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        swiglu_forward_##SUFFIX(const T *gate_up, T *activation, uint32_t width) {                                   \
        const uint64_t start = static_cast<uint64_t>(blockIdx.x) * width;                                            \
        const T *gate = gate_up + 2 * start;                                                                         \
        if (wide_rows<T>(width, gate_up, activation)) {                                                              \
            forward_row<WIDE<T>>(gate, gate + width, activation + start, width);                                     \
        } else {                                                                                                     \
            forward_row<1>(gate, gate + width, activation + start, width);                                           \
        }                                                                                                            \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        swiglu_backward_##SUFFIX(const T *dactivation, T *gate_up, uint32_t width) {                                 \
        const uint64_t start = static_cast<uint64_t>(blockIdx.x) * width;                                            \
        T *gate = gate_up + 2 * start;                                                                               \
        if (wide_rows<T>(width, gate_up, dactivation)) {                                                             \
            backward_row<WIDE<T>>(dactivation + start, gate, gate + width, width);                                   \
        } else {                                                                                                     \
            backward_row<1>(dactivation + start, gate, gate + width, width);                                         \
        }                                                                                                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
