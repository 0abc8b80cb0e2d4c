// A linear layer for each expert of a group, on the expert's own sorted rows, in bf16 on tensor cores;
// crates/ops/src/experts/linear.rs.
//
// experts_linear_rows_*:   y[i] = x[i]·M(e) for the sorted rows i of expert e: the forward, and the backward of the
//                          input with the other form of the weight
// experts_linear_weight:   dM(e) += aᵀ·b over the rows of expert e: the backward of the weight
// x [T·k, inputs], y [T·k, outputs], a [T·k, A], b [T·k, B], bf16; widths are multiples of 8 and addresses of 16 bytes.
// A weight is [experts, outputs, inputs] for _rows_transposed and [experts, inputs, outputs] for _rows_straight, bf16;
// dM [experts, A, B] fp32. `offsets` [experts + 1] u32 of the group are read here: the host does not know how many rows
// an expert has, and cuBLAS's grouped product would ask it.
//
// Launch, rows: blocks (⌈outputs/128⌉, ⌈T·k/128⌉ + experts) of 256 threads: there are no more tiles of 128 rows than
// that, and a block finds its expert by counting them; those left over end at once. weight: blocks (⌈B/128⌉, ⌈A/128⌉,
// experts). 8 warps of 64×32 sums each. Shared memory: 2 stages of two tiles 128×64 bf16, 64 KiB: one is worked on
// while the other arrives.

#include "../common/mma.cuh"
#include "tiles.cuh"

constexpr int THREADS = 256;
// A block's tile of the result, and how much of the inner dimension is worked on at once.
constexpr int ROWS = 128, COLUMNS = 128, DEPTH = 64;
// A warp's part of it, in products of 16×8: 2 warps down, 4 across.
constexpr int M = 4, N = 4;
constexpr int TILE = ROWS * DEPTH;

extern __shared__ uint4 shared_bytes[];

__device__ __forceinline__ uint32_t warp_row() { return threadIdx.x / LANES / 4 * M * 16; }
__device__ __forceinline__ uint32_t warp_column() { return threadIdx.x / LANES % 4 * N * 8; }

// sums += left·right of one stage; operands lie transposed in their tiles where it says so.
template <bool LEFT_TRANSPOSED, bool RIGHT_TRANSPOSED, typename Left, typename Right>
__device__ __forceinline__ void multiply_stage(Sums (&sums)[M][N], const Left &left_tile, const Right &right_tile) {
#pragma unroll
    for (int depth = 0; depth < DEPTH; depth += 16) {
        Fragment left[M];
#pragma unroll
        for (int m = 0; m < M; m++) left[m] = load_left<LEFT_TRANSPOSED>(left_tile, warp_row() + m * 16, depth);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            const Fragment right = load_right<RIGHT_TRANSPOSED>(right_tile, depth, warp_column() + n * 8);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(sums[m][n], left[m], right, 0);
                multiply_add(sums[m][n + 1], left[m], right, 1);
            }
        }
    }
}

// Walks over the inner dimension; load(stage, depth) begins to copy, multiply(stage) works on what has arrived.
template <typename Load, typename Multiply>
__device__ __forceinline__ void for_stages(uint32_t inner, Load load, Multiply multiply) {
    load(0, 0);
    uint32_t stage = 0;
    for (uint32_t depth = 0; depth < inner; depth += DEPTH, stage ^= 1) {
        wait_copies<0>();
        __syncthreads();
        if (depth + DEPTH < inner) load(stage ^ 1, depth + DEPTH);
        multiply(stage);
    }
}

// Rounds the block's sums and writes them through shared memory, which nobody needs any more, 16 bytes at a time.
__device__ __forceinline__ void store_block(const Sums (&sums)[M][N], bf16 *y, uint64_t stride, uint32_t rows,
                                            uint32_t columns) {
    const Tile<COLUMNS> tile = {reinterpret_cast<bf16 *>(shared_bytes)};
    __syncthreads();
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            store_sums(tile, warp_row() + m * 16, warp_column() + n * 8, sums[m][n], 1, 1);
        }
    }
    __syncthreads();
    for (uint32_t index = threadIdx.x; index < ROWS * COLUMNS / 8; index += THREADS) {
        const uint32_t row = index / (COLUMNS / 8), column = index % (COLUMNS / 8) * 8;
        if (row < rows && column < columns) pack<8>(y + row * stride + column) = pack<8>(tile.at(row, column));
    }
}

// The weight's tiles are [outputs][inputs] where TRANSPOSED, else [inputs][outputs].
template <bool TRANSPOSED>
__device__ __forceinline__ void multiply_rows(const bf16 *x, const bf16 *weight, const uint32_t *offsets,
                                              uint32_t experts, bf16 *y, uint32_t inputs, uint32_t outputs) {
    const TileOfRows rows = tile_of_rows<ROWS>(offsets, experts, blockIdx.y);
    if (rows.count == 0) return;
    const uint32_t column = blockIdx.x * COLUMNS, columns = min(outputs - column, COLUMNS);
    bf16 *shared = reinterpret_cast<bf16 *>(shared_bytes);
    const bf16 *own_x = x + static_cast<uint64_t>(rows.first) * inputs;
    const bf16 *own_weight = weight + static_cast<uint64_t>(rows.expert) * inputs * outputs;
    using Right = Tile<TRANSPOSED ? DEPTH : COLUMNS>;
    auto left = [&](uint32_t stage) { return Tile<DEPTH>{shared + stage * 2 * TILE}; };
    auto right = [&](uint32_t stage) { return Right{shared + stage * 2 * TILE + TILE}; };

    Sums sums[M][N] = {};
    auto load = [&](uint32_t stage, uint32_t depth) {
        left(stage).template load<ROWS>(own_x + depth, inputs, rows.count, inputs - depth);
        if constexpr (TRANSPOSED) {
            const bf16 *from = own_weight + static_cast<uint64_t>(column) * inputs + depth;
            right(stage).template load<COLUMNS>(from, inputs, columns, inputs - depth);
        } else {
            const bf16 *from = own_weight + static_cast<uint64_t>(depth) * outputs + column;
            right(stage).template load<DEPTH>(from, outputs, inputs - depth, columns);
        }
        commit_copies();
    };
    for_stages(inputs, load, [&](uint32_t stage) {
        multiply_stage<false, !TRANSPOSED>(sums, left(stage), right(stage));
    });
    store_block(sums, y + static_cast<uint64_t>(rows.first) * outputs + column, outputs, rows.count, columns);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    experts_linear_rows_transposed(const bf16 *x, const bf16 *weight, const uint32_t *offsets, uint32_t experts,
                                   bf16 *y, uint32_t inputs, uint32_t outputs) {
    multiply_rows<true>(x, weight, offsets, experts, y, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    experts_linear_rows_straight(const bf16 *x, const bf16 *weight, const uint32_t *offsets, uint32_t experts,
                                 bf16 *y, uint32_t inputs, uint32_t outputs) {
    multiply_rows<false>(x, weight, offsets, experts, y, inputs, outputs);
}

// Adds two neighbouring sums.
__device__ __forceinline__ void add_pair(float *to, float left, float right) {
    float values[2];
    load<2>(to, values);
    store<2>(to, {values[0] + left, values[1] + right});
}

extern "C" __global__ void __launch_bounds__(THREADS)
    experts_linear_weight(const bf16 *a, const bf16 *b, const uint32_t *offsets, float *dweight, uint32_t a_width,
                          uint32_t b_width) {
    const uint32_t expert = blockIdx.z, first = offsets[expert], count = offsets[expert + 1] - first;
    if (count == 0) return;
    const uint32_t row = blockIdx.y * ROWS, column = blockIdx.x * COLUMNS;
    const bf16 *own_a = a + static_cast<uint64_t>(first) * a_width + row;
    const bf16 *own_b = b + static_cast<uint64_t>(first) * b_width + column;
    bf16 *shared = reinterpret_cast<bf16 *>(shared_bytes);
    auto left = [&](uint32_t stage) { return Tile<ROWS>{shared + stage * 2 * TILE}; };
    auto right = [&](uint32_t stage) { return Tile<COLUMNS>{shared + stage * 2 * TILE + TILE}; };

    Sums sums[M][N] = {};
    auto load = [&](uint32_t stage, uint32_t depth) {
        const uint64_t skipped = depth;
        left(stage).template load<DEPTH>(own_a + skipped * a_width, a_width, count - depth, a_width - row);
        right(stage).template load<DEPTH>(own_b + skipped * b_width, b_width, count - depth, b_width - column);
        commit_copies();
    };
    for_stages(count, load, [&](uint32_t stage) { multiply_stage<true, true>(sums, left(stage), right(stage)); });

    float *own = dweight + static_cast<uint64_t>(expert) * a_width * b_width;
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            const uint32_t at = row + warp_row() + m * 16 + threadIdx.x % LANES / 4;
            const uint32_t own_column = column + warp_column() + n * 8 + threadIdx.x % 4 * 2;
            if (own_column >= b_width) continue;
            float *to = own + static_cast<uint64_t>(at) * b_width + own_column;
            const float(&c)[4] = sums[m][n].values;
            if (at < a_width) add_pair(to, c[0], c[1]);
            if (at + 8 < a_width) add_pair(to + 8 * static_cast<uint64_t>(b_width), c[2], c[3]);
        }
    }
}
