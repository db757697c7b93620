/* Panels of rows times tokens that are not brought together: each has a first unit, and all have the
   same places from there on. */

#include "places.h"
#include "expand.h"

#ifdef MINIFLOAT_X86
/* T tokens times Q registers of rows. */
#define TILE(KIND, T, Q, TARGET)                                                                  \
    static TARGET void tile_##KIND##_##T##_##Q(const place_tile *p) {                                   \
        const char *x[T];                                                                         \
        __m512i s[T][Q], w[Q];                                                                    \
        UNROLL for (int n = 0; n < T; n++) {                                                      \
            x[n] = (const char *)(p->x + p->first[n]);                                            \
            UNROLL for (int q = 0; q < Q; q++)                                                    \
                s[n][q] = _mm512_loadu_si512(p->before + n * p->apart + 16 * q);                  \
        }                                                                                         \
        const uint32_t *panel = p->panel;                                                         \
        for (int64_t u = 0; u < p->units; u++, panel += PANEL) {                                  \
            const int64_t place = p->places[u];                                                   \
            UNROLL for (int q = 0; q < Q; q++) w[q] = _mm512_loadu_si512(panel + 16 * q);         \
            UNROLL for (int n = 0; n < T; n++) {                                                  \
                const __m512i one = _mm512_set1_epi32(*(const int32_t *)(x[n] + place));          \
                UNROLL for (int q = 0; q < Q; q++) SUM_##KIND(s[n][q], one, w[q]);                \
            }                                                                                     \
        }                                                                                         \
        UNROLL for (int n = 0; n < T; n++)                                                        \
            UNROLL for (int q = 0; q < Q; q++)                                                    \
                _mm512_storeu_si512(p->sums + n * PANEL + 16 * q, s[n][q]);                       \
    }

#define TILES(KIND, TARGET)                                                                       \
    TILE(KIND, 1, 2, TARGET)                                                                      \
    TILE(KIND, 2, 2, TARGET)                                                                      \
    TILE(KIND, 3, 2, TARGET)                                                                      \
    TILE(KIND, 4, 2, TARGET)                                                                      \
    TILE(KIND, 5, 2, TARGET)                                                                      \
    TILE(KIND, 6, 2, TARGET)                                                                      \
    TILE(KIND, 1, 4, TARGET)                                                                      \
    TILE(KIND, 2, 4, TARGET)                                                                      \
    TILE(KIND, 3, 4, TARGET)                                                                      \
    TILE(KIND, 4, 4, TARGET)                                                                      \
    TILE(KIND, 5, 4, TARGET)                                                                      \
    TILE(KIND, 6, 4, TARGET)                                                                      \
    static void tile_##KIND(const place_tile *p, int tokens, int wide) {                                \
        static void (*const kernels[2][AT_ONCE])(const place_tile *) = {                          \
            {tile_##KIND##_1_2, tile_##KIND##_2_2, tile_##KIND##_3_2, tile_##KIND##_4_2,          \
             tile_##KIND##_5_2, tile_##KIND##_6_2},                                               \
            {tile_##KIND##_1_4, tile_##KIND##_2_4, tile_##KIND##_3_4, tile_##KIND##_4_4,          \
             tile_##KIND##_5_4, tile_##KIND##_6_4}};                                              \
        kernels[wide][tokens - 1](p);                                                             \
    }

TILES(REALS, TARGET_AVX512)
TILES(BYTES, TARGET_VNNI)
TILES(BRAINS, TARGET_BF16)

place_kernel mf_place_kernel(enum engine engine) {
    return engine == BYTES ? tile_BYTES : engine == BRAINS ? tile_BRAINS : tile_REALS;
}
#endif
