// The gates of gated attention and their noise, a vector of keys at a time; kernels/reference/gated_noise.py says which.
#pragma once

#include "simd.hpp"

namespace surgery {

template <class U> inline U mix(U x) {
    x ^= x >> 16; x *= 0x7FEB352Du; x ^= x >> 15; x *= 0x846CA68Bu; return x ^ (x >> 16);
}

struct Noise {
    uint32_t head;
    Noise(int64_t seed, int64_t line) {
        uint32_t state = mix(mix(uint32_t(seed) ^ 0x9E3779B9u) ^ uint32_t(uint64_t(seed) >> 32));
        head = mix(state ^ uint32_t(line));
    }
    uint32_t row(int64_t i) const { return mix(head ^ uint32_t(i)); }
};

inline void column_keys(uint32_t* keys, int64_t first, int64_t count) {
    for (int64_t j = 0; j < count; j++) keys[j] = mix(uint32_t(first + j) ^ 0x85EBCA6Bu);
}

inline f32v uniform(uint32_t row, const uint32_t* column) {
    u32v bits; std::memcpy(&bits, column, sizeof bits);
    bits = mix(bits ^ row) >> 9;
    return (__builtin_convertvector((i32v)bits, f32v) + 0.5f) * 0x1p-23f;
}

// ln x of positive normal x, about 1 ulp (Cephes).
inline f32v logarithm(f32v x) {
    i32v bits; std::memcpy(&bits, &x, sizeof x);
    i32v power = ((bits - 0x3F3504F3) >> 23);
    i32v reduced = bits - (power << 23);
    f32v m; std::memcpy(&m, &reduced, sizeof m);
    f32v e = __builtin_convertvector(power, f32v), y = m - 1.0f, z = y * y;
    f32v p = splat(7.0376836292e-2f);
    p = p * y - 1.1514610310e-1f;
    p = p * y + 1.1676998740e-1f;
    p = p * y - 1.2420140846e-1f;
    p = p * y + 1.4249322787e-1f;
    p = p * y - 1.6668057665e-1f;
    p = p * y + 2.0000714765e-1f;
    p = p * y - 2.4999993993e-1f;
    p = p * y + 3.3333331174e-1f;
    p = p * y * z + e * -2.12194440e-4f - 0.5f * z;
    return y + p + e * 0.693359375f;
}

struct Gate { i32v open; f32v soft; };

// The gate at z with noise ln(u / (1 - u)); `odds` is exp(-z). At temperature 1 it takes no logarithm.
template <bool WARM> inline Gate gate(f32v z, f32v odds, f32v u, float inverse) {
    f32v rest = 1.0f - u;
    if constexpr (WARM) {
        f32v noisy = z + (logarithm(u) - logarithm(rest));
        return {noisy > 0, 1.0f / (1.0f + exp(noisy * -inverse))};
    }
    f32v closed = odds * rest;
    return {closed < u, u / (u + closed)};
}

}  // namespace surgery
