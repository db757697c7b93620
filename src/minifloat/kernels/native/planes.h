/* Activations on one grid, with neighbouring channels of a pixel, or columns of a token, in one unit
   (`planes.c`). */

#ifndef MINIFLOAT_PLANES_H
#define MINIFLOAT_PLANES_H

#include "call.h"

/* Bytes of BYTES are 128 more than the numbers: the weights of `direct.c` have the sign. */
#define LIFT 128

/* Units [images][blocks][height][width] of a convolution, with the padding around the images; else
   [tokens][blocks]. */
typedef struct {
    const activations *a;
    enum engine engine;
    int64_t blocks;       /* of channels, as many as a unit holds; the last is filled up with zeros */
    int64_t width, plane; /* of an image with the padding */
    uint32_t *units;      /* NULL: a NaN is among them, which integers cannot say */
} planes;

/* Puts all of them on their grid, which has one scale or none. */
enum outcome mf_planes(const activations *a, enum engine engine, int threads, planes *p);

#endif
