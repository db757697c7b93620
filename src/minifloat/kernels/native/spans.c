/* Products of queries with packed keys, and weighted sums of packed values, a span of tokens at a time. A
   chunk is decoded once in registers and meets up to four queries. */

#include "cache.h"
#include "expand.h"

/* 16 numbers times the scales of their groups. */
static void scale_lanes(const span *s, int64_t chunk, int token, float *out) {
    const int32_t *places = s->of->places + 16 * chunk;
    const int64_t first = token * s->of->groups + s->of->bases[chunk];
    for (int j = 0; j < 16; j++) out[j] *= s->scales[first + places[j]];
    if (s->zeros)
        for (int j = 0; j < 16; j++) out[j] -= s->zeros[first + places[j]];
}

/* The numbers of a token, with their scales where a token has several. */
static void decode(const span *s, int token, float *out) {
    const states *of = s->of;
    const float *values = of->how->values;
    const int U = of->how->bits == 8 ? 1 : 2;
    for (int64_t c = 0; c < of->chunks; c++, out += 16 * U) {
        const uint8_t *codes = s->codes + token * of->bytes + 16 * c;
        uint8_t last[16] = {0};
        if (of->bytes - 16 * c < 16) codes = memcpy(last, codes, (size_t)(of->bytes - 16 * c));
        if (U == 1)
            for (int j = 0; j < 16; j++) out[j] = values[codes[j]];
        else
            for (int j = 0; j < 16; j++) out[j] = values[codes[j] & 15], out[16 + j] = values[codes[j] >> 4];
        for (int u = 0; u < U && !one_scale(of); u++) scale_lanes(s, c, token, out + 16 * u);
    }
}

/* The readable twins, and the path of other processors. */
static void products_plain(const span *keys, const float *q, int queries, float *p) {
    const int64_t room = keys->of->room;
    float number[room];
    for (int t = 0; t < keys->tokens; t++) {
        decode(keys, t, number);
        for (int h = 0; h < queries; h++) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t k = 0; k < room; k++) sum += q[h * room + k] * number[k];
            p[h * SPAN + t] = sum;
        }
    }
}

static void sums_plain(const span *values, const float *p, int queries, float *out) {
    const int64_t room = values->of->room;
    float number[room];
    memset(out, 0, (size_t)(queries * room) * sizeof(float));
    for (int t = 0; t < values->tokens; t++) {
        decode(values, t, number);
        for (int h = 0; h < queries; h++)
            for (int64_t k = 0; k < room; k++) out[h * room + k] += p[h * SPAN + t] * number[k];
    }
}

#ifdef MINIFLOAT_X86
#define INLINE static inline __attribute__((always_inline)) TARGET_AVX512
#define TOGETHER 4 /* tokens whose products are summed together */

/* How a chunk becomes numbers. */
enum code { NIBBLES, INTEGER_BYTES, FLOAT_BYTES };

typedef struct {
    __m512 values; /* of 4-bit codes */
    __m256i mask;  /* of 8-bit floats as fp16; the power of two that is then missing comes with the scales */
    __m128i shift;
} tables_of_code;

INLINE tables_of_code tables_for(const formats *how, enum code code) {
    tables_of_code t = {0};
    if (code == NIBBLES) t.values = _mm512_loadu_ps(how->values);
    t.mask = _mm256_set1_epi16((short)how->half_mask);
    t.shift = _mm_cvtsi32_si128(how->half_shift);
    return t;
}

/* One chunk's numbers. */
INLINE void numbers(const uint8_t *at, __mmask16 some, enum code code, const tables_of_code *t, __m512 *out) {
    const __m128i bytes = _mm_maskz_loadu_epi8(some, at);
    if (code == NIBBLES) {
        const __m512i pairs = _mm512_cvtepu8_epi32(bytes);
        out[0] = _mm512_permutexvar_ps(pairs, t->values);
        out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), t->values);
    } else if (code == INTEGER_BYTES) {
        out[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    } else {
        const __m256i half = _mm256_sll_epi16(_mm256_cvtepi8_epi16(bytes), t->shift);
        out[0] = _mm512_cvtph_ps(_mm256_and_si256(half, t->mask));
    }
}

/* The same times the scales of their groups. */
INLINE void scale_chunk(const span *s, int64_t chunk, int token, int U, __m512 *w) {
    const __m512i places = _mm512_loadu_si512(s->of->places + 16 * chunk);
    const int64_t g = token * s->of->groups + s->of->bases[chunk];
    const __m512 scales = _mm512_permutexvar_ps(places, _mm512_loadu_ps(s->scales + g));
    __m512 zeros = _mm512_setzero_ps();
    if (s->zeros) zeros = _mm512_permutexvar_ps(places, _mm512_loadu_ps(s->zeros + g));
    UNROLL for (int u = 0; u < U; u++) w[u] = _mm512_fmsub_ps(w[u], scales, zeros);
}

/* Which bytes of a chunk are a token's. */
INLINE __mmask16 bytes_of(const states *s, int64_t chunk) {
    const int64_t left = s->bytes - 16 * chunk;
    return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

/* The sums of the lanes of four registers. */
INLINE __m128 sum_four(const __m512 *x) {
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    const __m512 c = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    const __m256 d = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    return _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
}

/* Four tokens at a time; beyond the last one it is read again, and p has room for what comes of it. */
INLINE void products(enum code code, int grouped, int H, const span *keys, const float *q, float *p) {
    const states *of = keys->of;
    const tables_of_code tables = tables_for(of->how, code);
    const int U = code == NIBBLES ? 2 : 1;
    for (int t = 0; t < keys->tokens; t += TOGETHER) {
        __m512 sum[TILE][TOGETHER];
        UNROLL for (int h = 0; h < H; h++)
            UNROLL for (int i = 0; i < TOGETHER; i++) sum[h][i] = _mm512_setzero_ps();
        for (int64_t c = 0; c < of->chunks; c++) {
            const __mmask16 some = bytes_of(of, c);
            __m512 w[TOGETHER][2];
            UNROLL for (int i = 0; i < TOGETHER; i++) {
                const int token = t + i < keys->tokens ? t + i : keys->tokens - 1;
                numbers(keys->codes + token * of->bytes + 16 * c, some, code, &tables, w[i]);
                if (grouped) scale_chunk(keys, c, token, U, w[i]);
            }
            UNROLL for (int u = 0; u < U; u++)
                UNROLL for (int h = 0; h < H; h++) {
                    const __m512 x = _mm512_loadu_ps(q + h * of->room + (c * U + u) * 16);
                    UNROLL for (int i = 0; i < TOGETHER; i++)
                        sum[h][i] = _mm512_fmadd_ps(w[i][u], x, sum[h][i]);
                }
        }
        UNROLL for (int h = 0; h < H; h++) _mm_storeu_ps(p + h * SPAN + t, sum_four(sum[h]));
    }
}

/* The sums of C chunks from one on. */
INLINE void sum_chunks(enum code code, int grouped, int H, int C, const span *values, int64_t chunk,
                       const float *p, float *out) {
    const states *of = values->of;
    const tables_of_code tables = tables_for(of->how, code);
    const int U = code == NIBBLES ? 2 : 1;
    __m512 sum[TILE][4];
    __mmask16 some[4];
    UNROLL for (int c = 0; c < C; c++) some[c] = bytes_of(of, chunk + c);
    UNROLL for (int h = 0; h < H; h++)
        UNROLL for (int i = 0; i < C * U; i++) sum[h][i] = _mm512_setzero_ps();
    for (int t = 0; t < values->tokens; t++) {
        __m512 w[4];
        UNROLL for (int c = 0; c < C; c++) {
            numbers(values->codes + t * of->bytes + 16 * (chunk + c), some[c], code, &tables, w + c * U);
            if (grouped) scale_chunk(values, chunk + c, t, U, w + c * U);
        }
        UNROLL for (int h = 0; h < H; h++) {
            const __m512 weight = _mm512_set1_ps(p[h * SPAN + t]);
            UNROLL for (int i = 0; i < C * U; i++) sum[h][i] = _mm512_fmadd_ps(w[i], weight, sum[h][i]);
        }
    }
    UNROLL for (int h = 0; h < H; h++)
        UNROLL for (int i = 0; i < C * U; i++)
            _mm512_storeu_ps(out + h * of->room + (chunk * U + i) * 16, sum[h][i]);
}

INLINE void sums(enum code code, int grouped, int H, const span *values, const float *p, float *out) {
    enum { MOST = 4 };
    const int C = code == NIBBLES ? MOST / 2 : MOST;
    int64_t c = 0;
    for (; c + C <= values->of->chunks; c += C) sum_chunks(code, grouped, H, C, values, c, p, out);
    for (; c < values->of->chunks; c++) sum_chunks(code, grouped, H, 1, values, c, p, out);
}

/* A kernel for each number of queries, which are taken in tiles. */
#define KERNELS(CODE, GROUPED)                                                                            \
    static TARGET_AVX512 void products_##CODE##_##GROUPED(const span *keys, const float *q, int queries,  \
                                                          float *p) {                                     \
        for (int h = 0; h < queries; h += TILE, q += TILE * keys->of->room, p += TILE * SPAN)             \
            switch (least(TILE, queries - h)) {                                                           \
            case 1: products(CODE, GROUPED, 1, keys, q, p); break;                                        \
            case 2: products(CODE, GROUPED, 2, keys, q, p); break;                                        \
            case 3: products(CODE, GROUPED, 3, keys, q, p); break;                                        \
            default: products(CODE, GROUPED, 4, keys, q, p);                                              \
            }                                                                                             \
    }                                                                                                     \
    static TARGET_AVX512 void sums_##CODE##_##GROUPED(const span *values, const float *p, int queries,    \
                                                      float *out) {                                       \
        for (int h = 0; h < queries; h += TILE, p += TILE * SPAN, out += TILE * values->of->room)         \
            switch (least(TILE, queries - h)) {                                                           \
            case 1: sums(CODE, GROUPED, 1, values, p, out); break;                                        \
            case 2: sums(CODE, GROUPED, 2, values, p, out); break;                                        \
            case 3: sums(CODE, GROUPED, 3, values, p, out); break;                                        \
            default: sums(CODE, GROUPED, 4, values, p, out);                                              \
            }                                                                                             \
    }

KERNELS(NIBBLES, 0)
KERNELS(NIBBLES, 1)
KERNELS(INTEGER_BYTES, 0)
KERNELS(INTEGER_BYTES, 1)
KERNELS(FLOAT_BYTES, 0)
KERNELS(FLOAT_BYTES, 1)

static enum code code_kind(const formats *how) {
    return how->bits == 4 ? NIBBLES : how->half_shift == 0 ? INTEGER_BYTES : FLOAT_BYTES;
}
#endif

products_kernel mf_products(const states *keys, int level) {
#ifdef MINIFLOAT_X86
    static const products_kernel all[3][2] = {{products_NIBBLES_0, products_NIBBLES_1},
                                              {products_INTEGER_BYTES_0, products_INTEGER_BYTES_1},
                                              {products_FLOAT_BYTES_0, products_FLOAT_BYTES_1}};
    if (level >= AVX512) return all[code_kind(keys->how)][!one_scale(keys)];
#endif
    (void)keys, (void)level;
    return products_plain;
}

sums_kernel mf_sums(const states *values, int level) {
#ifdef MINIFLOAT_X86
    static const sums_kernel all[3][2] = {{sums_NIBBLES_0, sums_NIBBLES_1},
                                          {sums_INTEGER_BYTES_0, sums_INTEGER_BYTES_1},
                                          {sums_FLOAT_BYTES_0, sums_FLOAT_BYTES_1}};
    if (level >= AVX512) return all[code_kind(values->how)][!one_scale(values)];
#endif
    (void)values, (void)level;
    return sums_plain;
}
