// Attention over listed edges (CSR), forward and backward, fp32 and bf16; all arithmetic in fp32.
//
// Work is done in passes over a range of rows rather than row by row: all scores q·k of the range, all softmaxes, then
// all weighted sums of v. A pass touches one gathered matrix only, which halves what has to stay in the cache, and
// edges of neighbouring short rows share a vector: the partial products of LANES edges, whatever their rows, are
// reduced together. A row's result depends on its own edges only, so any split of rows and threads gives the same bits.

#include "simd.hpp"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

using namespace surgery;

namespace {

constexpr int64_t AHEAD = 8192;         // bytes of rows between the prefetch of a row and its use
constexpr int64_t EDGES = 1 << 14;      // edges of a range of rows, about
constexpr int64_t ROWS = 1 << 10;       // rows of a range, at most
constexpr float FAR = 16;               // scores up to here are exponentiated as they are
constexpr int WIDEST = 1024 / LANES;    // vectors of a row whose width is known only at run time

template <size_t... I>
inline f32v evens(f32v a, f32v b, std::index_sequence<I...>) { return __builtin_shufflevector(a, b, (2 * I)...); }
template <size_t... I>
inline f32v odds(f32v a, f32v b, std::index_sequence<I...>) { return __builtin_shufflevector(a, b, (2 * I + 1)...); }

constexpr auto lanes = std::make_index_sequence<LANES>{};

inline f32v pairs(f32v a, f32v b) { return evens(a, b, lanes) + odds(a, b, lanes); }

// Lane i of the result is the sum of x[i]: LANES horizontal sums at three instructions each.
inline f32v totals(f32v* x) {
    for (int count = LANES; count > 1; count /= 2)
        for (int i = 0; i < count / 2; i++) x[i] = pairs(x[2 * i], x[2 * i + 1]);
    return x[0];
}

inline float total(f32v x) {
    for (int count = LANES; count > 1; count /= 2) x = pairs(x, x);
    return x[0];
}

inline float top(f32v x) {
    for (int count = LANES; count > 1; count /= 2) x = larger(evens(x, x, lanes), odds(x, x, lanes));
    return x[0];
}

inline i32v numbered() { i32v x; for (int i = 0; i < LANES; i++) x[i] = i; return x; }

// Rows of one head: where row i begins.
template <class T>
struct Matrix {
    T* data;
    int64_t stride;
    T* row(int64_t i) const { return data + i * stride; }
};

// D > 0: the width, known when compiled and a multiple of LANES. D == 0: `width` tells it.
template <int D>
struct Width {
    static constexpr int room = D > 0 ? std::max(D / LANES, 1) : WIDEST;
    int width;
    int vectors() const { return D > 0 ? D / LANES : (width + LANES - 1) / LANES; }
    int64_t elements() const { return D > 0 ? D : width; }

    template <class T>
    f32v get(const T* row, int v) const {
        if (D > 0 || (v + 1) * LANES <= width) return load(row + v * LANES);
        f32v x{};
        for (int i = 0; i < width - v * LANES; i++) x[i] = scalar(row[v * LANES + i]);
        return x;
    }
    template <class T>
    void put(T* row, int v, f32v x) const {
        if (D > 0 || (v + 1) * LANES <= width) return store(row + v * LANES, x);
        for (int i = 0; i < width - v * LANES; i++) assign(row[v * LANES + i], x[i]);
    }
};

#if defined(__AVX512BF16__)
template <class T, int D> constexpr bool DOT_BF16 = std::is_same_v<T, bf16> && D > 0 && D % 32 == 0;
#else
template <class T, int D> constexpr bool DOT_BF16 = false;
#endif
template <class T, int D> constexpr bool SPLIT_BF16 = std::is_same_v<T, bf16> && D > 0 && D % (2 * LANES) == 0;

// A row kept in registers, to be multiplied with many.
template <class T, int D, bool DOT = DOT_BF16<T, D>>
struct Held {
    f32v x[Width<D>::room];
    Held(const T* row, Width<D> wide) { for (int v = 0; v < wide.vectors(); v++) x[v] = wide.get(row, v); }
    f32v partial(const T* row, Width<D> wide) const {
        f32v sums = x[0] * wide.get(row, 0);
        for (int v = 1; v < wide.vectors(); v++) sums += x[v] * wide.get(row, v);
        return sums;
    }
};

#if defined(__AVX512BF16__)
template <int D>
struct Held<bf16, D, true> {
    __m512bh x[D / 32];
    static __m512bh get(const bf16* row, int v) { return (__m512bh)_mm512_loadu_si512(row + v * 32); }
    Held(const bf16* row, Width<D>) { for (int v = 0; v < D / 32; v++) x[v] = get(row, v); }
    f32v partial(const bf16* row, Width<D>) const {
        __m512 sums = _mm512_setzero_ps();
        for (int v = 0; v < D / 32; v++) sums = _mm512_dpbf16_ps(sums, x[v], get(row, v));
        return (f32v)sums;
    }
};
#endif

// A weighted sum of rows. bf16 is widened as its even and odd elements (a shift, a mask), put in order once at the end.
template <class T, int D, bool SPLIT = SPLIT_BF16<T, D>>
struct Sum {
    f32v x[Width<D>::room];
    explicit Sum(Width<D> wide) { for (int v = 0; v < wide.vectors(); v++) x[v] = f32v{}; }
    void add(f32v weight, const T* row, Width<D> wide) {
        for (int v = 0; v < wide.vectors(); v++) x[v] += weight * wide.get(row, v);
    }
    void order(Width<D>) {}
};

template <int D>
struct Sum<bf16, D, true> {
    f32v x[Width<D>::room];
    explicit Sum(Width<D>) { for (auto& each : x) each = f32v{}; }
    void add(f32v weight, const bf16* row, Width<D>) {
        for (int v = 0; v < Width<D>::room; v += 2) {
            u32v both; std::memcpy(&both, row + v * LANES, sizeof both);
            x[v] += weight * (f32v)(both << 16);
            x[v + 1] += weight * (f32v)(both & 0xFFFF0000u);
        }
    }
    void order(Width<D>) { for (int v = 0; v < Width<D>::room; v += 2) interleave(x[v], x[v + 1], lanes); }
    template <size_t... I>
    static void interleave(f32v& even, f32v& odd, std::index_sequence<I...>) {
        f32v low = __builtin_shufflevector(even, odd, (I / 2 + (I % 2) * LANES)...);
        odd = __builtin_shufflevector(even, odd, (LANES / 2 + I / 2 + (I % 2) * LANES)...);
        even = low;
    }
};

// Edges of the rows [first, last): ptr is absolute, `at` walks idx from ptr[first].
struct Range {
    const int64_t* ptr;
    const int32_t* idx;
    int64_t first, last;
    int64_t edges() const { return ptr[last] - ptr[first]; }
    const int32_t* begin() const { return idx + ptr[first]; }
    int64_t length(int64_t row) const { return ptr[row + 1] - ptr[row]; }
    // How many of a row's keys count in the sum of its weights: those up to row + reach.
    int64_t counted(int64_t row, int64_t reach) const {
        const int32_t *from = idx + ptr[row], *to = idx + ptr[row + 1];
        return from == to || to[-1] <= row + reach ? to - from : std::upper_bound(from, to, row + reach) - from;
    }
};

// Ask for the row that is gathered AHEAD bytes of rows after edge e.
template <class T, int D>
inline void prefetch(const Range& range, Matrix<const T> b, Width<D> wide, int64_t e, int64_t count) {
    const int64_t bytes = wide.elements() * sizeof(T), later = e + std::max<int64_t>(AHEAD / bytes, 4);
    const char* row = reinterpret_cast<const char*>(b.row(range.begin()[std::min(later, count - 1)]));
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, 0, 3);
}

// dots[e] = factor · a[row of e] · b[idx[e]] - shift[row of e]; no shift: 0. Writes up to LANES - 1 values too many.
template <class T, int D>
void products(const Range& range, Matrix<const T> a, Matrix<const T> b, float factor, const float* shift,
              Width<D> wide, float* dots) {
    const int64_t count = range.edges();
    f32v slots[LANES] = {};
    float shifts[LANES] = {};
    int64_t e = 0;
    for (int64_t row = range.first; row < range.last; row++) {
        const int64_t end = e + range.length(row);
        if (e == end) continue;
        const Held<T, D> held(a.row(row), wide);
        const float own = shift ? shift[row] : 0;
        for (; e < end; e++) {
            prefetch(range, b, wide, e, count);
            slots[e % LANES] = held.partial(b.row(range.begin()[e]), wide);
            shifts[e % LANES] = own;
            if (e % LANES == LANES - 1) store(dots + e + 1 - LANES, totals(slots) * factor - load(shifts));
        }
    }
    if (e % LANES) store(dots + e - e % LANES, totals(slots) * factor - load(shifts));
}

// sink(row, sum of weights[e] · b[idx[e]] over the row's edges), for every row.
template <class T, int D, class Sink>
void sums(const Range& range, const float* weights, Matrix<const T> b, Width<D> wide, const Sink& sink) {
    const int64_t count = range.edges();
    int64_t e = 0;
    for (int64_t row = range.first; row < range.last; row++) {
        const int64_t end = e + range.length(row);
        Sum<T, D> sum(wide);
        for (; e < end; e++) {
            prefetch(range, b, wide, e, count);
            sum.add(splat(weights[e]), b.row(range.begin()[e]), wide);
        }
        sum.order(wide);
        sink(row, sum.x);
    }
}

// Lanes i.. of n values, `other` past the end.
inline f32v load_some(const float* x, int64_t i, int64_t n, float other) {
    const f32v all = load(x + i);
    return i + LANES <= n ? all : (numbered() < int32_t(n - i) ? all : splat(other));
}

inline void store_some(float* x, int64_t i, int64_t n, f32v y) {
    if (i + LANES <= n) return store(x + i, y);
    store(x + i, numbered() < int32_t(n - i) ? y : load(x + i));
}

inline float row_sum(const float* x, int64_t n) {
    f32v sum = load_some(x, 0, n, 0);
    for (int64_t i = LANES; i < n; i += LANES) sum += load_some(x, i, n, 0);
    return total(sum);
}

inline float row_top(const float* x, int64_t n) {
    f32v highest = load_some(x, 0, n, -INF);
    for (int64_t i = LANES; i < n; i += LANES) highest = larger(highest, load_some(x, i, n, -INF));
    return top(highest);
}

inline float farthest_from_zero(const float* x, int64_t n) {
    f32v far{};
    for (int64_t i = 0; i < n; i += LANES) {
        const f32v each = load_some(x, i, n, 0);
        far = larger(far, larger(each, -each));
    }
    return top(far);
}

// x[i] = exp(x[i]); up to LANES - 1 values past the end change too.
inline void exponentials(float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) store(x + i, exp(load(x + i)));
}

// Natural logarithm of positive normal numbers.
inline f32v log(f32v x) {
    i32v bits; std::memcpy(&bits, &x, sizeof x);
    i32v power = (bits - 0x3F3504F3) >> 23;     // so that the rest lies in [sqrt(1/2), sqrt(2))
    bits -= power << 23;
    f32v m; std::memcpy(&m, &bits, sizeof m);
    const f32v y = m - 1.0f, z = y * y, n = __builtin_convertvector(power, f32v);
    f32v p = splat(7.0376836292e-2f);
    p = p * y - 1.1514610310e-1f;
    p = p * y + 1.1676998740e-1f;
    p = p * y - 1.2420140846e-1f;
    p = p * y + 1.4249322787e-1f;
    p = p * y - 1.6668057665e-1f;
    p = p * y + 2.0000714765e-1f;
    p = p * y - 2.4999993993e-1f;
    p = p * y + 3.3333331174e-1f;
    p = p * y * z - n * 2.12194440e-4f - 0.5f * z;
    return y + p + n * 0.693359375f;
}

// Scores of a range → weights up to a factor, that factor per row, and the log-sum-exp per row. The highest score of a
// row is subtracted only where some score of the range is far from zero: elsewhere exp is safe without.
// Arrays per row have room for LANES - 1 more.
inline void softmax(const Range& range, float* x, float* inverse, float* lse) {
    const int64_t rows = range.last - range.first, count = range.edges();
    std::vector<float> peak(rows + LANES), all(rows + LANES);
    if (farthest_from_zero(x, count) > FAR) {
        float* at = x;
        for (int64_t row = range.first; row < range.last; at += range.length(row), row++) {
            const int64_t n = range.length(row);
            const float high = n ? row_top(at, n) : 0;
            peak[row - range.first] = high;
            for (int64_t i = 0; i < n; i += LANES) store_some(at, i, n, load(at + i) - high);
        }
    }
    exponentials(x, count);
    for (int64_t row = range.first; row < range.last; x += range.length(row), row++)
        all[row - range.first] = row_sum(x, range.length(row));
    for (int64_t i = 0; i < rows; i += LANES) {
        const f32v sum = load(&all[i]);
        store(inverse + i, 1.0f / (sum > 0 ? sum : splat(1)));
        store_some(lse, i, rows, sum > 0 ? load(&peak[i]) + log(sum) : splat(-INF));
    }
}

// The same where keys that are not listed count too: peak and the sum of their weights (`rest`) are given per row.
inline void softmax_among(const Range& range, const float* peak, const float* rest, int64_t reach, float* x,
                          float* inverse, float* lse) {
    const int64_t rows = range.last - range.first;
    std::vector<float> all(rows + LANES), high(rows + LANES);
    std::copy_n(peak + range.first, rows, high.data());
    exponentials(x, range.edges());
    for (int64_t row = range.first; row < range.last; x += range.length(row), row++) {
        const int64_t n = range.counted(row, reach);
        all[row - range.first] = rest[row] + (n ? row_sum(x, n) : 0);
    }
    for (int64_t i = 0; i < rows; i += LANES) {
        const f32v sum = load(&all[i]);
        store(inverse + i, sum > 0 ? 1.0f / (sum > 0 ? sum : splat(1)) : splat(0));
        store_some(lse, i, rows, sum > 0 ? load(&high[i]) + log(sum > 0 ? sum : splat(1)) : splat(-INF));
    }
}

// Sizes and strides as Python gives them.
struct Problem {
    int64_t batch, heads, kv_heads, queries, keys, width, patterns, edges, reach;
    int64_t head_count() const { return batch * heads; }
    int64_t kv(int64_t head) const { return head / heads * kv_heads + head % heads / (heads / kv_heads); }
    int64_t pattern(int64_t head) const { return patterns == 1 ? 0 : patterns == heads ? head % heads : head; }
    int64_t copy(int64_t head) const { return head / patterns; }    // which repetition of the list of all edges
};

// [batch, heads, rows, width] with any strides but the last.
template <class T>
struct Tensor {
    T* data;
    int64_t batch, head, row, heads;
    Tensor(T* data, const int64_t* strides, int64_t heads)
        : data(data), batch(strides[0]), head(strides[1]), row(strides[2]), heads(heads) {}
    Matrix<T> operator[](int64_t i) const { return {data + i / heads * batch + i % heads * head, row}; }
};

struct Task { int64_t head, first, last; };

// Ranges of rows of about EDGES edges, for every head; `pattern` tells the list a head reads.
template <class Pattern>
std::vector<Task> tasks(int64_t heads, int64_t rows, const int64_t* ptr, int64_t limit, const Pattern& pattern) {
    std::vector<Task> made;
    for (int64_t head = 0; head < heads; head++) {
        const int64_t* own = ptr + pattern(head) * rows;
        for (int64_t first = 0, last; first < rows; first = last) {
            last = first + 1;
            while (last < rows && last - first < limit && own[last + 1] - own[first] <= EDGES) last++;
            made.push_back({head, first, last});
        }
    }
    return made;
}

// peak, rest: what to subtract from the scores of a row, and the sum of the weights of keys that are not listed, where
// its softmax is over more than the listed edges. Else null.
template <class T, int D>
void forward(const T* q_, const T* k_, const T* v_, const int64_t* ptr, const int32_t* idx, const float* peak,
             const float* rest, float scale, T* out_, float* lse, const Problem& p, const int64_t* strides,
             int threads) {
    const Tensor<const T> q(q_, strides, p.heads), k(k_, strides + 3, p.kv_heads), v(v_, strides + 6, p.kv_heads);
    const Tensor<T> out(out_, strides + 9, p.heads);
    const Width<D> wide{int(p.width)};
    const auto work = tasks(p.head_count(), p.queries, ptr, ROWS, [&](int64_t head) { return p.pattern(head); });
    parallel(work.size(), threads, [&](int64_t number) {
        const auto [head, first, last] = work[number];
        const Range range{ptr + p.pattern(head) * p.queries, idx, first, last};
        std::vector<float> weights(range.edges() + LANES), inverse(last - first + LANES);
        const int64_t own = head * p.queries;
        products<T, D>(range, q[head], k[p.kv(head)], scale, peak ? peak + own : nullptr, wide, weights.data());
        if (peak) {
            softmax_among(range, peak + own, rest + own, p.reach, weights.data(), inverse.data(), lse + own + first);
        } else {
            softmax(range, weights.data(), inverse.data(), lse + own + first);
        }
        const Matrix<T> to = out[head];
        sums<T, D>(range, weights.data(), v[p.kv(head)], wide, [&](int64_t row, const f32v* x) {
            for (int i = 0; i < wide.vectors(); i++) wide.put(to.row(row), i, x[i] * inverse[row - first]);
        });
    });
}

// dq, and for every edge its probability and the gradient of its score: what dk and dv are summed from.
template <class T, int D>
void backward_queries(const T* q_, const T* k_, const T* v_, const T* grad_, const int64_t* ptr, const int32_t* idx,
                      const float* lse, const float* delta, const float* base, float scale, float* probability,
                      float* slope, T* dq_, const Problem& p, const int64_t* strides, int threads) {
    const Tensor<const T> q(q_, strides, p.heads), k(k_, strides + 3, p.kv_heads), v(v_, strides + 6, p.kv_heads);
    const Tensor<const T> grad(grad_, strides + 9, p.heads);
    const Tensor<T> dq(dq_, strides + 12, p.heads);
    const Width<D> wide{int(p.width)};
    const auto work = tasks(p.head_count(), p.queries, ptr, ROWS, [&](int64_t head) { return p.pattern(head); });
    parallel(work.size(), threads, [&](int64_t number) {
        const auto [head, first, last] = work[number];
        const Range range{ptr + p.pattern(head) * p.queries, idx, first, last};
        const int64_t count = range.edges();
        std::vector<float> prob(count + LANES), ds(count + LANES);
        const int64_t own = head * p.queries;
        products<T, D>(range, q[head], k[p.kv(head)], scale, lse + own, wide, prob.data());
        products<T, D>(range, grad[head], v[p.kv(head)], 1, delta + own, wide, ds.data());
        for (int64_t row = first, at = 0; row < last; at += range.length(row), row++)
            for (int64_t i = range.counted(row, p.reach); i < range.length(row); i++) ds[at + i] += delta[own + row];
        exponentials(prob.data(), count);
        for (int64_t i = 0; i < count; i += LANES) store(&ds[i], load(&ds[i]) * load(&prob[i]));
        const int64_t place = p.copy(head) * p.edges + (range.begin() - idx);
        std::memcpy(probability + place, prob.data(), count * sizeof(float));
        std::memcpy(slope + place, ds.data(), count * sizeof(float));
        const Matrix<T> to = dq[head];
        sums<T, D>(range, ds.data(), k[p.kv(head)], wide, [&](int64_t row, const f32v* x) {
            for (int i = 0; i < wide.vectors(); i++) {
                f32v y = x[i] * scale;
                if (base) y += wide.get(base + (own + row) * wide.elements(), i);
                wide.put(to.row(row), i, y);
            }
        });
    });
}

// dk and dv of a range of keys: over the transposed lists, the query heads of a key head one after the other.
template <class T, int D>
void backward_keys(const T* q_, const T* grad_, const int64_t* ptr, const int32_t* idx, const int64_t* place,
                   const float* probability, const float* slope, const float* base, float scale, T* dk_, T* dv_,
                   const Problem& p, const int64_t* strides, int threads) {
    const Tensor<const T> q(q_, strides, p.heads), grad(grad_, strides + 3, p.heads);
    const Tensor<T> dk(dk_, strides + 6, p.kv_heads), dv(dv_, strides + 9, p.kv_heads);
    const Width<D> wide{int(p.width)};
    const int64_t group = p.heads / p.kv_heads, width = wide.elements();
    const auto first_head = [&](int64_t kv) { return kv / p.kv_heads * p.heads + kv % p.kv_heads * group; };
    const auto work = tasks(p.batch * p.kv_heads, p.keys, ptr, ROWS / 4,
                            [&](int64_t kv) { return p.pattern(first_head(kv)); });
    parallel(work.size(), threads, [&](int64_t number) {
        const auto [kv, first, last] = work[number];
        const auto gathered = [&](const float* values, Tensor<const T> rows, float factor, const float* start, T* to,
                                  int64_t stride) {
            std::vector<float> sum((last - first) * width), weights;
            if (start) std::copy_n(start + (kv * p.keys + first) * width, sum.size(), sum.data());
            for (int64_t head = first_head(kv); head < first_head(kv) + group; head++) {
                const Range range{ptr + p.pattern(head) * p.keys, idx, first, last};
                const float* own = values + p.copy(head) * p.edges;
                const int64_t* from = place + (range.begin() - idx);
                weights.resize(range.edges());
                for (int64_t e = 0; e < range.edges(); e++) weights[e] = own[from[e]] * factor;
                sums<T, D>(range, weights.data(), rows[head], wide, [&](int64_t row, const f32v* x) {
                    float* total = &sum[(row - first) * width];
                    for (int i = 0; i < wide.vectors(); i++) wide.put(total, i, wide.get(total, i) + x[i]);
                });
            }
            for (int64_t row = first; row < last; row++)
                for (int i = 0; i < wide.vectors(); i++)
                    wide.put(to + row * stride, i, wide.get(&sum[(row - first) * width], i));
        };
        gathered(slope, q, scale, base, dk[kv].data, dk.row);
        gathered(probability, grad, 1, nullptr, dv[kv].data, dv.row);
    });
}

// body(width) with the width as a constant for the usual head dims.
template <class Body>
void by_width(int64_t width, const Body& body) {
    switch (width) {
        case 32: return body(std::integral_constant<int, 32>{});
        case 64: return body(std::integral_constant<int, 64>{});
        case 80: return body(std::integral_constant<int, 80>{});
        case 96: return body(std::integral_constant<int, 96>{});
        case 128: return body(std::integral_constant<int, 128>{});
        case 256: return body(std::integral_constant<int, 256>{});
        default: return body(std::integral_constant<int, 0>{});
    }
}

inline Problem problem(const int64_t* sizes) { Problem p; std::memcpy(&p, sizes, sizeof p); return p; }

}  // namespace

#define SURGERY_EDGE_ATTENTION(T, NAME)                                                                                \
    SURGERY_EXPORT void forward_##NAME(const T* q, const T* k, const T* v, const int64_t* ptr, const int32_t* idx,     \
                                       const float* peak, const float* rest, float scale, T* out, float* lse,          \
                                       const int64_t* sizes, const int64_t* strides, int threads) {                    \
        const Problem p = problem(sizes);                                                                              \
        by_width(p.width, [&](auto width) {                                                                            \
            forward<T, width()>(q, k, v, ptr, idx, peak, rest, scale, out, lse, p, strides, threads);           \
        });                                                                                                            \
    }                                                                                                                  \
    SURGERY_EXPORT void backward_queries_##NAME(                                                                       \
        const T* q, const T* k, const T* v, const T* grad, const int64_t* ptr, const int32_t* idx, const float* lse,   \
        const float* delta, const float* base, float scale, float* probability, float* slope, T* dq,                   \
        const int64_t* sizes, const int64_t* strides, int threads) {                                                   \
        const Problem p = problem(sizes);                                                                              \
        by_width(p.width, [&](auto width) {                                                                            \
            backward_queries<T, width()>(q, k, v, grad, ptr, idx, lse, delta, base, scale, probability, slope, dq, p,  \
                                         strides, threads);                                                            \
        });                                                                                                            \
    }                                                                                                                  \
    SURGERY_EXPORT void backward_keys_##NAME(                                                                          \
        const T* q, const T* grad, const int64_t* ptr, const int32_t* idx, const int64_t* place,                       \
        const float* probability, const float* slope, const float* base, float scale, T* dk, T* dv,                    \
        const int64_t* sizes, const int64_t* strides, int threads) {                                                   \
        const Problem p = problem(sizes);                                                                              \
        by_width(p.width, [&](auto width) {                                                                            \
            backward_keys<T, width()>(q, grad, ptr, idx, place, probability, slope, base, scale, dk, dv, p, strides,   \
                                      threads);                                                                        \
        });                                                                                                            \
    }

SURGERY_EDGE_ATTENTION(float, f32)
SURGERY_EDGE_ATTENTION(bf16, bf16)
