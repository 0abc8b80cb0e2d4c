// Attention of one new token for each of several sequences, over a cache; crates/ops/src/attention/decode.rs.
//
// attention_append: cache[b, lengths[b]] = the keys and values of qkv[b]
// attention_fill_cache: cache[d, i] = the keys and values of row i of document d
// attention_decode: output[b] = softmax(q·Kᵀ/√D)·V over the cached rows that the token sees, itself included
// qkv [B or T, (Hq + 2·Hkv)·D], cache [B, capacity, 2·Hkv·D], output [B, Hq·D], fp32 or bf16; lengths [B] u32, each
// below the capacity; sums in fp32. Append before decode.
//
// Launch, 128 threads: append B blocks; fill_cache T blocks; decode (Hq, B). In decode each of the 4 warps takes every
// fourth block of 32 rows with a running maximum, and the four are put together in order. Shared memory: 5·D fp32.

#include "../common/documents.cuh"
#include "../common/reduce.cuh"
#include "../common/rows.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / LANES;

extern __shared__ float shared_values[];

template <typename T>
__device__ __forceinline__ void append(const T *qkv, const uint32_t *lengths, T *cache, uint32_t capacity,
                                       uint32_t output_width, uint32_t cache_width) {
    const uint64_t sequence = blockIdx.x;
    const T *from = qkv + sequence * (output_width + cache_width) + output_width;
    copy_row(from, cache + (sequence * capacity + lengths[sequence]) * cache_width, cache_width);
}

template <typename T>
__device__ __forceinline__ void fill_cache(const T *qkv, const uint32_t *cu_seqlens, T *cache, uint32_t documents,
                                           uint32_t capacity, uint32_t output_width, uint32_t cache_width) {
    const uint64_t row = blockIdx.x, document = document_of(cu_seqlens, documents, row);
    const T *from = qkv + row * (output_width + cache_width) + output_width;
    copy_row(from, cache + (document * capacity + row - cu_seqlens[document]) * cache_width, cache_width);
}

// Of the rows that one warp has seen: the largest score, and Σ exp(score − largest).
struct Running {
    float largest, total;
};

// Attends to every WARPS-th block of LANES rows of keys and values; `sums` [size] are this warp's own.
template <typename T>
__device__ __forceinline__ Running attend(const float *query, const T *keys, const T *values, uint64_t stride,
                                          uint32_t first, uint32_t end, uint32_t size, float *sums) {
    const uint32_t lane = threadIdx.x % LANES;
    const float scale = rsqrtf(size);
    Running running = {-INFINITY, 0};
    for (uint32_t block = first + threadIdx.x / LANES * LANES; block < end; block += THREADS) {
        float score = -INFINITY;
        if (block + lane < end) {
            float dot = 0;
            const T *key = keys + (block + lane) * stride;
            for (uint32_t column = 0; column < size; column++) dot = fmaf(query[column], to_float(key[column]), dot);
            score = dot * scale;
        }
        const float top = fmaxf(running.largest, warp_maximum(score));
        const float weight = __expf(score - top), correction = __expf(running.largest - top);
        running = {top, running.total * correction + warp_sum(weight)};
        for (uint32_t start = 0; start < size; start += LANES) {
            const uint32_t column = start + lane, known = min(column, size - 1);
            float sum = sums[known] * correction;
            for (uint32_t i = 0; i < min(end - block, LANES); i++) {
                const float value = to_float(values[(block + i) * stride + known]);
                sum = fmaf(__shfl_sync(ALL_LANES, weight, i), value, sum);
            }
            __syncwarp();
            if (column < size) sums[column] = sum;
        }
    }
    return running;
}

template <typename T>
__device__ __forceinline__ void decode(const T *qkv, const T *cache, const uint32_t *lengths, T *output,
                                       uint32_t capacity, uint32_t query_heads, uint32_t key_value_heads,
                                       uint32_t window, uint32_t size) {
    __shared__ Running running[WARPS];
    float *query = shared_values, *sums = shared_values + size;
    const uint32_t head = blockIdx.x, key_value_head = head / (query_heads / key_value_heads);
    const uint64_t sequence = blockIdx.y, stride = 2 * key_value_heads * size;
    const uint32_t end = lengths[sequence] + 1, first = window == 0 || end < window ? 0 : end - window;
    const T *row = qkv + sequence * (query_heads * size + stride) + head * size;
    for (uint32_t column = threadIdx.x; column < size; column += THREADS) query[column] = to_float(row[column]);
    for (uint32_t index = threadIdx.x; index < WARPS * size; index += THREADS) sums[index] = 0;
    __syncthreads();
    const T *keys = cache + sequence * capacity * stride + key_value_head * size;
    const uint32_t warp = threadIdx.x / LANES;
    const Running own = attend(query, keys, keys + key_value_heads * size, stride, first, end, size,
                               sums + warp * size);
    if (threadIdx.x % LANES == 0) running[warp] = own;
    __syncthreads();
    float top = -INFINITY, total = 0;
    for (const Running &part : running) top = fmaxf(top, part.largest);
    for (const Running &part : running) total += part.total * __expf(part.largest - top);
    for (uint32_t column = threadIdx.x; column < size; column += THREADS) {
        float sum = 0;
        for (int i = 0; i < WARPS; i++) sum += sums[i * size + column] * __expf(running[i].largest - top);
        pack<1>(output + (sequence * query_heads + head) * size + column) = rounded<T, 1>({sum / total});
    }
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_append_##SUFFIX(const T *qkv, const uint32_t *lengths, T *cache, uint32_t capacity,                \
                                  uint32_t output_width, uint32_t cache_width) {                                     \
        append(qkv, lengths, cache, capacity, output_width, cache_width);                                            \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_fill_cache_##SUFFIX(const T *qkv, const uint32_t *cu_seqlens, T *cache, uint32_t documents,        \
                                      uint32_t capacity, uint32_t output_width, uint32_t cache_width) {              \
        fill_cache(qkv, cu_seqlens, cache, documents, capacity, output_width, cache_width);                          \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_decode_##SUFFIX(const T *qkv, const T *cache, const uint32_t *lengths, T *output,                  \
                                  uint32_t capacity, uint32_t query_heads, uint32_t key_value_heads,                 \
                                  uint32_t window, uint32_t head_size) {                                             \
        decode(qkv, cache, lengths, output, capacity, query_heads, key_value_heads, window, head_size);              \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
