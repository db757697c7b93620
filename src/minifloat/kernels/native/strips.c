/* Interleaved codes: a dword of sixteen rows is expanded in registers and multiplied with every token of
   a tile, so a few tokens take as long as reading the codes. Rows lie in the lanes, so a group's scales are
   applied to whole registers and no sum is ever folded. */

#include "expand.h"
#include "panels.h"

#ifdef MINIFLOAT_X86
#define AHEAD (1 << 14) /* bytes */
/* A single strip's integers have two sums, of even and odd units: a product waits for the one before in its sum. */
#define SHARES(KIND, B, U) ((KIND) == BYTES && (B) == 1 && (U) > 1 ? 2 : 1)

/* B strips times T tokens. Rows of several strips are too short for the processor to foresee what comes: the
   next strips' codes are asked for into the second-level cache, which has room for more of them on the way
   than the first. A single strip is followed by the next one in memory, and 8-bit codes are used up as fast as
   the processor foresees; to ask for them costs a third. */
#define TILE(KIND, NAME, BITS, U, B, T, TARGET)                                                   \
    static TARGET void NAME##_##BITS##_##B##_##T(const tile_problem *p) {                         \
        const int64_t bytes = LANES * (BITS == 6 ? 3 : 4), step = p->step;                        \
        const tables t = tables_of(p->how, KIND, BITS);                                           \
        for (int64_t s = 0; s < p->count; s++) {                                                  \
            const segment *at = p->segments + s;                                                  \
            const uint8_t *codes = p->codes + at->unit / U * bytes;                               \
            const uint8_t *end = codes + at->units / U * bytes;                                   \
            const uint32_t *x = p->x + at->unit * step;                                           \
            enum { S = SHARES(KIND, B, U) };                                                      \
            __m512i sum[T][B * S];                                                                \
            UNROLL for (int n = 0; n < T; n++)                                                    \
                UNROLL for (int b = 0; b < B * S; b++)                                            \
                    sum[n][b] = KIND == BYTES && b < B                                            \
                                    ? _mm512_set1_epi32(p->starts[s * p->tile + n])               \
                                    : _mm512_setzero_si512();                                     \
            for (; codes < end; codes += bytes) {                                                 \
                __m512i dwords[B], w[B];                                                          \
                UNROLL for (int b = 0; b < B; b++) {                                              \
                    const uintptr_t next = (uintptr_t)codes + (uintptr_t)((b + B) * p->apart);    \
                    if (B > 1) _mm_prefetch((const char *)next, _MM_HINT_T1);                     \
                    if (B == 1 && BITS == 4) _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T1); \
                    dwords[b] = load_codes(codes + b * p->apart, bytes, BITS);                    \
                }                                                                                 \
                UNROLL for (int i = 0; i < U; i++, x += step) {                                   \
                    UNROLL for (int b = 0; b < B; b++) w[b] = NAME##_##BITS(dwords[b], i, &t);    \
                    UNROLL for (int n = 0; n < T; n++) {                                          \
                        const __m512i one = _mm512_set1_epi32((int32_t)x[n]);                     \
                        UNROLL for (int b = 0; b < B; b++)                                        \
                            SUM_##KIND(sum[n][b + i % S * B], w[b], one);                         \
                    }                                                                             \
                }                                                                                 \
            }                                                                                     \
            UNROLL for (int n = 0; n < T; n++)                                                    \
                if (S == 2) sum[n][0] = _mm512_add_epi32(sum[n][0], sum[n][S - 1]);               \
            ADD_SUMS(KIND, T, B)                                                                  \
            if (p->x_sums) mf_take_zeros(p, s, T, B);                                             \
        }                                                                                         \
    }

typedef void (*kernel)(const tile_problem *p);

/* Up to 4 strips with few tokens, up to 2 with more: all sums stay in registers. A strip that is left over
   goes twice through a kernel of two. */
#define TILES(KIND, NAME, BITS, U, TARGET)                                                        \
    TILE(KIND, NAME, BITS, U, 4, 1, TARGET)                                                       \
    TILE(KIND, NAME, BITS, U, 4, 2, TARGET)                                                       \
    TILE(KIND, NAME, BITS, U, 4, 4, TARGET)                                                       \
    TILE(KIND, NAME, BITS, U, 4, 6, TARGET)                                                       \
    TILE(KIND, NAME, BITS, U, 2, 1, TARGET)                                                       \
    TILE(KIND, NAME, BITS, U, 2, 2, TARGET)                                                       \
    TILE(KIND, NAME, BITS, U, 2, 4, TARGET)                                                       \
    TILE(KIND, NAME, BITS, U, 2, 6, TARGET)                                                       \
    TILE(KIND, NAME, BITS, U, 2, 8, TARGET)                                                       \
    TILE(KIND, NAME, BITS, U, 2, 12, TARGET)                                                      \
    static void strips_##NAME##_##BITS(const tile_problem *p, int tokens) {                       \
        static const kernel four[6] = {NAME##_##BITS##_4_1, NAME##_##BITS##_4_2,                  \
                                       NAME##_##BITS##_4_4, NAME##_##BITS##_4_6};                 \
        static const kernel two[6] = {NAME##_##BITS##_2_1, NAME##_##BITS##_2_2,                   \
                                      NAME##_##BITS##_2_4, NAME##_##BITS##_2_6,                   \
                                      NAME##_##BITS##_2_8, NAME##_##BITS##_2_12};                 \
        multiply(p, four[size_of(tokens)], two[size_of(tokens)]);                                 \
    }

static const int sizes[] = {1, 2, 4, 6, 8, TOKENS};

/* The smallest tile that holds so many tokens. */
static int size_of(int tokens) {
    int at = 0;
    while (sizes[at] < tokens) at++;
    return at;
}

static inline tile_problem from_strip(const tile_problem *p, int64_t strip) {
    tile_problem some = *p;
    some.codes += strip * p->apart, some.scales += strip * p->room, some.c += strip * LANES;
    if (p->x_sums) some.zeros += strip * p->room;
    return some;
}

static void multiply(const tile_problem *p, kernel four, kernel two) {
    const int64_t strips = p->rows / LANES;
    int64_t at = 0;
    for (; four && at + 4 <= strips; at += 4) {
        const tile_problem some = from_strip(p, at);
        four(&some);
    }
    for (; at < strips; at += 2) {
        tile_problem some = from_strip(p, at);
        if (at + 1 == strips) some.apart = some.room = 0;
        two(&some);
    }
}

TILES(REALS, reals, 4, 8, TARGET_AVX512)
TILES(REALS, reals, 6, 4, TARGET_AVX512)
TILES(REALS, reals, 8, 4, TARGET_AVX512)
TILES(BYTES, bytes, 4, 2, TARGET_VNNI)
TILES(BYTES, bytes, 8, 1, TARGET_VNNI)
TILE(BYTES, bytes, 4, 2, 1, 1, TARGET_VNNI)
TILE(BYTES, bytes, 8, 1, 1, 1, TARGET_VNNI)
TILE(BYTES, bytes, 8, 1, 1, 2, TARGET_VNNI)
/* So few products wait for memory alone: strip by strip the codes are read from end to end, as the processor
   foresees best. (Several threads that share memory do better with 4-bit codes of four strips at once.) */
static void one_by_one(const tile_problem *p, kernel one) {
    for (int64_t at = 0; at < p->rows / LANES; at++) {
        const tile_problem some = from_strip(p, at);
        one(&some);
    }
}

static void single_bytes_4(const tile_problem *p, int tokens) {
    (void)tokens;
    one_by_one(p, bytes_4_1_1);
}

static void single_bytes_8(const tile_problem *p, int tokens) {
    one_by_one(p, tokens == 1 ? bytes_8_1_1 : bytes_8_1_2);
}

TILES(BRAINS, brains, 4, 4, TARGET_BF16)
TILES(BRAINS, brains, 6, 2, TARGET_BF16)
TILES(BRAINS, brains, 8, 2, TARGET_BF16)
#endif

panel_kernel mf_strip_kernel(enum engine engine, int bits, int64_t tokens, int threads) {
    panel_kernel found = {NULL, NULL, NULL, 0, 0};
#ifdef MINIFLOAT_X86
    const int64_t tiles = ceil_div(tokens, TOKENS);
    found.tokens = sizes[size_of((int)ceil_div(tokens, tiles))];
    found.rows = found.tokens <= 6 ? PANEL : PANEL / 2;
    found.turn = mf_turn_avx512;
    if (engine == REALS)
        found.multiply = bits == 4 ? strips_reals_4 : bits == 6 ? strips_reals_6 : strips_reals_8;
    if (engine == BYTES) found.multiply = bits == 4 ? strips_bytes_4 : strips_bytes_8;
    if (engine == BYTES && bits == 4 && found.tokens == 1 && threads == 1) found.multiply = single_bytes_4;
    if (engine == BYTES && bits == 8 && found.tokens <= 2) found.multiply = single_bytes_8;
    if (engine == BRAINS)
        found.multiply = bits == 4 ? strips_brains_4 : bits == 6 ? strips_brains_6 : strips_brains_8;
#endif
    (void)engine, (void)bits, (void)tokens, (void)threads;
    return found;
}
