// The router of a mixture of experts; crates/ops/src/router.rs.
//
// forward:  p = softmax(z);  c₁ … c_k the k largest of p, descending, of equal ones the lower index;  q = p[c];
//           w = q/n with n = (Σ qᵖ)^(1/p), or w = q where power is 0
// backward: dq = (dw − wᵖ⁻¹·Σ dw·w)/n, or dq = dw;  dp[c] += dq;  dz = p·(dp − Σ p·dp)
// z [T, E], which becomes p; c [T, k] u32; w [T, k]; dp [T, E], which becomes dz. All fp32: a router's rounding would
// choose other experts. The norm is taken in fp32 too.
//
// Launch: one warp for each token, ⌈T/8⌉ blocks of 256 threads. E ≤ 1024: a lane keeps its experts in registers' bits.

#include "common/reduce.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / LANES;

struct Candidate {
    float probability;
    uint32_t expert;
};

// The better of two, of equal ones the lower; a NaN is better than nothing, so that choices are always experts.
struct Better {
    __device__ __forceinline__ Candidate operator()(Candidate a, Candidate b) const {
        if (a.probability > b.probability) return a;
        if (b.probability > a.probability) return b;
        return a.expert < b.expert ? a : b;
    }
};

__device__ __forceinline__ Candidate warp_best(Candidate candidate) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        const Candidate other = {__shfl_xor_sync(ALL_LANES, candidate.probability, distance),
                                 __shfl_xor_sync(ALL_LANES, candidate.expert, distance)};
        candidate = Better()(candidate, other);
    }
    return candidate;
}

// value to the power, exactly where the power is 1 or 2.
__device__ __forceinline__ float raised(float value, float power) {
    return power == 1 ? value : power == 2 ? value * value : powf(value, power);
}

__device__ __forceinline__ float root(float sum, float power) {
    return power == 1 ? sum : power == 2 ? sqrtf(sum) : powf(sum, 1 / power);
}

__device__ __forceinline__ void softmax(float *row, uint32_t experts, uint32_t lane) {
    float largest = -INFINITY, total = 0;
    for (uint32_t expert = lane; expert < experts; expert += LANES) largest = fmaxf(largest, row[expert]);
    largest = warp_maximum(largest);
    for (uint32_t expert = lane; expert < experts; expert += LANES) {
        const float value = __expf(row[expert] - largest);
        row[expert] = value;
        total += value;
    }
    total = warp_sum(total);
    for (uint32_t expert = lane; expert < experts; expert += LANES) row[expert] /= total;
}

// The best expert that is not among this lane's `taken` ones, of which bit i stands for expert 32·i + lane.
__device__ __forceinline__ Candidate best(const float *row, uint32_t experts, uint32_t lane, uint32_t taken) {
    Candidate own = {-INFINITY, UINT32_MAX};
    for (uint32_t expert = lane; expert < experts; expert += LANES) {
        if (!(taken >> (expert / LANES) & 1)) own = Better()(own, {row[expert], expert});
    }
    return warp_best(own);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    router_forward(float *logits, float power, uint32_t *chosen, float *weights, uint32_t tokens, uint32_t experts,
                   uint32_t choices) {
    const uint32_t token = blockIdx.x * WARPS + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (token >= tokens) return;
    float *row = logits + static_cast<uint64_t>(token) * experts;
    const uint64_t first = static_cast<uint64_t>(token) * choices;
    softmax(row, experts, lane);
    uint32_t taken = 0;
    float sum = 0;
    for (uint32_t choice = 0; choice < choices; choice++) {
        const Candidate next = best(row, experts, lane, taken);
        if (next.expert % LANES == lane) taken |= 1u << (next.expert / LANES);
        if (power != 0) sum += raised(next.probability, power);
        if (lane == 0) {
            chosen[first + choice] = next.expert;
            weights[first + choice] = next.probability;
        }
    }
    if (power != 0 && lane == 0) {
        const float norm = root(sum, power);
        for (uint32_t choice = 0; choice < choices; choice++) weights[first + choice] /= norm;
    }
}

// Adds the gradient that the weights pass on to the probabilities; by one lane, for there are k of them.
__device__ void weights_gradient(const float *dweights, const float *probabilities, const uint32_t *chosen,
                                 float power, float *dprobabilities, uint32_t choices) {
    float norm = 1, pull = 0;
    if (power != 0) {
        float sum = 0;
        for (uint32_t i = 0; i < choices; i++) sum += raised(probabilities[chosen[i]], power);
        norm = root(sum, power);
        for (uint32_t i = 0; i < choices; i++) pull += probabilities[chosen[i]] / norm * dweights[i];
    }
    for (uint32_t i = 0; i < choices; i++) {
        const float weight = probabilities[chosen[i]] / norm;
        const float slope = power == 0 ? 0 : power == 1 ? 1 : powf(weight, power - 1);
        dprobabilities[chosen[i]] += (dweights[i] - slope * pull) / norm;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    router_backward(const float *dweights, const float *probabilities, const uint32_t *chosen, float power,
                    float *dprobabilities, uint32_t tokens, uint32_t experts, uint32_t choices) {
    const uint32_t token = blockIdx.x * WARPS + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (token >= tokens) return;
    const float *row = probabilities + static_cast<uint64_t>(token) * experts;
    float *gradient = dprobabilities + static_cast<uint64_t>(token) * experts;
    const uint64_t first = static_cast<uint64_t>(token) * choices;
    if (lane == 0) weights_gradient(dweights + first, row, chosen + first, power, gradient, choices);
    __syncwarp();
    float products = 0;
    for (uint32_t expert = lane; expert < experts; expert += LANES) {
        products = fmaf(row[expert], gradient[expert], products);
    }
    const float mean = warp_sum(products);
    for (uint32_t expert = lane; expert < experts; expert += LANES) {
        gradient[expert] = row[expert] * (gradient[expert] - mean);
    }
}
