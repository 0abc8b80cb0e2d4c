// The decision that ends a step; crates/ops/src/step.rs.
//
// factor = min(1, c/(‖g‖ + 1e-6)), 1 where c ≤ 0 or c is infinite; a loss or norm that is not finite skips the update.
// statistics [6] and decision [5] fp64.
//
// Launch: one thread.

#include "common/decision.cuh"

extern "C" __global__ void step_decide(const double *statistics, double max_norm, double *decision) {
    const double norm = sqrt(statistics[SQUARED_NORM]);
    const double loss = statistics[LOSS_SUM] + statistics[BALANCE_LOSS];
    const bool finite = isfinite(norm) && isfinite(loss);
    const bool clips = max_norm > 0 && isfinite(max_norm);
    decision[CLIP_FACTOR] = clips ? fmin(max_norm / (norm + 1e-6), 1.0) : 1.0;
    decision[APPLY] = finite ? 1.0 : 0.0;
    if (finite) {
        decision[UPDATES] += 1.0;
        decision[SKIPPED_IN_A_ROW] = 0.0;
    } else {
        decision[SKIPPED_IN_A_ROW] += 1.0;
        decision[SKIPPED] += 1.0;
    }
}
