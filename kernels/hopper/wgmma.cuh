// Products by a warpgroup, four warps, as H100 and H200 have them (sm_90a): the right operand is read from shared memory by
// the tensor cores themselves, the left one from registers or from there too, and the product is under way while the warps
// go on. PTX ISA 8: wgmma.mma_async.m64n64k16; its sums lie in registers as those of mma.sync.m16n8k16 do, warp w having
// rows 16w..16w + 15.
#pragma once

#include "../common/mma.cuh"

constexpr int WARPGROUP = 128;
// Rows of a warpgroup's product, and columns.
constexpr int SIDE = 64;
// Sums of a product of 64 columns.
constexpr int SUMS = SIDE / 8;

__device__ __forceinline__ uint32_t warpgroup() { return threadIdx.x / WARPGROUP; }

// A tile of ROWS rows of D bf16 as panels of 64 columns: rows of 128 bytes, swizzled as `Tile` and the hardware's 128-byte
// mode do it. Begins at a multiple of 1024 bytes, where the pattern begins.
template <int D, int ROWS>
struct Panels {
    static constexpr int ELEMENTS = ROWS * D;

    bf16 *data;

    __device__ __forceinline__ Tile<SIDE> panel(int column) const { return {data + column / SIDE * ROWS * SIDE}; }

    // Begins to copy rows of a matrix; rows that it does not have become zero.
    __device__ __forceinline__ void load(const bf16 *matrix, uint64_t stride, uint32_t rows) const {
#pragma unroll
        for (int column = 0; column < D; column += SIDE) {
            panel(column).template load<ROWS>(matrix + column, stride, rows, SIDE);
        }
    }

    // Describes rows..+ 64 of columns..+ 16 as an operand whose elements along the inner dimension are neighbours.
    __device__ __forceinline__ uint64_t rows_at(uint32_t row, int column) const {
        return described(panel(column).data + row * SIDE + column % SIDE);
    }

    // Describes rows..+ 16 of columns..+ 64 as a right operand whose inner dimension is the rows.
    __device__ __forceinline__ uint64_t columns_at(uint32_t row, int column) const {
        return described(panel(column).data + row * SIDE);
    }

    // The address in units of 16 bytes, 1024 bytes from eight rows to the next eight, 128-byte swizzling. A second panel is
    // never reached, so that its distance does not matter.
    static __device__ __forceinline__ uint64_t described(const bf16 *at) {
        return static_cast<uint64_t>((shared_address(at) & 0x3ffff) >> 4) | 64ull << 32 | 1ull << 62;
    }
};

// Lets the tensor cores see what this thread's copies have written to shared memory; before the barrier after them.
__device__ __forceinline__ void publish_copies() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Before the first product after registers that take part in it were written; these are to be held first.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

// Ends a group of products.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// Waits until at most `PENDING` groups are under way.
template <int PENDING>
__device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}

// Keeps what products under way read or write where it is: the compiler does not touch it before it has passed this. And what
// is computed beside them is computed before: else it would be put off until they are waited for.
template <int N>
__device__ __forceinline__ void hold(Sums (&sums)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        float(&c)[4] = sums[n].values;
        asm volatile("" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])::"memory");
    }
}

template <int N>
__device__ __forceinline__ void hold(Fragment (&fragments)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        uint32_t(&r)[4] = fragments[n].registers;
        asm volatile("" : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3])::"memory");
    }
}

#define FOUR(S, n) "+f"(S[n].values[0]), "+f"(S[n].values[1]), "+f"(S[n].values[2]), "+f"(S[n].values[3])
#define ALL_SUMS(S) \
    FOUR(S, 0), FOUR(S, 1), FOUR(S, 2), FOUR(S, 3), FOUR(S, 4), FOUR(S, 5), FOUR(S, 6), FOUR(S, 7)
#define PLACES                                                                                         \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"

// sums = or += left·right, with the left operand in registers. COLUMNS: the right one is described by `columns_at`.
template <bool ADD, bool COLUMNS>
__device__ __forceinline__ void multiply(Sums (&sums)[SUMS], const Fragment &left, uint64_t right) {
    asm volatile(
        "{\n.reg .pred adds;\nsetp.ne.b32 adds, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " PLACES ", {%32, %33, %34, %35}, %36, adds, 1, 1, %38;\n}\n"
        : ALL_SUMS(sums)
        : "r"(left.registers[0]), "r"(left.registers[1]), "r"(left.registers[2]), "r"(left.registers[3]), "l"(right),
          "n"(ADD), "n"(COLUMNS));
}

// The same, with both operands in shared memory, described by `rows_at`.
template <bool ADD>
__device__ __forceinline__ void multiply(Sums (&sums)[SUMS], uint64_t left, uint64_t right) {
    asm volatile(
        "{\n.reg .pred adds;\nsetp.ne.b32 adds, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " PLACES ", %32, %33, adds, 1, 1, 0, 0;\n}\n"
        : ALL_SUMS(sums)
        : "l"(left), "l"(right), "n"(ADD));
}

// Sixty-four of the sums of a product of D columns.
template <int D>
__device__ __forceinline__ Sums (&part(Sums (&sums)[D / 8], int column))[SUMS] {
    return *reinterpret_cast<Sums(*)[SUMS]>(&sums[column / 8]);
}
