// The load-balancing loss of a mixture of experts; crates/ops/src/load_balance.rs.
//
// loss:     ℓᵣ = E·Σₑ counts·sums/(L·Tᵣ)², added to total, times scale
// backward: dp[t, e] = scale·E·counts[r, e]/(L·Tᵣ)² for a token t of row r
// Of row r, counts[r, e] says how often a token chose expert e and sums[r, e] adds the tokens' probabilities; both
// [R, E] fp64. probabilities, dp [t, E] fp32 and chosen [t, k] u32 of the t tokens from `start` on; row_starts [R + 1].
//
// Launch, add: R blocks of 256 threads; a thread takes every G-th token for one expert, G = max(1, ⌊256/E⌋), and the
// sums of the G are added in order. Shared memory: 256 fp64. loss: one thread. backward: t blocks of 32 threads.

#include "common/documents.cuh"

constexpr int THREADS = 256;

// scale·E/(L·Tᵣ)², and 0 for an empty row.
__device__ double factor(uint32_t tokens, uint32_t experts, uint32_t layers, double scale) {
    const double places = static_cast<double>(layers) * tokens;
    return tokens == 0 ? 0.0 : scale * experts / (places * places);
}

// Adds up what the groups' threads have for each of the experts from `first` on, in order.
__device__ void add_groups(double *partial, double own, double *to, uint32_t groups, uint32_t stride,
                           uint32_t experts) {
    __syncthreads();
    partial[threadIdx.x] = own;
    __syncthreads();
    if (threadIdx.x >= experts) return;
    double sum = 0;
    for (uint32_t group = 0; group < groups; group++) sum += partial[group * stride + threadIdx.x];
    to[threadIdx.x] += sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    load_balance_add(const float *probabilities, const uint32_t *chosen, const uint32_t *row_starts, uint32_t start,
                     uint32_t tokens, double *counts, double *sums, uint32_t experts, uint32_t choices) {
    __shared__ double partial[THREADS];
    const uint32_t row = blockIdx.x, end = start + tokens;
    const uint32_t from = min(max(row_starts[row], start), end) - start;
    const uint32_t to = min(max(row_starts[row + 1], start), end) - start;
    const uint32_t stride = min(experts, THREADS), groups = THREADS / stride;
    const uint32_t group = threadIdx.x / stride;
    for (uint32_t first = 0; first < experts; first += stride) {
        const uint32_t known = min(experts - first, stride), expert = first + threadIdx.x % stride;
        double count = 0, sum = 0;
        if (group < groups && expert < experts) {
            for (uint32_t token = from + group; token < to; token += groups) {
                const uint64_t place = token;
                sum += probabilities[place * experts + expert];
                for (uint32_t i = 0; i < choices; i++) count += chosen[place * choices + i] == expert;
            }
        }
        const uint64_t place = static_cast<uint64_t>(row) * experts + first;
        add_groups(partial, count, counts + place, groups, stride, known);
        add_groups(partial, sum, sums + place, groups, stride, known);
    }
}

extern "C" __global__ void load_balance_loss(const double *counts, const double *sums, const uint32_t *row_starts,
                                             uint32_t layers, double scale, double *total, uint32_t rows,
                                             uint32_t experts) {
    for (uint32_t row = 0; row < rows; row++) {
        double product = 0;
        for (uint32_t expert = 0; expert < experts; expert++) {
            const uint64_t place = static_cast<uint64_t>(row) * experts + expert;
            product += counts[place] * sums[place];
        }
        *total += product * factor(row_starts[row + 1] - row_starts[row], experts, layers, scale);
    }
}

extern "C" __global__ void __launch_bounds__(32)
    load_balance_backward(const double *counts, const uint32_t *row_starts, uint32_t start, uint32_t layers,
                          double scale, float *dprobabilities, uint32_t rows, uint32_t experts) {
    const uint32_t row = document_of(row_starts, rows, start + blockIdx.x);
    const double slope = factor(row_starts[row + 1] - row_starts[row], experts, layers, scale);
    for (uint32_t expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        const double count = counts[static_cast<uint64_t>(row) * experts + expert];
        dprobabilities[static_cast<uint64_t>(blockIdx.x) * experts + expert] = count * slope;
    }
}
