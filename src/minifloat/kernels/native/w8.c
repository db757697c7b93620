/* Packed 8-bit weights on the CPU: y = x W^T with W decoded in registers.

   A byte becomes fp32 without a table. An integer is converted. A float's sign, exponent and fraction
   are moved to fp16's places (sign-extend, shift, clear the copies of the sign) and the processor
   converts fp16, subnormals included; the power of two that is then missing joins the scale. */

#include "common.h"

#define STEP 16 /* columns of one step */

/* How to read a byte: shift 0 is an integer; `factor` is the missing power of two; plain C looks the
   exact values up instead. */
typedef struct {
    int shift, mask;
    float factor;
    const float *table;
} reader;

typedef void (*row_kernel)(const uint8_t *codes, const float *scales, const reader *read,
                           const float *x, int64_t stride, int64_t columns, int64_t group,
                           int tokens, float *out);

static void row_plain(const uint8_t *codes, const float *scales, const reader *read, const float *x,
                      int64_t stride, int64_t columns, int64_t group, int tokens, float *out) {
    for (int t = 0; t < tokens; t++) {
        float total = 0;
        for (int64_t start = 0, g = 0; start < columns; start += group, g++) {
            int64_t end = start + group < columns ? start + group : columns;
            float sum = 0;
            for (int64_t k = start; k < end; k++) sum += read->table[codes[k]] * x[t * stride + k];
            total += sum * scales[g];
        }
        out[t] = total;
    }
}

#ifdef MINIFLOAT_X86
static inline AVX512 __m512 values_avx512(__m128i raw, int shift, __m256i mask) {
    if (shift == 0) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw));
    __m256i wide = _mm256_sll_epi16(_mm256_cvtepi8_epi16(raw), _mm_cvtsi32_si128(shift));
    return _mm512_cvtph_ps(_mm256_and_si256(wide, mask));
}

#define ROW_AVX512(T)                                                                             \
    static AVX512 void row_avx512_##T(const uint8_t *codes, const float *scales,                  \
                                      const reader *read, const float *x, int64_t stride,         \
                                      int64_t columns, int64_t group, float *out) {               \
        const __m256i mask = _mm256_set1_epi16((short)read->mask);                                \
        __m512 total[T];                                                                          \
        for (int t = 0; t < T; t++) total[t] = _mm512_setzero_ps();                               \
        for (int64_t start = 0, g = 0; start < columns; start += group, g++) {                    \
            int64_t end = start + group < columns ? start + group : columns;                      \
            __m512 sum[T];                                                                        \
            for (int t = 0; t < T; t++) sum[t] = _mm512_setzero_ps();                             \
            for (int64_t k = start; k < end; k += STEP) {                                         \
                __m128i raw = load_bytes(codes + k, columns - k);                                 \
                __m512 w = values_avx512(raw, read->shift, mask);                                 \
                for (int t = 0; t < T; t++)                                                       \
                    sum[t] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + t * stride + k), sum[t]);     \
            }                                                                                     \
            __m512 scale = _mm512_set1_ps(scales[g] * read->factor);                              \
            for (int t = 0; t < T; t++) total[t] = _mm512_fmadd_ps(sum[t], scale, total[t]);      \
        }                                                                                         \
        for (int t = 0; t < T; t++) out[t] = _mm512_reduce_add_ps(total[t]);                      \
    }

ROW_AVX512(1)
ROW_AVX512(2)
ROW_AVX512(3)
ROW_AVX512(4)

ROW_BY_TOKENS(row_avx512, reader)

static inline AVX2 __m256 values_avx2(__m128i raw, int shift, __m128i mask) {
    if (shift == 0) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw));
    __m128i wide = _mm_sll_epi16(_mm_cvtepi8_epi16(raw), _mm_cvtsi32_si128(shift));
    return _mm256_cvtph_ps(_mm_and_si128(wide, mask));
}

static AVX2 void row_avx2(const uint8_t *codes, const float *scales, const reader *read,
                          const float *x, int64_t stride, int64_t columns, int64_t group, int tokens,
                          float *out) {
    const __m128i mask = _mm_set1_epi16((short)read->mask);
    __m256 total[TILE];
    for (int t = 0; t < tokens; t++) total[t] = _mm256_setzero_ps();
    for (int64_t start = 0, g = 0; start < columns; start += group, g++) {
        int64_t end = start + group < columns ? start + group : columns;
        __m256 sum[TILE];
        for (int t = 0; t < tokens; t++) sum[t] = _mm256_setzero_ps();
        for (int64_t k = start; k < end; k += STEP) {
            __m128i raw = load_bytes(codes + k, columns - k);
            __m256 first = values_avx2(raw, read->shift, mask);
            __m256 second = values_avx2(_mm_srli_si128(raw, 8), read->shift, mask);
            for (int t = 0; t < tokens; t++) {
                const float *at = x + t * stride + k;
                sum[t] = _mm256_fmadd_ps(first, _mm256_loadu_ps(at), sum[t]);
                sum[t] = _mm256_fmadd_ps(second, _mm256_loadu_ps(at + 8), sum[t]);
            }
        }
        __m256 scale = _mm256_set1_ps(scales[g] * read->factor);
        for (int t = 0; t < tokens; t++) total[t] = _mm256_fmadd_ps(sum[t], scale, total[t]);
    }
    for (int t = 0; t < tokens; t++) out[t] = sum_lanes(total[t]);
}
#endif

static row_kernel kernel_of(int level) {
#ifdef MINIFLOAT_X86
    if (level == 2) return row_avx512;
    if (level == 1) return row_avx2;
#endif
    return row_plain;
}

/* out [tokens, rows] = x [tokens, columns] W^T for codes [rows, columns]. Returns 0, or 1 without
   memory. `group` is a multiple of 16, or at least `columns`; `table` holds the 256 exact values. */
int mf_linear_w8(const float *x, const uint8_t *codes, const float *scales, const float *table,
                 float *out, int64_t tokens, int64_t rows, int64_t columns, int64_t group, int shift,
                 int mask, float factor, int level, int threads) {
    const int64_t padded = (columns + STEP - 1) / STEP * STEP;
    const int64_t groups = (columns + group - 1) / group;
    const reader read = {shift, mask, factor, table};
    const row_kernel kernel = kernel_of(level);
    float *copy = NULL;
    if (padded != columns) {
        copy = calloc((size_t)(tokens * padded), sizeof(float));
        if (!copy) return 1;
        for (int64_t t = 0; t < tokens; t++)
            memcpy(copy + t * padded, x + t * columns, (size_t)columns * sizeof(float));
        x = copy;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t t = 0; t < tokens; t += TILE) {
            int count = tokens - t < TILE ? (int)(tokens - t) : TILE;
            float y[TILE];
            kernel(codes + row * columns, scales + row * groups, &read, x + t * padded, padded,
                   columns, group, count, y);
            for (int i = 0; i < count; i++) out[(t + i) * rows + row] = y[i];
        }
    free(copy);
    return 0;
}
