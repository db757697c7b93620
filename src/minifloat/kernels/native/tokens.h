/* Activations on their grid, in the units of an engine (`tokens.c`). */

#ifndef MINIFLOAT_TOKENS_H
#define MINIFLOAT_TOKENS_H

#include "layer.h"

#ifdef MINIFLOAT_X86
/* Whether functions of TARGET_AVX512 may prepare activations, whatever level multiplies them. */
static inline int has_avx512(void) {
    return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

/* What is multiplied. WORDS are pairs of 16-bit integers, for processors without VNNI. */
enum engine { REALS, BRAINS, BYTES, WORDS };

/* A convolution over x [images][channels][height][width]; pairs are along the height and the width. */
typedef struct {
    int64_t channels, size[2], kernel[2], stride[2], padding[2], dilation[2], out[2];
    int64_t apart; /* numbers from an image to the next one */
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

/* `count` numbers of x from `from` on, on a grid that all share; whether there was a NaN among them that
   numbers of the engine cannot say. */
int mf_put(const activations *a, enum engine engine, int64_t from, int64_t count, float *row);

/* Numbers in their order, in the width of an engine. */
void mf_narrow(const float *row, int64_t count, enum engine engine, void *out);

/* The sum of some columns: exact for whole numbers of 8 bits, as many as a span has. */
float mf_sum(const float *columns, int64_t count);

/* One token on its grid, in units [dwords][U] for weights of `how->bits` bits.

   `row` and `units` have room for the columns of all dwords; beyond the token's own they are zero. `row`
   keeps the columns in their order: values for REALS, else whole or short numbers in units of `scales`
   [input groups]. */
void mf_prepare(const activations *a, int64_t token, enum engine engine, int64_t dwords, float *row,
                uint32_t *units, float *scales);

#endif
