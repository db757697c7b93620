/* What the kernels share. Compiled without -march: each function names its instruction set, and the
   choice is made at run time. Every path adds the same products in its own order, so results differ by
   fp32's rounding; decoded weights do not differ at all. */

#ifndef MINIFLOAT_COMMON_H
#define MINIFLOAT_COMMON_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILE 4 /* tokens that share a decoded weight */

#if defined(__x86_64__) && defined(__GNUC__)
#define MINIFLOAT_X86
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define AVX2 __attribute__((target("avx2,fma,f16c")))

/* 16 bytes, or those that are left of a row and zeros. */
static inline __attribute__((target("sse2"))) __m128i load_bytes(const uint8_t *at, int64_t left) {
    if (left >= 16) return _mm_loadu_si128((const __m128i *)at);
    uint8_t bytes[16] = {0};
    memcpy(bytes, at, (size_t)left);
    return _mm_loadu_si128((const __m128i *)bytes);
}

/* A row kernel for any number of tokens up to TILE, out of one function for each: the compiler then
   keeps all their sums in registers. HOW is the type that says how a code is read. */
#define ROW_BY_TOKENS(NAME, HOW)                                                                  \
    static void NAME(const uint8_t *codes, const float *scales, const HOW *how, const float *x,   \
                     int64_t stride, int64_t columns, int64_t group, int tokens, float *out) {    \
        switch (tokens) {                                                                         \
        case 1: NAME##_1(codes, scales, how, x, stride, columns, group, out); break;              \
        case 2: NAME##_2(codes, scales, how, x, stride, columns, group, out); break;              \
        case 3: NAME##_3(codes, scales, how, x, stride, columns, group, out); break;              \
        default: NAME##_4(codes, scales, how, x, stride, columns, group, out);                    \
        }                                                                                         \
    }

static inline AVX2 float sum_lanes(__m256 x) {
    float lanes[8];
    _mm256_storeu_ps(lanes, x);
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}
#endif

/* 0 plain, 1 AVX2, 2 AVX-512: the best that runs here, or at most what is asked. */
int mf_level(int at_most);

#endif
