/* Sums to outputs. What lies together in memory is computed where it is written: a copy of short lines takes
   as long as their arithmetic. */

#include "results.h"

#define INLINE static inline __attribute__((always_inline))

/* Some rows of a token. */
INLINE void finish_token(const call *k, int64_t at, int64_t rows, float scale, const float *bias,
                         const float *c) {
    if (k->a.kind == FLOAT32) {
        float *y = (float *)k->out + at;
#pragma omp simd
        for (int64_t r = 0; r < rows; r++) y[r] = c[r] * scale + bias[r];
    } else {
        uint16_t *y = (uint16_t *)k->out + at;
        for (int64_t r = 0; r < rows; r++) y[r] = brain_of(c[r] * scale + bias[r]);
    }
}

INLINE void finish_tokens(const call *k, const results *y) {
    for (int64_t t = 0; t < y->tokens; t++) {
        const int64_t at = (y->token + t) * k->w.rows + y->row;
        if (y->rows == PANEL)
            finish_token(k, at, PANEL, y->scales[t], y->bias, y->c + t * PANEL);
        else
            finish_token(k, at, y->rows, y->scales[t], y->bias, y->c + t * PANEL);
    }
}

/* Some pixels of a row. */
INLINE void finish_line(const call *k, int64_t at, int64_t count, const float *scales, float bias,
                        const float *c) {
    if (k->a.kind == FLOAT32) {
        float *y = (float *)k->out + at;
#pragma omp simd
        for (int64_t i = 0; i < count; i++) y[i] = c[i] * scales[i] + bias;
    } else {
        uint16_t *y = (uint16_t *)k->out + at;
        for (int64_t i = 0; i < count; i++) y[i] = brain_of(c[i] * scales[i] + bias);
    }
}

INLINE void finish_pixels(const call *k, const results *y) {
    const int64_t pixels = k->pixels;
    float turned[PANEL * ACROSS];
    for (int64_t t = 0, count; t < y->tokens; t += count) { /* of one image */
        const int64_t image = (y->token + t) / pixels, pixel = (y->token + t) % pixels;
        count = least(least(y->tokens - t, pixels - pixel), ACROSS);
        y->turn(y->c + t * PANEL, turned);
        for (int64_t r = 0; r < y->rows; r++) {
            const int64_t at = (image * k->w.rows + y->row + r) * pixels + pixel;
            finish_line(k, at, count, y->scales + t, y->bias[r], turned + r * ACROSS);
        }
    }
}

INLINE void finish(const call *k, const results *y) {
    if (k->pixels)
        finish_pixels(k, y);
    else
        finish_tokens(k, y);
}

#ifdef MINIFLOAT_X86
static TARGET_AVX512 void finish_avx512(const call *k, const results *y) { finish(k, y); }
#endif

void mf_write(const call *k, const results *y) {
#ifdef MINIFLOAT_X86
    if (has_avx512()) {
        finish_avx512(k, y);
        return;
    }
#endif
    finish(k, y);
}
