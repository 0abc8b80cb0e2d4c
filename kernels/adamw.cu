// AdamW over a flat shard (Loshchilov and Hutter 2019, arXiv:1711.05101); crates/ops/src/adamw.rs.
//
// g ← factor·g;  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
// p ← p·(1 − decay) on the first `decayed` elements;  p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)
// p, g, m, v [N] fp32; factor, t and whether the step is skipped come from decision [5] fp64. Where `copy` is not null
// it becomes p rounded to bf16, for the next gather: a pass over p less than a cast.
//
// Launch: as fill.cu. Hyperparameters are fp64 and are rounded once, as on the CPU.

#include "common/decision.cuh"
#include "common/flat.cuh"

constexpr int THREADS = 256;

struct Rule {
    float clip, beta1, beta2, new1, new2, step_size, root_correction, epsilon, keep;
};

// base to the power of a whole number, which counts updates.
__device__ double power(double base, double exponent) {
    double result = 1;
    for (uint64_t bits = static_cast<uint64_t>(exponent); bits > 0; bits >>= 1) {
        if (bits & 1) result *= base;
        base *= base;
    }
    return result;
}

template <int N>
__device__ __forceinline__ void update(const Rule &rule, float *parameters, const float *gradient,
                                       float *first_moment, float *second_moment, bf16 *copy, uint64_t decayed,
                                       uint64_t index) {
    float p[N], g[N], m[N], v[N];
    load<N>(parameters + index, p);
    load<N>(gradient + index, g);
    load<N>(first_moment + index, m);
    load<N>(second_moment + index, v);
    for (int i = 0; i < N; i++) {
        const float clipped = g[i] * rule.clip;
        m[i] = rule.beta1 * m[i] + rule.new1 * clipped;
        v[i] = rule.beta2 * v[i] + rule.new2 * clipped * clipped;
        const float denominator = sqrtf(v[i]) / rule.root_correction + rule.epsilon;
        const float keep = index + i < decayed ? rule.keep : 1.0f;
        p[i] = p[i] * keep - rule.step_size * (m[i] / denominator);
    }
    store<N>(parameters + index, p);
    store<N>(first_moment + index, m);
    store<N>(second_moment + index, v);
    if (copy != nullptr) store<N>(copy + index, p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    adamw(float *parameters, const float *gradient, float *first_moment, float *second_moment, bf16 *copy,
          const double *decision, double learning_rate, double beta1, double beta2, double epsilon, double decay,
          uint64_t decayed, uint64_t length) {
    if (decision[APPLY] == 0) return;
    __shared__ Rule shared;
    if (threadIdx.x == 0) {
        const double updates = decision[UPDATES];
        shared.clip = decision[CLIP_FACTOR];
        shared.beta1 = beta1;
        shared.beta2 = beta2;
        shared.new1 = 1 - beta1;
        shared.new2 = 1 - beta2;
        shared.step_size = learning_rate / (1 - power(beta1, updates));
        shared.root_correction = sqrt(1 - power(beta2, updates));
        shared.epsilon = epsilon;
        shared.keep = 1 - decay;
    }
    __syncthreads();
    const Rule rule = shared;
    const bool is_aligned = aligned(parameters, gradient, first_moment, second_moment, copy);
    for_each_pack<WIDE<float>>(length, is_aligned, [&]<int N>(uint64_t index) {
        update<N>(rule, parameters, gradient, first_moment, second_moment, copy, decayed, index);
    });
}
