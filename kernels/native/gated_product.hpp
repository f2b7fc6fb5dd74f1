// Small products in registers, and operands laid out for them: rows padded to whole vectors, panels of keys turned.
#pragma once

#include "simd.hpp"

namespace surgery {

constexpr int64_t ROWS = 32, KEYS = 128;   // a tile: scores and their gradients fit the first cache together
constexpr int64_t STEP = 16;               // head dims and keys are padded to this
inline int64_t padded(int64_t count) { return (count + STEP - 1) / STEP * STEP; }

// Room that begins on a cache line; a thread keeps its own from call to call.
struct Room {
    float* at = nullptr;
    int64_t size = 0;
    ~Room() { std::free(at); }
    float* floats(int64_t count) {
        if (count > size) {
            std::free(at);
            size = (count + 1023) / 1024 * 1024;
            at = static_cast<float*>(std::aligned_alloc(64, size * sizeof(float)));
        }
        return at;
    }
};

// x in every lane, by its bits: `splat` adds it to zero, an instruction that matters here.
inline f32v spread(float x) {
    uint32_t bits; std::memcpy(&bits, &x, sizeof x);
    return (f32v)(u32v{} + bits);
}

// C[M, V · LANES] (+)= A · B over `depth`; element (m, d) of A is a[m · row + d · step].
template <int M, int V>
inline __attribute__((always_inline)) void block(
    const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t depth, bool add
) {
    f32v total[M][V];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) total[m][v] = add ? load(c + m * ldc + v * LANES) : f32v{};
    for (int64_t d = 0; d < depth; d++, a += step, b += ldb) {
        f32v right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) right[v] = load(b + v * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            const f32v left = spread(a[m * row]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) total[m][v] += left * right[v];
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(c + m * ldc + v * LANES, total[m][v]);
}

// rows is a multiple of 8, columns of LANES. Not inlined: the blocks would be compiled over and over.
__attribute__((noinline)) void product(
    const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t rows,
    int64_t columns, int64_t depth, bool add
) {
    int64_t n = 0;
    auto strip = [&]<int V>() {
        for (int64_t m = 0; m < rows; m += 8)
            block<8, V>(a + m * row, row, step, b + n, ldb, c + m * ldc + n, ldc, depth, add);
        n += V * LANES;
    };
    while (columns - n >= 3 * LANES && (columns - n) != 4 * LANES) strip.template operator()<3>();
    while (columns - n >= 2 * LANES) strip.template operator()<2>();
    while (n < columns) strip.template operator()<1>();
}

// `count` rows to fp32, times `factor`, zeros up to `rows` rows of `wide`.
template <class T>
void gather(const T* from, int64_t stride, int64_t count, int64_t dim, float factor, float* to, int64_t rows, int64_t wide) {
    for (int64_t r = 0; r < count; r++) {
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) store(to + r * wide + d, load(from + r * stride + d) * factor);
        for (; d < dim; d++) to[r * wide + d] = scalar(from[r * stride + d]) * factor;
        for (; d < wide; d++) to[r * wide + d] = 0;
    }
    std::memset(to + count * wide, 0, (rows - count) * wide * sizeof(float));
}

// Rows [count][wide] into panels [tile][wide][KEYS], so that keys lie along the lanes.
inline void turn(const float* rows, int64_t tiles, int64_t wide, float* panels) {
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t j = 0; j < KEYS; j++)
            for (int64_t d = 0; d < wide; d++) panels[(t * wide + d) * KEYS + j] = rows[(t * KEYS + j) * wide + d];
}

template <class T> void scatter(const float* from, int64_t wide, int64_t count, int64_t dim, float factor, T* to) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t d = 0; d < dim; d++) assign(to[r * dim + d], from[r * wide + d] * factor);
}

template <class T> const T* line_of(const void* base, const int64_t* stride, int64_t b, int64_t h) {
    return static_cast<const T*>(base) + b * stride[0] + h * stride[1];
}

inline uint32_t bits_of(f32v x) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_OQ);
#else
    uint32_t found = 0;
    for (int i = 0; i < LANES; i++) found |= uint32_t(x[i] != 0) << i;
    return found;
#endif
}

// out += Σ over the open edges of a tile: for few of them.
inline void gather_open(const float* a, const float* v, float* out, int64_t rows, int64_t columns, int64_t wide) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < columns; j += LANES)
            for (uint32_t open = bits_of(load(a + r * KEYS + j)); open; open &= open - 1) {
                int64_t key = j + __builtin_ctz(open);
                for (int64_t d = 0; d < wide; d += LANES)
                    store(out + r * wide + d, load(out + r * wide + d) + load(v + key * wide + d) * a[r * KEYS + key]);
            }
}

}  // namespace surgery
