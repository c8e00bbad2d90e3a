/* Numbers of the kinds that tensors have, and what is done to one of them. */

#pragma once
#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

enum Kind { BF16, INT8, FLOAT };
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

INLINE float number_at(const void *numbers, int kind, long i)
{
    if (kind == FLOAT) return ((const float *)numbers)[i];
    union { uint32_t bits; float number; } wide = {(uint32_t)((const uint16_t *)numbers)[i] << 16};
    return wide.number;
}

INLINE uint16_t rounded(float number)
{
    union { float number; uint32_t bits; } wide = {number};
    if (number != number) return 0x7FC0;
    return (uint16_t)((wide.bits + 0x7FFF + ((wide.bits >> 16) & 1)) >> 16);
}

/* A number as its kind holds it. */
INLINE float as_kind(float number, int kind)
{
    if (kind == FLOAT) return number;
    union { uint32_t bits; float number; } wide = {(uint32_t)rounded(number) << 16};
    return wide.number;
}

INLINE void put_at(void *numbers, int kind, long i, float number)
{
    if (kind == FLOAT) ((float *)numbers)[i] = number;
    else ((uint16_t *)numbers)[i] = rounded(number);
}

/* e to the x by a polynomial: within 2 units of the last place from -87 to 88; what is below counts
 * as -87, what is above is infinite. */
INLINE float exponential(float exponent)
{
    float x = exponent < -87.0f ? -87.0f : exponent > 88.0f ? 88.0f : exponent;
    float n = __builtin_rintf(x * 1.44269504f);
    float r = __builtin_fmaf(n, -0.693359375f, x);
    r = __builtin_fmaf(n, 2.12194440e-4f, r);
    float y = 1.9875691500e-4f;
    y = __builtin_fmaf(y, r, 1.3981999507e-3f);
    y = __builtin_fmaf(y, r, 8.3334519073e-3f);
    y = __builtin_fmaf(y, r, 4.1665795894e-2f);
    y = __builtin_fmaf(y, r, 1.6666665459e-1f);
    y = __builtin_fmaf(y, r, 5.0000001201e-1f);
    y = __builtin_fmaf(y * r, r, r) + 1.0f;
    union { uint32_t bits; float number; } power = {(uint32_t)((int)n + 127) << 23};
    return exponent > 88.0f ? __builtin_inff() : y * power.number;
}

