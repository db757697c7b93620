/* Many tokens, and interleaved weights: panels of rows meet tiles of tokens. */

#ifndef MINIFLOAT_PANELS_H
#define MINIFLOAT_PANELS_H

#include "tokens.h"

#define LANES 16  /* rows of a strip: a register of sums for each token */
#define PANEL 64  /* rows of a panel, at most */
#define TOKENS 12 /* tokens of a tile, at most */
#define AT_ONCE 6 /* tokens of a tile where rows are expanded: 24 registers of sums */
#define ACROSS 16 /* tokens whose sums are turned together, for results that lie row by row */
#define SPAN 256  /* columns that are expanded at once: 16 KB of bytes */

/* Columns that share a scale of the weight and one of the activations. */
typedef struct {
    int64_t unit, units; /* its place in a row */
    int64_t group, input_group;
} segment;

/* One tile: sums over the units of each segment, scaled and added to c [tokens][PANEL]. */
typedef struct {
    const formats *how;
    const uint32_t *panel; /* expanded units [units][PANEL] from the first segment's on, or NULL */
    const uint8_t *codes;  /* interleaved codes of the first strip */
    int64_t apart;         /* bytes from a strip to the next */
    int64_t rows;          /* of the panel that are there */
    const segment *segments;
    int64_t count;         /* of segments */
    const uint32_t *x;     /* units of tokens, `step` apart */
    int64_t step;
    const int32_t *starts; /* [segments][tile] what integer sums start with */
    const float *x_scales; /* [input groups][tile], or NULL: one for all columns, or values, see `many.c` */
    const float *x_sums;   /* [segments][tile] of the columns, or NULL: there are no zero points */
    int64_t tile;
    const float *scales;   /* [strips][groups][LANES] */
    const float *zeros;    /* the same, times the scales */
    int64_t room;          /* from a strip's scales to the next one's */
    float *c;
} tile_problem;

/* Adds the sums of a segment, a register for each of T tokens and B strips, to c in the scales of both. */
#define ADD_SUMS(KIND, T, B)                                                                      \
    const float *own = p->x_scales ? p->x_scales + at->input_group * p->tile : NULL;              \
    float *c = p->c;                                                                              \
    UNROLL for (int b = 0; b < B; b++) {                                                          \
        const __m512 scales = _mm512_loadu_ps(p->scales + b * p->room + at->group * LANES);       \
        UNROLL for (int n = 0; n < T; n++) {                                                      \
            __m512 y = REAL_##KIND(sum[n][b]);                                                    \
            if (own) y = _mm512_mul_ps(y, _mm512_set1_ps(own[n]));                                \
            y = _mm512_fmadd_ps(y, scales, _mm512_loadu_ps(c + n * PANEL + b * LANES));           \
            _mm512_storeu_ps(c + n * PANEL + b * LANES, y);                                       \
        }                                                                                         \
    }

typedef void (*tile_kernel)(const tile_problem *p, int tokens);

/* Expands `dwords` dwords of up to PANEL rows of codes, the first at `codes`, `left` bytes before the end
   of its row, to units [dwords * U][PANEL]. */
typedef void (*expander)(const formats *how, const uint8_t *codes, int64_t stride, int64_t left,
                         int64_t rows, int64_t dwords, uint32_t *panel);

/* Sums c [ACROSS][PANEL] to y [PANEL][ACROSS]. */
typedef void (*turner)(const float *c, float *y);

typedef struct {
    expander expand; /* NULL: tiles are multiplied with the codes */
    tile_kernel multiply;
    turner turn;
    int rows, tokens; /* of a panel and of a tile */
} panel_kernel;

/* Both with AVX-512: `take_zeros` of panels.c for some strips; a turner. */
void mf_take_zeros(const tile_problem *p, int64_t s, int tokens, int strips);

void mf_turn_avx512(const float *c, float *y);

/* Panels that are expanded into the cache, once for all tiles (`panels.c`). */
panel_kernel mf_panel_kernel(enum engine engine, int bits, int level, int interleaved);

/* Interleaved codes that are expanded in registers, once a tile (`strips.c`). */
panel_kernel mf_strip_kernel(enum engine engine, int bits, int64_t tokens, int threads);

#endif
