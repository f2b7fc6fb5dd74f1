// y [B, N] = silu(c) Wᵀ + b: the weight is read once, whatever the batch, sixteen of its rows to a panel.
#include "tile.hpp"

namespace surgery {

inline f32v silu(f32v x) { return x / (1.0f + exp(-x)); }

// A row of c as words, activated and rounded to c's dtype as a separate silu would.
template <class T> void activated(uint32_t* to, const T* c, int64_t elements, bool activate) {
    std::memcpy(to, c, elements * sizeof(T));
    if (elements % PER_WORD<T>) reinterpret_cast<T*>(to)[elements] = T{};
    if (!activate) return;
    for (int64_t k = 0; k < elements; k += LANES) {
        T part[LANES] = {};
        const int64_t count = std::min<int64_t>(LANES, elements - k);
        std::memcpy(part, c + k, count * sizeof(T));
        store(part, silu(load(part)));
        std::memcpy(reinterpret_cast<T*>(to) + k, part, count * sizeof(T));
    }
}

struct Sizes { int64_t batch, outputs, inputs; };

// Rows [first, first + R) of the batch by P panels that begin at output `column`.
template <class T, int R, int P>
void tile(T* out, const uint32_t* rows, int64_t row_stride, const uint32_t* panels, const T* bias, Sizes sizes,
          int64_t first, int64_t column) {
    const int64_t steps = words<T>(sizes.inputs);
    f32x16 acc[R][P] = {};
    accumulate<T, R, P>(acc, rows + first * row_stride, row_stride, 1, panels, steps * PANEL, PANEL, steps);
    for (int p = 0; p < P; p++) {
        const int64_t from = column + p * PANEL, count = sizes.outputs - from;
        if (count <= 0) break;
        const f32x16 shift = bias ? load_values(bias + from, count) : f32x16{};
        for (int r = 0; r < R; r++) store_part(out + (first + r) * sizes.outputs + from, acc[r][p] + shift, count);
    }
}

template <class T, int P, int R = ROWS>
void tiles(T* out, const uint32_t* rows, int64_t row_stride, const uint32_t* panels, const T* bias, Sizes sizes,
           int64_t first, int64_t column) {
    if (sizes.batch - first >= R) {
        tile<T, R, P>(out, rows, row_stride, panels, bias, sizes, first, column);
        first += R;
    }
    if constexpr (R > 1)
        if (sizes.batch - first < R) {
            if (first < sizes.batch) tiles<T, P, R - 1>(out, rows, row_stride, panels, bias, sizes, first, column);
            return;
        }
    if (first < sizes.batch) tiles<T, P, R>(out, rows, row_stride, panels, bias, sizes, first, column);
}

// stride: elements between rows of `weight`; negative where `weight` is in panels already.
template <class T>
void modulation(const T* c, int64_t c_stride, const void* weight, int64_t stride, const T* bias, T* out, Sizes sizes,
                bool activate, int threads) {
    const int64_t steps = words<T>(sizes.inputs), panel_count = (sizes.outputs + PANEL - 1) / PANEL;
    // Rows a power of two apart would share their cache sets.
    const int64_t row_stride = (steps + PANEL - 1) / PANEL * PANEL + PANEL;
    Scratch held;
    uint32_t* rows = held.words(sizes.batch * row_stride);
    parallel(sizes.batch, sizes.batch * sizes.inputs < 65536 ? 1 : threads, [&](int64_t b) {
        activated(rows + b * row_stride, c + b * c_stride, sizes.inputs, activate);
    });
    parallel((panel_count + PANELS - 1) / PANELS, threads, [&](int64_t group) {
        static thread_local Scratch panel_room;
        const int64_t from = group * PANELS, count = std::min<int64_t>(PANELS, panel_count - from);
        const uint32_t* panels = static_cast<const uint32_t*>(weight) + from * steps * PANEL;
        if (stride >= 0) {
            uint32_t* packed = panel_room.words(PANELS * steps * PANEL);
            for (int64_t p = 0; p < count; p++)
                pack(packed + p * steps * PANEL, static_cast<const T*>(weight) + (from + p) * PANEL * stride, stride,
                     std::min<int64_t>(PANEL, sizes.outputs - (from + p) * PANEL), sizes.inputs);
            panels = packed;
        }
        if (count == PANELS) return tiles<T, PANELS>(out, rows, row_stride, panels, bias, sizes, 0, from * PANEL);
        for (int64_t p = 0; p < count; p++)
            tiles<T, 1>(out, rows, row_stride, panels + p * steps * PANEL, bias, sizes, 0, (from + p) * PANEL);
    });
}

template <class T>
void pack_all(const T* weight, int64_t stride, uint32_t* packed, int64_t outputs, int64_t inputs, int threads) {
    parallel((outputs + PANEL - 1) / PANEL, threads, [&](int64_t p) {
        pack(packed + p * words<T>(inputs) * PANEL, weight + p * PANEL * stride, stride,
             std::min<int64_t>(PANEL, outputs - p * PANEL), inputs);
    });
}

}  // namespace surgery

using surgery::bf16;

SURGERY_EXPORT void modulation_f32(const float* c, int64_t c_stride, const void* weight, int64_t stride,
                                   const float* bias, float* out, int64_t batch, int64_t outputs, int64_t inputs,
                                   int activate, int threads) {
    surgery::modulation(c, c_stride, weight, stride, bias, out, {batch, outputs, inputs}, activate, threads);
}

SURGERY_EXPORT void modulation_bf16(const bf16* c, int64_t c_stride, const void* weight, int64_t stride,
                                    const bf16* bias, bf16* out, int64_t batch, int64_t outputs, int64_t inputs,
                                    int activate, int threads) {
    surgery::modulation(c, c_stride, weight, stride, bias, out, {batch, outputs, inputs}, activate, threads);
}

SURGERY_EXPORT void modulation_pack_f32(const float* weight, int64_t stride, uint32_t* packed, int64_t outputs,
                                        int64_t inputs, int threads) {
    surgery::pack_all(weight, stride, packed, outputs, inputs, threads);
}

SURGERY_EXPORT void modulation_pack_bf16(const bf16* weight, int64_t stride, uint32_t* packed, int64_t outputs,
                                         int64_t inputs, int threads) {
    surgery::pack_all(weight, stride, packed, outputs, inputs, threads);
}
