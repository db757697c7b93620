/* Integers on processors with NEON's dot product (`neon.c`): engine BYTES, both sides with a sign. */

#ifndef MINIFLOAT_NEON_H
#define MINIFLOAT_NEON_H

#include "panels.h"
#include "rows.h"

#ifdef MINIFLOAT_DOTPROD
/* A `row_kernel` and an `expander`. */
void mf_rows_dotprod(const row_problem *p, const formats *how, int rows, int tokens, float *out);
void mf_expand_dotprod(const formats *how, const uint8_t *codes, int64_t stride, int64_t left,
                       int64_t rows, int64_t dwords, uint32_t *panel);

/* Adds a segment's sums over up to AT_ONCE tokens to c; zero points are left to the caller. */
void mf_tile_dotprod(const tile_problem *p, int64_t s, int tokens);
#endif

#endif
