// Cross-entropy of one chunk of logits, its gradient in place of the logits; crates/ops/src/cross_entropy.rs.
//
// ℓ[c] = log Σᵥ exp(z[c,v]) − z[c, target(c)];  z[c,v] ← scale·(softmax(z[c])[v] − [v = target(c)])
// z [C, V] in fp32 or bf16, targets [C] u32, below V. A hit is a row whose first largest logit is the target's.
// Each block leaves its row's loss and hit in row_losses and row_hits [C] fp64; cross_entropy_total adds them to
// statistics in the order of the rows' remainders.
//
// Launch: C blocks of 512 threads, then cross_entropy_total with one block of 256. A row of logits is larger than an
// SM's memory, so it is read twice: once for a running maximum and sum (Milakov and Gimelshein 2018,
// arXiv:1805.02867), once for the gradient. Without a gradient it is read once.

#include "common/decision.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"

constexpr int THREADS = 512;
constexpr int TOTAL_THREADS = 256;

// Of some of a row's logits: the largest, its first place, and Σ exp(z − largest).
struct Running {
    float largest, sum;
    uint32_t place;

    __device__ __forceinline__ Running combined(const Running &other) const {
        const bool mine = largest > other.largest || (largest == other.largest && place < other.place);
        const float top = mine ? largest : other.largest;
        // A part without logits has no largest one: −∞ − −∞ must not become a NaN.
        const float own_sum = sum == 0 ? 0 : sum * __expf(largest - top);
        const float other_sum = other.sum == 0 ? 0 : other.sum * __expf(other.largest - top);
        return {top, own_sum + other_sum, mine ? place : other.place};
    }

    template <int N>
    __device__ __forceinline__ void add(const float (&logits)[N], uint32_t column) {
        float top = largest;
        for (int i = 0; i < N; i++) {
            if (logits[i] > top) {
                top = logits[i];
                place = column + i;
            }
        }
        if (top > largest) {
            sum = sum == 0 ? 0 : sum * __expf(largest - top);
            largest = top;
        }
        for (int i = 0; i < N; i++) sum += __expf(logits[i] - largest);
    }
};

__device__ __forceinline__ Running warp_combined(Running running) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        const Running other = {__shfl_xor_sync(ALL_LANES, running.largest, distance),
                               __shfl_xor_sync(ALL_LANES, running.sum, distance),
                               __shfl_xor_sync(ALL_LANES, running.place, distance)};
        // Lanes must agree to the bit: the lower one's part comes first.
        running = threadIdx.x & distance ? other.combined(running) : running.combined(other);
    }
    return running;
}

__device__ __forceinline__ Running block_combined(Running running) {
    __shared__ Running partial[LANES];
    const uint32_t lane = threadIdx.x % LANES;
    running = warp_combined(running);
    if (lane == 0) partial[threadIdx.x / LANES] = running;
    __syncthreads();
    return warp_combined(lane < THREADS / LANES ? partial[lane] : Running{-INFINITY, 0, UINT32_MAX});
}

template <int N, typename T>
__device__ __forceinline__ void row_loss(T *logits, uint32_t target, float scale, bool wants_gradient,
                                         double *row_loss, double *row_hit, uint32_t vocabulary) {
    Running running = {-INFINITY, 0, UINT32_MAX};
    for_own_columns<N>(vocabulary, [&](uint32_t column) {
        float values[N];
        load<N>(logits + column, values);
        running.add(values, column);
    });
    running = block_combined(running);
    if (threadIdx.x == 0) {
        const double below = static_cast<double>(running.largest) - to_float(logits[target]);
        *row_loss = logf(running.sum) + below;
        *row_hit = running.place == target ? 1.0 : 0.0;
    }
    if (!wants_gradient) return;
    // The target's logit was read before its gradient takes its place.
    __syncthreads();
    const float factor = scale / running.sum;
    for_own_columns<N>(vocabulary, [&](uint32_t column) {
        float values[N];
        load<N>(logits + column, values);
        for (int i = 0; i < N; i++) {
            values[i] = __expf(values[i] - running.largest) * factor - (column + i == target ? scale : 0.0f);
        }
        store<N>(logits + column, values);
    });
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        cross_entropy_##SUFFIX(T *logits, const uint32_t *targets, float scale, uint32_t wants_gradient,             \
                               double *row_losses, double *row_hits, uint32_t vocabulary) {                          \
        const uint32_t row = blockIdx.x, target = targets[row];                                                      \
        T *own = logits + static_cast<uint64_t>(row) * vocabulary;                                                   \
        double *loss = row_losses + row, *hit = row_hits + row;                                                      \
        if (wide_rows<T>(vocabulary, logits)) {                                                                      \
            row_loss<WIDE<T>>(own, target, scale, wants_gradient, loss, hit, vocabulary);                            \
        } else {                                                                                                     \
            row_loss<1>(own, target, scale, wants_gradient, loss, hit, vocabulary);                                  \
        }                                                                                                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)

extern "C" __global__ void __launch_bounds__(TOTAL_THREADS)
    cross_entropy_total(const double *row_losses, const double *row_hits, double *statistics, uint32_t rows) {
    double losses = 0, hits = 0;
    for (uint32_t row = threadIdx.x; row < rows; row += TOTAL_THREADS) {
        losses += row_losses[row];
        hits += row_hits[row];
    }
    const double loss_sum = block_sum(losses), hit_sum = block_sum(hits);
    if (threadIdx.x == 0) {
        statistics[LOSS_SUM] += loss_sum;
        statistics[HITS] += hit_sum;
    }
}
