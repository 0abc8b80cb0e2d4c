// Tiles of the experts' sorted rows, of which the host knows no more than an upper bound.
#pragma once

#include <stdint.h>

// Some of the rows of one expert.
struct TileOfRows {
    uint32_t expert, first, count;
};

// The tile of SIDE rows number `tile`, counted over the experts of a group, offsets [experts + 1]; it has no
// rows behind the last.
template <uint32_t SIDE>
__device__ __forceinline__ TileOfRows tile_of_rows(const uint32_t *offsets, uint32_t experts, uint32_t tile) {
    for (uint32_t expert = 0; expert < experts; expert++) {
        const uint32_t first = offsets[expert], length = offsets[expert + 1] - first;
        const uint32_t tiles = (length + SIDE - 1) / SIDE;
        if (tile < tiles) return {expert, first + tile * SIDE, min(length - tile * SIDE, SIDE)};
        tile -= tiles;
    }
    return {experts, 0, 0};
}
