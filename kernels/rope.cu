// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the "rotate half" order; crates/ops/src/rope.rs.
//
// The pair (x[i], x[i + D/2]) of a head is turned by the angle of its position, times direction: 1 forward, −1
// backward. In place on the first `heads` heads of each row of x [T, width], fp32 or bf16. positions [T] u32, each
// below the rows of table [positions, D] fp32, whose rows hold D/2 cosines, then D/2 sines.
//
// Launch: T blocks of at most 256 threads. Shared memory: D fp32, the angles of the row, which all heads use.

#include "common/rows.cuh"

constexpr int THREADS = 256;

extern __shared__ uint4 shared_bytes[];

template <int N, typename T>
__device__ __forceinline__ void rotate_row(T *row, const float *angles, uint32_t heads, uint32_t half,
                                           float direction) {
    const uint32_t packs = half / N;
    for (uint32_t index = threadIdx.x; index < heads * packs; index += blockDim.x) {
        const uint32_t column = index % packs * N;
        T *left = row + index / packs * 2 * half + column, *right = left + half;
        float a[N], b[N], cosines[N], sines[N];
        load<N>(left, a);
        load<N>(right, b);
        load<N>(angles + column, cosines);
        load<N>(angles + half + column, sines);
        for (int i = 0; i < N; i++) {
            const float sine = sines[i] * direction, turned = a[i] * cosines[i] - b[i] * sine;
            b[i] = b[i] * cosines[i] + a[i] * sine;
            a[i] = turned;
        }
        store<N>(left, a);
        store<N>(right, b);
    }
}

template <typename T>
__device__ __forceinline__ void rotate(T *x, uint32_t heads, const uint32_t *positions, const float *table,
                                       uint32_t width, uint32_t head_size, float direction) {
    float *angles = reinterpret_cast<float *>(shared_bytes);
    copy_row(table + static_cast<uint64_t>(positions[blockIdx.x]) * head_size, angles, head_size);
    __syncthreads();
    T *row = x + static_cast<uint64_t>(blockIdx.x) * width;
    const uint32_t half = head_size / 2;
    if (half % WIDE<T> == 0 && wide_rows<T>(width, x)) {
        rotate_row<WIDE<T>>(row, angles, heads, half, direction);
    } else {
        rotate_row<1>(row, angles, heads, half, direction);
    }
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        rope_##SUFFIX(T *x, uint32_t heads, const uint32_t *positions, const float *table, uint32_t width,           \
                      uint32_t head_size, float direction) {                                                         \
        rotate(x, heads, positions, table, width, head_size, direction);                                             \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
