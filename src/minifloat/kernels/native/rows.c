/* Few tokens: y = x W^T row by row. Time is memory traffic; a chunk of codes is read once, expanded and
   multiplied with every token, and a token's units are read once for up to four rows. A dword's columns
   lie within one group, so scales are applied to the 16 sums of a chunk, lane by lane. */

#include "expand.h"
#include "neon.h"
#include "rows.h"

/* The rows from one on as a problem of their own. */
static row_problem row_of(const row_problem *p, int row) {
    row_problem one = *p;
    one.codes += row * p->apart, one.scales += row * p->room;
    return one;
}

static float product_plain(const row_problem *p, const formats *how, int token) {
    const int64_t units = dword_columns(how), columns = p->bytes * 8 / how->bits;
    const uint32_t *x = p->x + token * p->stride;
    float y = 0;
    for (int64_t d = 0, k = 0; k < columns; d++) {
        const int64_t chunk = d / CHUNK;
        const float scale = p->scales[p->bases[chunk] + p->places[d]];
        for (int64_t i = 0; i < units && k < columns; i++, k++) {
            const float value = how->values[code_of(p->codes, k, how->bits)];
            y += value * float_of(x[(chunk * units + i) * CHUNK + d % CHUNK]) * scale;
        }
    }
    return y;
}

/* The readable twin, and the path of other processors: REALS only. */
static void row_plain(const row_problem *p, const formats *how, int rows, int tokens, float *out) {
    for (int r = 0; r < rows; r++) {
        const row_problem one = row_of(p, r);
        for (int t = 0; t < tokens; t++) out[r * SHARED + t] = product_plain(&one, how, t);
    }
}

#ifdef MINIFLOAT_X86
/* The sums of the lanes of R registers to out, a row each. Four at a time take a third of the shuffles
   of one by one. */
static inline __attribute__((always_inline)) TARGET_AVX512 void sum_rows(const __m512 *sums, int R,
                                                                         float *out) {
    if (R < 4) {
        for (int r = 0; r < R; r++) out[r * SHARED] = _mm512_reduce_add_ps(sums[r]);
        return;
    }
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(sums[0], sums[1]), _mm512_unpackhi_ps(sums[0], sums[1]));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(sums[2], sums[3]), _mm512_unpackhi_ps(sums[2], sums[3]));
    const __m512 c = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    const __m256 d = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    float four[4];
    _mm_storeu_ps(four, _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1)));
    for (int r = 0; r < 4; r++) out[r * SHARED] = four[r];
}

#define FORESEEN 512 /* bytes that are asked for ahead: of the next rows, as a rule */

/* KIND is an engine's name in expand.h, U its units a dword, R the rows, T the tokens: all sums stay in
   registers. */
#define ROW(KIND, NAME, BITS, U, R, T, TARGET)                                                    \
    static TARGET void NAME##_##BITS##_##R##_##T(const row_problem *p, const formats *how,        \
                                                 float *out) {                                    \
        const tables t = tables_of(how, KIND, BITS);                                              \
        const uint32_t *x = p->x;                                                                 \
        __m512 total[T][R];                                                                       \
        UNROLL for (int n = 0; n < T; n++)                                                        \
            UNROLL for (int r = 0; r < R; r++) total[n][r] = _mm512_setzero_ps();                 \
        for (int64_t c = 0; c < p->chunks; c++, x += 16 * U) {                                    \
            const __m512i places = _mm512_loadu_si512(p->places + 16 * c);                        \
            __m512i codes[R], sum[R][T];                                                          \
            const int64_t at = c * CHUNK * (BITS == 6 ? 3 : 4);                                   \
            UNROLL for (int r = 0; r < R; r++) {                                                  \
                const uint8_t *here = p->codes + r * p->apart + at;                               \
                _mm_prefetch((const char *)here + FORESEEN, _MM_HINT_T0);                         \
                codes[r] = load_codes(here, p->bytes - at, BITS);                                 \
            }                                                                                     \
            UNROLL for (int n = 0; n < T; n++) {                                                  \
                sum[0][n] = KIND == BYTES                                                         \
                                ? _mm512_loadu_si512(p->starts + (n * p->chunks + c) * 16)        \
                                : _mm512_setzero_si512();                                         \
                UNROLL for (int r = 1; r < R; r++) sum[r][n] = sum[0][n];                         \
            }                                                                                     \
            UNROLL for (int i = 0; i < U; i++) {                                                  \
                __m512i w[R];                                                                     \
                UNROLL for (int r = 0; r < R; r++) w[r] = NAME##_##BITS(codes[r], i, &t);         \
                UNROLL for (int n = 0; n < T; n++) {                                              \
                    const __m512i unit = _mm512_loadu_si512(x + n * p->stride + 16 * i);          \
                    UNROLL for (int r = 0; r < R; r++) SUM_##KIND(sum[r][n], w[r], unit);         \
                }                                                                                 \
            }                                                                                     \
            UNROLL for (int r = 0; r < R; r++) {                                                  \
                const float *near = p->scales + r * p->room + p->bases[c];                        \
                const __m512 scales = _mm512_permutexvar_ps(places, _mm512_loadu_ps(near));       \
                UNROLL for (int n = 0; n < T; n++)                                                \
                    total[n][r] = _mm512_fmadd_ps(REAL_##KIND(sum[r][n]), scales, total[n][r]);   \
            }                                                                                     \
        }                                                                                         \
        UNROLL for (int n = 0; n < T; n++) sum_rows(total[n], R, out + n);                        \
    }

#define ROWS(KIND, NAME, BITS, U, TARGET)                                                         \
    ROW(KIND, NAME, BITS, U, 1, 1, TARGET)                                                        \
    ROW(KIND, NAME, BITS, U, 1, 2, TARGET)                                                        \
    ROW(KIND, NAME, BITS, U, 1, 3, TARGET)                                                        \
    ROW(KIND, NAME, BITS, U, 1, 4, TARGET)                                                        \
    ROW(KIND, NAME, BITS, U, 2, 1, TARGET)                                                        \
    ROW(KIND, NAME, BITS, U, 2, 2, TARGET)                                                        \
    ROW(KIND, NAME, BITS, U, 2, 3, TARGET)                                                        \
    ROW(KIND, NAME, BITS, U, 2, 4, TARGET)                                                        \
    ROW(KIND, NAME, BITS, U, 4, 1, TARGET)                                                        \
    ROW(KIND, NAME, BITS, U, 4, 2, TARGET)                                                        \
    static void row_##NAME##_##BITS(const row_problem *p, const formats *how, int rows,           \
                                    int tokens, float *out) {                                     \
        static void (*const kernels[3][SHARED])(const row_problem *, const formats *, float *) = {\
            {NAME##_##BITS##_1_1, NAME##_##BITS##_1_2, NAME##_##BITS##_1_3, NAME##_##BITS##_1_4}, \
            {NAME##_##BITS##_2_1, NAME##_##BITS##_2_2, NAME##_##BITS##_2_3, NAME##_##BITS##_2_4}, \
            {NAME##_##BITS##_4_1, NAME##_##BITS##_4_2}};                                          \
        for (int r = 0, which; r < rows; r += 1 << which) {                                       \
            which = rows - r >= 4 && tokens <= 2 ? 2 : rows - r >= 2;                             \
            const row_problem some = row_of(p, r);                                                \
            kernels[which][tokens - 1](&some, how, out + r * SHARED);                             \
        }                                                                                         \
    }

ROWS(REALS, reals, 4, 8, TARGET_AVX512)
ROWS(REALS, reals, 6, 4, TARGET_AVX512)
ROWS(REALS, reals, 8, 4, TARGET_AVX512)
ROWS(BYTES, bytes, 4, 2, TARGET_VNNI)
ROWS(BYTES, bytes, 8, 1, TARGET_VNNI)
ROWS(BRAINS, brains, 4, 4, TARGET_BF16)
ROWS(BRAINS, brains, 6, 2, TARGET_BF16)
ROWS(BRAINS, brains, 8, 2, TARGET_BF16)

/* Two tables of 8; bit 3 of the code, moved to the sign, chooses between them. */
static inline TARGET_AVX2 __m256 look_up(__m256i code, __m256 first, __m256 second) {
    __m256 choose = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, code),
                            _mm256_permutevar8x32_ps(second, code), choose);
}

/* Units 2 h and 2 h + 1 of 8 dwords of 8-bit codes. */
static inline TARGET_AVX2 void two_units(__m256i codes, int h, const formats *how, __m256 out[2]) {
    const __m128i right = _mm_cvtsi32_si128(24 - how->half_shift);
    __m256i first = _mm256_slli_epi32(codes, 24 - 16 * h), second = _mm256_slli_epi32(codes, 16 - 16 * h);
    const __m256 factor = _mm256_set1_ps(how->half_factor);
    if (how->half_shift == 0) {
        out[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(first, 24)), factor);
        out[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(second, 24)), factor);
        return;
    }
    __m256i halves = _mm256_packs_epi32(_mm256_sra_epi32(first, right), _mm256_sra_epi32(second, right));
    halves = _mm256_and_si256(halves, _mm256_set1_epi16((short)how->half_mask));
    __m256 low = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), factor);
    __m256 high = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)), factor);
    out[0] = _mm256_permute2f128_ps(low, high, 0x20);
    out[1] = _mm256_permute2f128_ps(low, high, 0x31);
}

static inline TARGET_AVX2 float sum_lanes(__m256 x) {
    float lanes[8];
    _mm256_storeu_ps(lanes, x);
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

/* Eight dwords of codes; those of 6 bits as `spread` in expand.h makes them. */
static inline TARGET_AVX2 __m256i eight_dwords(const uint8_t *at, int bits) {
    if (bits != 6) return _mm256_loadu_si256((const __m256i *)at);
    const __m128i triples = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    const __m128i low = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)at), triples);
    const __m128i high = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(at + 12)), triples);
    const __m256i d = _mm256_set_m128i(high, low);
    const __m256i a = _mm256_and_si256(_mm256_slli_epi32(d, 2), _mm256_set1_epi32(0xfc));
    const __m256i b = _mm256_and_si256(_mm256_slli_epi32(d, 4), _mm256_set1_epi32(0xfc00));
    const __m256i c = _mm256_and_si256(_mm256_slli_epi32(d, 6), _mm256_set1_epi32(0xfc0000));
    const __m256i e = _mm256_and_si256(_mm256_slli_epi32(d, 8), _mm256_set1_epi32((int)0xfc000000));
    return _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, e));
}

static inline TARGET_AVX2 void units_avx2(__m256i codes, const formats *how, __m256 out[8]) {
    if (how->bits != 4) {
        two_units(codes, 0, how, out);
        two_units(codes, 1, how, out + 2);
        return;
    }
    const __m256 first = _mm256_loadu_ps(how->values), second = _mm256_loadu_ps(how->values + 8);
    for (int i = 0; i < 8; i++) out[i] = look_up(_mm256_srli_epi32(codes, 4 * i), first, second);
}

/* REALS with 8 dwords at a time. */
static TARGET_AVX2 void one_avx2(const row_problem *p, const formats *how, int tokens, float *out) {
    const int units = dword_columns(how), bytes = CHUNK * dword_bytes(how);
    __m256 total[SHARED];
    for (int n = 0; n < tokens; n++) total[n] = _mm256_setzero_ps();
    for (int64_t c = 0; c < p->chunks; c++) {
        uint8_t codes[4 * CHUNK + 16] = {0}; /* the last load goes beyond */
        memcpy(codes, p->codes + c * bytes, (size_t)least(bytes, p->bytes - c * bytes));
        for (int half = 0; half < 2; half++) {
            const int32_t *places = p->places + 16 * c + 8 * half;
            const __m256 scales = _mm256_i32gather_ps(p->scales + p->bases[c],
                                                      _mm256_loadu_si256((const __m256i *)places), 4);
            __m256 w[8];
            units_avx2(eight_dwords(codes + bytes / 2 * half, how->bits), how, w);
            for (int n = 0; n < tokens; n++) {
                const float *x = (const float *)p->x + n * p->stride + c * units * 16 + 8 * half;
                __m256 sum = _mm256_setzero_ps();
                for (int i = 0; i < units; i++)
                    sum = _mm256_fmadd_ps(w[i], _mm256_loadu_ps(x + 16 * i), sum);
                total[n] = _mm256_fmadd_ps(sum, scales, total[n]);
            }
        }
    }
    for (int n = 0; n < tokens; n++) out[n] = sum_lanes(total[n]);
}

static void row_avx2(const row_problem *p, const formats *how, int rows, int tokens, float *out) {
    for (int r = 0; r < rows; r++) {
        const row_problem one = row_of(p, r);
        one_avx2(&one, how, tokens, out + r * SHARED);
    }
}
#endif

row_kernel mf_row_kernel(enum engine engine, int bits, int level) {
#ifdef MINIFLOAT_X86
    if (engine == BYTES) return bits == 4 ? row_bytes_4 : row_bytes_8;
    if (engine == BRAINS) return bits == 4 ? row_brains_4 : bits == 6 ? row_brains_6 : row_brains_8;
    if (level >= AVX512) return bits == 4 ? row_reals_4 : bits == 6 ? row_reals_6 : row_reals_8;
    if (level == AVX2) return row_avx2;
#endif
#ifdef MINIFLOAT_DOTPROD
    if (engine == BYTES) return mf_rows_dotprod;
#endif
    (void)engine, (void)bits, (void)level;
    return row_plain;
}
