// Tensors as the products of block attention read them: words of rows, panels of transposed rows, words of columns.
#pragma once

#include "block_product.hpp"
#include "block_vector.hpp"

namespace surgery {

// A tensor [batch, heads, rows, dim]: strides in elements, the last one 1.
struct View {
    char* data;
    int64_t batch, head, row;

    template <class T>
    T* at(int64_t b, int64_t h, int64_t r) const {
        return reinterpret_cast<T*>(data) + b * batch + h * head + r * row;
    }
};

// How elements T become words of M: as they lie in memory, or widened to fp32 first.
template <class T, class M>
struct Words {
    static constexpr bool DIRECT = sizeof(T) * M::DEPTH == 4;
    static int64_t of(int64_t dim) { return dim / M::DEPTH; }

    static f32v vector(const T* row, int64_t word) {
        if constexpr (DIRECT) return load(reinterpret_cast<const float*>(row + word * M::DEPTH));
        else return load(row + word);
    }
    static f32v head(const T* row, int64_t word, int64_t count) {
        if (count >= LANES) return vector(row, word);
        T held[LANES * M::DEPTH] = {};
        std::memcpy(held, row + word * M::DEPTH, count * M::DEPTH * sizeof(T));
        return vector(held, 0);
    }
};

// panel[t * PANEL + lane] = word t of row `lane`; lanes past count that are computed are 0.
template <class T, class M>
void pack_panel(const T* rows, int64_t stride, int64_t count, int64_t dim, float* panel) {
    int64_t words = Words<T, M>::of(dim);
    for (int64_t lane = 0; lane < vectors(count) * LANES; lane += LANES)
        for (int64_t word = 0; word < words; word += LANES) {
            f32v square[LANES];
            for (int i = 0; i < LANES; i++)
                square[i] = lane + i < count ? Words<T, M>::head(rows + (lane + i) * stride, word, words - word) : f32v{};
            transpose(square);
            for (int i = 0; i < std::min<int64_t>(LANES, words - word); i++)
                store(panel + (word + i) * PANEL + lane, square[i]);
        }
}

// Words of row pairs: out[i][d] = (from[2i][d], from[2i + 1][d]); a missing last row is 0.
inline void interleave(const bf16* from, int64_t stride, int64_t count, int64_t dim, float* out) {
    for (int64_t i = 0; i < count; i += 2, out += dim)
        for (int64_t d = 0; d < dim; d += LANES) {
            u16v low, high{};
            std::memcpy(&low, from + i * stride + d, sizeof low);
            if (i + 1 < count) std::memcpy(&high, from + (i + 1) * stride + d, sizeof high);
            u32v word = __builtin_convertvector(low, u32v) | __builtin_convertvector(high, u32v) << 16;
            std::memcpy(out + d, &word, sizeof word);
        }
}

// A few rows of a tensor, to be read by row (against a panel) and by column (accumulated).
template <class T, class M>
struct Chunk {
    Rows rows;
    const float* columns = nullptr;
    int64_t columns_stride = 0;  // words
};

template <class T, class M>
constexpr int64_t chunk_words(int64_t rows, int64_t dim) {
    return Words<T, M>::DIRECT && M::DEPTH == 1 ? 0 : rows * dim;
}

// buffer: chunk_words. `by_column` false where only rows are read.
template <class T, class M>
Chunk<T, M> open(const T* from, int64_t stride, int64_t count, int64_t dim, bool by_column, float* buffer) {
    if constexpr (!Words<T, M>::DIRECT) {
        for (int64_t i = 0; i < count; i++)
            for (int64_t d = 0; d < dim; d += LANES) store(buffer + i * dim + d, load(from + i * stride + d));
        return {{reinterpret_cast<const char*>(buffer), dim * 4, count}, buffer, dim};
    } else {
        Rows rows{reinterpret_cast<const char*>(from), stride * int64_t(sizeof(T)), count};
        if constexpr (M::DEPTH == 1) {
            return {rows, from, stride};
        } else {
            if (by_column) interleave(from, stride, count, dim, buffer);
            return {rows, buffer, dim};
        }
    }
}

#if defined(__AVX512BF16__)
// Two rows of fp32 as one of bf16 pairs (low, high).
inline f32v paired(f32v low, f32v high) {
    __m512bh halves = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0
    );
    return (f32v)_mm512_permutexvar_epi16(order, (__m512i)halves);
}
#endif

// Rows 0..count of a panel become words of M in place: nothing to do for floats. Row count - 1 may lack its partner.
template <class M, int C>
inline void pair_rows(float* panel, int64_t count) {
#if defined(__AVX512BF16__)
    if constexpr (M::DEPTH == 2)
        for (int64_t j = 0; j < count; j += 2)
            for (int c = 0; c < C; c++) {
                const float* row = panel + j * PANEL + c * LANES;
                store(panel + j / 2 * PANEL + c * LANES, paired(load(row), j + 1 < count ? load(row + PANEL) : f32v{}));
            }
#endif
}

// Words of the rows of a panel, `lanes` values each: pairs of neighbouring lanes, or the rows themselves.
template <class M, int C>
inline Rows words_across(const float* panel, int64_t count, float* buffer) {
    if constexpr (M::DEPTH == 1) {
        return {reinterpret_cast<const char*>(panel), PANEL * 4, count};
    } else {
        bf16* to = reinterpret_cast<bf16*>(buffer);
        for (int64_t j = 0; j < count; j++)
            for (int c = 0; c < C; c++) store(to + (j * C + c) * LANES, load(panel + j * PANEL + c * LANES));
        return {reinterpret_cast<const char*>(to), C * LANES * 2, count};
    }
}

}  // namespace surgery
