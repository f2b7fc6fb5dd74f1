// Gradients of block attention from lse (FlashAttention-2): weights P = exp(scale · score - lse), with
//   delta = Σ out · grad_out less the gradient of lse, which stands there before,  dP = grad_out vᵀ,  dS = P (dP - delta),
//   dv = Pᵀ grad_out,  dk = scale · dSᵀ q,  dq = scale · dS k.
// dk and dv run over tiles of keys by the transposed index. dq runs over tiles of queries, or, where there are heads
// enough for every thread, along with dk and dv, which saves making P and dS twice. Every sum has one owner, and both
// ways add to it in the same order: the bits do not tell which was taken.
#pragma once

#include "block_problem.hpp"

namespace surgery {

// Rows of a gradient: total · factor, in T.
template <class T>
void write_rows(T* to, int64_t stride, const float* total, int64_t count, int64_t dim, float factor) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t d = 0; d < dim; d += LANES) store(to + i * stride + d, load(total + i * dim + d) * factor);
}

// A query without keys has weights exp(-inf) = 0.
inline float level_of(float lse) { return lse == -INF ? INF : lse; }

template <class T>
void levels_and_deltas(const Problem& p, int64_t item) {
    int64_t head = item % p.heads, b = item / p.heads;
    for (int64_t i = 0; i < p.queries; i++) {
        const T *out = p.out.at<T>(b, head, i), *grad = p.grad_out.at<T>(b, head, i);
        f32v total{};
        for (int64_t d = 0; d < p.value_dim; d += LANES) total += load(out + d) * load(grad + d);
        p.delta[p.at(b, head, i)] = sum(total) - p.delta[p.at(b, head, i)];
        p.level[p.at(b, head, i)] = level_of(p.lse[p.at(b, head, i)]);
    }
}

// A panel of transposed rows of two tensors: q and grad_out, or k and v.
struct Panels {
    float *first, *second;
    int64_t lanes;
};

// Scores and dP of a chunk of rows with a panel: [rows, PANEL] each.
template <class T, class M, int C, class Mask>
void recompute(
    const Problem& p, const Rows& first, const Rows& second, const Panels& panel, const Mask* mask, int64_t row,
    float* scores, float* grads
) {
    auto put = [](float* to) {
        return [to](int64_t r, int c, f32v total) { store(to + r * PANEL + c * LANES, total); };
    };
    if (mask)
        against_panel<M, C>(first, panel.first, Words<T, M>::of(p.dim), [&](int64_t r, int c, f32v score) {
            store(scores + r * PANEL + c * LANES, mask->apply(score, row + std::min(r, first.count - 1), c));
        });
    else
        against_panel<M, C>(first, panel.first, Words<T, M>::of(p.dim), put(scores));
    against_panel<M, C>(second, panel.second, Words<T, M>::of(p.value_dim), put(grads));
}

// Scores become P, dP becomes dS. log2 e is taken in after the difference, which is small: before it, score and lse would
// each be rounded at their own size.
template <int C, class Level, class Delta>
inline void differentiate(
    float* scores, float* grads, int64_t count, float scale, const Level& level, const Delta& delta
) {
    for (int64_t j = 0; j < count; j++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            int64_t at = j * PANEL + c * LANES;
            f32v weight = exp2((load(scores + at) * scale - level(j, c)) * LOG2E);
            store(scores + at, weight);
            store(grads + at, weight * (load(grads + at) - delta(j, c)));
        }
}

template <class T, class M>
Panels pack_pair(
    Scratch& scratch, const T* first, int64_t first_stride, int64_t dim, const T* second, int64_t second_stride,
    int64_t second_dim, int64_t lanes
) {
    Panels panel{scratch.take(PANEL * Words<T, M>::of(dim)), scratch.take(PANEL * Words<T, M>::of(second_dim)), lanes};
    pack_panel<T, M>(first, first_stride, lanes, dim, panel.first);
    pack_panel<T, M>(second, second_stride, lanes, second_dim, panel.second);
    return panel;
}

template <class T, class M>
void query_tile(const Problem& p, int64_t item) {
    int64_t tile = item % p.tiles(), head = item / p.tiles() % p.heads, b = item / p.tiles() / p.heads;
    int64_t start = tile * p.rows_of_block, rows = std::min(p.rows_of_block, p.queries - start);
    int64_t panels = (rows + PANEL - 1) / PANEL, kv = p.kv_head(head);
    int64_t key_words = chunk_words<T, M>(CHUNK, p.dim), value_words = chunk_words<T, M>(CHUNK, p.value_dim);
    int64_t score_words = (CHUNK + 16) * PANEL, of_panel = PANEL * (2 * p.dim + p.value_dim + 2);
    Scratch scratch(key_words + value_words + 2 * score_words + panels * of_panel);
    float *key_buffer = scratch.take(key_words), *value_buffer = scratch.take(value_words);
    float *scores = scratch.take(score_words), *grads = scratch.take(score_words);
    std::vector<Panels> panel(panels);
    std::vector<QueryMask> mask(panels);
    float *level = scratch.take(panels * PANEL), *delta = scratch.take(panels * PANEL);
    float* total = scratch.take(panels * PANEL * p.dim);
    std::fill_n(level, panels * PANEL, INF);
    std::fill_n(delta, panels * PANEL, 0.0f);
    std::fill_n(total, panels * PANEL * p.dim, 0.0f);
    for (int64_t i = 0; i < rows; i++) {
        level[i] = p.level[p.at(b, head, start + i)];
        delta[i] = p.delta[p.at(b, head, start + i)];
    }
    for (int64_t i = 0; i < panels; i++) {
        int64_t row = start + i * PANEL;
        panel[i] = pack_pair<T, M>(
            scratch, p.q.at<T>(b, head, row), p.q.row, p.dim, p.grad_out.at<T>(b, head, row), p.grad_out.row,
            p.value_dim, std::min<int64_t>(PANEL, rows - i * PANEL)
        );
    }
    p.by_query.each(p.pattern(b, head) * p.tiles() + tile, [&](int64_t block, int64_t place) {
        int64_t base = block * p.keys_of_block, end = std::min(p.keys_of_block, p.keys - base);
        if (place >= 0)
            for (int64_t i = 0; i < panels; i++) mask[i].read(p, p.block_bits(place), i * PANEL, panel[i].lanes);
        for (int64_t key = 0; key < end; key += CHUNK) {
            int64_t count = std::min(CHUNK, end - key);
            auto keys = open<T, M>(p.k.at<T>(b, kv, base + key), p.k.row, count, p.dim, true, key_buffer);
            auto values = open<T, M>(p.v.at<T>(b, kv, base + key), p.v.row, count, p.value_dim, false, value_buffer);
            for (int64_t i = 0; i < panels; i++) {
                if (place >= 0 && !mask[i].keeps(key, count)) continue;
                with_vectors(panel[i].lanes, [&]<int C>() {
                    const float *own = level + i * PANEL, *less = delta + i * PANEL;
                    const QueryMask* masked = place >= 0 ? &mask[i] : nullptr;
                    recompute<T, M, C>(p, keys.rows, values.rows, panel[i], masked, key, scores, grads);
                    differentiate<C>(
                        scores, grads, count, p.scale, [&](int64_t, int c) { return load(own + c * LANES); },
                        [&](int64_t, int c) { return load(less + c * LANES); }
                    );
                    pair_rows<M, C>(grads, count);
                    accumulate<M>(
                        Columns{grads}, C * LANES, keys.columns, keys.columns_stride,
                        (count + M::DEPTH - 1) / M::DEPTH, total + i * PANEL * p.dim, p.dim
                    );
                });
            }
        }
    });
    write_rows(p.grad_q.at<T>(b, head, start), p.grad_q.row, total, rows, p.dim, float(p.scale));
}

// dk and dv of a tile of keys. total_q, unless null, is [group, queries + 4, dim]: dq of the heads that share the keys.
template <class T, class M>
void key_tile(const Problem& p, int64_t item, float* total_q) {
    int64_t tile = item % p.key_tiles(), kv = item / p.key_tiles() % p.kv_heads, b = item / p.key_tiles() / p.kv_heads;
    int64_t start = tile * p.keys_of_block, rows = std::min(p.keys_of_block, p.keys - start);
    int64_t panels = (rows + PANEL - 1) / PANEL, group = p.heads / p.kv_heads;
    int64_t query_words = chunk_words<T, M>(CHUNK, p.dim), grad_words = chunk_words<T, M>(CHUNK, p.value_dim);
    int64_t score_words = (CHUNK + 16) * PANEL, of_panel = PANEL * (3 * p.dim + 2 * p.value_dim);
    Scratch scratch(query_words + grad_words + 3 * score_words + panels * of_panel);
    float* across = scratch.take(score_words);
    float *query_buffer = scratch.take(query_words), *grad_buffer = scratch.take(grad_words);
    float *scores = scratch.take(score_words), *grads = scratch.take(score_words);
    float *total_k = scratch.take(panels * PANEL * p.dim), *total_v = scratch.take(panels * PANEL * p.value_dim);
    std::fill_n(total_k, panels * PANEL * p.dim, 0.0f);
    std::fill_n(total_v, panels * PANEL * p.value_dim, 0.0f);
    std::vector<Panels> panel(panels);
    std::vector<Chunk<T, M>> own(panels);
    for (int64_t i = 0; i < panels; i++) {
        int64_t row = start + i * PANEL;
        panel[i] = pack_pair<T, M>(
            scratch, p.k.at<T>(b, kv, row), p.k.row, p.dim, p.v.at<T>(b, kv, row), p.v.row, p.value_dim,
            std::min<int64_t>(PANEL, rows - i * PANEL)
        );
        if (!total_q) continue;
        float* buffer = scratch.take(chunk_words<T, M>(PANEL, p.dim));
        own[i] = open<T, M>(p.k.at<T>(b, kv, row), p.k.row, panel[i].lanes, p.dim, true, buffer);
    }
    for (int64_t head = kv * group; head < (kv + 1) * group; head++)
        p.by_key.each(p.pattern(b, head) * p.key_tiles() + tile, [&](int64_t block, int64_t place) {
            int64_t base = block * p.rows_of_block, end = std::min(p.rows_of_block, p.queries - base);
            for (int64_t query = 0; query < end; query += CHUNK) {
                int64_t count = std::min(CHUNK, end - query), depth = (count + M::DEPTH - 1) / M::DEPTH;
                int64_t row = base + query;
                auto queries = open<T, M>(p.q.at<T>(b, head, row), p.q.row, count, p.dim, true, query_buffer);
                auto outs = open<T, M>(
                    p.grad_out.at<T>(b, head, row), p.grad_out.row, count, p.value_dim, true, grad_buffer
                );
                const float *level = p.level + p.at(b, head, row), *delta = p.delta + p.at(b, head, row);
                for (int64_t i = 0; i < panels; i++)
                    with_vectors(panel[i].lanes, [&]<int C>() {
                        KeyMask mask{place >= 0 ? p.block_bits(place) : nullptr, p.words(), i * PANEL};
                        const KeyMask* masked = place >= 0 ? &mask : nullptr;
                        recompute<T, M, C>(p, queries.rows, outs.rows, panel[i], masked, query, scores, grads);
                        differentiate<C>(
                            scores, grads, count, p.scale, [&](int64_t r, int) { return splat(level[r]); },
                            [&](int64_t r, int) { return splat(delta[r]); }
                        );
                        if (total_q)
                            accumulate<M>(
                                words_across<M, C>(grads, count, across), count, own[i].columns, own[i].columns_stride,
                                (panel[i].lanes + M::DEPTH - 1) / M::DEPTH,
                                total_q + ((head - kv * group) * (p.queries + 4) + row) * p.dim, p.dim
                            );
                        pair_rows<M, C>(scores, count);
                        pair_rows<M, C>(grads, count);
                        accumulate<M>(
                            Columns{scores}, C * LANES, outs.columns, outs.columns_stride, depth,
                            total_v + i * PANEL * p.value_dim, p.value_dim
                        );
                        accumulate<M>(
                            Columns{grads}, C * LANES, queries.columns, queries.columns_stride, depth,
                            total_k + i * PANEL * p.dim, p.dim
                        );
                    });
            }
        });
    write_rows(p.grad_k.at<T>(b, kv, start), p.grad_k.row, total_k, rows, p.dim, float(p.scale));
    write_rows(p.grad_v.at<T>(b, kv, start), p.grad_v.row, total_v, rows, p.value_dim, 1.0f);
}

// All gradients of one key head and the query heads that share it.
template <class T, class M>
void whole_head(const Problem& p, int64_t item) {
    static thread_local std::vector<float> total;
    int64_t group = p.heads / p.kv_heads, b = item / p.kv_heads, kv = item % p.kv_heads, rows = p.queries + 4;
    total.assign(group * rows * p.dim, 0.0f);
    for (int64_t tile = 0; tile < p.key_tiles(); tile++) key_tile<T, M>(p, item * p.key_tiles() + tile, total.data());
    for (int64_t g = 0; g < group; g++)
        write_rows(
            p.grad_q.at<T>(b, kv * group + g, 0), p.grad_q.row, total.data() + g * rows * p.dim, p.queries, p.dim,
            float(p.scale)
        );
}

// Whether key heads keep all threads busy, and dq of one's group fits a cache that threads share.
inline bool by_heads(const Problem& p) {
    int64_t items = p.batch * p.kv_heads, bytes = p.heads / p.kv_heads * p.queries * p.dim * 4;
    bool busy = items % p.threads == 0 || items >= 8 * p.threads;
    return busy && bytes <= int64_t(1) << 26;
}

template <class T, class M>
void backward(const Problem& p) {
    int threads = int(p.threads);
    parallel(p.batch * p.heads, threads, [&](int64_t item) { levels_and_deltas<T>(p, item); });
    if (by_heads(p)) return parallel(p.batch * p.kv_heads, threads, [&](int64_t item) { whole_head<T, M>(p, item); });
    auto by_query = [&](int64_t item) {
        int64_t head = item / p.tiles() % p.heads, b = item / p.tiles() / p.heads;
        return p.by_query.length(p.pattern(b, head) * p.tiles() + item % p.tiles());
    };
    auto by_key = [&](int64_t item) {
        int64_t head = item / p.key_tiles() % p.kv_heads * (p.heads / p.kv_heads);
        int64_t b = item / p.key_tiles() / p.kv_heads;
        return p.by_key.length(p.pattern(b, head) * p.key_tiles() + item % p.key_tiles());
    };
    int64_t tiles = p.batch * p.heads * p.tiles(), key_tiles = p.batch * p.kv_heads * p.key_tiles();
    longest_first(tiles, threads, by_query, [&](int64_t i) { query_tile<T, M>(p, i); });
    longest_first(key_tiles, threads, by_key, [&](int64_t i) { key_tile<T, M>(p, i, nullptr); });
}

}  // namespace surgery
