// Vectors as wide as the processor's, loads and stores of the dtypes that kernels take, exp, and a parallel loop.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define SURGERY_EXPORT extern "C" __attribute__((visibility("default")))

namespace surgery {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float f32v __attribute__((vector_size(LANES * 4)));
typedef int32_t i32v __attribute__((vector_size(LANES * 4)));
typedef uint32_t u32v __attribute__((vector_size(LANES * 4)));
typedef uint16_t u16v __attribute__((vector_size(LANES * 2)));

struct bf16 { uint16_t bits; };

constexpr float INF = std::numeric_limits<float>::infinity();

inline f32v splat(float x) { return f32v{} + x; }

inline f32v load(const float* from) { f32v x; std::memcpy(&x, from, sizeof x); return x; }

inline f32v load(const bf16* from) {
    u16v half; std::memcpy(&half, from, sizeof half);
    u32v wide = __builtin_convertvector(half, u32v) << 16;
    f32v x; std::memcpy(&x, &wide, sizeof x); return x;
}

inline void store(float* to, f32v x) { std::memcpy(to, &x, sizeof x); }

// Round to nearest, ties to even; NaN stays NaN.
inline void store(bf16* to, f32v x) {
    u32v bits; std::memcpy(&bits, &x, sizeof x);
    u32v rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    u32v nan = (u32v)(x != x);
    u16v half = __builtin_convertvector((rounded & ~nan) | (nan & 0x7FC0u), u16v);
    std::memcpy(to, &half, sizeof half);
}

inline float scalar(float x) { return x; }
inline float scalar(bf16 x) { uint32_t wide = uint32_t(x.bits) << 16; float y; std::memcpy(&y, &wide, 4); return y; }

inline void assign(float& to, float x) { to = x; }
inline void assign(bf16& to, float x) {
    uint32_t bits; std::memcpy(&bits, &x, 4);
    to.bits = x != x ? 0x7FC0 : uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float sum(f32v x) { float total = 0; for (int i = 0; i < LANES; i++) total += x[i]; return total; }
inline float maximum(f32v x) { float top = x[0]; for (int i = 1; i < LANES; i++) top = std::max(top, x[i]); return top; }
inline f32v larger(f32v a, f32v b) { return a > b ? a : b; }

// e^x, at most 2 ulp off where the result is normal; below -87.3 it is 0, so exp(-inf) = 0.
inline f32v exp(f32v x) {
    const f32v low = splat(-87.33654f), high = splat(88.72283f);
    i32v under = x < low;
    f32v y = x > high ? high : (x < low ? low : x);
    f32v n = y * 1.44269504088896341f;
    n = __builtin_convertvector(__builtin_convertvector(n + (n < 0 ? splat(-0.5f) : splat(0.5f)), i32v), f32v);
    f32v r = y - n * 0.693359375f + n * 2.12194440e-4f;
    f32v p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    i32v power = (__builtin_convertvector(n, i32v) + 127) << 23;
    f32v scale; std::memcpy(&scale, &power, sizeof power);
    f32v e = p * scale;
    return under ? f32v{} : e;
}

// body(index) for index in [0, count), in parallel. Each index writes what no other does, so any number of threads
// gives the same bits.
template <class Body>
inline void parallel(int64_t count, int threads, const Body& body) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && count > 1)
#endif
    for (int64_t index = 0; index < count; index++) body(index);
}

}  // namespace surgery
