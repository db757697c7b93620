/* Results of many tokens from their sums (`results.c`). */

#ifndef MINIFLOAT_RESULTS_H
#define MINIFLOAT_RESULTS_H

#include "call.h"
#include "panels.h"

/* Some tokens times some rows. */
typedef struct {
    int64_t token, tokens, row, rows;
    const float *scales; /* [tokens] */
    const float *bias;   /* [PANEL] */
    const float *c;      /* [tokens][PANEL] sums; `turn` reads ACROSS tokens at once */
    turner turn;
} results;

/* Writes sums times scales plus bias along the axis of the output that is contiguous. */
void mf_write(const call *k, const results *y);

#endif
