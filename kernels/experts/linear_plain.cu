// The experts' linear layer without tensor cores: fp32, and bf16 of any width; operands as in linear.cu.
//
// A tile of 64×64 sums in a block of 256 threads, 4×4 in each, over 16 of the inner dimension at once.
// Launch: rows (⌈outputs/64⌉, ⌈T·k/64⌉ + experts), weight (⌈B/64⌉, ⌈A/64⌉, experts), 256 threads.

#include "../common/pack.cuh"
#include "tiles.cuh"

constexpr int THREADS = 256;
constexpr int SIDE = 64, DEPTH = 16, OWN = 4;

// A matrix of any strides inside a vector; elements outside of it are zero.
template <typename T>
struct Matrix {
    const T *data;
    uint32_t rows, columns;
    uint64_t row_stride, column_stride;

    __device__ __forceinline__ float at(uint32_t row, uint32_t column) const {
        return row < rows && column < columns ? to_float(data[row * row_stride + column * column_stride]) : 0;
    }
    __device__ __forceinline__ Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }
};

// Calls store(row, column, sum) for the elements of left·right in the tile at (row, column).
template <typename T, typename Store>
__device__ __forceinline__ void multiply(const Matrix<T> &left, const Matrix<T> &right, uint32_t row, uint32_t column,
                                         Store store) {
    __shared__ float left_tile[DEPTH][SIDE + 1], right_tile[DEPTH][SIDE + 1];
    const uint32_t own_row = threadIdx.x / 16 * OWN, own_column = threadIdx.x % 16;
    float sums[OWN][OWN] = {};
    for (uint32_t depth = 0; depth < left.columns; depth += DEPTH) {
        __syncthreads();
        for (uint32_t index = threadIdx.x; index < SIDE * DEPTH; index += THREADS) {
            // Neighbouring threads read neighbouring addresses, whichever way the operand lies.
            const bool left_flat = left.column_stride == 1, right_flat = right.column_stride == 1;
            const uint32_t l = left_flat ? index / DEPTH : index % SIDE, k = left_flat ? index % DEPTH : index / SIDE;
            left_tile[k][l] = left.at(row + l, depth + k);
            const uint32_t r = right_flat ? index % SIDE : index / DEPTH, j = right_flat ? index / SIDE : index % DEPTH;
            right_tile[j][r] = right.at(depth + j, column + r);
        }
        __syncthreads();
        for (int k = 0; k < DEPTH; k++) {
            for (int i = 0; i < OWN; i++) {
                for (int j = 0; j < OWN; j++) {
                    sums[i][j] = fmaf(left_tile[k][own_row + i], right_tile[k][own_column + j * 16], sums[i][j]);
                }
            }
        }
    }
    for (int i = 0; i < OWN; i++) {
        for (int j = 0; j < OWN; j++) {
            const uint32_t at_row = row + own_row + i, at_column = column + own_column + j * 16;
            if (at_row < left.rows && at_column < right.columns) store(at_row, at_column, sums[i][j]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void multiply_rows(const T *x, const T *weight, const uint32_t *offsets, uint32_t experts,
                                              T *y, uint32_t inputs, uint32_t outputs, bool transposed) {
    const TileOfRows rows = tile_of_rows<SIDE>(offsets, experts, blockIdx.y);
    if (rows.count == 0) return;
    const uint64_t first = rows.first;
    const T *own_weight = weight + static_cast<uint64_t>(rows.expert) * inputs * outputs;
    const Matrix<T> left = {x + first * inputs, rows.count, inputs, inputs, 1};
    const Matrix<T> right = transposed ? Matrix<T>{own_weight, outputs, inputs, inputs, 1}.transposed()
                                       : Matrix<T>{own_weight, inputs, outputs, outputs, 1};
    multiply(left, right, 0, blockIdx.x * SIDE, [&](uint32_t row, uint32_t column, float sum) {
        pack<1>(y + (first + row) * outputs + column) = rounded<T, 1>({sum});
    });
}

template <typename T>
__device__ __forceinline__ void add_weight(const T *a, const T *b, const uint32_t *offsets, float *dweight,
                                           uint32_t a_width, uint32_t b_width) {
    const uint32_t expert = blockIdx.z, count = offsets[expert + 1] - offsets[expert];
    if (count == 0) return;
    const uint64_t first = offsets[expert];
    const Matrix<T> left = {a + first * a_width, count, a_width, a_width, 1};
    const Matrix<T> right = {b + first * b_width, count, b_width, b_width, 1};
    float *own = dweight + static_cast<uint64_t>(expert) * a_width * b_width;
    auto add = [&](uint32_t row, uint32_t column, float sum) {
        own[static_cast<uint64_t>(row) * b_width + column] += sum;
    };
    multiply(left.transposed(), right, blockIdx.y * SIDE, blockIdx.x * SIDE, add);
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                         \
        experts_linear_plain_rows_##SUFFIX(const T *x, const T *weight, const uint32_t *offsets, uint32_t experts,   \
                                           T *y, uint32_t inputs, uint32_t outputs, uint32_t transposed) {           \
        multiply_rows(x, weight, offsets, experts, y, inputs, outputs, transposed);                                  \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                         \
        experts_linear_plain_weight_##SUFFIX(const T *a, const T *b, const uint32_t *offsets, float *dweight,        \
                                             uint32_t a_width, uint32_t b_width) {                                   \
        add_weight(a, b, offsets, dweight, a_width, b_width);                                                        \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
