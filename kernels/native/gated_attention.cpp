// Gated attention, forward and backward, in tiles of queries × keys: queries × keys floats are never kept.
//
//     s = scale · q · k,  z = s + bias,  p = softmax(s) over all keys seen,  out = (p · g) v,  g a gate on z
//
// Reference: kernels/reference/gated_attention.py; noise as in kernels/reference/gated_noise.py. Every product reads
// one side by broadcasts, whose strides are free (a transpose costs nothing), and the other in rows of whole vectors.
#include "gated_gate.hpp"
#include "gated_product.hpp"

namespace surgery {
namespace {

constexpr int64_t FEW = 12;                // below one open edge in so many, values are gathered edge by edge

struct Call {
    const void *q, *k, *v;
    const float *bias, *hidden;  // hidden [B, keys padded to KEYS]: 0 where a key is seen, else -inf
    int64_t batch, heads, groups, queries, keys, dim, biases;
    int64_t stride_q[3], stride_k[3], stride_v[3];
    bool causal, gated, soft, count, masked;  // gated: gates carry gradients; soft: and are soft forward, too
    bool noisy;
    int64_t seed;
    float scale, temperature;

    int64_t wide() const { return padded(dim); }
    int64_t tiles() const { return (keys + KEYS - 1) / KEYS; }
    int64_t panel() const { return tiles() * KEYS * wide(); }
    int64_t row_tiles() const { return (queries + ROWS - 1) / ROWS; }
    float bias_of(int64_t line) const { return bias[line % biases]; }
    // One past the last key that a query sees.
    int64_t end(int64_t row) const {
        return causal ? std::max<int64_t>(0, std::min(keys, row + 1 + keys - queries)) : keys;
    }
};

// Add -inf to scores of keys that a row may not see.
inline void hide(const Call& c, float* s, int64_t b, int64_t row, int64_t rows, int64_t first, int64_t columns) {
    const float* hidden = c.hidden + b * c.tiles() * KEYS + first;
    for (int64_t r = 0; r < rows; r++) {
        if (c.masked)
            for (int64_t j = 0; j < columns; j += LANES)
                store(s + r * KEYS + j, load(hidden + j) < 0 ? splat(-INF) : load(s + r * KEYS + j));
        for (int64_t j = std::max<int64_t>(0, c.end(row + r) - first); j < columns; j++) s[r * KEYS + j] = -INF;
    }
}

struct Counts { double expected = 0; int64_t kept = 0; };

// Softmax weights times gates of a row's tile, in place of its scores.
template <bool COUNT, bool GATED, bool WARM>
inline int64_t weigh(
    float* s, int64_t columns, float bias, float peak, const uint32_t* column, uint32_t row, const Call& c, float& total,
    Counts& counts
) {
    f32v sum_p{}, sum_e{};
    i32v kept{}, opened{};
    for (int64_t j = 0; j < columns; j += LANES) {
        f32v x = load(s + j), z = x + bias, p = exp(x - peak), g;
        sum_p += p;
        i32v positive = z > 0;
        kept -= positive;
        f32v odds{};
        if constexpr (COUNT || GATED) odds = exp(-z);
        if constexpr (COUNT) sum_e += x > -INF ? 1.0f / (1.0f + odds) : f32v{};
        if constexpr (GATED) {
            Gate now = gate<WARM>(z, odds, c.noisy ? uniform(row, column + j) : splat(0.5f), 1.0f / c.temperature);
            opened -= now.open;
            g = c.soft ? now.soft : (now.open ? splat(1) : f32v{});
        } else g = positive ? splat(1) : f32v{};
        store(s + j, p * g);
    }
    total += sum(sum_p);
    counts.expected += sum(sum_e);
    int64_t held = 0, open = 0;
    for (int i = 0; i < LANES; i++) held += kept[i], open += opened[i];
    counts.kept += held;
    return GATED ? (c.soft ? columns : open) : held;
}

// After the product, as eager does: a scale folded into q first would round every element of it.
inline void to_scale(float* s, int64_t rows, int64_t columns, float scale) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < columns; j += LANES) store(s + r * KEYS + j, load(s + r * KEYS + j) * scale);
}

template <class T, bool COUNT, bool GATED, bool WARM>
void attend(
    const Call& c, int64_t line, int64_t tile, const float* keys, const float* values, T* out, float* lse, Counts& counts
) {
    const int64_t b = line / c.heads, h = line % c.heads, row = tile * ROWS, wide = c.wide();
    const int64_t rows = std::min(ROWS, c.queries - row), tall = (rows + 7) / 8 * 8, limit = c.end(row + rows - 1);
    static thread_local Room room;
    float* q = room.floats(2 * ROWS * wide + ROWS * KEYS);
    float *sums = q + ROWS * wide, *s = sums + ROWS * wide, peak[ROWS], total[ROWS];
    uint32_t column[KEYS];
    const float bias = c.bias_of(line);
    const Noise noise(c.seed, line);
    gather(line_of<T>(c.q, c.stride_q, b, h) + row * c.stride_q[2], c.stride_q[2], rows, c.dim, 1, q, ROWS, wide);
    std::memset(sums, 0, ROWS * wide * sizeof(float));
    std::fill(peak, peak + ROWS, -INF);
    std::fill(total, total + ROWS, 0.0f);
    for (int64_t first = 0; first < limit; first += KEYS) {
        const int64_t columns = std::min(KEYS, padded(limit - first));
        product(q, wide, 1, keys + first * wide, KEYS, s, KEYS, tall, columns, wide, false);
        to_scale(s, rows, columns, c.scale);
        if (c.masked || first + columns > c.end(row)) hide(c, s, b, row, rows, first, columns);
        if (GATED && c.noisy) column_keys(column, first, columns);
        int64_t open = 0;
        for (int64_t r = 0; r < rows; r++) {
            float* scores = s + r * KEYS;
            f32v best = load(scores);
            for (int64_t j = LANES; j < columns; j += LANES) best = larger(best, load(scores + j));
            const float now = std::max(peak[r], maximum(best));
            if (now == -INF) { std::memset(scores, 0, columns * sizeof(float)); continue; }
            if (now > peak[r]) {
                const float shrink = peak[r] == -INF ? 0.0f : std::exp(peak[r] - now);
                for (int64_t d = 0; d < wide; d += LANES) store(sums + r * wide + d, load(sums + r * wide + d) * shrink);
                total[r] *= shrink;
                peak[r] = now;
            }
            open += weigh<COUNT, GATED, WARM>(
                scores, columns, bias, now, column, noise.row(row + r), c, total[r], counts
            );
        }
        if (open * FEW < rows * columns) gather_open(s, values + first * wide, sums, rows, columns, wide);
        else product(s, KEYS, 1, values + first * wide, wide, sums, wide, tall, wide, columns, true);
    }
    for (int64_t r = 0; r < rows; r++) {
        const bool empty = total[r] == 0;
        scatter(sums + r * wide, wide, 1, c.dim, empty ? 0.0f : 1.0f / total[r], out + (line * c.queries + row + r) * c.dim);
        lse[line * c.queries + row + r] = empty ? -INF : peak[r] + std::log(total[r]);
    }
}

template <class T, bool COUNT, bool GATED, bool WARM>
void forward(const Call& c, T* out, float* lse, double* expected, int64_t* kept, float* room, int threads) {
    const int64_t wide = c.wide(), panel = c.panel(), tiles = c.row_tiles(), groups = c.batch * c.groups;
    parallel(groups, threads, [&](int64_t g) {
        static thread_local Room flat;
        const int64_t b = g / c.groups, h = g % c.groups;
        float *rows = flat.floats(panel), *keys = room + 2 * g * panel;
        gather(line_of<T>(c.k, c.stride_k, b, h), c.stride_k[2], c.keys, c.dim, 1, rows, c.tiles() * KEYS, wide);
        turn(rows, c.tiles(), wide, keys);
        gather(line_of<T>(c.v, c.stride_v, b, h), c.stride_v[2], c.keys, c.dim, 1, keys + panel, c.tiles() * KEYS, wide);
    });
    parallel(c.batch * c.heads * tiles, threads, [&](int64_t index) {
        const int64_t line = index / tiles, tile = tiles - 1 - index % tiles;
        const int64_t g = line / c.heads * c.groups + line % c.heads / (c.heads / c.groups);
        const float* keys = room + 2 * g * panel;
        Counts counts;
        attend<T, COUNT, GATED, WARM>(c, line, tile, keys, keys + panel, out, lse, counts);
        expected[line * tiles + tile] = counts.expected;
        kept[line * tiles + tile] = counts.kept;
    });
}

// What the backward adds to what the forward reads. grad_out [B, Hq, Sq, D] contiguous; delta [B, Hq, Sq].
struct Gradients {
    const void* out;
    const float *lse, *delta, *expected;
    void *q, *k, *v;
    double* bias;  // [B · Hq]
};

// Scores and grad_out · v of a row's tile become the gradient of the scores and the weights.
template <bool GATED, bool WARM>
inline float differentiate(
    float* s, float* da, int64_t columns, float bias, float lse, float delta, float expected, const uint32_t* column,
    uint32_t row, const Call& c
) {
    f32v sum_z{};
    for (int64_t j = 0; j < columns; j += LANES) {
        f32v x = load(s + j), a = load(da + j), z = x + bias, p = exp(x - lse), odds = exp(-z);
        f32v open = 1.0f / (1.0f + odds);
        f32v dz = x > -INF ? open * (1.0f - open) * expected : f32v{}, g;
        if constexpr (GATED) {
            const float inverse = 1.0f / c.temperature;
            Gate now = gate<WARM>(z, odds, c.noisy ? uniform(row, column + j) : splat(0.5f), inverse);
            dz += p * a * (now.soft * (1.0f - now.soft) * inverse);
            g = c.soft ? now.soft : (now.open ? splat(1) : f32v{});
        } else g = z > 0 ? splat(1) : f32v{};
        store(s + j, p * (g * a - delta) + dz);
        store(da + j, p * g);
        sum_z += dz;
    }
    return sum(sum_z);
}

// One key head: its query heads one after the other, each key tile against the queries that see it.
template <class T, bool GATED, bool WARM> void backward(const Call& c, const Gradients& g, int64_t group) {
    const int64_t wide = c.wide(), panel = c.panel(), tall = c.row_tiles() * ROWS, share = c.heads / c.groups;
    const int64_t b = group / c.groups;
    static thread_local Room room;
    float* keys = room.floats(5 * panel + 3 * tall * wide + 2 * ROWS * KEYS);
    float *keys_t = keys + panel, *values_t = keys_t + panel, *dk = values_t + panel, *dv = dk + panel, *q = dv + panel;
    float *go = q + tall * wide, *dq = go + tall * wide, *s = dq + tall * wide, *da = s + ROWS * KEYS;
    uint32_t column[KEYS];
    const int64_t all = c.tiles() * KEYS;
    gather(line_of<T>(c.v, c.stride_v, b, group % c.groups), c.stride_v[2], c.keys, c.dim, 1, keys, all, wide);
    turn(keys, c.tiles(), wide, values_t);
    gather(line_of<T>(c.k, c.stride_k, b, group % c.groups), c.stride_k[2], c.keys, c.dim, 1, keys, all, wide);
    turn(keys, c.tiles(), wide, keys_t);
    std::memset(dk, 0, 2 * panel * sizeof(float));
    for (int64_t member = 0; member < share; member++) {
        const int64_t h = group % c.groups * share + member, line = b * c.heads + h;
        const float bias = c.bias_of(line);
        const Noise noise(c.seed, line);
        double sum_z = 0;
        gather(line_of<T>(c.q, c.stride_q, b, h), c.stride_q[2], c.queries, c.dim, 1, q, tall, wide);
        gather(static_cast<const T*>(g.out) + line * c.queries * c.dim, c.dim, c.queries, c.dim, 1, go, tall, wide);
        std::memset(dq, 0, tall * wide * sizeof(float));
        for (int64_t first = 0; first < c.keys; first += KEYS) {
            const int64_t seen = c.causal ? std::max<int64_t>(0, first - (c.keys - c.queries)) : 0;
            if (GATED && c.noisy) column_keys(column, first, KEYS);
            for (int64_t row = seen / ROWS * ROWS; row < c.queries; row += ROWS) {
                const int64_t rows = std::min(ROWS, c.queries - row), high = (rows + 7) / 8 * 8;
                const int64_t columns = std::min(KEYS, padded(c.end(row + rows - 1) - first));
                if (columns <= 0) continue;
                product(q + row * wide, wide, 1, keys_t + first * wide, KEYS, s, KEYS, high, columns, wide, false);
                to_scale(s, rows, columns, c.scale);
                product(go + row * wide, wide, 1, values_t + first * wide, KEYS, da, KEYS, high, columns, wide, false);
                if (c.masked || first + columns > c.end(row)) hide(c, s, b, row, rows, first, columns);
                for (int64_t r = 0; r < rows; r++) {
                    const int64_t at = line * c.queries + row + r;
                    sum_z += differentiate<GATED, WARM>(
                        s + r * KEYS, da + r * KEYS, columns, bias, g.lse[at] == -INF ? 0 : g.lse[at], g.delta[at],
                        g.expected[line], column, noise.row(row + r), c
                    );
                }
                for (int64_t r = rows; r < high; r++) {
                    std::memset(s + r * KEYS, 0, columns * sizeof(float));
                    std::memset(da + r * KEYS, 0, columns * sizeof(float));
                }
                product(s, KEYS, 1, keys + first * wide, wide, dq + row * wide, wide, high, wide, columns, true);
                product(s, 1, KEYS, q + row * wide, wide, dk + first * wide, wide, columns, wide, high, true);
                product(da, 1, KEYS, go + row * wide, wide, dv + first * wide, wide, columns, wide, high, true);
            }
        }
        g.bias[line] = sum_z;
        scatter(dq, wide, c.queries, c.dim, c.scale, static_cast<T*>(g.q) + line * c.queries * c.dim);
    }
    scatter(dk, wide, c.keys, c.dim, c.scale, static_cast<T*>(g.k) + group * c.keys * c.dim);
    scatter(dv, wide, c.keys, c.dim, 1, static_cast<T*>(g.v) + group * c.keys * c.dim);
}

// sizes: B, Hq, Hkv, Sq, Sk, D, biases, strides of q, k, v (3 each), causal, gated, soft, count, masked, noisy, seed
Call call(const void* const* inputs, const int64_t* n, const float* scalars) {
    Call c{inputs[0], inputs[1], inputs[2], static_cast<const float*>(inputs[3]), static_cast<const float*>(inputs[4])};
    c.batch = n[0]; c.heads = n[1]; c.groups = n[2]; c.queries = n[3]; c.keys = n[4]; c.dim = n[5]; c.biases = n[6];
    std::copy(n + 7, n + 10, c.stride_q);
    std::copy(n + 10, n + 13, c.stride_k);
    std::copy(n + 13, n + 16, c.stride_v);
    c.causal = n[16]; c.gated = n[17]; c.soft = n[18]; c.count = n[19]; c.masked = n[20]; c.noisy = n[21];
    c.seed = n[22];
    c.scale = scalars[0]; c.temperature = scalars[1];
    return c;
}

template <class T>
void forward_of(const Call& c, void* const* o, int threads) {
    auto run = [&]<bool COUNT, bool GATED, bool WARM>() {
        forward<T, COUNT, GATED, WARM>(
            c, static_cast<T*>(o[0]), static_cast<float*>(o[1]), static_cast<double*>(o[2]),
            static_cast<int64_t*>(o[3]), static_cast<float*>(o[4]), threads
        );
    };
    if (!c.gated) return c.count ? run.template operator()<true, false, false>() : run.template operator()<false, false, false>();
    c.temperature == 1 ? run.template operator()<true, true, false>() : run.template operator()<true, true, true>();
}

template <class T>
void backward_of(const Call& c, const Gradients& g, int threads) {
    parallel(c.batch * c.groups, threads, [&](int64_t group) {
        if (!c.gated) backward<T, false, false>(c, g, group);
        else if (c.temperature == 1) backward<T, true, false>(c, g, group);
        else backward<T, true, true>(c, g, group);
    });
}

}  // namespace
}  // namespace surgery

// outputs: out, lse, expected and kept per tile of rows [B · Hq, tiles], room for 2 · B · Hkv panels
SURGERY_EXPORT void gated_forward(
    const void* const* inputs, void* const* outputs, const int64_t* sizes, const float* scalars, int half, int threads
) {
    const surgery::Call c = surgery::call(inputs, sizes, scalars);
    half ? surgery::forward_of<surgery::bf16>(c, outputs, threads) : surgery::forward_of<float>(c, outputs, threads);
}

// inputs go on with grad_out, lse, delta, grad_expected; outputs: dq, dk, dv, dbias (fp64 [B · Hq])
SURGERY_EXPORT void gated_backward(
    const void* const* inputs, void* const* outputs, const int64_t* sizes, const float* scalars, int half, int threads
) {
    const surgery::Call c = surgery::call(inputs, sizes, scalars);
    const auto floats = [&](int i) { return static_cast<const float*>(inputs[i]); };
    const surgery::Gradients g{inputs[5], floats(6), floats(7), floats(8), outputs[0], outputs[1], outputs[2],
                               static_cast<double*>(outputs[3])};
    half ? surgery::backward_of<surgery::bf16>(c, g, threads) : surgery::backward_of<float>(c, g, threads);
}

SURGERY_EXPORT int64_t gated_panel(int64_t keys, int64_t dim) {
    surgery::Call c{};
    c.keys = keys; c.dim = dim;
    return c.panel();
}

SURGERY_EXPORT int64_t gated_rows() { return surgery::ROWS; }
