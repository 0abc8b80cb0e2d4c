// Heads dealt out to the ranks that share a sequence; crates/ops/src/attention/split.rs.
//
// pack:   blocks[c, s] = rank c's columns of x[s];  unpack: y[s] = Σ_c blocks[c, s], each in rank c's columns
// x, y [t, width], blocks [C, S, w], fp32 or bf16; S ≥ t, and rows behind t stay as they are. A row has three sections
// of heads (queries, keys, values; or the queries of an output and two empty ones). Of a section of h heads rank c has
// h/C from c·h/C on, or, where C > h, the one head c·h/C, which C/h ranks then share: unpack adds what they say in the
// order of the ranks and rounds once.
//
// Launch, 256 threads: pack blocks (t, C); unpack t blocks.

#include "../common/rows.cuh"

constexpr int THREADS = 256;
constexpr int SECTIONS = 3;

// Heads of each section of a row, and the ranks that they are dealt out to.
struct Columns {
    uint32_t heads[SECTIONS];
    uint32_t head_size, ranks;

    __device__ __forceinline__ uint32_t share(int section) const {
        return heads[section] == 0 ? 0 : max(heads[section] / ranks, 1);
    }
    __device__ __forceinline__ uint32_t width() const { return (heads[0] + heads[1] + heads[2]) * head_size; }
    __device__ __forceinline__ uint32_t share_width() const { return (share(0) + share(1) + share(2)) * head_size; }
};

template <typename T>
__device__ __forceinline__ void pack_rows(const Columns &columns, const T *x, T *blocks, uint32_t block_rows) {
    const uint64_t token = blockIdx.x, rank = blockIdx.y;
    const T *from = x + token * columns.width();
    T *to = blocks + (rank * block_rows + token) * columns.share_width();
    for (int section = 0; section < SECTIONS; section++) {
        const uint32_t length = columns.share(section) * columns.head_size;
        copy_row(from + rank * columns.heads[section] / columns.ranks * columns.head_size, to, length);
        from += columns.heads[section] * columns.head_size;
        to += length;
    }
}

// Adds up what the ranks from `first` to `end` say of one element; their shares are `stride` apart.
template <int N, typename T>
__device__ __forceinline__ void add_ranks(const T *share, uint64_t stride, uint32_t first, uint32_t end, T *to) {
    float sums[N];
    load<N>(share + first * stride, sums);
    for (uint32_t rank = first + 1; rank < end; rank++) {
        float values[N];
        load<N>(share + rank * stride, values);
        for (int i = 0; i < N; i++) sums[i] += values[i];
    }
    store<N>(to, sums);
}

template <int N, typename T>
__device__ __forceinline__ void unpack_row(const Columns &columns, const T *blocks, T *to, uint64_t stride) {
    for (int section = 0; section < SECTIONS; section++) {
        const uint32_t heads = columns.heads[section], share = columns.share(section);
        for_own_columns<N>(heads * columns.head_size, [&](uint32_t column) {
            const uint32_t head = column / columns.head_size;
            const uint32_t first = head * columns.ranks / heads;
            const uint32_t end = max((head + 1) * columns.ranks / heads, first + 1);
            const uint32_t place = head % share * columns.head_size + column % columns.head_size;
            add_ranks<N>(blocks + place, stride, first, end, to + column);
        });
        blocks += share * columns.head_size;
        to += heads * columns.head_size;
    }
}

template <typename T>
__device__ __forceinline__ void unpack_rows(const Columns &columns, const T *blocks, T *y, uint32_t block_rows) {
    const uint64_t token = blockIdx.x, share_width = columns.share_width();
    const T *from = blocks + token * share_width;
    T *to = y + token * columns.width();
    if (columns.head_size % WIDE<T> == 0 && aligned(blocks, y)) {
        unpack_row<WIDE<T>>(columns, from, to, block_rows * share_width);
    } else {
        unpack_row<1>(columns, from, to, block_rows * share_width);
    }
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_split_pack_##SUFFIX(const T *x, T *blocks, uint32_t block_rows, uint32_t queries, uint32_t keys,   \
                                      uint32_t values, uint32_t head_size, uint32_t ranks) {                         \
        pack_rows(Columns{{queries, keys, values}, head_size, ranks}, x, blocks, block_rows);                        \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_split_unpack_##SUFFIX(const T *blocks, T *y, uint32_t block_rows, uint32_t queries, uint32_t keys, \
                                        uint32_t values, uint32_t head_size, uint32_t ranks) {                       \
        unpack_rows(Columns{{queries, keys, values}, head_size, ranks}, blocks, y, block_rows);                      \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
