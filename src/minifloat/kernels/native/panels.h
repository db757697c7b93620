/* Many tokens: panels of 64 rows are expanded into the cache and meet tiles of 6 tokens (`panels.c`). */

#ifndef MINIFLOAT_PANELS_H
#define MINIFLOAT_PANELS_H

#include "tokens.h"

#define PANEL 64 /* rows of a panel: four registers of sums for each token */
#define TOKENS 6 /* tokens of a tile: 24 registers of sums */
#define ACROSS 16 /* tokens whose sums are turned together, for results that lie row by row */
#define SPAN 256 /* columns that are expanded at once: 16 KB of bytes */

/* Expands `dwords` dwords of up to PANEL rows of codes, the first at `codes`, `left` bytes before the end
   of its row, to units [dwords * U][PANEL]. */
typedef void (*expander)(const formats *how, const uint8_t *codes, int64_t stride, int64_t left,
                         int64_t rows, int64_t dwords, uint32_t *panel);

/* One tile: sums over units under one scale a row, scaled and added to c [tokens][PANEL]. */
typedef struct {
    const uint32_t *panel;  /* [units][PANEL] */
    const uint32_t *x;      /* units, `step` apart, of TOKENS */
    int64_t units, step;
    int64_t rows;           /* of the panel that are there */
    const int32_t *starts;  /* [TOKENS] what integer sums start with */
    const float *scales;    /* [PANEL] */
    const float *x_scales;  /* [TOKENS], or NULL: one for all columns, or values, see `many.c` */
    float *c;
} tile_problem;

typedef void (*tile_kernel)(const tile_problem *p, int tokens);

/* Sums c [ACROSS][PANEL] to y [PANEL][ACROSS]. */
typedef void (*turner)(const float *c, float *y);

typedef struct {
    expander expand;
    tile_kernel multiply;
    turner turn;
} panel_kernel;

panel_kernel mf_panel_kernel(enum engine engine, int bits, int level);

#endif
