/* All that the loops of `few.c` and `many.c` share. */

#ifndef MINIFLOAT_CALL_H
#define MINIFLOAT_CALL_H

#include "tokens.h"

#ifdef _OPENMP
#include <omp.h>
static inline int thread_number(void) { return omp_get_thread_num(); }
#else
static inline int thread_number(void) { return 0; }
#endif

/* Memory in numbers of 4 bytes; arrays start on cache lines, which vectors must not straddle. */
static inline int64_t lines(int64_t numbers) { return ceil_div(numbers, 16) * 16; }
static inline void *room_for(int64_t numbers) { return aligned_alloc(64, (size_t)lines(numbers) * 4); }

enum outcome { DONE, NO_MEMORY };

/* All of a call. */
typedef struct {
    weights w;
    activations a;
    enum engine engine;
    int level, threads;
    int64_t dwords;    /* of a row, whole chunks of them */
    int units;         /* U */
    const float *bias; /* [rows] or NULL */
    void *out;
    int64_t pixels;    /* of an image [rows][pixels] of the result, or 0: it is [tokens][rows] */
} call;

static inline void write(const call *k, int64_t at, float y) {
    if (k->a.kind == FLOAT32)
        ((float *)k->out)[at] = y;
    else
        ((uint16_t *)k->out)[at] = brain_of(y);
}

/* Scales of a row's groups, for sums of units. */
static inline void row_scales(const call *k, int64_t row, float *out) {
    const int whole = k->engine == BYTES || k->engine == WORDS;
    mf_row_scales(&k->w, row, whole ? k->w.how->unit : 1, out);
}

static inline void strip_scales(const call *k, int64_t row, float *out) {
    const int whole = k->engine == BYTES || k->engine == WORDS;
    mf_strip_scales(&k->w, row, whole ? k->w.how->unit : 1, out);
}

int mf_few(const call *k);
int mf_many(const call *k);

#endif
