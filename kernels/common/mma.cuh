// Tensor-core tiles at the level of sm_80: asynchronous copies into swizzled tiles of shared memory, fragments from
// them, and the product of a 16×16 and a 16×8 fragment in bf16 with fp32 sums. PTX ISA 8: cp.async, ldmatrix,
// mma.sync.m16n8k16.
#pragma once

#include "pack.cuh"
#include "reduce.cuh"

__device__ __forceinline__ uint32_t shared_address(const void *at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Begins to copy 16 bytes into shared memory; zeros where not `present`.
__device__ __forceinline__ void copy_async(void *to, const void *from, bool present) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
                 "r"(present ? 16 : 0));
}

// The same with a single number.
__device__ __forceinline__ void copy_async(float *to, const float *from, bool present) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(to)), "l"(from),
                 "r"(present ? 4 : 0));
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::); }

// Waits until at most `PENDING` of this thread's groups of copies are under way.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING));
}

// A tile of rows of WIDTH bf16, a multiple of 64. 16-byte chunk c of row r lies at chunk c ^ (r mod 8), so that the
// eight rows which ldmatrix reads at one column lie in different banks.
template <int WIDTH>
struct Tile {
    static constexpr int CHUNKS = WIDTH / 8;

    bf16 *data;

    __device__ __forceinline__ bf16 *at(uint32_t row, uint32_t column) const {
        return data + row * WIDTH + ((column / 8) ^ (row % 8)) * 8 + column % 8;
    }

    // Begins to copy rows from..from + ROWS of a matrix; rows and columns that it does not have become zero.
    template <int ROWS>
    __device__ __forceinline__ void load(const bf16 *matrix, uint64_t stride, uint32_t rows, uint32_t columns) const {
        for (uint32_t index = threadIdx.x; index < ROWS * CHUNKS; index += blockDim.x) {
            const uint32_t row = index / CHUNKS, column = index % CHUNKS * 8;
            const bool present = row < rows && column < columns;
            copy_async(at(row, column), present ? matrix + row * stride + column : matrix, present);
        }
    }

    // Copies `rows` of the warp's rows from first_row on to a matrix, 16 bytes at a time.
    template <int ROWS>
    __device__ __forceinline__ void store_by_warp(uint32_t first_row, bf16 *matrix, uint64_t stride,
                                                  uint32_t rows) const {
        for (uint32_t index = threadIdx.x % LANES; index < ROWS * CHUNKS; index += LANES) {
            const uint32_t row = index / CHUNKS, column = index % CHUNKS * 8;
            if (row < rows) pack<8>(matrix + row * stride + column) = pack<8>(at(first_row + row, column));
        }
    }
};

// A 16×16 operand on the left, or two 16×8 operands on the right: four 8×8 matrices.
struct Fragment {
    uint32_t registers[4];
};

// The sums of a 16×8 product: rows g and g + 8, columns 2t and 2t + 1, for lane 4g + t.
struct Sums {
    float values[4];
};

template <bool TRANSPOSED>
__device__ __forceinline__ Fragment load_matrices(const bf16 *at) {
    Fragment result;
    uint32_t(&r)[4] = result.registers;
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(at)));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(at)));
    }
    return result;
}

// The left operand A[row.., depth..], of a tile [rows][depth], or of a tile [depth][rows] where TRANSPOSED.
template <bool TRANSPOSED, int WIDTH>
__device__ __forceinline__ Fragment load_left(const Tile<WIDTH> &tile, uint32_t row, uint32_t depth) {
    const uint32_t lane = threadIdx.x % LANES;
    if constexpr (TRANSPOSED) {
        return load_matrices<true>(tile.at(depth + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8));
    } else {
        return load_matrices<false>(tile.at(row + lane % 16, depth + lane / 16 * 8));
    }
}

// Two right operands B[depth.., column..] and B[depth.., column + 8..], of a tile [columns][depth], or of a tile
// [depth][columns] where TRANSPOSED.
template <bool TRANSPOSED, int WIDTH>
__device__ __forceinline__ Fragment load_right(const Tile<WIDTH> &tile, uint32_t depth, uint32_t column) {
    const uint32_t lane = threadIdx.x % LANES;
    if constexpr (TRANSPOSED) {
        return load_matrices<true>(tile.at(depth + lane % 16, column + lane / 16 * 8));
    } else {
        return load_matrices<false>(tile.at(column + lane % 8 + lane / 16 * 8, depth + lane / 8 % 2 * 8));
    }
}

// sums += left·right, with the right operand number `which` of two.
__device__ __forceinline__ void multiply_add(Sums &sums, const Fragment &left, const Fragment &right, int which) {
    float(&c)[4] = sums.values;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(left.registers[0]), "r"(left.registers[1]), "r"(left.registers[2]), "r"(left.registers[3]),
                   "r"(right.registers[2 * which]), "r"(right.registers[2 * which + 1]));
}

__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&pair);
}

// Two neighbouring sums as the left operand of the next product, rounded: no shared memory between two products.
__device__ __forceinline__ Fragment as_left(const Sums &near, const Sums &far) {
    return {{rounded_pair(near.values[0], near.values[1]), rounded_pair(near.values[2], near.values[3]),
             rounded_pair(far.values[0], far.values[1]), rounded_pair(far.values[2], far.values[3])}};
}

// Writes sums times two factors, one for row g and one for row g + 8, to a tile.
template <int WIDTH>
__device__ __forceinline__ void store_sums(const Tile<WIDTH> &tile, uint32_t row, uint32_t column, const Sums &sums,
                                           float upper, float lower) {
    const uint32_t lane = threadIdx.x % LANES, own_row = row + lane / 4, own_column = column + lane % 4 * 2;
    const float(&c)[4] = sums.values;
    *reinterpret_cast<uint32_t *>(tile.at(own_row, own_column)) = rounded_pair(c[0] * upper, c[1] * upper);
    *reinterpret_cast<uint32_t *>(tile.at(own_row + 8, own_column)) = rounded_pair(c[2] * lower, c[3] * lower);
}
