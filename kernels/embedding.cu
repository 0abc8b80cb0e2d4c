// The backward of the token embedding; crates/ops/src/embedding.rs. The forward is rows_gather_*.
//
// dW[token(t)] += dx[t], the rows of a token in the order of t. tokens [T] u32, dx [T, H] in fp32 or bf16, dW [V, H]
// fp32. First embedding_sort writes order [T] u32: the positions t, by token, then by t. Then the sorted positions of
// one token are added up by one thread for each column: one order, no atomics.
//
// Launch, embedding_sort: ⌈T/64⌉ blocks of 256 threads, four of which share a position. Its rank is the number of smaller
// (token, t), counted by comparison with all others: one launch, and by their number T² comparisons take ten microseconds at
// T = 8,192 and milliseconds at 131,072, whose products take seconds.
// Launch, embedding_backward: blocks (T, ⌈H/1024⌉) of 256 threads; those of a token's first position work.

#include "common/reduce.cuh"
#include "common/rows.cuh"

constexpr int THREADS = 256;
// Neighbouring threads that count the rank of one position.
constexpr int SHARERS = 4;
// Rows whose loads are under way at once.
constexpr int FLIGHT = 4;

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_sort(const uint32_t *tokens, uint32_t *order, uint32_t count) {
    __shared__ uint32_t others[THREADS];
    const uint32_t own = (blockIdx.x * THREADS + threadIdx.x) / SHARERS, part = threadIdx.x % SHARERS;
    const uint32_t token = own < count ? tokens[own] : 0;
    uint32_t rank = 0;
    for (uint32_t first = 0; first < count; first += THREADS) {
        const uint32_t other = first + threadIdx.x;
        __syncthreads();
        if (other < count) others[threadIdx.x] = tokens[other];
        __syncthreads();
        const uint32_t known = min(count - first, THREADS);
        for (uint32_t i = part; i < known; i += SHARERS) {
            rank += others[i] < token || (others[i] == token && first + i < own);
        }
    }
#pragma unroll
    for (int distance = 1; distance < SHARERS; distance *= 2) rank += __shfl_xor_sync(ALL_LANES, rank, distance);
    if (own < count && part == 0) order[rank] = own;
}

// Adds `COUNT` rows that `order` names to the sums, the loads first.
template <int COUNT, int N, typename T>
__device__ __forceinline__ void add_rows(const T *dx, const uint32_t *order, uint32_t width, float (&sums)[N]) {
    float values[COUNT][N];
#pragma unroll
    for (int i = 0; i < COUNT; i++) load<N>(dx + static_cast<uint64_t>(order[i]) * width, values[i]);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        for (int j = 0; j < N; j++) sums[j] += values[i][j];
    }
}

template <int N, typename T>
__device__ __forceinline__ void sum_token(const T *dx, const uint32_t *order, uint32_t rows, float *dweight,
                                          uint32_t width) {
    const uint32_t thread = blockIdx.y * blockDim.x + threadIdx.x, threads = gridDim.y * blockDim.x;
    for (uint32_t column = thread * N; column < width; column += threads * N) {
        float sums[N];
        load<N>(dweight + column, sums);
        uint32_t row = 0;
        for (; row + FLIGHT <= rows; row += FLIGHT) add_rows<FLIGHT>(dx + column, order + row, width, sums);
        for (; row < rows; row++) add_rows<1>(dx + column, order + row, width, sums);
        store<N>(dweight + column, sums);
    }
}

// How often the token at a sorted position occurs, where that is its first; 0 at its others. Most occur once or twice and
// the commonest are a large part of all, so steps double until they pass the last one and then are halved.
__device__ __forceinline__ uint32_t occurrences_from(const uint32_t *tokens, const uint32_t *order, uint32_t token,
                                                     uint32_t first, uint32_t count) {
    if (first > 0 && tokens[order[first - 1]] == token) return 0;
    uint32_t low = first + 1, high = low;
    for (uint32_t step = 1; high < count && tokens[order[high]] == token; step *= 2) {
        low = high + 1;
        high = min(high + step, count);
    }
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (tokens[order[middle]] == token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low - first;
}

template <typename T>
__device__ __forceinline__ void backward(const uint32_t *tokens, const uint32_t *order, const T *dx, float *dweight,
                                         uint32_t count, uint32_t width) {
    __shared__ uint32_t rows, token;
    const uint32_t first = blockIdx.x;
    if (threadIdx.x == 0) {
        token = tokens[order[first]];
        rows = occurrences_from(tokens, order, token, first, count);
    }
    __syncthreads();
    if (rows == 0) return;
    float *row = dweight + static_cast<uint64_t>(token) * width;
    if (wide_rows<float>(width, dx, dweight)) {
        sum_token<WIDE<float>>(dx, order + first, rows, row, width);
    } else {
        sum_token<1>(dx, order + first, rows, row, width);
    }
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        embedding_backward_##SUFFIX(const uint32_t *tokens, const uint32_t *order, const T *dx, float *dweight,      \
                                    uint32_t count, uint32_t width) {                                                \
        backward(tokens, order, dx, dweight, count, width);                                                          \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
