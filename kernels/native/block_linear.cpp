// Block-sparse y = x Wᵀ + b and its gradients; W in sorted BCSR of blocks [height, width], multiples of 16.
#include "tile.hpp"

#include <vector>

namespace surgery {

constexpr int TALLEST = 128;
constexpr int64_t DOTS = 4, BATCH_CHUNK = 64, STEP_CHUNK = 128;

struct Shape {
    int64_t batch, outputs, inputs, height, width, rows, columns;
};

// [batch, elements] cut into `count` blocks along its rows: [count][batch][size], zeros where the rows have ended.
template <class T>
void split_rows(uint32_t* to, const T* from, int64_t stride, int64_t batch, int64_t elements, int64_t size,
                int64_t count, int threads) {
    const int64_t block_words = size / PER_WORD<T>;
    parallel(batch, batch * elements < 65536 ? 1 : threads, [&](int64_t b) {
        for (int64_t block = 0; block < count; block++) {
            T* row = reinterpret_cast<T*>(to + (block * batch + b) * block_words);
            const int64_t here = std::max<int64_t>(0, std::min(size, elements - block * size));
            if (here) std::memcpy(row, from + b * stride + block * size, here * sizeof(T));
            std::memset(static_cast<void*>(row + here), 0, (size - here) * sizeof(T));
        }
    });
}

// The same with the batch as the summed dimension: [count][words(batch)][size].
template <class T>
void split_steps(uint32_t* to, const T* from, int64_t stride, int64_t batch, int64_t elements, int64_t size,
                 int64_t count, int threads) {
    const int64_t steps = words<T>(batch);
    parallel(steps, batch * elements < 65536 ? 1 : threads, [&](int64_t step) {
        const int64_t b = step * PER_WORD<T>;
        for (int64_t block = 0; block < count; block++) {
            uint32_t* row = to + (block * steps + step) * size;
            const int64_t here = std::max<int64_t>(0, std::min(size, elements - block * size));
            const T* first = from + b * stride + block * size;
            if (here) interleave(row, first, b + 1 < batch ? first + stride : nullptr, here);
            std::memset(row + here, 0, (size - here) * 4);
        }
    });
}

template <class T> struct Forward {
    const uint32_t* values;
    const int32_t* ptr;
    const int32_t* idx;
    const T* bias;
    T* y;
    Shape shape;
    int64_t block_words, row_words;

    // Block n from its row o on.
    const uint32_t* strip(int64_t n, int64_t o) const { return values + (n * shape.height + o) * block_words; }

    // 16 · P rows of the batch, packed into panels, against one row of blocks.
    template <int R, int P> void band(int64_t r, const uint32_t* panels, int64_t batch_from) const {
        alignas(64) f32x16 tile[TALLEST][P];
        for (int64_t o = 0; o < shape.height; o += R) {
            f32x16 acc[R][P] = {};
            for (int64_t n = ptr[r]; n < ptr[r + 1]; n++) {
                const uint32_t* block = strip(n, o);
                const uint32_t* ahead = n + 1 < ptr[r + 1] ? strip(n + 1, o) : strip(ptr[r], o + R);
                accumulate<T, R, P>(acc, block, block_words, 1, panels + idx[n] * block_words * PANEL,
                                    row_words * PANEL, PANEL, block_words, ahead);
            }
            for (int i = 0; i < R; i++)
                for (int p = 0; p < P; p++) tile[o + i][p] = acc[i][p];
        }
        for (int64_t o = 0; o < shape.height && r * shape.height + o < shape.outputs; o += PANEL)
            for (int p = 0; p < P; p++) {
                u32x16 square[PANEL];
                for (int i = 0; i < PANEL; i++) square[i] = (u32x16)tile[o + i][p];
                transpose(square);
                const int64_t from = r * shape.height + o, count = shape.outputs - from;
                const f32x16 shift = bias ? load_values(bias + from, count) : f32x16{};
                const int64_t first = batch_from + p * PANEL;
                for (int64_t b = 0; b < std::min<int64_t>(PANEL, shape.batch - first); b++)
                    store_part(y + (first + b) * shape.outputs + from, (f32x16)square[b] + shift, count);
            }
    }

    // B ≤ 4 rows of the batch as they are: dot products along the blocks' rows.
    template <int B> void dots(int64_t r, const uint32_t* x, int64_t batch_from) const {
        constexpr int O = 4;  // more streams at once, and memory gives less to each
        for (int64_t o = 0; o < shape.height && r * shape.height + o < shape.outputs; o += O) {
            f32v acc[O][B] = {};
            for (int64_t n = ptr[r]; n < ptr[r + 1]; n++) {
                const uint32_t* block = strip(n, o);
                const uint32_t* ahead = n + 1 < ptr[r + 1] ? strip(n + 1, o) : strip(ptr[r], o + O);
                for (int64_t k = 0; k < block_words; k += LANES) {
                    u32v row[B];
                    for (int b = 0; b < B; b++) row[b] = load_words(x + b * row_words + idx[n] * block_words + k);
                    for (int i = 0; i < O; i++) {
                        const u32v weight = load_words(block + i * block_words + k);
                        __builtin_prefetch(ahead + i * block_words + k);
                        for (int b = 0; b < B; b++) acc[i][b] = madd<T>(acc[i][b], row[b], weight);
                    }
                }
            }
            const int64_t from = r * shape.height + o;
            for (int b = 0; b < B; b++)
                for (int64_t i = 0; i < std::min<int64_t>(O, shape.outputs - from); i++)
                    assign(y[(batch_from + b) * shape.outputs + from + i],
                           sum(acc[i][b]) + (bias ? scalar(bias[from + i]) : 0.0f));
        }
    }
};

template <class T>
void forward(const T* x, int64_t stride, const T* values, const int32_t* ptr, const int32_t* idx, const T* bias, T* y,
             Shape shape, int threads) {
    const int64_t block_words = shape.width / PER_WORD<T>, row_words = shape.columns * block_words;
    const int64_t rest = shape.batch % PANEL, dot_rows = rest <= DOTS && block_words % LANES == 0 ? rest : 0;
    const int64_t panels = (shape.batch - dot_rows + PANEL - 1) / PANEL;
    Scratch held;
    uint32_t* packed = held.words(panels * row_words * PANEL + dot_rows * row_words);
    uint32_t* plain = packed + panels * row_words * PANEL;
    parallel(panels, threads, [&](int64_t p) {
        uint32_t* panel = packed + p * row_words * PANEL;
        pack(panel, x + p * PANEL * stride, stride, std::min<int64_t>(PANEL, shape.batch - p * PANEL), shape.inputs);
        const int64_t end = words<T>(shape.inputs);
        std::memset(panel + end * PANEL, 0, (row_words - end) * PANEL * 4);
    });
    const int64_t dots_from = shape.batch - dot_rows;
    for (int64_t b = 0; b < dot_rows; b++) {
        std::memset(plain + b * row_words, 0, row_words * 4);
        std::memcpy(plain + b * row_words, x + (dots_from + b) * stride, shape.inputs * sizeof(T));
    }
    const Forward<T> work{reinterpret_cast<const uint32_t*>(values), ptr, idx, bias, y, shape, block_words, row_words};
    const int64_t groups = (panels + PANELS - 1) / PANELS;
    parallel((groups + (dot_rows > 0)) * shape.rows, threads, [&](int64_t index) {
        const int64_t group = index / shape.rows, r = index % shape.rows;
        if (group == groups) {
            if (dot_rows == 1) work.template dots<1>(r, plain, dots_from);
            if (dot_rows == 2) work.template dots<2>(r, plain, dots_from);
            if (dot_rows == 3) work.template dots<3>(r, plain, dots_from);
            if (dot_rows == 4) work.template dots<4>(r, plain, dots_from);
            return;
        }
        const int64_t from = group * PANELS, count = std::min<int64_t>(PANELS, panels - from);
        const uint32_t* here = packed + from * row_words * PANEL;
        if (count == 3) work.template band<ROWS, 3>(r, here, from * PANEL);
        if (count == 2) work.template band<ROWS, 2>(r, here, from * PANEL);
        if (count == 1) work.template band<TALL, 1>(r, here, from * PANEL);
    });
}

// The gradient of x, g W, by columns of blocks.
template <class T> struct InputGradient {
    const uint32_t* grads;
    const int32_t* idx;
    T* dx;
    Shape shape;

    // Up to R rows of the batch by P panels of one column of blocks, whose panels begin at `panels[n]`.
    template <int R, int P>
    void tile(int64_t column, int64_t from, int64_t to, const uint32_t* const* panels, int64_t b, int64_t i) const {
        const int64_t steps = shape.height / PER_WORD<T>;
        f32x16 acc[R][P] = {};
        for (int64_t n = from; n < to; n++)
            accumulate<T, R, P>(acc, grads + (idx[n] * shape.batch + b) * steps, steps, 1, panels[n - from] + i, PANEL,
                                shape.width, steps);
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) {
                const int64_t at = column * shape.width + i + p * PANEL, count = shape.inputs - at;
                if (count > 0) store_part(dx + (b + r) * shape.inputs + at, acc[r][p], count);
            }
    }

    template <int P, int R = ROWS>
    void tiles(int64_t column, int64_t from, int64_t to, const uint32_t* const* panels, int64_t b, int64_t end,
               int64_t i) const {
        for (; end - b >= R; b += R) tile<R, P>(column, from, to, panels, b, i);
        if constexpr (R > 1)
            if (b < end) tiles<P, R - 1>(column, from, to, panels, b, end, i);
    }
};

template <class T>
void input_gradient(const T* grad, int64_t stride, const T* values, const int32_t* ptr_t, const int32_t* idx_t,
                    const int32_t* map_t, T* dx, Shape shape, int threads) {
    Scratch held;
    uint32_t* grads = held.words(shape.rows * shape.batch * shape.height / PER_WORD<T>);
    split_rows(grads, grad, stride, shape.batch, shape.outputs, shape.height, shape.rows, threads);
    const InputGradient<T> work{grads, idx_t, dx, shape};
    const int64_t steps = shape.height / PER_WORD<T>, chunks = (shape.batch + BATCH_CHUNK - 1) / BATCH_CHUNK;
    parallel(chunks * shape.columns, threads, [&](int64_t index) {
        static thread_local Scratch room;
        const int64_t column = index % shape.columns, from = ptr_t[column], to = ptr_t[column + 1];
        std::vector<const uint32_t*> panels(to - from);
        uint32_t* woven = PER_WORD<T> == 1 ? nullptr : room.words((to - from) * steps * shape.width);
        for (int64_t n = from; n < to; n++) {
            const T* block = values + map_t[n] * shape.height * shape.width;
            panels[n - from] = reinterpret_cast<const uint32_t*>(block);
            if (PER_WORD<T> == 1) continue;
            uint32_t* to_panel = woven + (n - from) * steps * shape.width;
            for (int64_t k = 0; k < steps; k++)
                interleave(to_panel + k * shape.width, block + 2 * k * shape.width, block + (2 * k + 1) * shape.width,
                           shape.width);
            panels[n - from] = to_panel;
        }
        const int64_t b = index / shape.columns * BATCH_CHUNK, end = std::min(b + BATCH_CHUNK, shape.batch);
        const bool pairs = shape.width % (PAIR * PANEL) == 0;
        for (int64_t i = 0; i < shape.width; i += pairs ? PAIR * PANEL : PANEL) {
            if (pairs) work.template tiles<PAIR>(column, from, to, panels.data(), b, end, i);
            else work.template tiles<1>(column, from, to, panels.data(), b, end, i);
        }
    });
}

// The gradient of one kept block, gᵀ x there: sums over the batch in steps, so that what they read stays near.
template <class T, int P>
void block_gradient(T* to, float* sums, const uint32_t* grads, const uint32_t* inputs, Shape shape) {
    const int64_t steps = words<T>(shape.batch);
    std::memset(sums, 0, shape.height * shape.width * sizeof(float));
    for (int64_t k = 0; k < steps; k += STEP_CHUNK)
        for (int64_t o = 0; o < shape.height; o += ROWS)
            for (int64_t i = 0; i < shape.width; i += P * PANEL) {
                f32x16 acc[ROWS][P];
                float* at = sums + o * shape.width + i;
                for (int r = 0; r < ROWS; r++) std::memcpy(acc[r], at + r * shape.width, sizeof acc[r]);
                accumulate<T, ROWS, P>(acc, grads + k * shape.height + o, 1, shape.height, inputs + k * shape.width + i,
                                       PANEL, shape.width, std::min(STEP_CHUNK, steps - k));
                for (int r = 0; r < ROWS; r++) std::memcpy(at + r * shape.width, acc[r], sizeof acc[r]);
            }
    for (int64_t i = 0; i < shape.height * shape.width; i += PANEL) {
        f32x16 part;
        std::memcpy(&part, sums + i, sizeof part);
        store_part(to + i, part, PANEL);
    }
}

template <class T>
void values_gradient(const T* grad, int64_t grad_stride, const T* x, int64_t x_stride, const int32_t* ptr,
                     const int32_t* idx, T* dvalues, Shape shape, int threads) {
    Scratch held;
    const int64_t steps = words<T>(shape.batch), grad_words = shape.rows * steps * shape.height;
    uint32_t* grads = held.words(grad_words + shape.columns * steps * shape.width);
    uint32_t* inputs = grads + grad_words;
    split_steps(grads, grad, grad_stride, shape.batch, shape.outputs, shape.height, shape.rows, threads);
    split_steps(inputs, x, x_stride, shape.batch, shape.inputs, shape.width, shape.columns, threads);
    parallel(shape.rows, threads, [&](int64_t r) {
        static thread_local Scratch room;
        const int64_t size = shape.height * shape.width;
        float* sums = reinterpret_cast<float*>(room.words(size));
        for (int64_t n = ptr[r]; n < ptr[r + 1]; n++) {
            const uint32_t* left = grads + r * steps * shape.height;
            const uint32_t* right = inputs + idx[n] * steps * shape.width;
            T* to = dvalues + n * size;
            if (shape.width % (PAIR * PANEL) == 0) block_gradient<T, PAIR>(to, sums, left, right, shape);
            else block_gradient<T, 1>(to, sums, left, right, shape);
        }
    });
}

}  // namespace surgery

using surgery::bf16;
using surgery::Shape;

#define BLOCK_LINEAR(T, NAME)                                                                                          \
    SURGERY_EXPORT void block_linear_##NAME(const T* x, int64_t stride, const T* values, const int32_t* ptr,           \
                                            const int32_t* idx, const T* bias, T* y, const Shape* shape,               \
                                            int threads) {                                                             \
        surgery::forward(x, stride, values, ptr, idx, bias, y, *shape, threads);                                       \
    }                                                                                                                  \
    SURGERY_EXPORT void block_linear_dx_##NAME(const T* grad, int64_t stride, const T* values, const int32_t* ptr_t,   \
                                               const int32_t* idx_t, const int32_t* map_t, T* dx, const Shape* shape,  \
                                               int threads) {                                                          \
        surgery::input_gradient(grad, stride, values, ptr_t, idx_t, map_t, dx, *shape, threads);                       \
    }                                                                                                                  \
    SURGERY_EXPORT void block_linear_dvalues_##NAME(const T* grad, int64_t grad_stride, const T* x, int64_t x_stride,  \
                                                    const int32_t* ptr, const int32_t* idx, T* dvalues,                \
                                                    const Shape* shape, int threads) {                                 \
        surgery::values_gradient(grad, grad_stride, x, x_stride, ptr, idx, dvalues, *shape, threads);                  \
    }

BLOCK_LINEAR(float, f32)
BLOCK_LINEAR(bf16, bf16)
