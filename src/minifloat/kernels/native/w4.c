/* Packed 4-bit weights on the CPU: y = x W^T with W decoded in registers, never in memory.

   W is [rows, columns] of 4-bit codes, two a byte, the even column in the low nibble, each row on a
   byte of its own; a group of columns shares a scale. Any 4-bit format is a table of 16 floats, so
   E2M1, E3M0, INT4 and NF4 are one kernel. Two columns of a byte are looked up apart: activations are
   split into even and odd columns once, and nothing is shuffled in the inner loop. */

#include "common.h"

#define STEP 32 /* columns of one step: 16 bytes of codes, two vectors of 16 floats */

typedef void (*row_kernel)(const uint8_t *codes, const float *scales, const float *table,
                           const float *x, int64_t stride, int64_t columns, int64_t group,
                           int tokens, float *out);

/* The readable twin, and the path of other processors. x: tokens of [even | odd] halves a step. */
static void row_plain(const uint8_t *codes, const float *scales, const float *table, const float *x,
                      int64_t stride, int64_t columns, int64_t group, int tokens, float *out) {
    for (int t = 0; t < tokens; t++) {
        float total = 0;
        for (int64_t start = 0, g = 0; start < columns; start += group, g++) {
            int64_t end = start + group < columns ? start + group : columns;
            float sum = 0;
            for (int64_t k = start; k < end; k++) {
                uint8_t byte = codes[k / 2];
                int64_t at = k / STEP * STEP + k % 2 * (STEP / 2) + k % STEP / 2;
                sum += table[k % 2 ? byte >> 4 : byte & 15] * x[t * stride + at];
            }
            total += sum * scales[g];
        }
        out[t] = total;
    }
}

/* Decodes columns [start, end) of a row, `start` on a step, all under one scale. */
typedef void (*span_decoder)(const uint8_t *codes, float scale, const float *table, int64_t start,
                             int64_t end, float *out);

static void decode_plain(const uint8_t *codes, float scale, const float *table, int64_t start,
                         int64_t end, float *out) {
    for (int64_t k = start; k < end; k++)
        out[k] = table[k % 2 ? codes[k / 2] >> 4 : codes[k / 2] & 15] * scale;
}

#ifdef MINIFLOAT_X86
#define ROW_AVX512(T)                                                                             \
    static AVX512 void row_avx512_##T(const uint8_t *codes, const float *scales,                  \
                                      const float *table, const float *x, int64_t stride,         \
                                      int64_t columns, int64_t group, float *out) {               \
        const __m512 values = _mm512_loadu_ps(table);                                             \
        const int64_t bytes = (columns + 1) / 2;                                                  \
        __m512 total[T];                                                                          \
        for (int t = 0; t < T; t++) total[t] = _mm512_setzero_ps();                               \
        for (int64_t start = 0, g = 0; start < columns; start += group, g++) {                    \
            int64_t end = start + group < columns ? start + group : columns;                      \
            __m512 even[T], odd[T];                                                               \
            for (int t = 0; t < T; t++) even[t] = odd[t] = _mm512_setzero_ps();                   \
            for (int64_t k = start; k < end; k += STEP) {                                         \
                __m512i code = _mm512_cvtepu8_epi32(load_bytes(codes + k / 2, bytes - k / 2));    \
                __m512 low = _mm512_permutexvar_ps(code, values);                                 \
                __m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(code, 4), values);          \
                for (int t = 0; t < T; t++) {                                                     \
                    const float *at = x + t * stride + k;                                         \
                    even[t] = _mm512_fmadd_ps(low, _mm512_loadu_ps(at), even[t]);                 \
                    odd[t] = _mm512_fmadd_ps(high, _mm512_loadu_ps(at + STEP / 2), odd[t]);       \
                }                                                                                 \
            }                                                                                     \
            __m512 scale = _mm512_set1_ps(scales[g]);                                             \
            for (int t = 0; t < T; t++)                                                           \
                total[t] = _mm512_fmadd_ps(_mm512_add_ps(even[t], odd[t]), scale, total[t]);      \
        }                                                                                         \
        for (int t = 0; t < T; t++) out[t] = _mm512_reduce_add_ps(total[t]);                      \
    }

ROW_AVX512(1)
ROW_AVX512(2)
ROW_AVX512(3)
ROW_AVX512(4)

ROW_BY_TOKENS(row_avx512, float)

static AVX512 void decode_avx512(const uint8_t *codes, float scale, const float *table,
                                 int64_t start, int64_t end, float *out) {
    const __m512 values = _mm512_loadu_ps(table), factor = _mm512_set1_ps(scale);
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    int64_t k = start;
    for (; k + STEP <= end; k += STEP) {
        __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + k / 2)));
        __m512 low = _mm512_mul_ps(_mm512_permutexvar_ps(code, values), factor);
        __m512i upper = _mm512_srli_epi32(code, 4);
        __m512 high = _mm512_mul_ps(_mm512_permutexvar_ps(upper, values), factor);
        _mm512_storeu_ps(out + k, _mm512_permutex2var_ps(low, first, high));
        _mm512_storeu_ps(out + k + 16, _mm512_permutex2var_ps(low, second, high));
    }
    decode_plain(codes, scale, table, k, end, out);
}

/* Two tables of 8; bit 3 of the code, moved to the sign, chooses between them. */
static inline AVX2 __m256 look_up(__m256i code, __m256 first, __m256 second) {
    __m256 choose = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, code),
                            _mm256_permutevar8x32_ps(second, code), choose);
}

static AVX2 void row_avx2(const uint8_t *codes, const float *scales, const float *table,
                          const float *x, int64_t stride, int64_t columns, int64_t group, int tokens,
                          float *out) {
    const __m256 first = _mm256_loadu_ps(table), second = _mm256_loadu_ps(table + 8);
    const int64_t bytes = (columns + 1) / 2;
    __m256 total[TILE];
    for (int t = 0; t < tokens; t++) total[t] = _mm256_setzero_ps();
    for (int64_t start = 0, g = 0; start < columns; start += group, g++) {
        int64_t end = start + group < columns ? start + group : columns;
        __m256 sum[TILE];
        for (int t = 0; t < tokens; t++) sum[t] = _mm256_setzero_ps();
        for (int64_t k = start; k < end; k += STEP) {
            __m128i raw = load_bytes(codes + k / 2, bytes - k / 2);
            for (int half = 0; half < 2; half++) {
                __m256i code = _mm256_cvtepu8_epi32(half ? _mm_srli_si128(raw, 8) : raw);
                __m256 low = look_up(code, first, second);
                __m256 high = look_up(_mm256_srli_epi32(code, 4), first, second);
                for (int t = 0; t < tokens; t++) {
                    const float *at = x + t * stride + k + 8 * half;
                    sum[t] = _mm256_fmadd_ps(low, _mm256_loadu_ps(at), sum[t]);
                    sum[t] = _mm256_fmadd_ps(high, _mm256_loadu_ps(at + STEP / 2), sum[t]);
                }
            }
        }
        __m256 scale = _mm256_set1_ps(scales[g]);
        for (int t = 0; t < tokens; t++) total[t] = _mm256_fmadd_ps(sum[t], scale, total[t]);
    }
    for (int t = 0; t < tokens; t++) out[t] = sum_lanes(total[t]);
}

static AVX2 void decode_avx2(const uint8_t *codes, float scale, const float *table, int64_t start,
                             int64_t end, float *out) {
    const __m256 first = _mm256_loadu_ps(table), second = _mm256_loadu_ps(table + 8);
    const __m256 factor = _mm256_set1_ps(scale);
    int64_t k = start;
    for (; k + STEP / 2 <= end; k += STEP / 2) {
        __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + k / 2)));
        __m256 low = _mm256_mul_ps(look_up(code, first, second), factor);
        __m256 high = _mm256_mul_ps(look_up(_mm256_srli_epi32(code, 4), first, second), factor);
        __m256 left = _mm256_unpacklo_ps(low, high), right = _mm256_unpackhi_ps(low, high);
        _mm256_storeu_ps(out + k, _mm256_permute2f128_ps(left, right, 0x20));
        _mm256_storeu_ps(out + k + 8, _mm256_permute2f128_ps(left, right, 0x31));
    }
    decode_plain(codes, scale, table, k, end, out);
}
#endif

int mf_level(int at_most) {
#ifdef MINIFLOAT_X86
    if (at_most >= 2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (at_most >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return 1;
#endif
    return 0;
}

static row_kernel kernel_of(int level) {
#ifdef MINIFLOAT_X86
    if (level == 2) return row_avx512;
    if (level == 1) return row_avx2;
#endif
    return row_plain;
}

static span_decoder decoder_of(int level) {
#ifdef MINIFLOAT_X86
    if (level == 2) return decode_avx512;
    if (level == 1) return decode_avx2;
#endif
    return decode_plain;
}

/* out [rows, columns]: the weight, bit for bit as table[code] * scale. Returns 0. */
int mf_decode_w4(const uint8_t *codes, const float *scales, const float *table, float *out,
                  int64_t rows, int64_t columns, int64_t group, int level, int threads) {
    const int64_t width = (columns + 1) / 2, groups = (columns + group - 1) / group;
    const span_decoder decode = decoder_of(level);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t g = 0; g < groups; g++) {
            int64_t start = g * group, end = start + group < columns ? start + group : columns;
            decode(codes + row * width, scales[row * groups + g], table, start, end,
                   out + row * columns);
        }
    return 0;
}

/* out [tokens, rows] = x [tokens, columns] W^T. Returns 0, or 1 without memory. `group` is a multiple
   of 32, or at least `columns`. */
int mf_linear_w4(const float *x, const uint8_t *codes, const float *scales, const float *table,
                 float *out, int64_t tokens, int64_t rows, int64_t columns, int64_t group, int level,
                 int threads) {
    const int64_t padded = (columns + STEP - 1) / STEP * STEP;
    const int64_t width = (columns + 1) / 2, groups = (columns + group - 1) / group;
    const row_kernel kernel = kernel_of(level);
    float *split = calloc((size_t)(tokens * padded), sizeof(float));
    if (!split) return 1;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t k = 0; k < columns; k++)
            split[t * padded + k / STEP * STEP + k % 2 * (STEP / 2) + k % STEP / 2] =
                x[t * columns + k];
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t t = 0; t < tokens; t += TILE) {
            int count = tokens - t < TILE ? (int)(tokens - t) : TILE;
            float y[TILE];
            kernel(codes + row * width, scales + row * groups, table, split + t * padded, padded,
                   columns, group, count, y);
            for (int i = 0; i < count; i++) out[(t + i) * rows + row] = y[i];
        }
    free(split);
    return 0;
}
