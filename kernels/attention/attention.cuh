// What the attention kernels share: the operands, which keys a query sees, and products of tiles.
#pragma once

#include "../common/documents.cuh"
#include "../common/mma.cuh"

// Rows of qkv [T, (Hq + 2·Hkv)·D], and the documents in them, cu_seqlens [documents + 1] u32. A query sees at most
// `window` keys, itself included; 0: all before it.
struct Layer {
    uint32_t rows, query_heads, key_value_heads, head_size, window, documents;
    const uint32_t *cu_seqlens;

    __device__ __forceinline__ uint64_t width() const {
        return static_cast<uint64_t>(query_heads + 2 * key_value_heads) * head_size;
    }
    __device__ __forceinline__ uint64_t output_width() const {
        return static_cast<uint64_t>(query_heads) * head_size;
    }
    // Query heads that share a key-value head.
    __device__ __forceinline__ uint32_t group() const { return query_heads / key_value_heads; }

    // Where the parts of a row begin.
    __device__ __forceinline__ uint32_t query_start(uint32_t head) const { return head * head_size; }
    __device__ __forceinline__ uint32_t key_start(uint32_t key_value_head) const {
        return (query_heads + key_value_head) * head_size;
    }
    __device__ __forceinline__ uint32_t value_start(uint32_t key_value_head) const {
        return (query_heads + key_value_heads + key_value_head) * head_size;
    }

    // The first key that the query of a row sees; the last is the row itself. It rises with the row.
    __device__ __forceinline__ uint32_t first_key(uint32_t row) const {
        const uint32_t start = cu_seqlens[document_of(cu_seqlens, documents, row)];
        return window == 0 || row - start < window ? start : row + 1 - window;
    }

    // The end of the rows whose queries see the key of a row. It rises with the row.
    __device__ __forceinline__ uint32_t end_query(uint32_t row) const {
        const uint32_t end = cu_seqlens[document_of(cu_seqlens, documents, row) + 1];
        return window == 0 || end - row < window ? end : row + window;
    }
};

// 2 to the power of x, as the processor approximates it (2 ulp); 0 for −∞.
__device__ __forceinline__ float exp2_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
    return result;
}

constexpr float LOG2_E = 1.4426950408889634f;

// What a thread of the backward knows of its two queries, eight rows apart: the first key that each sees, its
// log-sum-exp in base 2, and its δ. Rows from `end` on are not there; the last one that is stands for them.
struct TwoQueries {
    uint32_t first_keys[2];
    float base[2], delta[2];

    __device__ __forceinline__ TwoQueries(const Layer &layer, uint32_t row, uint32_t end, uint32_t head,
                                          const float *log_sum_exp, const float *deltas) {
        for (int half = 0; half < 2; half++) {
            const uint32_t query = min(row + half * 8, end - 1);
            const uint64_t place = static_cast<uint64_t>(query) * layer.query_heads + head;
            first_keys[half] = layer.first_key(query);
            base[half] = log_sum_exp[place] * LOG2_E;
            delta[half] = deltas[place];
        }
    }
};

// sums = A·Bᵀ for M·16 rows of A from `row` on and N·8 rows of B, both tiles with the head's elements in a row.
template <int M, int N, int D>
__device__ __forceinline__ void multiply_rows(Sums (&sums)[M][N], const Tile<D> &a, uint32_t row, const Tile<D> &b) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) sums[m][n] = {};
    }
#pragma unroll
    for (int depth = 0; depth < D; depth += 16) {
        Fragment left[M];
#pragma unroll
        for (int m = 0; m < M; m++) left[m] = load_left<false>(a, row + m * 16, depth);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            const Fragment right = load_right<false>(b, depth, n * 8);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(sums[m][n], left[m], right, 0);
                multiply_add(sums[m][n + 1], left[m], right, 1);
            }
        }
    }
}

// sums += P·B, where P [M·16][N·8] lies in registers as the sums of an earlier product, and B is a tile of N·8 rows.
template <int M, int N, int D>
__device__ __forceinline__ void multiply_registers(Sums (&sums)[M][D / 8], const Sums (&p)[M][N], const Tile<D> &b) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        Fragment left[M];
#pragma unroll
        for (int m = 0; m < M; m++) left[m] = as_left(p[m][n], p[m][n + 1]);
#pragma unroll
        for (int column = 0; column < D / 8; column += 2) {
            const Fragment right = load_right<true>(b, n * 8, column * 8);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(sums[m][column], left[m], right, 0);
                multiply_add(sums[m][column + 1], left[m], right, 1);
            }
        }
    }
}

// Writes 16 rows of bf16, the sums times a factor for each half of the rows, through a tile that this warp alone uses.
template <int D>
__device__ __forceinline__ void store_rows(const Sums (&sums)[D / 8], float upper, float lower, const Tile<D> &tile,
                                           uint32_t row, bf16 *to, uint64_t stride, uint32_t rows) {
#pragma unroll
    for (int column = 0; column < D / 8; column++) store_sums(tile, row, column * 8, sums[column], upper, lower);
    __syncwarp();
    tile.template store_by_warp<16>(row, to, stride, rows);
}

// Rows that are there among `wanted` from `first` on.
__device__ __forceinline__ uint32_t rows_from(uint32_t first, uint32_t end, uint32_t wanted) {
    return first < end ? min(end - first, wanted) : 0;
}
