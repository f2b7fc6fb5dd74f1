// Products in tiles of rows × panels of 16, the core that modulation and block-sparse linear share.
//
// Everything is counted in words of 32 bits: one float, or two neighbours along the summed dimension in bf16, which
// one instruction multiplies and adds where the processor can. A panel holds [steps][16] words, the 16 being
// outputs; a row gives one word per step, broadcast. Sums run over the steps in order, in fp32, one accumulator per
// output: a result does not depend on what else is in the tile.
#pragma once

#include "simd.hpp"

#include <memory>

namespace surgery {

constexpr int PANEL = 16;

// Tiles that fit the registers: rows by panels, rows by a pair of panels, tall by a single one.
constexpr bool WIDE = LANES == PANEL;
constexpr int PIECES = PANEL / LANES;
constexpr int ROWS = WIDE ? 8 : 4, PANELS = WIDE ? 3 : 1, PAIR = WIDE ? 2 : 1, TALL = WIDE ? 16 : 4;

typedef float f32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));

template <class T> constexpr int PER_WORD = 4 / int(sizeof(T));

template <class T> inline int64_t words(int64_t elements) { return (elements + PER_WORD<T> - 1) / PER_WORD<T>; }

inline u32v load_words(const uint32_t* from) { u32v x; std::memcpy(&x, from, sizeof x); return x; }
inline void store_words(uint32_t* to, u32x16 x) { std::memcpy(to, &x, sizeof x); }

// acc + row · panel, one word of each.
template <class T> inline f32v madd(f32v acc, u32v row, u32v panel);

template <> inline f32v madd<float>(f32v acc, u32v row, u32v panel) { return acc + (f32v)row * (f32v)panel; }

template <> inline f32v madd<bf16>(f32v acc, u32v row, u32v panel) {
#if defined(__AVX512BF16__)
    return (f32v)_mm512_dpbf16_ps((__m512)acc, (__m512bh)row, (__m512bh)panel);
#else
    const u32v high = u32v{} + 0xFFFF0000u;
    acc += (f32v)(row & high) * (f32v)(panel & high);
    return acc + (f32v)(row << 16) * (f32v)(panel << 16);
#endif
}

// acc[r][p] += Σ_k rows[r · row_stride + k · row_step] · panels[p · panel_stride + k · panel_step], k < steps.
// `ahead`, or null: what will be read next, R words of it fetched per step: where runs of memory are short, the
// processor does not guess it.
template <class T, int R, int P>
inline __attribute__((always_inline)) void accumulate(
    f32x16 (&acc)[R][P], const uint32_t* rows, int64_t row_stride, int64_t row_step, const uint32_t* panels,
    int64_t panel_stride, int64_t panel_step, int64_t steps, const uint32_t* ahead = nullptr) {
    f32v sums[R][P * PIECES];
    std::memcpy(sums, acc, sizeof sums);
#pragma GCC unroll 2
    for (int64_t k = 0; k < steps; k++) {
        if (ahead) __builtin_prefetch(ahead + k * R);
        u32v panel[P * PIECES];
#pragma GCC unroll 16
        for (int p = 0; p < P * PIECES; p++)
            panel[p] = load_words(panels + p / PIECES * panel_stride + k * panel_step + p % PIECES * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const u32v row = u32v{} + rows[r * row_stride + k * row_step];
#pragma GCC unroll 16
            for (int p = 0; p < P * PIECES; p++) sums[r][p] = madd<T>(sums[r][p], row, panel[p]);
        }
    }
    std::memcpy(acc, sums, sizeof sums);
}

// Exchange the blocks off the diagonal of every 2S × 2S square: four of these transpose 16 × 16 words.
template <int S> inline void exchange(u32x16 (&x)[PANEL]) {
    const u32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const u32x16 upper = (lane & S) ? lane + (PANEL - S) : lane, lower = (lane & S) ? lane + PANEL : lane + S;
    for (int i = 0; i < PANEL; i++) {
        if (i & S) continue;
        const u32x16 a = x[i], b = x[i + S];
        x[i] = __builtin_shuffle(a, b, upper);
        x[i + S] = __builtin_shuffle(a, b, lower);
    }
}

inline void transpose(u32x16 (&x)[PANEL]) {
    exchange<1>(x); exchange<2>(x); exchange<4>(x); exchange<8>(x);
}

// 16 words from `from`, of which `elements` elements are there; the rest is 0.
template <class T> inline u32x16 load_part(const T* from, int64_t elements) {
    u32x16 x{};
    std::memcpy(&x, from, std::max<int64_t>(0, std::min<int64_t>(elements, PANEL * PER_WORD<T>)) * sizeof(T));
    return x;
}

// A panel [words(elements)][16] of `count` ≤ 16 rows of memory; absent rows are 0, so is the odd element's partner.
template <class T>
inline void pack(uint32_t* panel, const T* rows, int64_t stride, int64_t count, int64_t elements) {
    constexpr int64_t CHUNK = PANEL * PER_WORD<T>;
    for (int64_t k = 0; k < elements; k += CHUNK) {
        u32x16 x[PANEL];
        const bool whole = k + CHUNK <= elements;
        for (int64_t r = 0; r < PANEL; r++) {
            __builtin_prefetch(rows + (r + PANEL) * stride + k);
            if (r >= count) x[r] = u32x16{};
            else if (whole) std::memcpy(&x[r], rows + r * stride + k, sizeof x[r]);
            else x[r] = load_part(rows + r * stride + k, elements - k);
        }
        transpose(x);
        const int64_t left = std::min<int64_t>(PANEL, words<T>(elements - k));
        for (int64_t i = 0; i < left; i++) store_words(panel + (k / PER_WORD<T> + i) * PANEL, x[i]);
    }
}

// Two rows of memory interleaved into words, or one of floats copied: `second` may be null (0).
inline void interleave(uint32_t* to, const float* first, const float*, int64_t elements) {
    std::memcpy(to, first, elements * sizeof(float));
}

inline void interleave(uint32_t* to, const bf16* first, const bf16* second, int64_t elements) {
    for (int64_t i = 0; i < elements; i++)
        to[i] = uint32_t(first[i].bits) | (second ? uint32_t(second[i].bits) << 16 : 0u);
}

// The first `count` of 16 floats in the output's dtype.
inline void store_part(float* to, f32x16 x, int64_t count) {
    if (count >= PANEL) std::memcpy(to, &x, sizeof x);
    else std::memcpy(to, &x, count * sizeof(float));
}

inline void store_part(bf16* to, f32x16 x, int64_t count) {
    bf16 half[PANEL];
#if defined(__AVX512BF16__)
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(half, &rounded, sizeof half);
#else
    for (int i = 0; i < PANEL; i += LANES) {
        f32v part;
        std::memcpy(&part, reinterpret_cast<const float*>(&x) + i, sizeof part);
        store(half + i, part);
    }
#endif
    if (count >= PANEL) std::memcpy(to, half, sizeof half);
    else std::memcpy(to, half, count * sizeof(bf16));
}

// The first `count` of 16 values as floats, the others 0.
template <class T> inline f32x16 load_values(const T* from, int64_t count) {
    T part[PANEL] = {};
    std::memcpy(part, from, std::min<int64_t>(count, PANEL) * sizeof(T));
    f32x16 x;
    for (int i = 0; i < PANEL; i += LANES) {
        const f32v values = load(part + i);
        std::memcpy(reinterpret_cast<float*>(&x) + i, &values, sizeof values);
    }
    return x;
}

// Uninitialised memory that begins on a cache line; asked for again, it is taken anew only if it was too small.
class Scratch {
  public:
    uint32_t* words(int64_t count) {
        if (count > size) {
            room.reset(new uint32_t[count + PANEL]);
            size = count;
        }
        const auto address = reinterpret_cast<uintptr_t>(room.get());
        return room.get() + (64 - address % 64) % 64 / 4;
    }

  private:
    std::unique_ptr<uint32_t[]> room;
    int64_t size = -1;
};

}  // namespace surgery
