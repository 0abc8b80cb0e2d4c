// Between fp32 masters and bf16 compute.
//
// to = from rounded to the nearest, ties to even; widening is exact. from, to [N].
//
// Launch: as fill.cu.

#include "common/flat.cuh"

constexpr int THREADS = 256;

template <typename From, typename To>
__device__ __forceinline__ void cast(const From *from, To *to, uint64_t length) {
    for_each_pack<WIDE<float>>(length, aligned(from, to), [&]<int N>(uint64_t index) {
        float values[N];
        load<N>(from + index, values);
        store<N>(to + index, values);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) cast_f32_bf16(const float *from, bf16 *to, uint64_t length) {
    cast(from, to, length);
}

extern "C" __global__ void __launch_bounds__(THREADS) cast_bf16_f32(const bf16 *from, float *to, uint64_t length) {
    cast(from, to, length);
}
