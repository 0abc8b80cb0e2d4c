// The backward of attention in bf16 by warpgroups; see ../attention/backward.cu, whose formulas, operands and order of sums
// it has: dK and dV in one kernel, dQ in another, neither atomics nor partial sums.
//
// Launch: keys (Hkv, ⌈T/128⌉), queries (Hq, ⌈T/128⌉), 256 threads each; of all heads the rows with the most to do come
// first. The other side comes in tiles of 64. While P and dS
// of one pair of tiles are computed, those of the last one are multiplied with its tiles, where registers allow it.
// Shared memory: (2·128 + 4·2·64)·D bf16, and for the keys 4·2·64 fp32 more.

#include "attention.cuh"

template <int D>
__device__ __forceinline__ void backward_keys(const Layer &layer, const bf16 *qkv, const bf16 *doutput,
                                              const float *log_sum_exp, const float *delta, bf16 *dqkv) {
    // Heads of 128 leave no registers for the P and dS of two pairs of tiles.
    constexpr bool OVERLAPS = D == 64;
    bf16 *shared = reinterpret_cast<bf16 *>(shared_bytes);
    Left<D, D == 64> k = {{shared}}, v = {{shared + ROWS * D}};
    const Ring<D> ring = {shared + 2 * ROWS * D};
    // L and δ of a round's queries.
    float(*statistics)[2][SIDE] = reinterpret_cast<float(*)[2][SIDE]>(ring.data + STAGES * 2 * SIDE * D);

    const uint32_t first = blockIdx.y * ROWS, end = min(first + ROWS, layer.rows), key_value_head = blockIdx.x;
    const uint64_t width = layer.width(), output_width = layer.output_width();
    const uint32_t warp_row = threadIdx.x / LANES * 16, row = first + warp_row + threadIdx.x % LANES / 4;
    uint32_t end_queries[2];
    for (int half = 0; half < 2; half++) {
        const uint32_t key = row + half * 8;
        end_queries[half] = key < end ? layer.end_query(key) : 0;
    }
    const uint32_t last_query = layer.end_query(end - 1), all_seen_to = layer.end_query(first);
    const uint32_t tiles = (last_query - first + SIDE - 1) / SIDE;
    const uint32_t rounds = tiles * layer.group();

    // Queries, their output's gradients and their statistics. A query that is not there has zeros everywhere, which add
    // nothing to any gradient. The rounds go through the tiles of one head, then of the next.
    const uint32_t first_head = key_value_head * layer.group(), start = layer.query_start(first_head);
    const Copier<D> queries(qkv + first * width + start, width);
    const Copier<D> doutputs(doutput + first * output_width + start, output_width);
    const float *statistic = (threadIdx.x < SIDE ? log_sum_exp : delta) + first_head;
    uint32_t next_head = 0, next_tile = 0;
    auto load = [&](uint32_t round) {
        if (round < rounds) {
            const uint32_t query = first + next_tile * SIDE, known = rows_from(query, layer.rows, SIDE);
            const uint64_t behind = next_tile * SIDE;
            queries.load(ring.tile(round, 0), behind * width + next_head * D, known);
            doutputs.load(ring.tile(round, 1), behind * output_width + next_head * D, known);
            if (threadIdx.x < 2 * SIDE) {
                const uint32_t place = threadIdx.x % SIDE;
                const bool is_known = place < known;
                const uint64_t row = is_known ? query + place : 0;
                copy_async(&statistics[round % STAGES][threadIdx.x / SIDE][place],
                           statistic + row * layer.query_heads + next_head, is_known);
            }
            if (++next_tile == tiles) {
                next_tile = 0;
                next_head++;
            }
        }
        commit_copies();
    };
    k.tile.load(qkv + first * width + layer.key_start(key_value_head), width, end - first);
    v.tile.load(qkv + first * width + layer.value_start(key_value_head), width, end - first);
    for (uint32_t round = 0; round < AHEAD; round++) load(round);

    const float scale = rsqrtf(D);
    Sums dk[D / 8] = {}, dv[D / 8] = {}, p[SUMS], ds[SUMS];
    Fragment left_p[SIDE / 16], left_ds[SIDE / 16];
    uint32_t tile = 0;
    // From scores to P and dS.
    auto weigh = [&](uint32_t round) {
        const uint32_t query = first + tile * SIDE;
        tile = tile + 1 == tiles ? 0 : tile + 1;
        const bool masked = query < end || query + SIDE > all_seen_to;
#pragma unroll
        for (int n = 0; n < SUMS; n++) {
            // Two neighbouring queries.
            const uint32_t own = n * 8 + threadIdx.x % 4 * 2;
            const float2 l = *reinterpret_cast<const float2 *>(&statistics[round % STAGES][0][own]);
            const float2 d = *reinterpret_cast<const float2 *>(&statistics[round % STAGES][1][own]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t column = own + i % 2, key = row + i / 2 * 8;
                float weight = exp2_fast(p[n].values[i] * (scale * LOG2_E) - (i % 2 ? l.y : l.x) * LOG2_E);
                if (masked && (query + column < key || query + column >= end_queries[i / 2])) weight = 0;
                p[n].values[i] = weight;
                ds[n].values[i] = weight * (ds[n].values[i] - (i % 2 ? d.y : d.x));
            }
        }
    };
    auto multiply_scores = [&](uint32_t round) {
        k.multiply_rows(p, ring.tile(round, 0));
        v.multiply_rows(ds, ring.tile(round, 1));
        commit_products();
    };
    auto begin_gradients = [&]() {
        hold(dv);
        hold(dk);
        hold(left_p);
        hold(left_ds);
        begin_products();
    };
    auto multiply_gradients = [&](uint32_t round) {
        multiply_columns<D>(dv, left_p, ring.tile(round, 1));
        multiply_columns<D>(dk, left_ds, ring.tile(round, 0));
        commit_products();
    };
    auto take_scores = [&](uint32_t round) {
        hold(p);
        hold(ds);
        weigh(round);
        hold(p);
        hold(ds);
    };
    auto end_gradients = [&]() {
        wait_products<0>();
        hold(dv);
        hold(dk);
        hold(left_p);
        hold(left_ds);
    };
    auto round_scores_off = [&]() {
        round_off(left_p, p);
        round_off(left_ds, ds);
    };
    arrive(load, 0);
    k.take();
    v.take();
    hold(k.fragments);
    hold(v.fragments);
    begin_products();
    multiply_scores(0);
    wait_products<0>();
    take_scores(0);
    round_scores_off();
    for (uint32_t round = 1; round < rounds; round++) {
        if constexpr (OVERLAPS) {
            arrive(load, round);
            begin_gradients();
            multiply_scores(round);
            multiply_gradients(round - 1);
            wait_products<1>();
            take_scores(round);
            end_gradients();
        } else {
            begin_gradients();
            multiply_gradients(round - 1);
            end_gradients();
            arrive(load, round);
            begin_products();
            multiply_scores(round);
            wait_products<0>();
            take_scores(round);
        }
        round_scores_off();
    }
    begin_gradients();
    multiply_gradients(rounds - 1);
    end_gradients();

    __syncthreads();
    const uint32_t known = rows_from(first + warp_row, end, 16);
    const Tile<D> for_k = {shared}, for_v = {shared + ROWS * D};
    bf16 *to = dqkv + (first + warp_row) * width;
    store_rows<D>(dk, scale, scale, for_k, warp_row, to + layer.key_start(key_value_head), width, known);
    store_rows<D>(dv, 1, 1, for_v, warp_row, to + layer.value_start(key_value_head), width, known);
}

template <int D>
__device__ __forceinline__ void backward_queries(const Layer &layer, const bf16 *qkv, const bf16 *doutput,
                                                 const float *log_sum_exp, const float *delta, bf16 *dqkv) {
    bf16 *shared = reinterpret_cast<bf16 *>(shared_bytes);
    Left<D, D == 64> q = {{shared}}, dout = {{shared + ROWS * D}};
    const Ring<D> ring = {shared + 2 * ROWS * D};

    const uint32_t first = (gridDim.y - 1 - blockIdx.y) * ROWS, end = min(first + ROWS, layer.rows);
    const uint32_t head = blockIdx.x, key_value_head = head / layer.group();
    const uint64_t width = layer.width(), output_width = layer.output_width();
    const uint32_t warp_row = threadIdx.x / LANES * 16, row = first + warp_row + threadIdx.x % LANES / 4;
    const TwoQueries own(layer, row, end, head, log_sum_exp, delta);
    const uint32_t first_key = layer.first_key(first), all_see = layer.first_key(end - 1);
    const uint32_t rounds = (end - first_key + SIDE - 1) / SIDE;

    const KeysAndValues<D> load(layer, qkv + first_key * width, key_value_head, end - first_key, ring);
    q.tile.load(qkv + first * width + layer.query_start(head), width, end - first);
    dout.tile.load(doutput + first * output_width + layer.query_start(head), output_width, end - first);
    for (uint32_t round = 0; round < AHEAD; round++) load(round);

    const float scale = rsqrtf(D);
    Sums dq[D / 8] = {}, p[SUMS], ds[SUMS];
    Fragment left[SIDE / 16];
    // From scores to dS.
    auto weigh = [&](uint32_t round) {
        const uint32_t key = first_key + round * SIDE;
        const bool masked = key + SIDE > first + 1 || key < all_see;
#pragma unroll
        for (int n = 0; n < SUMS; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t own_key = key + n * 8 + threadIdx.x % 4 * 2 + i % 2, query = row + i / 2 * 8;
                float weight = exp2_fast(p[n].values[i] * (scale * LOG2_E) - own.base[i / 2]);
                if (masked && (own_key > query || own_key < own.first_keys[i / 2])) weight = 0;
                ds[n].values[i] = weight * (ds[n].values[i] - own.delta[i / 2]);
            }
        }
    };
    auto multiply_scores = [&](uint32_t round) {
        q.multiply_rows(p, ring.tile(round, 0));
        dout.multiply_rows(ds, ring.tile(round, 1));
        commit_products();
    };
    auto multiply_gradients = [&](uint32_t round) {
        multiply_columns<D>(dq, left, ring.tile(round, 0));
        commit_products();
    };
    arrive(load, 0);
    q.take();
    dout.take();
    hold(q.fragments);
    hold(dout.fragments);
    begin_products();
    multiply_scores(0);
    wait_products<0>();
    hold(p);
    hold(ds);
    weigh(0);
    round_off(left, ds);
    for (uint32_t round = 1; round < rounds; round++) {
        arrive(load, round);
        hold(dq);
        hold(left);
        begin_products();
        multiply_scores(round);
        multiply_gradients(round - 1);
        wait_products<1>();
        hold(p);
        hold(ds);
        weigh(round);
        hold(ds);
        wait_products<0>();
        hold(dq);
        hold(left);
        round_off(left, ds);
    }
    hold(dq);
    hold(left);
    begin_products();
    multiply_gradients(rounds - 1);
    wait_products<0>();
    hold(dq);

    __syncthreads();
    const Tile<D> tile = {shared};
    store_rows<D>(dq, scale, scale, tile, warp_row, dqkv + (first + warp_row) * width + layer.query_start(head), width,
                  rows_from(first + warp_row, end, 16));
}

#define ENTRY(SIDE_OF, D)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        hopper_attention_backward_##SIDE_OF##_##D(                                                                   \
            const bf16 *doutput, const bf16 *qkv, const float *log_sum_exp, const float *delta,                      \
            const uint32_t *cu_seqlens, bf16 *dqkv, uint32_t rows, uint32_t documents, uint32_t query_heads,         \
            uint32_t key_value_heads, uint32_t window) {                                                             \
        const Layer layer = {rows, query_heads, key_value_heads, D, window, documents, cu_seqlens};                  \
        backward_##SIDE_OF<D>(layer, qkv, doutput, log_sum_exp, delta, dqkv);                                        \
    }

ENTRY(keys, 64)
ENTRY(keys, 128)
ENTRY(queries, 64)
ENTRY(queries, 128)
