// Adding whole vectors, and the residual; crates/ops/src/fill.rs.
//
// to += from, both [N] in fp32 or bf16, rounded once, or from in bf16 and to in fp32. Zeroing and copying are the driver's
// own memset and copy.
//
// Launch: any number of blocks of 256 threads; the host takes ⌈N / (256·16 bytes)⌉, at most 16 for each multiprocessor.

#include "common/flat.cuh"

constexpr int THREADS = 256;

template <typename From, typename To>
__device__ __forceinline__ void add(const From *from, To *to, uint64_t length) {
    for_each_pack<WIDE<To>>(length, aligned(from, to), [&]<int N>(uint64_t index) {
        float added[N], values[N];
        load<N>(from + index, added);
        load<N>(to + index, values);
        for (int i = 0; i < N; i++) values[i] += added[i];
        store<N>(to + index, values);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) fill_add_f32(const float *from, float *to, uint64_t length) {
    add(from, to, length);
}

extern "C" __global__ void __launch_bounds__(THREADS) fill_add_bf16(const bf16 *from, bf16 *to, uint64_t length) {
    add(from, to, length);
}

extern "C" __global__ void __launch_bounds__(THREADS) fill_add_bf16_f32(const bf16 *from, float *to, uint64_t length) {
    add(from, to, length);
}
