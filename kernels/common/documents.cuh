// Stretches of a sequence that a rising list of starts describes: documents, or packed rows.
#pragma once

#include <stdint.h>

// The stretch that has `token`: the last one that starts at or before it. starts [count + 1], token < starts[count].
__device__ __forceinline__ uint32_t document_of(const uint32_t *starts, uint32_t count, uint32_t token) {
    uint32_t low = 0, high = count;
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (starts[middle] <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}
