/* Tiles whose units are read where they lie (`places.c`). */

#ifndef MINIFLOAT_PLACES_H
#define MINIFLOAT_PLACES_H

#include "panels.h"

/* Sums over the units of some tokens with a panel of rows. */
typedef struct {
    const uint32_t *panel;  /* [units][PANEL] */
    const int64_t *places;  /* of the units, in bytes from a window's first */
    int64_t units;
    const uint32_t *x;
    const int64_t *first;   /* [AT_ONCE] unit of a window */
    const int32_t *before;  /* sums to begin with, `apart` for each token */
    int64_t apart;
    int32_t *sums;          /* [AT_ONCE][PANEL] */
} place_tile;

/* `wide`: more than half of the panel's rows are there. */
typedef void (*place_kernel)(const place_tile *p, int tokens, int wide);

/* Of AVX-512. */
place_kernel mf_place_kernel(enum engine engine);

#endif
