// The backward of attention in bf16 on tensor cores; crates/ops/src/attention/backward.rs.
//
// P = exp(S − L);  dV = PᵀdO;  dS = P∘(dO·Vᵀ − δ), δ = rowsum(dO∘O);  dQ = dS·K/√D;  dK = dSᵀ·Q/√D. D is 64 or 128.
// Operands as in forward.cu; doutput [T, Hq·D], dqkv [T, (Hq + 2·Hkv)·D] bf16; δ, log_sum_exp [T, Hq] fp32.
//
// Three kernels: attention_delta_* (plain.cu) fills δ; attention_backward_keys_* writes dK and dV, a block for each 64
// keys of a key-value head, over all queries that see them, of all query heads that share them; attention_backward_
// queries_* writes dQ, a block for each 64 queries of a head, over all keys that they see. Both compute P again. That
// is seven products where a single kernel would do five, but each gradient is one sum in one block, in one order:
// neither atomics nor a pass over partial sums.
//
// Launch: keys (⌈T/64⌉, Hkv), queries (⌈T/64⌉, Hq), 128 threads each; a warp has 16 rows. The scores of the keys'
// kernel are computed transposed, so that P and dS are left operands where they lie, in registers.
// Shared memory, with BLOCK = 64 for D = 64 and 32 for D = 128: (2·64 + 4·BLOCK)·D bf16, and for the keys 4·BLOCK fp32
// more. The other side's next block arrives while one is worked on.

#include "attention.cuh"

constexpr int THREADS = 128;
// Rows of a block, 16 for each warp.
constexpr int ROWS = 64;

// Rows of the other side that are worked on at once: what the registers leave room for.
template <int D>
constexpr int BLOCK = D == 64 ? 64 : 32;

extern __shared__ uint4 shared_bytes[];

// Two tiles [BLOCK][D] that are loaded together, twice: one pair is worked on while the other arrives.
template <int D>
struct Pairs {
    bf16 *data;

    __device__ __forceinline__ Tile<D> tile(uint32_t stage, uint32_t which) const {
        return {data + (stage * 2 + which) * BLOCK<D> * D};
    }
};

template <int D>
__device__ __forceinline__ void backward_keys(const Layer &layer, const bf16 *qkv, const bf16 *doutput,
                                              const float *log_sum_exp, const float *delta, bf16 *dqkv) {
    constexpr int N = BLOCK<D> / 8;
    bf16 *shared = reinterpret_cast<bf16 *>(shared_bytes);
    const Tile<D> k = {shared}, v = {shared + ROWS * D};
    const Pairs<D> pairs = {shared + 2 * ROWS * D};
    float(*statistics)[2][BLOCK<D>] = reinterpret_cast<float(*)[2][BLOCK<D>]>(pairs.tile(2, 0).data);

    const uint32_t first = blockIdx.x * ROWS, end = min(first + ROWS, layer.rows), key_value_head = blockIdx.y;
    const uint64_t width = layer.width(), output_width = layer.output_width();
    const uint32_t warp_row = threadIdx.x / LANES * 16, row = first + warp_row + threadIdx.x % LANES / 4;
    uint32_t end_queries[2];
    for (int half = 0; half < 2; half++) {
        const uint32_t key = row + half * 8;
        end_queries[half] = key < end ? layer.end_query(key) : 0;
    }
    const uint32_t last_query = layer.end_query(end - 1), all_seen_to = layer.end_query(first);
    const uint32_t blocks = (last_query - first + BLOCK<D> - 1) / BLOCK<D>;
    const uint32_t rounds = blocks * layer.group();

    // Queries, their output's gradients and their statistics. A query that is not there has zeros everywhere, which add
    // nothing to any gradient.
    auto load_queries = [&](uint32_t round) {
        const uint32_t head = key_value_head * layer.group() + round / blocks, stage = round % 2;
        const uint32_t query = first + round % blocks * BLOCK<D>, start = layer.query_start(head);
        const uint32_t known = rows_from(query, layer.rows, BLOCK<D>);
        pairs.tile(stage, 0).template load<BLOCK<D>>(qkv + query * width + start, width, known, D);
        pairs.tile(stage, 1).template load<BLOCK<D>>(doutput + query * output_width + start, output_width, known, D);
        if (threadIdx.x < 2 * BLOCK<D>) {
            const uint32_t own = threadIdx.x % BLOCK<D>, which = threadIdx.x / BLOCK<D>;
            const uint64_t at = own < known ? query + own : 0;
            copy_async(&statistics[stage][which][own], (which == 0 ? log_sum_exp : delta) + at * layer.query_heads + head,
                       own < known);
        }
        commit_copies();
    };

    const float scale = rsqrtf(D);
    Sums dk[1][D / 8] = {}, dv[1][D / 8] = {};
    k.template load<ROWS>(qkv + first * width + layer.key_start(key_value_head), width, end - first, D);
    v.template load<ROWS>(qkv + first * width + layer.value_start(key_value_head), width, end - first, D);
    load_queries(0);
    for (uint32_t round = 0; round < rounds; round++) {
        const uint32_t stage = round % 2, query = first + round % blocks * BLOCK<D>;
        wait_copies<0>();
        __syncthreads();
        if (round + 1 < rounds) load_queries(round + 1);
        const Tile<D> q = pairs.tile(stage, 0), dout = pairs.tile(stage, 1);
        Sums p[1][N], ds[1][N];
        multiply_rows(p, k, warp_row, q);
        multiply_rows(ds, v, warp_row, dout);
        const bool masked = query < end || query + BLOCK<D> > all_seen_to;
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t column = n * 8 + threadIdx.x % 4 * 2 + i % 2, key = row + i / 2 * 8;
                float weight = exp2_fast((p[0][n].values[i] * scale - statistics[stage][0][column]) * LOG2_E);
                if (masked && (query + column < key || query + column >= end_queries[i / 2])) weight = 0;
                p[0][n].values[i] = weight;
                ds[0][n].values[i] = weight * (ds[0][n].values[i] - statistics[stage][1][column]);
            }
        }
        multiply_registers(dv, p, dout);
        multiply_registers(dk, ds, q);
    }

    const uint32_t known = rows_from(first + warp_row, end, 16);
    bf16 *to = dqkv + (first + warp_row) * width;
    store_rows<D>(dk[0], scale, scale, k, warp_row, to + layer.key_start(key_value_head), width, known);
    store_rows<D>(dv[0], 1, 1, v, warp_row, to + layer.value_start(key_value_head), width, known);
}

template <int D>
__device__ __forceinline__ void backward_queries(const Layer &layer, const bf16 *qkv, const bf16 *doutput,
                                                 const float *log_sum_exp, const float *delta, bf16 *dqkv) {
    constexpr int N = BLOCK<D> / 8;
    bf16 *shared = reinterpret_cast<bf16 *>(shared_bytes);
    const Tile<D> q = {shared}, dout = {shared + ROWS * D};
    const Pairs<D> pairs = {shared + 2 * ROWS * D};

    const uint32_t first = (gridDim.x - 1 - blockIdx.x) * ROWS, end = min(first + ROWS, layer.rows);
    const uint32_t head = blockIdx.y, key_value_head = head / layer.group();
    const uint64_t width = layer.width(), output_width = layer.output_width();
    const uint32_t warp_row = threadIdx.x / LANES * 16, row = first + warp_row + threadIdx.x % LANES / 4;
    const TwoQueries own(layer, row, end, head, log_sum_exp, delta);
    const uint32_t first_key = layer.first_key(first), all_see = layer.first_key(end - 1);

    auto load_keys = [&](uint32_t key, uint32_t stage) {
        const bf16 *from = qkv + key * width;
        pairs.tile(stage, 0).template load<BLOCK<D>>(from + layer.key_start(key_value_head), width, end - key, D);
        pairs.tile(stage, 1).template load<BLOCK<D>>(from + layer.value_start(key_value_head), width, end - key, D);
        commit_copies();
    };

    const float scale = rsqrtf(D);
    Sums dq[1][D / 8] = {};
    q.template load<ROWS>(qkv + first * width + layer.query_start(head), width, end - first, D);
    dout.template load<ROWS>(doutput + first * output_width + layer.query_start(head), output_width, end - first, D);
    load_keys(first_key, 0);
    uint32_t stage = 0;
    for (uint32_t key = first_key; key < end; key += BLOCK<D>, stage ^= 1) {
        wait_copies<0>();
        __syncthreads();
        if (key + BLOCK<D> < end) load_keys(key + BLOCK<D>, stage ^ 1);
        const Tile<D> k = pairs.tile(stage, 0), v = pairs.tile(stage, 1);
        Sums p[1][N], ds[1][N];
        multiply_rows(p, q, warp_row, k);
        multiply_rows(ds, dout, warp_row, v);
        const bool masked = key + BLOCK<D> > first + 1 || key < all_see;
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t own_key = key + n * 8 + threadIdx.x % 4 * 2 + i % 2, query = row + i / 2 * 8;
                float weight = exp2_fast(p[0][n].values[i] * (scale * LOG2_E) - own.base[i / 2]);
                if (masked && (own_key > query || own_key < own.first_keys[i / 2])) weight = 0;
                ds[0][n].values[i] = weight * (ds[0][n].values[i] - own.delta[i / 2]);
            }
        }
        multiply_registers(dq, ds, k);
    }
    store_rows<D>(dq[0], scale, scale, q, warp_row, dqkv + (first + warp_row) * width + layer.query_start(head), width,
                  rows_from(first + warp_row, end, 16));
}

#define ENTRY(SIDE, D)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_backward_##SIDE##_##D(const bf16 *doutput, const bf16 *qkv, const float *log_sum_exp,              \
                                        const float *delta, const uint32_t *cu_seqlens, bf16 *dqkv, uint32_t rows,   \
                                        uint32_t documents, uint32_t query_heads, uint32_t key_value_heads,          \
                                        uint32_t window) {                                                           \
        const Layer layer = {rows, query_heads, key_value_heads, D, window, documents, cu_seqlens};                  \
        backward_##SIDE<D>(layer, qkv, doutput, log_sum_exp, delta, dqkv);                                           \
    }

ENTRY(keys, 64)
ENTRY(keys, 128)
ENTRY(queries, 64)
ENTRY(queries, 128)
