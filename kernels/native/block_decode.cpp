// Attention of a few new tokens over listed blocks of a key-value cache, read in place.
//
// A group of query heads shares a list, so a key is loaded once for all their rows. The list is cut into chunks, each
// gives (peak, total, sums) of its own, and a second pass merges them: the cut depends on sizes only, never on threads.

#include "simd.hpp"

#include <vector>

using namespace surgery;

namespace {

constexpr int KEYS = 64;   // keys taken in at once
constexpr int ROWS = 4;    // query rows that share a load
constexpr int WIDE = 4;    // vectors of a value row held in registers

struct Sizes { int64_t batch, kv_heads, group, tokens, keys, dim, listed, block, chunks; };
struct Strides { int64_t batch, head, row; };

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));

inline f32x4 quarter(f32v x) {
    f32x4 parts[LANES / 4];
    std::memcpy(parts, &x, sizeof x);
    f32x4 total = parts[0];
    for (int i = 1; i < LANES / 4; i++) total += parts[i];
    return total;
}

// The sums of four vectors, side by side: a tree, where four scalar sums would take 64 dependent additions.
inline f32x4 sums_of(f32v a, f32v b, f32v c, f32v d) {
    const i32x4 low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, left = {0, 1, 4, 5}, right = {2, 3, 6, 7};
    f32x4 p = quarter(a), q = quarter(b), r = quarter(c), s = quarter(d);
    f32x4 pq = __builtin_shuffle(p, q, low) + __builtin_shuffle(p, q, high);
    f32x4 rs = __builtin_shuffle(r, s, low) + __builtin_shuffle(r, s, high);
    return __builtin_shuffle(pq, rs, left) + __builtin_shuffle(pq, rs, right);
}

// Rows of queries as fp32, once, since every key meets them.
template <class T> void widen(float* to, const T* from, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) store(to + i, load(from + i));
}

// What is read after this: the values of these keys, then the keys of the next block. It is fetched meanwhile, since no
// processor guesses where the next block of a list begins.
template <class T> struct Next {
    const T* from;
    int64_t step;
    void fetch(int64_t row, int64_t column) const { __builtin_prefetch(from + row * step + column, 0, 2); }
};

// scores[r][j] = scale * q[r] . k[j], for R rows and four keys at a time.
template <int R, class T>
void dot_rows(const float* q, const T* k, int64_t step, int64_t keys, int64_t dim, float scale, float* scores,
              Next<T> next) {
    constexpr int J = 4;
    int64_t j = 0;
    for (; j + J <= keys; j += J) {
        f32v sums[R][J] = {};
        for (int64_t d = 0; d < dim; d += LANES) {
            f32v key[J];
            for (int c = 0; c < J; c++) next.fetch(j + c, d);
            for (int c = 0; c < J; c++) key[c] = load(k + (j + c) * step + d);
            for (int r = 0; r < R; r++) {
                f32v query = load(q + r * dim + d);
                for (int c = 0; c < J; c++) sums[r][c] += query * key[c];
            }
        }
        for (int r = 0; r < R; r++) {
            f32x4 four = scale * sums_of(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
            std::memcpy(scores + r * KEYS + j, &four, sizeof four);
        }
    }
    for (; j < keys; j++)
        for (int r = 0; r < R; r++) {
            f32v total = {};
            for (int64_t d = 0; d < dim; d += LANES) total += load(q + r * dim + d) * load(k + j * step + d);
            scores[r * KEYS + j] = scale * sum(total);
        }
}

// sums[r] += weights[r][j] * v[j], W vectors of the value rows at once.
template <int R, int W, class T>
void add_columns(const float* weights, const T* v, int64_t step, int64_t keys, int64_t dim, float* sums,
                 Next<T> next) {
    f32v held[R][W];
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) held[r][w] = load(sums + r * dim + w * LANES);
    for (int64_t j = 0; j < keys; j++) {
        f32v value[W];
        for (int w = 0; w < W; w++) next.fetch(j, w * LANES);
        for (int w = 0; w < W; w++) value[w] = load(v + j * step + w * LANES);
        for (int r = 0; r < R; r++) {
            f32v weight = splat(weights[r * KEYS + j]);
            for (int w = 0; w < W; w++) held[r][w] += weight * value[w];
        }
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) store(sums + r * dim + w * LANES, held[r][w]);
}

template <int R, class T>
void add_rows(const float* weights, const T* v, int64_t step, int64_t keys, int64_t dim, float* sums, Next<T> next) {
    int64_t d = 0;
    for (; d + WIDE * LANES <= dim; d += WIDE * LANES)
        add_columns<R, WIDE>(weights, v + d, step, keys, dim, sums + d, {next.from + d, next.step});
    for (; d < dim; d += LANES)
        add_columns<R, 1>(weights, v + d, step, keys, dim, sums + d, {next.from + d, next.step});
}

// One step of the online softmax: scores become weights, sums and total shrink to the new peak.
void soften(float* scores, int64_t visible, float* sums, int64_t dim, float& peak, float& total) {
    std::fill(scores + visible, scores + KEYS, -INF);
    f32v tops = load(scores);
    for (int64_t j = LANES; j < KEYS; j += LANES) tops = larger(tops, load(scores + j));
    const float top = std::max(peak, maximum(tops));
    if (top == -INF) {
        std::fill(scores, scores + KEYS, 0.0f);
        return;
    }
    float shrink = peak == -INF ? 0.0f : std::exp(peak - top);
    f32v added = {};
    for (int64_t j = 0; j < KEYS; j += LANES) {
        f32v weight = exp(load(scores + j) - top);
        store(scores + j, weight);
        added += weight;
    }
    if (shrink != 1.0f)
        for (int64_t d = 0; d < dim; d += LANES) store(sums + d, load(sums + d) * shrink);
    total = total * shrink + sum(added);
    peak = top;
}

template <class T> struct Work {
    const T *q, *k, *v;
    T* out;
    const int32_t *listed, *lengths;
    float* partial;   // [line][chunk][row][dim + 2]: sums, peak, total
    Sizes size;
    Strides q_step, k_step, v_step;
    float scale;

    int64_t rows() const { return size.group * size.tokens; }
    float* part(int64_t line, int64_t chunk, int64_t row) const {
        return partial + ((line * size.chunks + chunk) * rows() + row) * (size.dim + 2);
    }

    template <int R>
    void rows_step(float* query, const T* key, const T* value, const T* next, int64_t first, int64_t count, int64_t row,
                   const int64_t* limit, float* sums, float* peak, float* total) const {
        float scores[R * KEYS];
        dot_rows<R>(query + row * size.dim, key, k_step.row, count, size.dim, scale, scores, {value, v_step.row});
        for (int r = 0; r < R; r++) {
            int64_t visible = std::clamp<int64_t>(limit[(row + r) % size.tokens] - first, 0, count);
            const int64_t at = row + r;
            soften(scores + r * KEYS, visible, sums + at * size.dim, size.dim, peak[at], total[at]);
        }
        add_rows<R>(scores, value, v_step.row, count, size.dim, sums + row * size.dim, {next, k_step.row});
    }

    void chunk(int64_t line, int64_t chunk) const {
        const int64_t batch = line / size.kv_heads, head = line % size.kv_heads, dim = size.dim, n = rows();
        const T* keys = k + batch * k_step.batch + head * k_step.head;
        const T* values = v + batch * v_step.batch + head * v_step.head;
        std::vector<float> query(n * dim), sums(n * dim, 0.0f), peak(n, -INF), total(n, 0.0f);
        for (int64_t row = 0; row < n; row++)
            widen(&query[row * dim], q + batch * q_step.batch + (head * size.group + row / size.tokens) * q_step.head
                                       + row % size.tokens * q_step.row, dim);
        std::vector<int64_t> limit(size.tokens);
        for (int64_t t = 0; t < size.tokens; t++)
            limit[t] = std::min<int64_t>(size.keys, int64_t(lengths[batch]) - size.tokens + t + 1);
        const int64_t end = limit[size.tokens - 1], each = (size.listed + size.chunks - 1) / size.chunks;
        for (int64_t at = chunk * each; at < std::min(size.listed, (chunk + 1) * each); at++) {
            const int64_t block = listed[line * size.listed + at];
            if (block < 0) continue;
            const int64_t after = at + 1 < size.listed ? std::max(listed[line * size.listed + at + 1], 0) : 0;
            const int64_t stop = std::min((block + 1) * size.block, end);
            for (int64_t first = block * size.block; first < stop; first += KEYS) {
                const int64_t count = std::min<int64_t>(KEYS, stop - first);
                const T *key = keys + first * k_step.row, *value = values + first * v_step.row;
                const T* next = first + KEYS < stop ? key + KEYS * k_step.row : keys + after * size.block * k_step.row;
                int64_t row = 0;
                for (; row + ROWS <= n; row += ROWS)
                    rows_step<ROWS>(query.data(), key, value, next, first, count, row, limit.data(), sums.data(),
                                    peak.data(), total.data());
                for (; row < n; row++)
                    rows_step<1>(query.data(), key, value, next, first, count, row, limit.data(), sums.data(),
                                 peak.data(), total.data());
            }
        }
        for (int64_t row = 0; row < n; row++) {
            float* to = part(line, chunk, row);
            std::copy_n(&sums[row * dim], dim, to);
            to[dim] = peak[row];
            to[dim + 1] = total[row];
        }
    }

    void merge(int64_t line, int64_t row) const {
        const int64_t dim = size.dim;
        float top = -INF, total = 0;
        for (int64_t c = 0; c < size.chunks; c++) top = std::max(top, part(line, c, row)[dim]);
        T* to = out + (line * rows() + row) * dim;
        std::vector<float> sums(dim, 0.0f);
        for (int64_t c = 0; c < size.chunks && top != -INF; c++) {
            const float* from = part(line, c, row);
            const float weight = from[dim] == -INF ? 0.0f : std::exp(from[dim] - top);
            total += weight * from[dim + 1];
            for (int64_t d = 0; d < dim; d += LANES) store(&sums[d], load(&sums[d]) + load(from + d) * weight);
        }
        const float inverse = total > 0 ? 1.0f / total : 0.0f;
        for (int64_t d = 0; d < dim; d += LANES) store(to + d, load(&sums[d]) * inverse);
    }

    void run(int threads) const {
        const int64_t lines = size.batch * size.kv_heads;
        parallel(lines * size.chunks, threads, [&](int64_t i) { chunk(i / size.chunks, i % size.chunks); });
        parallel(lines * rows(), threads, [&](int64_t i) { merge(i / rows(), i % rows()); });
    }
};

template <class T>
void decode(const void* q, const void* k, const void* v, void* out, const int32_t* listed, const int32_t* lengths,
            float* partial, const int64_t* sizes, const int64_t* strides, float scale, int64_t threads) {
    Sizes size{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8]};
    Strides step[3];
    for (int i = 0; i < 3; i++) step[i] = {strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]};
    Work<T> work{(const T*)q, (const T*)k, (const T*)v, (T*)out, listed, lengths, partial, size,
                 step[0],     step[1],     step[2],     scale};
    work.run(int(threads));
}

}  // namespace

SURGERY_EXPORT void decode_fp32(const void* q, const void* k, const void* v, void* out, const int32_t* listed,
                                const int32_t* lengths, float* partial, const int64_t* sizes, const int64_t* strides,
                                float scale, int64_t threads) {
    decode<float>(q, k, v, out, listed, lengths, partial, sizes, strides, scale, threads);
}

SURGERY_EXPORT void decode_bf16(const void* q, const void* k, const void* v, void* out, const int32_t* listed,
                                const int32_t* lengths, float* partial, const int64_t* sizes, const int64_t* strides,
                                float scale, int64_t threads) {
    decode<bf16>(q, k, v, out, listed, lengths, partial, sizes, strides, scale, threads);
}

SURGERY_EXPORT int64_t lanes() { return LANES; }
