// SiLU and its slope, for the gated activations.
#pragma once

// silu(g) = g·σ(g), slope = σ(g)·(1 + g·(1 − σ(g))).
struct Gate {
    float silu, slope;

    __device__ __forceinline__ explicit Gate(float g) {
        const float sigmoid = 1.0f / (1.0f + __expf(-g));
        silu = g * sigmoid;
        slope = sigmoid * (1.0f + g * (1.0f - sigmoid));
    }
};
