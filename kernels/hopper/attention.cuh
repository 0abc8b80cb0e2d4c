// What the attention kernels for warpgroups share.
#pragma once

#include "../attention/attention.cuh"
#include "wgmma.cuh"

// A block has two warpgroups, of which each has 64 rows of its own side. The other side comes in tiles of 64 rows, two that
// belong together, through a ring of shared memory: while the products of one pair of tiles are under way, those of the
// last one may be too, and the next two pairs arrive.
constexpr int THREADS = 2 * WARPGROUP;
constexpr int ROWS = 2 * SIDE;
constexpr int STAGES = 4;
constexpr int AHEAD = 2;

extern __shared__ __align__(1024) uint4 shared_bytes[];

// This thread's share of copying tiles of 64 rows of one matrix: 16 bytes of every 32nd row. Where they are from and where
// they go is worked out once.
template <int D>
struct Copier {
    static constexpr int STRIDE = THREADS / (SIDE / 8);

    const bf16 *from;
    uint64_t step;
    uint32_t row, to;

    // `matrix` is the first row of the first tile, `stride` elements from a row to the next.
    __device__ __forceinline__ Copier(const bf16 *matrix, uint64_t stride)
        : from(matrix + threadIdx.x / 8 * stride + threadIdx.x % 8 * 8), step(STRIDE * stride), row(threadIdx.x / 8) {
        to = row * SIDE + ((threadIdx.x % 8) ^ (row % 8)) * 8;
    }

    // Begins to copy the tile that begins `distance` elements behind the first one; rows that are not `known` become zero.
    __device__ __forceinline__ void load(const Panels<D, SIDE> &tile, uint64_t distance, uint32_t known) const {
#pragma unroll
        for (int i = 0; i < SIDE / STRIDE; i++) {
            const bool present = row + i * STRIDE < known;
            const bf16 *source = present ? from + distance + i * step : from;
#pragma unroll
            for (int column = 0; column < D; column += SIDE) {
                copy_async(tile.panel(column).data + to + i * STRIDE * SIDE, source + column, present);
            }
        }
    }
};

template <int D>
struct Ring {
    bf16 *data;

    __device__ __forceinline__ Panels<D, SIDE> tile(uint32_t round, uint32_t which) const {
        return {data + (round % STAGES * 2 + which) * (SIDE * D)};
    }
};

// Lets the tiles of a round be there, and those of a later one come. What the last round read is free by then.
template <typename Load>
__device__ __forceinline__ void arrive(Load &load, uint32_t round) {
    wait_copies<AHEAD - 1>();
    publish_copies();
    __syncthreads();
    load(round + AHEAD);
}

// Brings the keys and values of one head, a tile of each a round.
template <int D>
struct KeysAndValues {
    Copier<D> keys, values;
    Ring<D> ring;
    uint64_t width;
    uint32_t count;

    // `count` rows from the one that begins at `rows`.
    __device__ __forceinline__ KeysAndValues(const Layer &layer, const bf16 *rows, uint32_t head, uint32_t count,
                                             const Ring<D> &ring)
        : keys(rows + layer.key_start(head), layer.width()), values(rows + layer.value_start(head), layer.width()),
          ring(ring), width(layer.width()), count(count) {}

    __device__ __forceinline__ void operator()(uint32_t round) const {
        if (round < (count + SIDE - 1) / SIDE) {
            const uint64_t distance = round * SIDE * width;
            keys.load(ring.tile(round, 0), distance, count - round * SIDE);
            values.load(ring.tile(round, 1), distance, count - round * SIDE);
        }
        commit_copies();
    }
};

// A warpgroup's rows of a left operand: in registers, where there are enough of them for it.
template <int D, bool IN_REGISTERS>
struct Left {
    Panels<D, ROWS> tile;
    Fragment fragments[IN_REGISTERS ? D / 16 : 1];

    // When the tile has arrived.
    __device__ __forceinline__ void take() {
        if constexpr (IN_REGISTERS) {
            const uint32_t row = threadIdx.x / LANES * 16;
#pragma unroll
            for (int depth = 0; depth < D; depth += 16) {
                fragments[depth / 16] = load_left<false>(tile.panel(depth), row, depth % SIDE);
            }
        }
    }

    // Begins sums = left·rightᵀ.
    __device__ __forceinline__ void multiply_rows(Sums (&sums)[SUMS], const Panels<D, SIDE> &right) {
#pragma unroll
        for (int depth = 0; depth < D; depth += 16) {
            const uint64_t other = right.rows_at(0, depth);
            if constexpr (IN_REGISTERS) {
                if (depth == 0) {
                    multiply<false, false>(sums, fragments[0], other);
                } else {
                    multiply<true, false>(sums, fragments[depth / 16], other);
                }
            } else {
                const uint64_t own = tile.rows_at(warpgroup() * SIDE, depth);
                if (depth == 0) {
                    multiply<false>(sums, own, other);
                } else {
                    multiply<true>(sums, own, other);
                }
            }
        }
    }
};

// Begins sums += p·right, p [64, 64] in registers.
template <int D>
__device__ __forceinline__ void multiply_columns(Sums (&sums)[D / 8], const Fragment (&p)[SIDE / 16],
                                                 const Panels<D, SIDE> &right) {
#pragma unroll
    for (int depth = 0; depth < SIDE; depth += 16) {
#pragma unroll
        for (int column = 0; column < D; column += SIDE) {
            multiply<true, true>(part<D>(sums, column), p[depth / 16], right.columns_at(depth, column));
        }
    }
}

__device__ __forceinline__ void round_off(Fragment (&to)[SIDE / 16], const Sums (&sums)[SUMS]) {
#pragma unroll
    for (int n = 0; n < SUMS; n += 2) to[n / 2] = as_left(sums[n], sums[n + 1]);
}
