// What block attention asks of vectors beyond arithmetic: 2^x, a test of any lane, a transpose in registers.
#pragma once

#include <utility>

#include "simd.hpp"

namespace surgery {

// 2^x, at most 1 ulp off where the result is normal; 2^-inf = 0.
inline f32v exp2(f32v x) {
    f32v y = x < splat(-160.0f) ? splat(-160.0f) : x;
#if defined(__AVX512F__)
    f32v n = (f32v)_mm512_roundscale_ps((__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    y = y > splat(127.9f) ? splat(127.9f) : y;
    f32v n = __builtin_convertvector(__builtin_convertvector(y + (y < 0 ? splat(-0.5f) : splat(0.5f)), i32v), f32v);
#endif
    f32v r = y - n;
    f32v p = splat(1.5353362e-4f);
    p = p * r + 1.3398875e-3f;
    p = p * r + 9.6184369e-3f;
    p = p * r + 5.5503324e-2f;
    p = p * r + 2.4022648e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (f32v)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    i32v power = (__builtin_convertvector(n, i32v) + 127) << 23;
    f32v scale;
    std::memcpy(&scale, &power, sizeof power);
    return y < splat(-126.0f) ? f32v{} : p * scale;
#endif
}

inline bool any(i32v lanes) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#else
    int32_t seen = 0;
    for (int i = 0; i < LANES; i++) seen |= lanes[i];
    return seen != 0;
#endif
}

inline i32v load(const int32_t* from) { i32v x; std::memcpy(&x, from, sizeof x); return x; }

template <int H, int... K>
inline void exchange(f32v& a, f32v& b, std::integer_sequence<int, K...>) {
    f32v low = __builtin_shufflevector(a, b, ((K & H) ? LANES + K - H : K)...);
    b = __builtin_shufflevector(a, b, ((K & H) ? LANES + K : K + H)...);
    a = low;
}

// Rows become columns; words are moved, never read as numbers.
template <int H = LANES / 2>
inline __attribute__((always_inline)) void transpose(f32v (&rows)[LANES]) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & H)) exchange<H>(rows[i], rows[i + H], std::make_integer_sequence<int, LANES>{});
    if constexpr (H > 1) transpose<H / 2>(rows);
}

}  // namespace surgery
