// Register-blocked products of a strip of rows with a panel of PANEL columns: where block attention spends its time.
//
// Operands are 32-bit words. A word is one float (`Single`), or two neighbouring bf16 of the summed dimension (`Pair`),
// of which AVX-512 multiplies and adds both at once into fp32. Each total is one chain of multiply-adds in ascending
// order of the summed dimension, whichever shape of tile computes it.
#pragma once

#include "simd.hpp"

namespace surgery {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int VECTORS = 4, REGISTERS = 32;
#else
constexpr int VECTORS = 2, REGISTERS = 16;
#endif
constexpr int PANEL = VECTORS * LANES;
// Rows of a tile of C vectors, so that totals, C vectors of the panel and a spread word fit the registers.
template <int C>
constexpr int TALL = std::min(REGISTERS == 32 ? 12 : 8, (REGISTERS - C - 1) / C / 2 * 2);

struct Single {
    static constexpr int DEPTH = 1;
    static f32v add(f32v total, float a, f32v b) { return total + splat(a) * b; }
};

#if defined(__AVX512BF16__)
struct Pair {
    static constexpr int DEPTH = 2;
    static f32v add(f32v total, float a, f32v b) {
        return (f32v)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
    }
};
#endif

inline float word_at(const char* from) { float word; std::memcpy(&word, from, 4); return word; }

// Rows whose words follow each other. Rows past the last one repeat it: they are computed and not used.
struct Rows {
    const char* first;
    int64_t stride;  // bytes
    int64_t count;

    template <int R>
    struct Strip {
        const char* row[R];
        float at(int r, int64_t t) const { return word_at(row[r] + 4 * t); }
    };
    template <int R>
    Strip<R> strip(int64_t start) const {
        Strip<R> it;
        for (int r = 0; r < R; r++) it.row[r] = first + std::min(start + r, count - 1) * stride;
        return it;
    }
};

// Rows that are the columns of a panel: word t of row r lies at [t * PANEL + r].
struct Columns {
    const float* first;

    template <int R>
    struct Strip {
        const float* column;
        float at(int r, int64_t t) const { return column[t * PANEL + r]; }
    };
    template <int R>
    Strip<R> strip(int64_t start) const { return {first + start}; }
};

// One tile of R rows × C vectors: start(r, c) gives what a total begins with, finish(r, c, total) takes it.
template <class M, int R, int C, class Strip, class Start, class Finish>
inline __attribute__((always_inline)) void tile(
    const Strip& left, const float* right, int64_t stride, int64_t depth, const Start& start, const Finish& finish
) {
    f32v total[R][C];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) total[r][c] = start(r, c);
    for (int64_t t = 0; t < depth; t++, right += stride) {
        f32v b[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) b[c] = load(right + c * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            float a = left.at(r, t);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) total[r][c] = M::add(total[r][c], a, b[c]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) finish(r, c, total[r][c]);
}

inline int64_t whole_strips(int64_t count) { return (count + 3) / 4 * 4; }

// Calls body.operator()<R>(first row) over count rows, rounded up to 4: as few strips of 4 as that allows, then tall.
template <int C, class Body>
inline void strips(int64_t count, const Body& body) {
    int64_t total = whole_strips(count), row = 0;
    for (; (total - row) % TALL<C>; row += 4) body.template operator()<4>(row);
    for (; row < total; row += TALL<C>) body.template operator()<TALL<C>>(row);
}

// finish(row, c, sum over depth of rows[row] * panel) for every row: scores, and their gradients.
template <class M, int C, class Finish>
inline void against_panel(const Rows& rows, const float* panel, int64_t depth, const Finish& finish) {
    strips<C>(rows.count, [&]<int R>(int64_t row) {
        tile<M, R, C>(
            rows.strip<R>(row), panel, PANEL, depth, [](int, int) { return f32v{}; },
            [&](int r, int c, f32v total) { finish(row + r, c, total); }
        );
    });
}

// out[count, width] += left[count, depth] · right[depth, width]: outputs, and gradients of q, k and v.
template <class M, int C, class Left>
inline void accumulate_columns(
    const Left& left, int64_t count, const float* right, int64_t right_stride, int64_t depth, float* out, int64_t width
) {
    strips<C>(count, [&]<int R>(int64_t row) {
        float* to = out + row * width;
        tile<M, R, C>(
            left.template strip<R>(row), right, right_stride, depth,
            [&](int r, int c) { return load(to + r * width + c * LANES); },
            [&](int r, int c, f32v total) { store(to + r * width + c * LANES, total); }
        );
    });
}

// width is a multiple of LANES; out has whole_strips(count) rows.
template <class M, class Left>
inline void accumulate(
    const Left& left, int64_t count, const float* right, int64_t right_stride, int64_t depth, float* out, int64_t width
) {
    int64_t column = 0;
    auto columns = [&]<int C>() {
        for (; column + C * LANES <= width; column += C * LANES)
            accumulate_columns<M, C>(left, count, right + column, right_stride, depth, out + column, width);
    };
    columns.template operator()<VECTORS>();
    if constexpr (VECTORS > 2) columns.template operator()<2>();
    columns.template operator()<1>();
}

// How many vectors of a panel are computed for so many columns in use: 1, 2 or all.
inline int vectors(int64_t lanes) { return lanes <= LANES ? 1 : lanes <= 2 * LANES ? 2 : VECTORS; }

// Calls body.operator()<vectors(lanes)>().
template <class Body>
inline void with_vectors(int64_t lanes, const Body& body) {
    switch (vectors(lanes)) {
        case 1: return body.template operator()<1>();
        case 2: return body.template operator()<2>();
        default: return body.template operator()<VECTORS>();
    }
}

}  // namespace surgery
