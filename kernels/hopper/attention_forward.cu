// Causal grouped-query attention, forward, in bf16 by warpgroups; see ../attention/forward.cu, whose operands it has.
//
// Launch: blocks (Hq, ⌈T/128⌉) of 256 threads; of all heads the last queries, which see the most keys, come first. Keys and values come
// in tiles of 64. While the softmax of one tile is computed, the last tile's probabilities are multiplied with its values
// (Shah et al. 2024, arXiv:2407.08608, section 3.2). Shared memory: (128 + 4·2·64)·D bf16.

#include "attention.cuh"

// The running softmax: this thread has the rows g and g + 8 of its warp's, of whose totals it holds the part that it added.
struct Softmax {
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {}, correction[2];
    float scale;

    // Turns scores into exp(score − largest), and notes what sums with a smaller maximum are to be multiplied with.
    __device__ __forceinline__ void soften(Sums (&scores)[SUMS]) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = largest[half];
#pragma unroll
            for (Sums &s : scores) top = fmaxf(top, fmaxf(s.values[2 * half], s.values[2 * half + 1]));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            // A row that has seen no key yet has no maximum: −∞ − −∞ must not become a NaN.
            const float base = top == -INFINITY ? 0 : top * scale;
            correction[half] = exp2_fast(largest[half] * scale - base);
            float sum = 0;
#pragma unroll
            for (Sums &s : scores) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s.values[i] = exp2_fast(s.values[i] * scale - base);
                    sum += s.values[i];
                }
            }
            total[half] = total[half] * correction[half] + sum;
            largest[half] = top;
        }
    }

    template <int N>
    __device__ __forceinline__ void correct(Sums (&outputs)[N]) const {
#pragma unroll
        for (Sums &output : outputs) {
#pragma unroll
            for (int i = 0; i < 4; i++) output.values[i] *= correction[i / 2];
        }
    }
};

// −∞ where a query must not see a key. `row` is this thread's first query, `first` are the first keys of its two.
__device__ __forceinline__ void mask(Sums (&scores)[SUMS], uint32_t row, const uint32_t (&first)[2], uint32_t key) {
    const uint32_t own_key = key + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < SUMS; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t at = own_key + n * 8 + i % 2;
            const bool seen = at <= row + i / 2 * 8 && at >= first[i / 2];
            if (!seen) scores[n].values[i] = -INFINITY;
        }
    }
}

template <int D>
__device__ __forceinline__ void forward(const Layer &layer, const bf16 *qkv, bf16 *output, float *log_sum_exp) {
    bf16 *shared = reinterpret_cast<bf16 *>(shared_bytes);
    Left<D, true> q = {{shared}};
    const Ring<D> ring = {shared + ROWS * D};
    const uint32_t head = blockIdx.x, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    const uint32_t end = min(first + ROWS, layer.rows);
    const uint64_t width = layer.width();
    const uint32_t warp_row = threadIdx.x / LANES * 16, row = first + warp_row + threadIdx.x % LANES / 4;

    uint32_t first_keys[2];
    for (int half = 0; half < 2; half++) first_keys[half] = layer.first_key(min(row + half * 8, end - 1));
    const uint32_t first_key = layer.first_key(first), all_see = layer.first_key(end - 1);
    const uint32_t rounds = (end - first_key + SIDE - 1) / SIDE;

    const KeysAndValues<D> load(layer, qkv + first_key * width, head / layer.group(), end - first_key, ring);
    q.tile.load(qkv + first * width + layer.query_start(head), width, end - first);
    for (uint32_t round = 0; round < AHEAD; round++) load(round);

    Softmax softmax = {.scale = LOG2_E * rsqrtf(D)};
    Sums outputs[D / 8] = {}, scores[SUMS];
    Fragment p[SIDE / 16];
    auto soften = [&](uint32_t round) {
        const uint32_t key = first_key + round * SIDE;
        // Two ways to the end, since ptxas waits for products as early as it can within a block of instructions without a branch:
        // thus after the softmax.
        if (key + SIDE > first + 1 || key < all_see) {
            mask(scores, row, first_keys, key);
            softmax.soften(scores);
        } else {
            softmax.soften(scores);
        }
    };
    arrive(load, 0);
    q.take();
    hold(q.fragments);
    begin_products();
    q.multiply_rows(scores, ring.tile(0, 0));
    commit_products();
    wait_products<0>();
    hold(scores);
    soften(0);
    round_off(p, scores);
    for (uint32_t round = 1; round < rounds; round++) {
        arrive(load, round);
        hold(outputs);
        hold(p);
        begin_products();
        q.multiply_rows(scores, ring.tile(round, 0));
        commit_products();
        multiply_columns<D>(outputs, p, ring.tile(round - 1, 1));
        commit_products();
        wait_products<1>();
        hold(scores);
        soften(round);
        hold(scores);
        wait_products<0>();
        hold(outputs);
        hold(p);
        softmax.correct(outputs);
        round_off(p, scores);
    }
    hold(outputs);
    hold(p);
    begin_products();
    multiply_columns<D>(outputs, p, ring.tile(rounds - 1, 1));
    commit_products();
    wait_products<0>();
    hold(outputs);

    float factors[2];
    for (int half = 0; half < 2; half++) {
        float total = softmax.total[half];
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        factors[half] = 1 / total;
        const uint32_t query = row + half * 8;
        if (query < end && threadIdx.x % 4 == 0) {
            const float largest = softmax.largest[half] * rsqrtf(D);
            log_sum_exp[static_cast<uint64_t>(query) * layer.query_heads + head] = largest + logf(total);
        }
    }
    // Where all have taken their queries, the room of these is free.
    __syncthreads();
    const Tile<D> tile = {shared};
    bf16 *to = output + (first + warp_row) * layer.output_width() + layer.query_start(head);
    store_rows<D>(outputs, factors[0], factors[1], tile, warp_row, to, layer.output_width(),
                  rows_from(first + warp_row, end, 16));
}

#define ENTRY(D, BLOCKS)                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                    \
        hopper_attention_forward_##D(const bf16 *qkv, const uint32_t *cu_seqlens, bf16 *output, float *log_sum_exp,  \
                                     uint32_t rows, uint32_t documents, uint32_t query_heads,                        \
                                     uint32_t key_value_heads, uint32_t window) {                                    \
        const Layer layer = {rows, query_heads, key_value_heads, D, window, documents, cu_seqlens};                  \
        forward<D>(layer, qkv, output, log_sum_exp);                                                                 \
    }

ENTRY(64, 2)
ENTRY(128, 1)
