/* Many tokens: a panel of weights is expanded once and multiplied with every tile of tokens. Rows lie in
   the lanes, so a group's scales are applied to whole registers and no sum is ever folded. */

#include "expand.h"
#include "neon.h"
#include "panels.h"

static inline const uint32_t *panel_of(const tile_problem *p, const segment *at) {
    return p->panel + (at->unit - p->segments->unit) * PANEL;
}

static inline const float *scales_of(const tile_problem *p, const segment *at, int strip) {
    return p->scales + strip * p->room + at->group * LANES;
}

/* The unit of columns i, i + U, ... of a dword of codes, by arithmetic and tables in memory. */
static uint32_t plain_unit(const formats *how, enum engine engine, uint32_t codes, int i) {
    const int bits = how->bits == 4 ? 4 : 8, half = 16 / bits; /* U of WORDS */
    const uint32_t mask = (1u << bits) - 1;
    uint32_t code[2] = {codes >> bits * i & mask, codes >> bits * (i + half) % 32 & mask};
    if (engine == REALS) return bits_of(how->values[code[0]]);
    uint32_t unit = 0;
    for (int c = 0; c < 2; c++) {
        int level = how->bits == 4 ? how->levels[code[c]] - how->bias : (int8_t)code[c];
        unit |= ((uint32_t)level & 0xffff) << 16 * c;
    }
    return unit;
}

/* Dword d of a row that has `left` bytes; codes of 6 bits become bytes. */
static uint32_t dword_of(const formats *how, const uint8_t *row, int64_t left, int64_t d) {
    const int size = dword_bytes(how);
    uint32_t stored = 0;
    memcpy(&stored, row + size * d, (size_t)least(size, left - size * d));
    if (how->bits != 6) return stored;
    return (stored & 0x3f) | (stored << 2 & 0x3f00) | (stored << 4 & 0x3f0000) |
           (stored << 6 & 0x3f000000);
}

/* The readable twin of the expanders, and the one of processors without AVX-512. WORDS are pairs of
   16-bit integers: no bias, and no sum of two products that could overflow. */
static inline __attribute__((always_inline)) void expand_plain(
    const formats *how, const uint8_t *codes, int64_t stride, int64_t left, int64_t rows,
    int64_t dwords, uint32_t *panel, enum engine engine) {
    const int columns = dword_columns(how), units = columns / unit_columns(engine);
    memset(panel, 0, (size_t)(dwords * units * PANEL) * sizeof(uint32_t));
    for (int64_t row = 0; row < rows; row++)
        for (int64_t d = 0; d < least(dwords, ceil_div(left, dword_bytes(how))); d++) {
            const uint32_t dword = dword_of(how, codes + row * stride, left, d);
            for (int i = 0; i < units; i++)
                panel[(d * units + i) * PANEL + row] = plain_unit(how, engine, dword, i);
        }
}

static void expand_reals(const formats *how, const uint8_t *codes, int64_t stride, int64_t left,
                         int64_t rows, int64_t dwords, uint32_t *panel) {
    expand_plain(how, codes, stride, left, rows, dwords, panel, REALS);
}

/* The readable twin of the tiles, in vectors of whatever the processor has; `tokens` is a constant. */
typedef float lanes __attribute__((vector_size(32)));

static inline __attribute__((always_inline)) void tile_reals_of(const tile_problem *p, const segment *at,
                                                                const int tokens) {
    const uint32_t *panel = panel_of(p, at), *x = p->x + at->unit * p->step;
    for (int q = 0; q < PANEL; q += LANES) {
        const float *scales = scales_of(p, at, q / LANES);
        lanes s[AT_ONCE][2] = {0}, w[2];
        for (int64_t u = 0; u < at->units; u++) {
            memcpy(w, panel + u * PANEL + q, sizeof w);
            for (int n = 0; n < tokens; n++) {
                const float one = float_of(x[u * p->step + n]);
                s[n][0] += w[0] * one;
                s[n][1] += w[1] * one;
            }
        }
        for (int n = 0; n < tokens; n++)
            for (int r = 0; r < LANES; r++)
                p->c[n * PANEL + q + r] += s[n][r / 8][r % 8] * scales[r];
    }
}

/* Takes the share of the zero points, which every column has alike, from the sums of a segment. */
static void take_zeros(const tile_problem *p, int64_t s, int tokens) {
    const segment *at = p->segments + s;
    for (int n = 0; n < tokens; n++) {
        const float own = p->x_scales ? p->x_scales[at->input_group * p->tile + n] : 1;
        const float sum = p->x_sums[s * p->tile + n] * own;
        for (int r = 0; r < PANEL; r++) {
            const int64_t group = r / LANES * p->room + at->group * LANES + r % LANES;
            p->c[n * PANEL + r] -= p->zeros[group] * sum;
        }
    }
}

static inline __attribute__((always_inline)) void tile_reals(const tile_problem *p, int tokens) {
    for (int64_t s = 0; s < p->count; s++) {
        switch (tokens) {
        case AT_ONCE: tile_reals_of(p, p->segments + s, AT_ONCE); break;
        default: tile_reals_of(p, p->segments + s, tokens);
        }
        if (p->x_sums) take_zeros(p, s, tokens);
    }
}

static void turn_plain(const float *c, float *y) {
    for (int r = 0; r < PANEL; r++)
        for (int t = 0; t < ACROSS; t++) y[r * ACROSS + t] = c[t * PANEL + r];
}

static void tile_reals_plain(const tile_problem *p, int tokens) { tile_reals(p, tokens); }

#ifdef MINIFLOAT_X86
/* Sixteen rows of sixteen dwords to sixteen dwords of sixteen rows. */
static inline __attribute__((always_inline)) TARGET_AVX512 void transpose(__m512i r[16]) {
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4)
        UNROLL for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    UNROLL for (int i = 0; i < 16; i += 8)
        UNROLL for (int j = 0; j < 4; j++) {
            a[i + j] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0x88);
            a[i + j + 4] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0xdd);
        }
    UNROLL for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(a[j], a[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(a[j], a[j + 8], 0xdd);
    }
}

TARGET_AVX512 void mf_take_zeros(const tile_problem *p, int64_t s, int tokens, int strips) {
    const segment *at = p->segments + s;
    for (int b = 0; b < strips; b++) {
        const int64_t group = b * p->room + at->group * LANES;
        const __m512 zeros = _mm512_loadu_ps(p->zeros + group);
        float *c = p->c + b * LANES;
        for (int n = 0; n < tokens; n++, c += PANEL) {
            const float own = p->x_scales ? p->x_scales[at->input_group * p->tile + n] : 1;
            const __m512 sum = _mm512_set1_ps(p->x_sums[s * p->tile + n] * own);
            _mm512_storeu_ps(c, _mm512_fnmadd_ps(zeros, sum, _mm512_loadu_ps(c)));
        }
    }
}

TARGET_AVX512 void mf_turn_avx512(const float *c, float *y) {
    for (int q = 0; q < PANEL; q += 16) {
        __m512i r[16];
        UNROLL for (int t = 0; t < 16; t++) r[t] = _mm512_loadu_si512(c + t * PANEL + q);
        transpose(r);
        UNROLL for (int i = 0; i < 16; i++) _mm512_storeu_si512(y + (q + i) * ACROSS, r[i]);
    }
}

#define PANELS(KIND, NAME, BITS, U, TARGET)                                                       \
    static TARGET void expand_##NAME##_##BITS(const formats *how, const uint8_t *codes,           \
                                              int64_t stride, int64_t left, int64_t rows,         \
                                              int64_t dwords, uint32_t *panel) {                  \
        const tables t = tables_of(how, KIND, BITS);                                               \
        for (int64_t row = 0; row < rows; row += 16)                                              \
            for (int64_t d = 0; d < dwords; d += 16) {                                            \
                const int64_t at = d * (BITS == 6 ? 3 : 4);                                       \
                __m512i r[16];                                                                    \
                UNROLL for (int i = 0; i < 16; i++)                                               \
                    r[i] = load_codes(codes + least(row + i, rows - 1) * stride + at, left - at,  \
                                      BITS);                                                      \
                transpose(r);                                                                     \
                UNROLL for (int j = 0; j < 16; j++)                                               \
                    UNROLL for (int i = 0; i < U; i++)                                            \
                        _mm512_storeu_si512(panel + ((d + j) * U + i) * PANEL + row,              \
                                            NAME##_##BITS(r[j], i, &t));                          \
            }                                                                                     \
    }                                                                                             \
    static TARGET void spread_##NAME##_##BITS(const formats *how, const uint8_t *codes,           \
                                              int64_t stride, int64_t left, int64_t rows,         \
                                              int64_t dwords, uint32_t *panel) {                  \
        const int64_t bytes = LANES * (BITS == 6 ? 3 : 4), count = least(dwords, left / bytes);   \
        const tables t = tables_of(how, KIND, BITS);                                              \
        for (int64_t row = 0; row < rows; row += LANES, codes += stride)                          \
            for (int64_t d = 0; d < count; d++) {                                                 \
                const uintptr_t next = (uintptr_t)(codes + d * bytes) + PANEL / LANES * (uintptr_t)stride;\
                const __m512i r = load_codes(codes + d * bytes, bytes, BITS);                     \
                _mm_prefetch((const char *)next, _MM_HINT_T1);                                    \
                UNROLL for (int i = 0; i < U; i++)                                                \
                    _mm512_storeu_si512(panel + (d * U + i) * PANEL + row,                        \
                                        NAME##_##BITS(r, i, &t));                                 \
            }                                                                                     \
    }

PANELS(REALS, reals, 4, 8, TARGET_AVX512)
PANELS(REALS, reals, 6, 4, TARGET_AVX512)
PANELS(REALS, reals, 8, 4, TARGET_AVX512)
PANELS(BYTES, bytes, 4, 2, TARGET_VNNI)
PANELS(BYTES, bytes, 8, 1, TARGET_VNNI)
PANELS(BRAINS, brains, 4, 4, TARGET_BF16)
PANELS(BRAINS, brains, 6, 2, TARGET_BF16)
PANELS(BRAINS, brains, 8, 2, TARGET_BF16)

/* T tokens times Q registers of rows; panels of few rows are half empty. */
#define TILE(KIND, T, Q, TARGET)                                                                  \
    static TARGET void tile_##KIND##_##T##_##Q(const tile_problem *p, int64_t s) {                \
        const segment *at = p->segments + s;                                                      \
        const uint32_t *panel = panel_of(p, at), *x = p->x + at->unit * p->step;                  \
        __m512i sum[T][Q], w[Q];                                                                  \
        UNROLL for (int n = 0; n < T; n++)                                                        \
            UNROLL for (int q = 0; q < Q; q++)                                                    \
                sum[n][q] = KIND == BYTES ? _mm512_set1_epi32(p->starts[s * p->tile + n])         \
                                          : _mm512_setzero_si512();                               \
        for (int64_t u = 0; u < at->units; u++, panel += PANEL, x += p->step) {                   \
            UNROLL for (int q = 0; q < Q; q++) w[q] = _mm512_loadu_si512(panel + LANES * q);      \
            UNROLL for (int n = 0; n < T; n++) {                                                  \
                const __m512i one = _mm512_set1_epi32((int32_t)x[n]);                             \
                UNROLL for (int q = 0; q < Q; q++) SUM_##KIND(sum[n][q], w[q], one);              \
            }                                                                                     \
        }                                                                                         \
        ADD_SUMS(KIND, T, Q)                                                                      \
        if (p->x_sums) mf_take_zeros(p, s, T, Q);                                                 \
    }

#define TILES_OF(KIND, Q, TARGET)                                                                 \
    TILE(KIND, 1, Q, TARGET)                                                                      \
    TILE(KIND, 2, Q, TARGET)                                                                      \
    TILE(KIND, 3, Q, TARGET)                                                                      \
    TILE(KIND, 4, Q, TARGET)                                                                      \
    TILE(KIND, 5, Q, TARGET)                                                                      \
    TILE(KIND, 6, Q, TARGET)                                                                      \
    static TARGET void tile_##KIND##_##Q(const tile_problem *p, int tokens) {                     \
        static void (*const kernels[AT_ONCE])(const tile_problem *, int64_t) = {                  \
            tile_##KIND##_1_##Q, tile_##KIND##_2_##Q, tile_##KIND##_3_##Q,                        \
            tile_##KIND##_4_##Q, tile_##KIND##_5_##Q, tile_##KIND##_6_##Q};                       \
        for (int64_t s = 0; s < p->count; s++) kernels[tokens - 1](p, s);                         \
    }

#define TILES(KIND, TARGET)                                                                       \
    TILES_OF(KIND, 2, TARGET)                                                                     \
    TILES_OF(KIND, 4, TARGET)                                                                     \
    static TARGET void tile_##KIND(const tile_problem *p, int tokens) {                           \
        if (p->rows <= PANEL / 2)                                                                 \
            tile_##KIND##_2(p, tokens);                                                           \
        else                                                                                      \
            tile_##KIND##_4(p, tokens);                                                           \
    }

TILES(REALS, TARGET_AVX512)
TILES(BYTES, TARGET_VNNI)
TILES(BRAINS, TARGET_BF16)

static TARGET_AVX2 void tile_reals_avx2(const tile_problem *p, int tokens) { tile_reals(p, tokens); }

static void expand_words(const formats *how, const uint8_t *codes, int64_t stride, int64_t left,
                         int64_t rows, int64_t dwords, uint32_t *panel) {
    expand_plain(how, codes, stride, left, rows, dwords, panel, WORDS);
}

static inline __attribute__((always_inline)) TARGET_AVX2 void tile_words_of(const tile_problem *p,
                                                                            const segment *at, int q,
                                                                            const int tokens) {
    const float *own = p->x_scales ? p->x_scales + at->input_group * p->tile : NULL;
    const uint32_t *units = panel_of(p, at) + LANES * q, *x = p->x + at->unit * p->step;
    __m256i s[AT_ONCE][2];
    for (int n = 0; n < tokens; n++) s[n][0] = s[n][1] = _mm256_setzero_si256();
    for (int64_t u = 0; u < at->units; u++) {
        const __m256i *panel = (const __m256i *)(units + u * PANEL);
        const __m256i w0 = _mm256_loadu_si256(panel), w1 = _mm256_loadu_si256(panel + 1);
        for (int n = 0; n < tokens; n++) {
            const __m256i one = _mm256_set1_epi32((int32_t)x[u * p->step + n]);
            s[n][0] = _mm256_add_epi32(s[n][0], _mm256_madd_epi16(w0, one));
            s[n][1] = _mm256_add_epi32(s[n][1], _mm256_madd_epi16(w1, one));
        }
    }
    for (int n = 0; n < tokens; n++)
        for (int half = 0; half < 2; half++) {
            float *c = p->c + n * PANEL + LANES * q + 8 * half;
            const __m256 scales = _mm256_loadu_ps(scales_of(p, at, q) + 8 * half);
            __m256 y = _mm256_cvtepi32_ps(s[n][half]);
            if (own) y = _mm256_mul_ps(y, _mm256_set1_ps(own[n]));
            _mm256_storeu_ps(c, _mm256_fmadd_ps(y, scales, _mm256_loadu_ps(c)));
        }
}

static TARGET_AVX2 void tile_words(const tile_problem *p, int tokens) {
    for (int64_t s = 0; s < p->count; s++) {
        for (int q = 0; q < PANEL / LANES; q++) {
            if (tokens == AT_ONCE)
                tile_words_of(p, p->segments + s, q, AT_ONCE);
            else
                tile_words_of(p, p->segments + s, q, tokens);
        }
        if (p->x_sums) take_zeros(p, s, tokens);
    }
}
#endif

#ifdef MINIFLOAT_X86
static expander expander_of(enum engine engine, int bits, int interleaved) {
    static const expander all[3][3][2] = {
        [REALS] = {{expand_reals_4, spread_reals_4},
                   {expand_reals_6, spread_reals_6},
                   {expand_reals_8, spread_reals_8}},
        [BRAINS] = {{expand_brains_4, spread_brains_4},
                    {expand_brains_6, spread_brains_6},
                    {expand_brains_8, spread_brains_8}},
        [BYTES] = {{expand_bytes_4, spread_bytes_4}, {NULL, NULL}, {expand_bytes_8, spread_bytes_8}}};
    return all[engine][bits / 2 - 2][interleaved];
}
#endif

#ifdef MINIFLOAT_DOTPROD
static void tile_dotprod(const tile_problem *p, int tokens) {
    for (int64_t s = 0; s < p->count; s++) {
        mf_tile_dotprod(p, s, tokens);
        if (p->x_sums) take_zeros(p, s, tokens);
    }
}
#endif

panel_kernel mf_panel_kernel(enum engine engine, int bits, int level, int interleaved) {
    panel_kernel found = {expand_reals, tile_reals_plain, turn_plain, PANEL, AT_ONCE};
#ifdef MINIFLOAT_X86
    if (level >= AVX2) found.multiply = tile_reals_avx2;
    if (level >= AVX512) found.turn = mf_turn_avx512;
    if (engine == WORDS) found.expand = expand_words, found.multiply = tile_words;
    if (engine == WORDS || (engine == REALS && level < AVX512)) return found;
    found.expand = expander_of(engine, bits, interleaved);
    found.multiply = engine == BYTES ? tile_BYTES : engine == BRAINS ? tile_BRAINS : tile_REALS;
#endif
#ifdef MINIFLOAT_DOTPROD
    if (engine == BYTES) found.expand = mf_expand_dotprod, found.multiply = tile_dotprod;
#endif
    (void)engine, (void)bits, (void)level, (void)interleaved;
    return found;
}
