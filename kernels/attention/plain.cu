// Attention without tensor cores: fp32, and bf16 with heads of any size; formulas as in forward.cu and backward.cu.
//
// T is fp32 or bf16 for qkv, output, doutput and dqkv; log_sum_exp and δ are fp32, and so is all arithmetic. attention_
// delta_* fills δ = rowsum(dO∘O) [T, Hq] for these kernels and for those of backward.cu.
//
// A block of 4 warps holds OWN = 8 rows of one side in shared memory and walks over blocks of 32 rows of the other
// side; the lanes of a warp are those 32 rows where scores are computed, and elements of the head where they are
// added up. Every sum has one order.
// Launch: 128 threads; forward and queries (⌈T/8⌉, Hq), keys (⌈T/8⌉, Hkv), delta ⌈T·Hq/4⌉.
// Shared memory, in rows of D + 1 fp32 (which puts a column's 32 rows into different banks): forward 2·8 + 2·32,
// queries and keys 3·8 + 2·32 and 4·8 + 2·32.

#include "attention.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / LANES;
constexpr int OWN = 8;
constexpr int OTHERS = LANES;

extern __shared__ float shared_rows[];

// Rows of D + 1 fp32 in shared memory.
struct Rows {
    float *data;
    uint32_t size;

    __device__ __forceinline__ float *row(uint32_t index) const { return data + index * (size + 1); }
    // The rows behind the first `count`.
    __device__ __forceinline__ Rows after(uint32_t count) const { return {row(count), size}; }

    // Fills `count` rows from a matrix; rows that it does not have become zero.
    template <typename T>
    __device__ __forceinline__ void load(const T *from, uint64_t stride, uint32_t known, uint32_t count) const {
        for (uint32_t index = threadIdx.x; index < count * size; index += THREADS) {
            const uint32_t at = index / size, column = index % size;
            row(at)[column] = at < known ? to_float(from[at * stride + column]) : 0;
        }
    }

    __device__ __forceinline__ void clear(uint32_t count) const {
        for (uint32_t index = threadIdx.x; index < count * (size + 1); index += THREADS) data[index] = 0;
    }

    template <typename T>
    __device__ __forceinline__ void store(uint32_t index, float factor, T *to) const {
        for (uint32_t column = threadIdx.x % LANES; column < size; column += LANES) {
            pack<1>(to + column) = rounded<T, 1>({row(index)[column] * factor});
        }
    }
};

__device__ __forceinline__ float dot(const float *a, const float *b, uint32_t size) {
    float sum = 0;
    for (uint32_t column = 0; column < size; column++) sum = fmaf(a[column], b[column], sum);
    return sum;
}

// to = to·correction + Σ weightᵢ·rowᵢ, where lane i has the weight of row i.
__device__ __forceinline__ void add_weighted(float *to, float correction, float weight, const Rows &rows) {
    for (uint32_t first = 0; first < rows.size; first += LANES) {
        const uint32_t column = first + threadIdx.x % LANES, known = min(column, rows.size - 1);
        float sum = to[known] * correction;
        for (int i = 0; i < OTHERS; i++) {
            sum = fmaf(__shfl_sync(ALL_LANES, weight, i), rows.row(i)[known], sum);
        }
        if (column < rows.size) to[column] = sum;
    }
}

template <typename T>
__device__ __forceinline__ void forward(const Layer &layer, const T *qkv, T *output, float *log_sum_exp) {
    const uint32_t size = layer.head_size, warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const Rows q = {shared_rows, size}, o = q.after(OWN), k = o.after(OWN), v = k.after(OTHERS);
    const uint32_t head = blockIdx.y, key_value_head = head / layer.group();
    const uint32_t first = blockIdx.x * OWN, end = min(first + OWN, layer.rows);
    const uint64_t width = layer.width();
    const float scale = rsqrtf(size);
    float largest[OWN / WARPS], total[OWN / WARPS];
#pragma unroll
    for (int i = 0; i < OWN / WARPS; i++) {
        largest[i] = -INFINITY;
        total[i] = 0;
    }
    q.load(qkv + first * width + layer.query_start(head), width, end - first, OWN);
    o.clear(OWN);
    for (uint32_t key = layer.first_key(first); key < end; key += OTHERS) {
        __syncthreads();
        k.load(qkv + key * width + layer.key_start(key_value_head), width, end - key, OTHERS);
        v.load(qkv + key * width + layer.value_start(key_value_head), width, end - key, OTHERS);
        __syncthreads();
#pragma unroll
    for (int i = 0; i < OWN / WARPS; i++) {
            const uint32_t own = i * WARPS + warp, query = first + own;
            if (query >= end) continue;
            const bool seen = key + lane <= query && key + lane >= layer.first_key(query);
            const float score = seen ? dot(q.row(own), k.row(lane), size) * scale : -INFINITY;
            const float top = warp_maximum(fmaxf(score, largest[i]));
            // A query that has seen no key yet has no maximum.
            if (top == -INFINITY) continue;
            const float weight = __expf(score - top), correction = __expf(largest[i] - top);
            total[i] = total[i] * correction + warp_sum(weight);
            largest[i] = top;
            add_weighted(o.row(own), correction, weight, v);
        }
    }
#pragma unroll
    for (int i = 0; i < OWN / WARPS; i++) {
        const uint32_t own = i * WARPS + warp, query = first + own;
        if (query >= end) continue;
        __syncwarp();
        o.store(own, 1 / total[i], output + query * layer.output_width() + layer.query_start(head));
        if (lane == 0) {
            log_sum_exp[static_cast<uint64_t>(query) * layer.query_heads + head] = largest[i] + logf(total[i]);
        }
    }
}

// P and dS of one query and one key.
struct ScoreGradient {
    float weight, gradient;

    __device__ __forceinline__ ScoreGradient(float score, float dweight, float log_sum_exp, float delta, bool seen) {
        weight = seen ? __expf(score - log_sum_exp) : 0;
        gradient = weight * (dweight - delta);
    }
};

template <typename T>
__device__ __forceinline__ void backward_queries(const Layer &layer, const T *doutput, const T *qkv,
                                                 const float *log_sum_exp, const float *delta, T *dqkv) {
    const uint32_t size = layer.head_size, warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const Rows q = {shared_rows, size}, dout = q.after(OWN), dq = dout.after(OWN), k = dq.after(OWN);
    const Rows v = k.after(OTHERS);
    const uint32_t head = blockIdx.y, key_value_head = head / layer.group(), start = layer.query_start(head);
    const uint32_t first = blockIdx.x * OWN, end = min(first + OWN, layer.rows);
    const uint64_t width = layer.width(), output_width = layer.output_width();
    const float scale = rsqrtf(size);
    q.load(qkv + first * width + start, width, end - first, OWN);
    dout.load(doutput + first * output_width + start, output_width, end - first, OWN);
    dq.clear(OWN);
    for (uint32_t key = layer.first_key(first); key < end; key += OTHERS) {
        __syncthreads();
        k.load(qkv + key * width + layer.key_start(key_value_head), width, end - key, OTHERS);
        v.load(qkv + key * width + layer.value_start(key_value_head), width, end - key, OTHERS);
        __syncthreads();
        for (uint32_t own = warp; own < end - first; own += WARPS) {
            const uint32_t query = first + own;
            const uint64_t place = static_cast<uint64_t>(query) * layer.query_heads + head;
            const bool seen = key + lane <= query && key + lane >= layer.first_key(query);
            const ScoreGradient s(dot(q.row(own), k.row(lane), size) * scale, dot(dout.row(own), v.row(lane), size),
                                  log_sum_exp[place], delta[place], seen);
            add_weighted(dq.row(own), 1, s.gradient, k);
        }
    }
    for (uint32_t own = warp; own < end - first; own += WARPS) {
        __syncwarp();
        dq.store(own, scale, dqkv + (first + own) * width + start);
    }
}

template <typename T>
__device__ __forceinline__ void backward_keys(const Layer &layer, const T *doutput, const T *qkv,
                                              const float *log_sum_exp, const float *delta, T *dqkv) {
    const uint32_t size = layer.head_size, warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const Rows k = {shared_rows, size}, v = k.after(OWN), dk = v.after(OWN), dv = dk.after(OWN), q = dv.after(OWN);
    const Rows dout = q.after(OTHERS);
    const uint32_t key_value_head = blockIdx.y, first = blockIdx.x * OWN, end = min(first + OWN, layer.rows);
    const uint32_t last_query = layer.end_query(end - 1);
    const uint64_t width = layer.width(), output_width = layer.output_width();
    const float scale = rsqrtf(size);
    k.load(qkv + first * width + layer.key_start(key_value_head), width, end - first, OWN);
    v.load(qkv + first * width + layer.value_start(key_value_head), width, end - first, OWN);
    dk.clear(2 * OWN);
    for (uint32_t member = 0; member < layer.group(); member++) {
        const uint32_t head = key_value_head * layer.group() + member, start = layer.query_start(head);
        for (uint32_t query = first; query < last_query; query += OTHERS) {
            __syncthreads();
            q.load(qkv + query * width + start, width, last_query - query, OTHERS);
            dout.load(doutput + query * output_width + start, output_width, last_query - query, OTHERS);
            __syncthreads();
            const uint64_t place = static_cast<uint64_t>(min(query + lane, last_query - 1)) * layer.query_heads + head;
            const float own_log_sum_exp = log_sum_exp[place], own_delta = delta[place];
            for (uint32_t own = warp; own < end - first; own += WARPS) {
                const uint32_t key = first + own;
                const bool seen = query + lane >= key && query + lane < layer.end_query(key);
                const ScoreGradient s(dot(k.row(own), q.row(lane), size) * scale,
                                      dot(v.row(own), dout.row(lane), size), own_log_sum_exp, own_delta, seen);
                add_weighted(dv.row(own), 1, s.weight, dout);
                add_weighted(dk.row(own), 1, s.gradient, q);
            }
        }
    }
    for (uint32_t own = warp; own < end - first; own += WARPS) {
        __syncwarp();
        T *row = dqkv + (first + own) * width;
        dk.store(own, scale, row + layer.key_start(key_value_head));
        dv.store(own, 1, row + layer.value_start(key_value_head));
    }
}

// One warp for each row of a head.
template <int N, typename T>
__device__ __forceinline__ void fill_delta(const T *doutput, const T *output, float *delta, uint64_t count,
                                           uint32_t head_size) {
    const uint64_t place = static_cast<uint64_t>(blockIdx.x) * WARPS + threadIdx.x / LANES;
    if (place >= count) return;
    float sum = 0;
    for (uint32_t column = threadIdx.x % LANES * N; column < head_size; column += LANES * N) {
        float a[N], b[N];
        load<N>(doutput + place * head_size + column, a);
        load<N>(output + place * head_size + column, b);
        for (int i = 0; i < N; i++) sum = fmaf(a[i], b[i], sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % LANES == 0) delta[place] = sum;
}

#define ENTRIES(T, SUFFIX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_forward_##SUFFIX(const T *qkv, const uint32_t *cu_seqlens, T *output, float *log_sum_exp,          \
                                   uint32_t rows, uint32_t documents, uint32_t query_heads,                          \
                                   uint32_t key_value_heads, uint32_t window, uint32_t head_size) {                  \
        const Layer layer = {rows, query_heads, key_value_heads, head_size, window, documents, cu_seqlens};          \
        forward(layer, qkv, output, log_sum_exp);                                                                    \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_backward_queries_##SUFFIX(const T *doutput, const T *qkv, const float *log_sum_exp,                \
                                            const float *delta, const uint32_t *cu_seqlens, T *dqkv, uint32_t rows,  \
                                            uint32_t documents, uint32_t query_heads, uint32_t key_value_heads,      \
                                            uint32_t window, uint32_t head_size) {                                   \
        const Layer layer = {rows, query_heads, key_value_heads, head_size, window, documents, cu_seqlens};          \
        backward_queries(layer, doutput, qkv, log_sum_exp, delta, dqkv);                                             \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_backward_keys_##SUFFIX(const T *doutput, const T *qkv, const float *log_sum_exp,                   \
                                         const float *delta, const uint32_t *cu_seqlens, T *dqkv, uint32_t rows,     \
                                         uint32_t documents, uint32_t query_heads, uint32_t key_value_heads,         \
                                         uint32_t window, uint32_t head_size) {                                      \
        const Layer layer = {rows, query_heads, key_value_heads, head_size, window, documents, cu_seqlens};          \
        backward_keys(layer, doutput, qkv, log_sum_exp, delta, dqkv);                                                \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        attention_delta_##SUFFIX(const T *doutput, const T *output, float *delta, uint64_t count,                    \
                                 uint32_t head_size) {                                                               \
        if (wide_rows<T>(head_size, doutput, output)) {                                                              \
            fill_delta<WIDE<T>>(doutput, output, delta, count, head_size);                                           \
        } else {                                                                                                     \
            fill_delta<1>(doutput, output, delta, count, head_size);                                                 \
        }                                                                                                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
