// Causal grouped-query attention, forward, in bf16 on tensor cores; crates/ops/src/attention.
//
// S = QKᵀ/√D over the keys that a query sees, P = softmax(S), O = PV, L = log Σ exp(S), block of keys after block of
// keys with a running maximum (Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691). D is 64 or 128.
// qkv [T, (Hq + 2·Hkv)·D] bf16, 16-byte aligned, output [T, Hq·D] bf16, log_sum_exp [T, Hq] fp32.
//
// Launch: blocks (⌈T/128⌉, Hq) of 128 threads; the last queries, which see the most keys, come first. A block's 128
// queries may belong to several documents: each masks the keys before its own. Each of the 4 warps has 32 queries, so
// that a fragment of K or V serves two products. Shared memory: (128 + 2·KEYS)·D bf16, KEYS = 64 for D = 64 and 32 for 128: Q, one block of keys
// and one of values; values arrive while scores are computed, the next keys while they are weighted.

#include "attention.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / LANES;
// Of each warp: stripes of 16 queries.
constexpr int STRIPES = 2;
constexpr int QUERIES = WARPS * STRIPES * 16;
// Keys of a block: what the registers leave room for.
template <int D>
constexpr int KEYS = D == 64 ? 64 : 32;

extern __shared__ uint4 shared_bytes[];

// The running softmax of a warp's stripes: this thread has the rows g and g + 8 of each, of whose totals it holds the
// part that it added.
struct Softmax {
    float largest[STRIPES][2], total[STRIPES][2];
    float scale;

    // Turns scores into exp(score − largest), and corrects what was summed with a smaller maximum.
    template <int N, int M>
    __device__ __forceinline__ void soften(Sums (&scores)[STRIPES][N], Sums (&outputs)[STRIPES][M]) {
#pragma unroll
        for (int stripe = 0; stripe < STRIPES; stripe++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = largest[stripe][half];
                for (Sums &s : scores[stripe]) top = fmaxf(top, fmaxf(s.values[2 * half], s.values[2 * half + 1]));
                top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
                top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
                // A row that has seen no key yet has no maximum: −∞ − −∞ must not become a NaN.
                const float base = top == -INFINITY ? 0 : top * scale;
                const float correction = exp2_fast(largest[stripe][half] * scale - base);
                float sum = 0;
                for (Sums &s : scores[stripe]) {
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        s.values[i] = exp2_fast(s.values[i] * scale - base);
                        sum += s.values[i];
                    }
                }
                total[stripe][half] = total[stripe][half] * correction + sum;
                // After a few blocks a maximum hardly rises, and a factor of 1 need not be multiplied with.
                if (__any_sync(ALL_LANES, top > largest[stripe][half])) {
                    for (Sums &output : outputs[stripe]) {
                        output.values[2 * half] *= correction;
                        output.values[2 * half + 1] *= correction;
                    }
                }
                largest[stripe][half] = top;
            }
        }
    }
};

// −∞ where a query must not see a key. `rows` are this thread's first queries, `first` their first keys.
template <int N>
__device__ __forceinline__ void mask(Sums (&scores)[STRIPES][N], uint32_t row,
                                     const uint32_t (&first)[STRIPES][2], uint32_t key) {
    const uint32_t own_key = key + threadIdx.x % 4 * 2;
#pragma unroll
    for (int stripe = 0; stripe < STRIPES; stripe++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t query = row + stripe * 16 + i / 2 * 8, at = own_key + n * 8 + i % 2;
                const bool seen = at <= query && at >= first[stripe][i / 2];
                if (!seen) scores[stripe][n].values[i] = -INFINITY;
            }
        }
    }
}

template <int D>
__device__ __forceinline__ void forward(const Layer &layer, const bf16 *qkv, bf16 *output, float *log_sum_exp) {
    bf16 *shared = reinterpret_cast<bf16 *>(shared_bytes);
    const Tile<D> q = {shared}, k = {shared + QUERIES * D}, v = {shared + (QUERIES + KEYS<D>) * D};
    const uint32_t head = blockIdx.y, first = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    const uint32_t end = min(first + QUERIES, layer.rows);
    const uint64_t width = layer.width();
    const bf16 *keys = qkv + layer.key_start(head / layer.group());
    const bf16 *values = qkv + layer.value_start(head / layer.group());
    const uint32_t warp_row = threadIdx.x / LANES * STRIPES * 16;
    const uint32_t row = first + warp_row + threadIdx.x % LANES / 4;

    uint32_t first_keys[STRIPES][2];
    Softmax softmax = {.scale = LOG2_E * rsqrtf(D)};
    for (int stripe = 0; stripe < STRIPES; stripe++) {
        for (int half = 0; half < 2; half++) {
            first_keys[stripe][half] = layer.first_key(min(row + stripe * 16 + half * 8, end - 1));
            softmax.largest[stripe][half] = -INFINITY;
            softmax.total[stripe][half] = 0;
        }
    }
    const uint32_t all_see = layer.first_key(end - 1);
    Sums outputs[STRIPES][D / 8] = {};

    uint32_t key = layer.first_key(first);
    q.template load<QUERIES>(qkv + first * width + layer.query_start(head), width, end - first, D);
    k.template load<KEYS<D>>(keys + key * width, width, end - key, D);
    commit_copies();
    for (; key < end; key += KEYS<D>) {
        // The keys have arrived, and nobody needs the values of the last round any more.
        wait_copies<0>();
        __syncthreads();
        v.template load<KEYS<D>>(values + key * width, width, end - key, D);
        commit_copies();
        Sums scores[STRIPES][KEYS<D> / 8];
        multiply_rows(scores, q, warp_row, k);
        if (key + KEYS<D> > first + 1 || key < all_see) mask(scores, row, first_keys, key);
        softmax.soften(scores, outputs);
        wait_copies<0>();
        __syncthreads();
        if (key + KEYS<D> < end) {
            k.template load<KEYS<D>>(keys + (key + KEYS<D>) * width, width, end - key - KEYS<D>, D);
            commit_copies();
        }
        multiply_registers(outputs, scores, v);
    }

#pragma unroll
    for (int stripe = 0; stripe < STRIPES; stripe++) {
        float factors[2];
        for (int half = 0; half < 2; half++) {
            float total = softmax.total[stripe][half];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            factors[half] = 1 / total;
            const uint32_t query = row + stripe * 16 + half * 8;
            if (query < end && threadIdx.x % 4 == 0) {
                const float largest = softmax.largest[stripe][half] * rsqrtf(D);
                log_sum_exp[static_cast<uint64_t>(query) * layer.query_heads + head] = largest + logf(total);
            }
        }
        const uint32_t tile_row = warp_row + stripe * 16;
        bf16 *to = output + (first + tile_row) * layer.output_width() + layer.query_start(head);
        store_rows<D>(outputs[stripe], factors[0], factors[1], q, tile_row, to, layer.output_width(),
                      rows_from(first + tile_row, end, 16));
    }
}

#define ENTRY(D)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_forward_##D(const bf16 *qkv, const uint32_t *cu_seqlens, bf16 *output, float *log_sum_exp,         \
                              uint32_t rows, uint32_t documents, uint32_t query_heads, uint32_t key_value_heads,     \
                              uint32_t window) {                                                                     \
        const Layer layer = {rows, query_heads, key_value_heads, D, window, documents, cu_seqlens};                  \
        forward<D>(layer, qkv, output, log_sum_exp);                                                                 \
    }

ENTRY(64)
ENTRY(128)
