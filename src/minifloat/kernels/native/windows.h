/* The pixels of a convolution on their grid, and units of many tokens at once (`windows.c`). */

#ifndef MINIFLOAT_WINDOWS_H
#define MINIFLOAT_WINDOWS_H

#include "call.h"

/* Whether all activations are on one grid, or as they come: every window sees a pixel alike. */
int mf_shares_grid(const call *k);

/* Numbers of an engine's width [images][channels + 1][plane]: the padding is around the images, and the
   last channel is zero. */
typedef struct {
    const activations *a;
    enum engine engine;
    int bytes;            /* of a number */
    int64_t width, plane; /* with the padding */
    int64_t *places;      /* of a unit's columns, from a window's first pixel */
    void *numbers;        /* NULL: a NaN is among them, which integers cannot say */
} pixels;

/* Tokens of one line: the first pixel of the first one's window, and their count. */
typedef struct {
    int64_t first, count;
} stretch;

/* Puts all pixels on their grid, which has one scale or none; `dwords` of U units are a weight's row. */
enum outcome mf_pixels(const activations *a, enum engine engine, int64_t dwords, int U, int threads,
                       pixels *p);
void mf_forget(pixels *p);

/* Cuts `count` tokens from `token` on into at most as many stretches; their number. */
int64_t mf_window_stretches(const pixels *p, int64_t token, int64_t count, stretch *stretches);

/* One unit of all tokens of some stretches. */
void mf_window_unit(const pixels *p, int64_t unit, const stretch *stretches, int64_t count, uint32_t *out);

/* What integer sums start with: minus the bias times the sum of the columns of units [units][step]. */
void mf_window_starts(const uint32_t *x, int64_t step, int64_t units, int64_t count, int32_t bias,
                      int32_t *starts);

#endif
