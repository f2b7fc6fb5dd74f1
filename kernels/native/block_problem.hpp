// What block attention is called with, and how its work is cut into tiles.
#pragma once

#include <numeric>
#include <vector>

#include "block_operand.hpp"

namespace surgery {

constexpr int64_t CHUNK = 64;  // rows taken at once: their scores with a panel stay in L1
constexpr float LOG2E = 1.44269504088896341f;

// One side of the index: the blocks of a row (or of a column, from the transposed index).
struct Index {
    const int32_t *full_ptr, *full_idx, *part_ptr, *part_idx, *part_map;

    int64_t length(int64_t row) const {
        return full_ptr[row + 1] - full_ptr[row] + part_ptr[row + 1] - part_ptr[row];
    }
    // body(block, place in part_bits or -1), blocks in ascending order.
    template <class Body>
    void each(int64_t row, const Body& body) const {
        int32_t whole = full_ptr[row], part = part_ptr[row];
        int32_t whole_end = full_ptr[row + 1], part_end = part_ptr[row + 1];
        while (whole < whole_end || part < part_end)
            if (part == part_end || (whole < whole_end && full_idx[whole] < part_idx[part])) {
                body(int64_t(full_idx[whole++]), int64_t(-1));
            } else {
                body(int64_t(part_idx[part]), int64_t(part_map ? part_map[part] : part));
                part++;
            }
    }
};

// Mirrored field by field by `Problem` in cpu/block_attention.py.
struct Problem {
    int64_t batch, heads, kv_heads, queries, keys, dim, value_dim, patterns, rows_of_block, keys_of_block, threads;
    double scale;
    Index by_query, by_key;
    const int32_t* bits;
    View q, k, v, out, grad_out, grad_q, grad_k, grad_v;
    float *lse, *level, *delta;  // [batch, heads, queries]

    int64_t tiles() const { return (queries + rows_of_block - 1) / rows_of_block; }
    int64_t key_tiles() const { return (keys + keys_of_block - 1) / keys_of_block; }
    int64_t words() const { return (keys_of_block + 31) / 32; }
    int64_t kv_head(int64_t head) const { return head / (heads / kv_heads); }
    int64_t pattern(int64_t b, int64_t head) const {
        return patterns == 1 ? 0 : patterns == heads ? head : b * heads + head;
    }
    int64_t at(int64_t b, int64_t head, int64_t row) const { return (b * heads + head) * queries + row; }
    float to_log2() const { return float(scale * double(LOG2E)); }
    const int32_t* block_bits(int64_t place) const { return bits + place * rows_of_block * words(); }
};

// Memory of one thread, kept between tiles. A tile says how much it needs, then takes it in pieces.
class Scratch {
    float* next;

public:
    explicit Scratch(size_t words) {
        static thread_local std::vector<float> held;
        size_t slack = 1024;  // for pieces rounded up to cache lines
        if (held.size() < words + slack) held = std::vector<float>(words + slack);
        next = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(held.data()) + 63) / 64 * 64);
    }
    float* take(int64_t words) {
        float* piece = next;
        next += (words + 15) / 16 * 16;
        return piece;
    }
};

// body(item) for every item, in parallel, the longest first so that none is left to run alone at the end.
template <class Length, class Body>
void longest_first(int64_t count, int threads, const Length& length, const Body& body) {
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), int64_t(0));
    if (threads > 1)
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
    parallel(count, threads, [&](int64_t place) { body(order[place]); });
}

// Masks of a block for a panel whose lanes are queries: words[w * PANEL + lane], and whether a chunk keeps anything.
struct QueryMask {
    alignas(64) int32_t words[4 * PANEL];

    void read(const Problem& p, const int32_t* bits, int64_t row, int64_t count) {
        int64_t per_row = p.words();
        std::memset(words, 0, sizeof words);
        for (int64_t i = 0; i < count; i++)
            for (int64_t w = 0; w < per_row; w++) words[w * PANEL + i] = bits[(row + i) * per_row + w];
    }
    bool keeps(int64_t key, int64_t count) const {
        uint32_t seen = 0;
        for (int64_t w = key / 32; w <= (key + count - 1) / 32; w++)
            for (int i = 0; i < PANEL; i++) seen |= uint32_t(words[w * PANEL + i]) >> (w == key / 32 ? key % 32 : 0);
        return seen != 0;
    }
    f32v apply(f32v score, int64_t key, int c) const {
        i32v kept = load(words + key / 32 * PANEL + c * LANES) & (int32_t(uint32_t(1) << key % 32));
        return kept != 0 ? score : splat(-INF);
    }
};

// The same for a panel whose lanes are keys, from the rows of the block as they lie.
struct KeyMask {
    const int32_t* bits;
    int64_t words, key;  // the panel's first key in the block

    f32v apply(f32v score, int64_t row, int c) const {
        int64_t first = key + c * LANES;
        i32v lane;
        for (int i = 0; i < LANES; i++) lane[i] = int32_t(1) << i;
        int32_t word = int32_t(uint32_t(bits[row * words + first / 32]) >> first % 32);
        i32v kept = lane & word;
        return kept != 0 ? score : splat(-INF);
    }
};

}  // namespace surgery
