// Lion over a flat shard (Chen et al. 2023, arXiv:2302.06675); crates/ops/src/lion.rs.
//
// g ← factor·g;  p ← p·(1 − decay) on the first `decayed` elements
// p ← p − lr·sign(β₁m + (1−β₁)g);  m ← β₂m + (1−β₂)g;  the sign of zero is zero
// p, g, m [N] fp32; decision and copy as in adamw.cu.
//
// Launch: as fill.cu.

#include "common/decision.cuh"
#include "common/flat.cuh"

constexpr int THREADS = 256;

struct Rule {
    float clip, beta1, beta2, new1, new2, learning_rate, keep;
};

template <int N>
__device__ __forceinline__ void update(const Rule &rule, float *parameters, const float *gradient, float *moment,
                                       bf16 *copy, uint64_t decayed, uint64_t index) {
    float p[N], g[N], m[N];
    load<N>(parameters + index, p);
    load<N>(gradient + index, g);
    load<N>(moment + index, m);
    for (int i = 0; i < N; i++) {
        const float clipped = g[i] * rule.clip;
        const float direction = rule.beta1 * m[i] + rule.new1 * clipped;
        const float step = direction > 0 ? rule.learning_rate : direction < 0 ? -rule.learning_rate : 0.0f;
        const float keep = index + i < decayed ? rule.keep : 1.0f;
        p[i] = p[i] * keep - step;
        m[i] = rule.beta2 * m[i] + rule.new2 * clipped;
    }
    store<N>(parameters + index, p);
    store<N>(moment + index, m);
    if (copy != nullptr) store<N>(copy + index, p);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    lion(float *parameters, const float *gradient, float *moment, bf16 *copy, const double *decision,
         double learning_rate, double beta1, double beta2, double decay, uint64_t decayed, uint64_t length) {
    if (decision[APPLY] == 0) return;
    const Rule rule = {
        .clip = static_cast<float>(decision[CLIP_FACTOR]),
        .beta1 = static_cast<float>(beta1),
        .beta2 = static_cast<float>(beta2),
        .new1 = static_cast<float>(1 - beta1),
        .new2 = static_cast<float>(1 - beta2),
        .learning_rate = static_cast<float>(learning_rate),
        .keep = static_cast<float>(1 - decay),
    };
    const bool is_aligned = aligned(parameters, gradient, moment, copy);
    for_each_pack<WIDE<float>>(length, is_aligned, [&]<int N>(uint64_t index) {
        update<N>(rule, parameters, gradient, moment, copy, decayed, index);
    });
}
