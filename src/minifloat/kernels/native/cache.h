/* Keys and values in few bits, and what is done with a span of their tokens.

   Codes are read as they lie, 16 bytes at a time: a chunk gives one register of 16 numbers at 8 bits and
   two at 4 bits, of which the first holds the even columns. Queries and sums are laid out in the same
   places, so nothing is shuffled but the result. */

#ifndef MINIFLOAT_CACHE_H
#define MINIFLOAT_CACHE_H

#include "call.h"

#define SPAN 128 /* tokens that are attended to at once; their codes stay in the first cache */
#define TILE 4   /* queries that share a decoded number, at most */

/* Keys or values of one call, [batch][heads][tokens] lines of codes and of groups' scales. */
typedef struct {
    const formats *how;
    const uint8_t *codes;
    const void *scales;
    const uint8_t *zeros;            /* or NULL */
    int64_t width;                   /* features */
    int64_t batch, head;             /* bytes of codes from one to the next */
    int64_t scale_batch, scale_head; /* groups from one to the next */
    int64_t bytes, groups, chunks;   /* of a token */
    int64_t room;                    /* places of a token: whole chunks */
    int64_t *bases;                  /* [chunks] the first group of a chunk */
    int32_t *places;                 /* [chunks][16] the group of each byte, from the base on */
} states;

/* Some tokens of a head. */
typedef struct {
    const states *of;
    const uint8_t *codes;
    const float *scales; /* [tokens][groups] and 16 numbers that are never used */
    const float *zeros;  /* zero points times scales, likewise, or NULL */
    int tokens;
} span;

/* Where a column of a token lies. */
static inline int64_t place_of(const formats *how, int64_t column) {
    return how->bits == 8 ? column : column / 32 * 32 + column % 2 * 16 + column % 32 / 2;
}

/* Whether a token has one scale, which then comes to its product or weight and not to its numbers. */
static inline int one_scale(const states *s) { return s->groups == 1; }

/* p [queries][SPAN] = the products of q [queries][room] with the tokens of `keys`. */
typedef void (*products_kernel)(const span *keys, const float *q, int queries, float *p);

/* out [queries][room] = the tokens of `values`, weighted by p [queries][SPAN]. */
typedef void (*sums_kernel)(const span *values, const float *p, int queries, float *out);

products_kernel mf_products(const states *keys, int level);
sums_kernel mf_sums(const states *values, int level);

/* The softmax of one query over a span: what is left to do with its products, and the weights of its values.

   p are products, and come back as weights times the values' scales. `q_sum` is the sum of the query,
   `mask` says which tokens are seen (NULL: all), `lift` is what the values' zero points add to every sum. */
typedef struct {
    float peak, weight, lift;
} share;

share mf_softmax(const span *keys, const span *values, const uint8_t *mask, float q_sum, float *p,
                 int level);

/* exp(x) for x <= 0 within 2 units of the last place; below the smallest normal number it is 0. */
static inline __attribute__((always_inline)) float power_of_e(float x) {
    const float turns = x * 0x1.715476p0f, whole = (turns + 0x1.8p23f) - 0x1.8p23f;
    const float r = (x - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f; /* ln 2 in two parts */
    float y = 0x1.6850e4p-10f;
    y = y * r + 0x1.123bccp-7f;
    y = y * r + 0x1.555b98p-5f;
    y = y * r + 0x1.55548ep-3f;
    y = y * r + 0x1.fffff8p-2f;
    y = y * r + 1;
    y = y * r + 1;
    const uint32_t binade = (uint32_t)((int32_t)(whole < -126 ? -126 : whole) + 127) << 23;
    return x < -87 ? 0 : y * float_of(binade);
}

#endif
