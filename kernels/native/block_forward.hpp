// out = softmax(scale · q kᵀ over kept keys) v for one tile of queries, keys passing in chunks (FlashAttention-2).
//
// Scores lie transposed, [keys of the chunk, queries of the panel]: maximum and sum of a query then run down lanes, and
// neither k nor v is repacked. A maximum is followed only when it grew by more than 2^8: the sums stay exact, since all
// weights of a row hold the same, and fp32 has the range.
#pragma once

#include "block_problem.hpp"

namespace surgery {

constexpr float SLACK = 8;

// Queries of one panel: their transposed words, what they saw so far.
struct Panel {
    float *query, *total;  // [words, PANEL], [PANEL, value_dim]
    int64_t lanes;
    alignas(64) float top[PANEL], level[PANEL], sum[PANEL];

    void clear(int64_t value_dim) {
        std::memset(total, 0, PANEL * value_dim * sizeof(float));
        std::fill_n(level, PANEL, -INF);
        std::fill_n(sum, PANEL, 0.0f);
    }
};

// Raise levels to the new maxima and scale down what was summed below the old ones.
inline void raise(Panel& panel, int64_t value_dim, float to_log2) {
    alignas(64) float shrink[PANEL];
    i32v grew{};
    for (int c = 0; c < PANEL; c += LANES) grew |= load(panel.top + c) * to_log2 > load(panel.level + c) + SLACK;
    if (!any(grew)) return;
    for (int c = 0; c < PANEL; c += LANES) {
        f32v old = load(panel.level + c), level = larger(old, load(panel.top + c) * to_log2);
        f32v factor = exp2(old - (level == splat(-INF) ? f32v{} : level));
        store(panel.level + c, level);
        store(panel.sum + c, load(panel.sum + c) * factor);
        store(shrink + c, factor);
    }
    for (int64_t i = 0; i < panel.lanes; i++) {
        if (shrink[i] == 1) continue;
        float* row = panel.total + i * value_dim;
        for (int64_t d = 0; d < value_dim; d += LANES) store(row + d, load(row + d) * shrink[i]);
    }
}

// Scores become weights 2^(score - level); their sums go to the panel's.
template <int C>
inline void weigh(Panel& panel, float* scores, int64_t count, float to_log2) {
    f32v sum[C], level[C];
    for (int c = 0; c < C; c++) {
        f32v held = load(panel.level + c * LANES);
        level[c] = held == splat(-INF) ? f32v{} : held;
        sum[c] = f32v{};
    }
    for (int64_t j = 0; j < count; j++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            float* at = scores + j * PANEL + c * LANES;
            f32v weight = exp2(load(at) * to_log2 - level[c]);
            sum[c] += weight;
            store(at, weight);
        }
    for (int c = 0; c < C; c++) store(panel.sum + c * LANES, load(panel.sum + c * LANES) + sum[c]);
}

// One chunk of keys for one panel of C vectors of queries; mask is null where all is kept.
template <class T, class M, int C>
void attend(
    const Problem& p, Panel& panel, const Chunk<T, M>& keys, const Chunk<T, M>& values, const QueryMask* mask,
    int64_t first_key, float* scores
) {
    int64_t count = keys.rows.count, depth = Words<T, M>::of(p.dim);
    std::fill_n(panel.top, PANEL, -INF);
    auto keep = [&](int64_t row, int c, f32v score) {
        float* top = panel.top + c * LANES;
        store(top, larger(score, load(top)));
        store(scores + row * PANEL + c * LANES, score);
    };
    if (mask)
        against_panel<M, C>(keys.rows, panel.query, depth, [&](int64_t row, int c, f32v score) {
            keep(row, c, mask->apply(score, first_key + std::min(row, count - 1), c));
        });
    else
        against_panel<M, C>(keys.rows, panel.query, depth, keep);
    raise(panel, p.value_dim, p.to_log2());
    weigh<C>(panel, scores, count, p.to_log2());
    pair_rows<M, C>(scores, count);
    accumulate<M>(
        Columns{scores}, C * LANES, values.columns, values.columns_stride, (count + M::DEPTH - 1) / M::DEPTH,
        panel.total, p.value_dim
    );
}

template <class T>
void finish(const Problem& p, const Panel& panel, int64_t b, int64_t head, int64_t row) {
    for (int64_t i = 0; i < panel.lanes; i++) {
        bool seen = panel.sum[i] > 0;
        float inverse = seen ? 1 / panel.sum[i] : 0;
        T* out = p.out.at<T>(b, head, row + i);
        for (int64_t d = 0; d < p.value_dim; d += LANES)
            store(out + d, load(panel.total + i * p.value_dim + d) * inverse);
        p.lse[p.at(b, head, row + i)] = seen ? float(panel.level[i] * 0.6931471805599453 + std::log(double(panel.sum[i]))) : -INF;
    }
}

template <class T, class M>
void forward_tile(const Problem& p, int64_t item) {
    int64_t tile = item % p.tiles(), head = item / p.tiles() % p.heads, b = item / p.tiles() / p.heads;
    int64_t start = tile * p.rows_of_block, rows = std::min(p.rows_of_block, p.queries - start);
    int64_t panels = (rows + PANEL - 1) / PANEL, depth = Words<T, M>::of(p.dim), kv = p.kv_head(head);
    int64_t key_words = chunk_words<T, M>(CHUNK, p.dim), value_words = chunk_words<T, M>(CHUNK, p.value_dim);
    int64_t score_words = (CHUNK + 16) * PANEL, of_panel = PANEL * (depth + p.value_dim);
    Scratch scratch(key_words + value_words + score_words + panels * of_panel);
    float *key_buffer = scratch.take(key_words), *value_buffer = scratch.take(value_words);
    float* scores = scratch.take(score_words);
    std::vector<Panel> panel(panels);
    std::vector<QueryMask> mask(panels);
    for (int64_t i = 0; i < panels; i++) {
        panel[i].query = scratch.take(PANEL * depth);
        panel[i].total = scratch.take(PANEL * p.value_dim);
        panel[i].lanes = std::min<int64_t>(PANEL, rows - i * PANEL);
        panel[i].clear(p.value_dim);
        pack_panel<T, M>(p.q.at<T>(b, head, start + i * PANEL), p.q.row, panel[i].lanes, p.dim, panel[i].query);
    }
    p.by_query.each(p.pattern(b, head) * p.tiles() + tile, [&](int64_t block, int64_t place) {
        int64_t base = block * p.keys_of_block, end = std::min(p.keys_of_block, p.keys - base);
        if (place >= 0)
            for (int64_t i = 0; i < panels; i++)
                mask[i].read(p, p.block_bits(place), i * PANEL, panel[i].lanes);
        for (int64_t key = 0; key < end; key += CHUNK) {
            int64_t count = std::min(CHUNK, end - key);
            auto keys = open<T, M>(p.k.at<T>(b, kv, base + key), p.k.row, count, p.dim, false, key_buffer);
            auto values = open<T, M>(p.v.at<T>(b, kv, base + key), p.v.row, count, p.value_dim, true, value_buffer);
            for (int64_t i = 0; i < panels; i++) {
                if (place >= 0 && !mask[i].keeps(key, count)) continue;
                with_vectors(panel[i].lanes, [&]<int C>() {
                    attend<T, M, C>(p, panel[i], keys, values, place >= 0 ? &mask[i] : nullptr, key, scores);
                });
            }
        }
    });
    for (int64_t i = 0; i < panels; i++) finish<T>(p, panel[i], b, head, start + i * PANEL);
}

template <class T, class M>
void forward(const Problem& p) {
    auto length = [&](int64_t item) {
        int64_t head = item / p.tiles() % p.heads, b = item / p.tiles() / p.heads;
        return p.by_query.length(p.pattern(b, head) * p.tiles() + item % p.tiles());
    };
    longest_first(p.batch * p.heads * p.tiles(), int(p.threads), length, [&](int64_t i) { forward_tile<T, M>(p, i); });
}

}  // namespace surgery
