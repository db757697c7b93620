/* Dwords of codes to units, sixteen at a time: one shift and one look-up in registers (AVX-512). Codes
   of 6 bits lie at the upper ends of bytes. */

#ifndef MINIFLOAT_EXPAND_H
#define MINIFLOAT_EXPAND_H

#include "tokens.h"

#ifdef MINIFLOAT_X86
/* Tables in registers; a kernel uses those of its engine. */
typedef struct {
    __m512 values;    /* of 4-bit codes */
    __m512i brains;   /* of 4-bit codes, twice */
    __m512i levels;   /* of 4-bit codes, four times */
    __m512i wide[8];  /* bf16 of 8-bit codes; the first two of 6-bit codes */
    __m256i mask;     /* of 8-bit codes as fp16 */
    __m128i shift;
    __m512 factor;    /* the power of two that is then missing */
    int integer;      /* 8-bit codes are integers */
} tables;

static inline __attribute__((always_inline)) TARGET_AVX512 tables
tables_of(const formats *how, enum engine engine, int bits) {
    const __m128i levels = _mm_loadu_si128((const __m128i *)how->levels);
    tables t;
    if (engine == REALS && bits == 4) t.values = _mm512_loadu_ps(how->values);
    if (engine == BYTES) t.levels = _mm512_broadcast_i32x4(levels);
    if (engine == BRAINS && bits == 4)
        t.brains = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)how->brains));
    if (engine == BRAINS && bits != 4)
        UNROLL for (int i = 0; i < 2; i++) t.wide[i] = _mm512_loadu_si512(how->brains + 32 * i);
    if (engine == BRAINS && bits == 8)
        UNROLL for (int i = 2; i < 8; i++) t.wide[i] = _mm512_loadu_si512(how->brains + 32 * i);
    t.integer = how->half_shift == 0;
    t.mask = _mm256_set1_epi16((short)how->half_mask);
    t.shift = _mm_cvtsi32_si128(how->half_shift);
    t.factor = _mm512_set1_ps(how->half_factor);
    return t;
}

#define EXPAND static inline __attribute__((always_inline)) TARGET_AVX512 __m512i

EXPAND reals_4(__m512i codes, int i, const tables *t) {
    return _mm512_castps_si512(_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * i), t->values));
}

EXPAND reals_8(__m512i codes, int i, const tables *t) {
    __m128i bytes = _mm512_cvtepi32_epi8(_mm512_srli_epi32(codes, 8 * i));
    if (t->integer) return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
    __m256i half = _mm256_and_si256(_mm256_sll_epi16(_mm256_cvtepi8_epi16(bytes), t->shift), t->mask);
    return _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtph_ps(half), t->factor));
}

EXPAND reals_6(__m512i codes, int i, const tables *t) {
    const __m512i y = reals_8(codes, i, t); /* which leaves integers four times too large */
    return t->integer ? _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(y), t->factor)) : y;
}

EXPAND bytes_4(__m512i codes, int i, const tables *t) {
    const __m512i nibbles = _mm512_set1_epi8(15);
    return _mm512_shuffle_epi8(t->levels, _mm512_and_si512(_mm512_srli_epi32(codes, 4 * i), nibbles));
}

EXPAND bytes_8(__m512i codes, int i, const tables *t) {
    (void)i, (void)t;
    return _mm512_xor_si512(codes, _mm512_set1_epi8((char)128));
}

EXPAND brains_4(__m512i codes, int i, const tables *t) {
    return _mm512_permutexvar_epi16(_mm512_srli_epi32(codes, 4 * i), t->brains);
}

EXPAND brains_6(__m512i codes, int i, const tables *t) {
    return _mm512_permutex2var_epi16(t->wide[0], _mm512_srli_epi32(codes, 8 * i + 2), t->wide[1]);
}

/* Four look-ups of 64 values each; the two highest bits choose among them. */
EXPAND brains_8(__m512i codes, int i, const tables *t) {
    const __m512i at = _mm512_and_si512(_mm512_srli_epi32(codes, 8 * i), _mm512_set1_epi16(255));
    const __mmask32 second = _mm512_test_epi16_mask(at, _mm512_set1_epi16(64));
    const __mmask32 upper = _mm512_test_epi16_mask(at, _mm512_set1_epi16(128));
    __m512i a = _mm512_permutex2var_epi16(t->wide[0], at, t->wide[1]);
    __m512i b = _mm512_permutex2var_epi16(t->wide[2], at, t->wide[3]);
    __m512i c = _mm512_permutex2var_epi16(t->wide[4], at, t->wide[5]);
    __m512i d = _mm512_permutex2var_epi16(t->wide[6], at, t->wide[7]);
    return _mm512_mask_blend_epi16(upper, _mm512_mask_blend_epi16(second, a, b),
                                   _mm512_mask_blend_epi16(second, c, d));
}

/* A product and sum of units, as one instruction each. The compiler spills large tiles of sums of its own
   forms; assembly keeps them in registers. */
#define SUM_REALS(sum, w, x) __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x))
#define SUM_BYTES(sum, w, x) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x))
#define SUM_BRAINS(sum, w, x) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x))

/* A sum as fp32. */
#define REAL_REALS(sum) _mm512_castsi512_ps(sum)
#define REAL_BRAINS(sum) _mm512_castsi512_ps(sum)
#define REAL_BYTES(sum) _mm512_cvtepi32_ps(sum)

/* Which of 64 bytes are left of a row. */
static inline __attribute__((always_inline)) __mmask64 bytes_left(int64_t left) {
    return left >= 64 ? ~0ull : left <= 0 ? 0 : ~0ull >> (64 - left);
}

/* Sixteen dwords of codes from up to 48 bytes of 6-bit codes: three bytes hold four. */
static inline __attribute__((always_inline)) TARGET_AVX512 __m512i spread(__m512i codes) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 15, 3, 4, 5, 15, 6, 7, 8, 15, 9, 10, 11, 15);
    const __m128i triples = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    const __m512i d = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, codes),
                                          _mm512_broadcast_i32x4(triples));
    const __m512i a = _mm512_and_si512(_mm512_slli_epi32(d, 2), _mm512_set1_epi32(0xfc));
    const __m512i b = _mm512_and_si512(_mm512_slli_epi32(d, 4), _mm512_set1_epi32(0xfc00));
    const __m512i c = _mm512_and_si512(_mm512_slli_epi32(d, 6), _mm512_set1_epi32(0xfc0000));
    const __m512i e = _mm512_and_si512(_mm512_slli_epi32(d, 8), _mm512_set1_epi32((int)0xfc000000));
    return _mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, e));
}

/* Sixteen dwords of codes, or those that are left of a row and zeros. */
static inline __attribute__((always_inline)) TARGET_AVX512 __m512i load_codes(const uint8_t *at,
                                                                              int64_t left, int bits) {
    const __m512i codes =
        left >= 64 ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi8(bytes_left(left), at);
    return bits == 6 ? spread(codes) : codes;
}
#endif
#endif
