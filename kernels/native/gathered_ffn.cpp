// y = act(x up_kᵀ + b) [* (x gate_kᵀ + c)] down_k over the kept blocks k of channels; the semantics are in
// kernels/reference/gathered_ffn.py.
//
// Few rows of x make this a stream of weights, each read once for all rows: a tile of R rows of x stays in registers
// or the first cache while the weights of C channels pass by. Many rows make it a product: the same tiles are then wide
// enough to keep the multipliers busy.
#include <type_traits>
#include <vector>

#include "simd.hpp"

using namespace surgery;

namespace {

enum Activation { RELU, RELU2, GELU, GELU_TANH, SILU };

constexpr int ROWS = 6;             // rows of x in one tile of dot products
constexpr int64_t NEAR = 16384;     // floats of the result that stay near while channels pass by
constexpr int GROUP = 8;             // channels that pass by at a time on the way down
constexpr int64_t AHEAD = 512;      // bytes to fetch ahead in each row

inline float total(f32v x) {
#if defined(__AVX512F__)
    __m512 wide; std::memcpy(&wide, &x, sizeof x); return _mm512_reduce_add_ps(wide);
#else
    return sum(x);
#endif
}

template <class V, class T>
inline V partial(const T* from, int64_t count) { V x{}; std::memcpy((void*)&x, from, count * sizeof(T)); return x; }

// What STEP elements of a row are in registers, and how they are multiplied into float sums.
template <class T>
struct Step {
    using V = f32v;
    static constexpr int SIZE = LANES;
    static V take(const T* from) { return load(from); }
    static V take(const T* from, int64_t count) { T some[LANES] = {}; std::copy_n(from, count, some); return load(some); }
    static void dot(f32v& to, V w, V x) { to += w * x; }
};

#if defined(__AVX512BF16__)
template <>
struct Step<bf16> {
    using V = __m512bh;
    static constexpr int SIZE = 32;
    static V take(const bf16* from) { V x; std::memcpy((void*)&x, from, sizeof x); return x; }
    static V take(const bf16* from, int64_t count) { return partial<V>(from, count); }
    static void dot(f32v& to, V w, V x) { to = (f32v)_mm512_dpbf16_ps((__m512)to, w, x); }
};
#endif

// Where in a row the elements lie that take part: `count` pieces of `length`, the last one of `last`.
struct Pieces {
    const int64_t* start;
    int64_t count, length, last;
    int64_t size(int64_t piece) const { return piece + 1 < count ? length : last; }
    int64_t elements() const { return count ? (count - 1) * length + last : 0; }
    int64_t steps(int step) const {
        return count ? (count - 1) * ((length + step - 1) / step) + (last + step - 1) / step : 0;
    }
};

// Rows in tiles of at most ROWS, each step of a tile side by side: one stream whatever the rows' stride is.
template <class T>
struct Tiles {
    using V = typename Step<T>::V;
    std::vector<V> packed;
    int64_t rows, tiles, steps;

    Tiles(const T* x, int64_t rows, int64_t stride, const Pieces& pieces)
        : rows(rows), tiles((rows + ROWS - 1) / ROWS), steps(pieces.steps(Step<T>::SIZE)) {
        packed.resize(rows * steps);
        for (int64_t tile = 0; tile < tiles; tile++)
            for (int64_t row = first(tile); row < first(tile + 1); row++)
                pack(x + row * stride, pieces, &packed[first(tile) * steps] + row - first(tile), height(tile));
    }
    int64_t first(int64_t tile) const { return tile * (rows / tiles) + std::min(tile, rows % tiles); }
    int64_t height(int64_t tile) const { return first(tile + 1) - first(tile); }
    const V* at(int64_t tile) const { return &packed[first(tile) * steps]; }

    static void pack(const T* row, const Pieces& pieces, V* to, int64_t apart) {
        // The row holds the pieces one after another.
        for (int64_t piece = 0; piece < pieces.count; row += pieces.size(piece++))
            for (int64_t k = 0, size = pieces.size(piece); k < size; k += Step<T>::SIZE, to += apart)
                *to = size - k < Step<T>::SIZE ? Step<T>::take(row + k, size - k) : Step<T>::take(row + k);
    }
};

// out[r, c] = sum of x_r w_c over the pieces.
template <class T, int R, int C>
inline void dots(const typename Step<T>::V* x, const T* w, int64_t stride, const Pieces& pieces, float* out, int64_t ld) {
    using S = Step<T>;
    f32v sums[R][C] = {};
    for (int64_t piece = 0; piece < pieces.count; piece++) {
        const T* at = w + pieces.start[piece];
        const int64_t size = pieces.size(piece);
        int64_t k = 0;
        for (; k + S::SIZE <= size; k += S::SIZE, x += R) {
            typename S::V weight[C];
            for (int c = 0; c < C; c++) {
                __builtin_prefetch((const char*)(at + c * stride + k) + AHEAD);
                weight[c] = S::take(at + c * stride + k);
            }
            for (int r = 0; r < R; r++)
                for (int c = 0; c < C; c++) S::dot(sums[r][c], weight[c], x[r]);
        }
        if (k == size) continue;
        for (int c = 0; c < C; c++)
            for (int r = 0; r < R; r++) S::dot(sums[r][c], S::take(at + c * stride + k, size - k), x[r]);
        x += R;
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) out[r * ld + c] = total(sums[r][c]);
}

template <class T, int R>
inline void dots_of_tile(const Tiles<T>& x, int64_t tile, const T* w, int64_t stride, int64_t width, const Pieces& pieces,
                         float* out, int64_t ld) {
    constexpr int C = R <= 2 ? 8 : 4;
    int64_t c = 0;
    for (; c + C <= width; c += C) dots<T, R, C>(x.at(tile), w + c * stride, stride, pieces, out + c, ld);
    for (; c < width; c++) dots<T, R, 1>(x.at(tile), w + c * stride, stride, pieces, out + c, ld);
}

// out[t, c] = sum of x_t w_c over the pieces, for all rows t and `width` rows c of w.
template <class T>
void product(const Tiles<T>& x, const T* w, int64_t stride, int64_t width, const Pieces& pieces, float* out, int64_t ld) {
    for (int64_t from = 0; from < width; from += 8) {
        const int64_t some = std::min<int64_t>(8, width - from);
        for (int64_t tile = 0; tile < x.tiles; tile++) {
            float* to = out + x.first(tile) * ld + from;
            const T* rows = w + from * stride;
            switch (x.height(tile)) {
                case 1: dots_of_tile<T, 1>(x, tile, rows, stride, some, pieces, to, ld); break;
                case 2: dots_of_tile<T, 2>(x, tile, rows, stride, some, pieces, to, ld); break;
                case 3: dots_of_tile<T, 3>(x, tile, rows, stride, some, pieces, to, ld); break;
                case 4: dots_of_tile<T, 4>(x, tile, rows, stride, some, pieces, to, ld); break;
                case 5: dots_of_tile<T, 5>(x, tile, rows, stride, some, pieces, to, ld); break;
                default: dots_of_tile<T, 6>(x, tile, rows, stride, some, pieces, to, ld);
            }
        }
    }
}

// erf as a ratio of odd and even polynomials on [-4, 4], a few ulp off; beyond it is ±1 in float.
inline f32v erf(f32v x) {
    x = x > 4.0f ? splat(4.0f) : (x < -4.0f ? splat(-4.0f) : x);
    const f32v s = x * x;
    f32v p = splat(-2.72614225801306e-10f);
    for (float next : {2.77068142495902e-08f, -2.10102402082508e-06f, -5.69250639462346e-05f, -7.34990630326855e-04f,
                       -2.95459980854025e-03f, -1.60960333262415e-02f}) p = p * s + next;
    f32v q = splat(-1.45660718464996e-05f);
    for (float next : {-2.13374055278905e-04f, -1.68282697438203e-03f, -7.37332916720468e-03f, -1.42647390514189e-02f})
        q = q * s + next;
    return x * p / q;
}

inline f32v activate(f32v x, int activation) {
    const f32v positive = x < 0.0f ? f32v{} : x;  // NaN stays
    switch (activation) {
        case RELU: return positive;
        case RELU2: return positive * positive;
        case GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f));
        case GELU_TANH: return x / (1.0f + exp(x * (x * x * 0.044715f + 1.0f) * -1.5957691216057308f));
        default: return x / (1.0f + exp(-x));
    }
}

template <class T>
void activate(float* value, const float* factor, int64_t count, int activation, T* to) {
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = std::min<int64_t>(LANES, count - i);
        f32v x = partial<f32v>(value + i, some);
        f32v y = activate(x, activation);
        if (factor) y *= partial<f32v>(factor + i, some);
        T kept[LANES];
        store(kept, y);
        std::copy_n(kept, some, to + i);
    }
}

template <class T>
void add(float* to, const T* bias, int64_t count) {
    for (int64_t i = 0; bias && i < count; i++) to[i] += scalar(bias[i]);
}

struct Sizes { int64_t rows, d, f, block, kept; const int32_t* blocks; int activation, threads; };

// The kept channels after the activation, hidden[t, kept channel]. The activation acts on the gate where there is one.
template <class T>
void kept_channels(const T* x, int64_t stride, const T* up, const T* gate, const T* up_bias, const T* gate_bias,
                   const Sizes& s, int64_t channels, T* hidden) {
    const int64_t start = 0;
    const Pieces whole{&start, 1, s.d, s.d};
    const Tiles<T> tiles(x, s.rows, stride, whole);
    parallel(s.kept, s.threads, [&](int64_t i) {
        const int64_t from = s.blocks[i] * s.block, width = std::min(s.block, s.f - from);
        std::vector<float> u(s.rows * width), g(gate ? s.rows * width : 0);
        product(tiles, up + from * s.d, s.d, width, whole, u.data(), width);
        if (gate) product(tiles, gate + from * s.d, s.d, width, whole, g.data(), width);
        for (int64_t t = 0; t < s.rows; t++) {
            float *value = &u[t * width], *other = gate ? &g[t * width] : nullptr;
            add(value, up_bias ? up_bias + from : nullptr, width);
            if (gate) add(other, gate_bias ? gate_bias + from : nullptr, width);
            activate(gate ? other : value, gate ? value : nullptr, width, s.activation,
                     hidden + t * channels + i * s.block);
        }
    });
}

// Where column j of a strip lies in its sums, of which the first `full` are stored in groups of 32 as unpacking leaves
// them: four from each eight, then the other four.
inline int64_t place(int64_t j, int64_t full) {
    const int64_t in = j % 32;
    return j >= full ? j : j - in + (in & 3) + in / 8 * 4 + (in & 4) * 4;
}

template <class T>
inline int64_t unpacked(int64_t width) { return Step<T>::SIZE == LANES ? 0 : width / 32 * 32; }

#if defined(__AVX512BF16__)
// Two channels side by side make pairs for one instruction.
template <int R, int G>
inline void spread_pairs(const bf16* const* w, const bf16* h, int64_t ldh, float* sums, int64_t ld, int64_t full) {
    __m512bh factor[R][G / 2];
    for (int r = 0; r < R; r++)
        for (int g = 0; g < G / 2; g++) {
            int32_t pair;
            std::memcpy(&pair, h + r * ldh + 2 * g, sizeof pair);
            factor[r][g] = (__m512bh)_mm512_set1_epi32(pair);
        }
    for (int64_t j = 0; j < full; j += 32) {
        __m512bh low[G / 2], high[G / 2];
        for (int g = 0; g < G / 2; g++) {
            __builtin_prefetch((const char*)(w[2 * g] + j) + AHEAD);
            __builtin_prefetch((const char*)(w[2 * g + 1] + j) + AHEAD);
            const __m512i even = _mm512_loadu_si512(w[2 * g] + j), odd = _mm512_loadu_si512(w[2 * g + 1] + j);
            low[g] = (__m512bh)_mm512_unpacklo_epi16(even, odd);
            high[g] = (__m512bh)_mm512_unpackhi_epi16(even, odd);
        }
        for (int r = 0; r < R; r++) {
            float* to = sums + r * ld + j;
            __m512 a = _mm512_loadu_ps(to), b = _mm512_loadu_ps(to + 16);
            for (int g = 0; g < G / 2; g++) {
                a = _mm512_dpbf16_ps(a, low[g], factor[r][g]);
                b = _mm512_dpbf16_ps(b, high[g], factor[r][g]);
            }
            _mm512_storeu_ps(to, a);
            _mm512_storeu_ps(to + 16, b);
        }
    }
}
#endif

// sums[r, place of j] += sum over G channels of h[r, g] w_g[j].
template <class T, int R, int G>
inline void spread(const T* const* w, const T* h, int64_t ldh, float* sums, int64_t ld, int64_t width) {
    const int64_t full = unpacked<T>(width);
    int64_t j = full;
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<T, bf16> && G % 2 == 0) spread_pairs<R, G>(w, h, ldh, sums, ld, full);
#endif
    if constexpr (G == 1)
        for (int64_t k = 0; k < full; k++)
            for (int r = 0; r < R; r++) sums[r * ld + place(k, full)] += scalar(h[r * ldh]) * scalar(w[0][k]);
    f32v factor[R][G];
    for (int r = 0; r < R; r++)
        for (int g = 0; g < G; g++) factor[r][g] = splat(scalar(h[r * ldh + g]));
    for (; j + LANES <= width; j += LANES) {
        f32v weight[G];
        for (int g = 0; g < G; g++) {
            __builtin_prefetch((const char*)(w[g] + j) + AHEAD);
            weight[g] = load(w[g] + j);
        }
        for (int r = 0; r < R; r++) {
            f32v one = load(sums + r * ld + j);
            for (int g = 0; g < G; g++) one += factor[r][g] * weight[g];
            store(sums + r * ld + j, one);
        }
    }
    for (; j < width; j++)
        for (int r = 0; r < R; r++)
            for (int g = 0; g < G; g++) sums[r * ld + j] += scalar(h[r * ldh + g]) * scalar(w[g][j]);
}

template <class T, int G>
inline void spread_rows(const T* const* w, const T* h, int64_t ldh, float* sums, int64_t ld, int64_t width, int64_t rows) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) spread<T, 4, G>(w, h + r * ldh, ldh, sums + r * ld, ld, width);
    switch (rows - r) {
        case 3: spread<T, 3, G>(w, h + r * ldh, ldh, sums + r * ld, ld, width); break;
        case 2: spread<T, 2, G>(w, h + r * ldh, ldh, sums + r * ld, ld, width); break;
        case 1: spread<T, 1, G>(w, h + r * ldh, ldh, sums + r * ld, ld, width); break;
    }
}

// Down with a row of d weights per channel: each strip of columns is one task, whatever the number of threads.
template <class T>
void down_by_rows(const T* hidden, const T* down, const T* bias, const Sizes& s, int64_t channels, T* y) {
    const int64_t wide = std::max<int64_t>(256, NEAR / std::max<int64_t>(s.rows, 1) / 256 * 256);
    parallel((s.d + wide - 1) / wide, s.threads, [&](int64_t strip) {
        const int64_t from = strip * wide, width = std::min(wide, s.d - from), full = unpacked<T>(width);
        std::vector<float> sums(s.rows * wide, 0.0f);
        for (int64_t i = 0; i < s.kept; i++) {
            const int64_t first = s.blocks[i] * s.block, size = std::min(s.block, s.f - first);
            for (int64_t c = 0; c < size;) {
                const T* at[GROUP];
                const int some = c + GROUP <= size ? GROUP : 1;
                for (int g = 0; g < some; g++) at[g] = down + (first + c + g) * s.d + from;
                const T* h = hidden + i * s.block + c;
                if (some == GROUP) spread_rows<T, GROUP>(at, h, channels, sums.data(), wide, width, s.rows);
                else spread_rows<T, 1>(at, h, channels, sums.data(), wide, width, s.rows);
                c += some;
            }
        }
        for (int64_t t = 0; t < s.rows; t++)
            for (int64_t j = 0; j < width; j++)
                assign(y[t * s.d + from + j],
                       sums[t * wide + place(j, full)] + (bias ? scalar(bias[from + j]) : 0.0f));
    });
}

// Down with a row of f weights per output: the kept blocks are the pieces of a dot product.
template <class T>
void down_by_columns(const T* hidden, const T* down, const T* bias, const Sizes& s, int64_t channels, T* y) {
    constexpr int64_t OUTPUTS = 64;
    std::vector<int64_t> start(s.kept);
    for (int64_t i = 0; i < s.kept; i++) start[i] = s.blocks[i] * s.block;
    const Pieces pieces{start.data(), s.kept, s.block, s.kept ? std::min(s.block, s.f - start[s.kept - 1]) : 0};
    const Tiles<T> tiles(hidden, s.rows, channels, pieces);
    parallel((s.d + OUTPUTS - 1) / OUTPUTS, s.threads, [&](int64_t group) {
        const int64_t from = group * OUTPUTS, width = std::min(OUTPUTS, s.d - from);
        std::vector<float> sums(s.rows * width);
        product(tiles, down + from * s.f, s.f, width, pieces, sums.data(), width);
        for (int64_t t = 0; t < s.rows; t++) {
            add(&sums[t * width], bias ? bias + from : nullptr, width);
            for (int64_t j = 0; j < width; j++) assign(y[t * s.d + from + j], sums[t * width + j]);
        }
    });
}

template <class T>
void feed_forward(const void* x, int64_t stride, const void* up, const void* gate, const void* down, bool by_rows,
                  const void* up_bias, const void* gate_bias, const void* down_bias, const Sizes& s, void* y) {
    const int64_t channels = s.kept * s.block;
    std::vector<T> hidden(s.rows * channels);
    kept_channels((const T*)x, stride, (const T*)up, (const T*)gate, (const T*)up_bias, (const T*)gate_bias, s,
                  channels, hidden.data());
    if (by_rows) down_by_rows(hidden.data(), (const T*)down, (const T*)down_bias, s, channels, (T*)y);
    else down_by_columns(hidden.data(), (const T*)down, (const T*)down_bias, s, channels, (T*)y);
}

}  // namespace

// x [rows, d] with a row stride; up, gate [f, d] and y [rows, d] contiguous; down [f, d] (by_rows) or [d, f] contiguous;
// gate and biases may be null; blocks are sorted, `slots` of them, unused ones at the end are negative.
SURGERY_EXPORT void gathered_ffn(int half, const void* x, int64_t stride, const void* up, const void* gate,
                                 const void* down, int by_rows, const void* up_bias, const void* gate_bias,
                                 const void* down_bias, const int32_t* blocks, int64_t slots, int64_t block,
                                 int64_t rows, int64_t d, int64_t f, int activation, int threads, void* y) {
    int64_t kept = 0;
    while (kept < slots && blocks[kept] >= 0) kept++;
    const Sizes s{rows, d, f, block, kept, blocks, activation, threads};
    const auto run = half ? feed_forward<bf16> : feed_forward<float>;
    run(x, stride, up, gate, down, by_rows, up_bias, gate_bias, down_bias, s, y);
}
