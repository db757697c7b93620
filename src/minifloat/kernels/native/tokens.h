/* Activations on their grid, in the units of an engine (`tokens.c`). */

#ifndef MINIFLOAT_TOKENS_H
#define MINIFLOAT_TOKENS_H

#include "layer.h"

/* What is multiplied. WORDS are pairs of 16-bit integers, for processors without VNNI. */
enum engine { REALS, BRAINS, BYTES, WORDS };

/* A convolution over x [images][channels][height][width]; pairs are along the height and the width. */
typedef struct {
    int64_t channels, size[2], kernel[2], stride[2], padding[2], dilation[2], out[2];
} window;

/* The activations of one call. A token of a convolution is a pixel of the result: all that its window
   sees, in the order of the weight [channels][kernel][kernel], zero outside the image. */
typedef struct {
    const formats *how;
    const void *x;
    int kind;             /* FLOAT32 or BFLOAT16 */
    const float *given;   /* scales, where they are not those of the largest magnitudes */
    int64_t given_stride; /* from a token's scales to the next one's; 0 where tokens share them */
    int64_t tokens, columns;
    const window *window; /* NULL: x is [tokens][columns] */
} activations;

static inline int64_t input_group(const activations *a) {
    const int64_t columns = a->how->input_columns;
    return a->how->input == AS_IT_COMES || columns == -1 ? a->columns : columns;
}

static inline int64_t input_groups(const activations *a) {
    return ceil_div(a->columns, input_group(a));
}

/* Columns of a unit. */
static inline int unit_columns(enum engine engine) {
    return engine == REALS ? 1 : engine == BYTES ? 4 : 2;
}

/* One token's `columns` on its grid. REALS get the values; the other engines get whole or short numbers
   in units of `scales` [input groups]. `row` has room for `padded` columns and is zero beyond the end. */
void mf_quantize(const activations *a, int64_t token, enum engine engine, int64_t padded, float *row,
                 float *scales);

/* The unit of the columns first, first + step, ... of a row. */
static inline uint32_t unit_of(const float *row, int64_t first, int step, enum engine engine) {
    const float *at = row + first;
    switch (engine) {
    case REALS: return bits_of(*at);
    case BRAINS: return bits_of(at[0]) >> 16 | (bits_of(at[step]) & 0xffff0000u);
    case WORDS: return ((uint32_t)(int32_t)at[0] & 0xffff) | (uint32_t)(int32_t)at[step] << 16;
    default:
        return ((uint32_t)(int32_t)at[0] & 255) | ((uint32_t)(int32_t)at[step] & 255) << 8 |
               ((uint32_t)(int32_t)at[2 * step] & 255) << 16 | (uint32_t)(int32_t)at[3 * step] << 24;
    }
}

#endif
