/* The softmax of a query over a span of tokens, compiled from one text for plain and wide processors. */

#include "cache.h"

/* Products of codes become products of numbers. */
static inline __attribute__((always_inline)) void scaled(const span *keys, const uint8_t *mask,
                                                         float q_sum, float *p) {
    if (one_scale(keys->of) && keys->zeros)
        for (int t = 0; t < keys->tokens; t++) p[t] = p[t] * keys->scales[t] - q_sum * keys->zeros[t];
    else if (one_scale(keys->of))
        for (int t = 0; t < keys->tokens; t++) p[t] *= keys->scales[t];
    if (mask)
        for (int t = 0; t < keys->tokens; t++) p[t] = mask[t] ? p[t] : -INFINITY;
}

static inline __attribute__((always_inline)) float peak_of(const float *p, int tokens) {
    float peak = -INFINITY;
#pragma omp simd reduction(max : peak)
    for (int t = 0; t < tokens; t++) peak = p[t] > peak ? p[t] : peak;
    return peak;
}

static inline __attribute__((always_inline)) share softmax(const span *keys, const span *values,
                                                           const uint8_t *mask, float q_sum, float *p) {
    scaled(keys, mask, q_sum, p);
    share all = {.peak = peak_of(p, keys->tokens)};
    const float level = all.peak == -INFINITY ? 0 : all.peak; /* none is seen, or all are NaN */
    const int tokens = keys->tokens;
    float weight = 0, lift = 0;
#pragma omp simd reduction(+ : weight)
    for (int t = 0; t < tokens; t++) {
        p[t] = power_of_e(p[t] - level);
        weight += p[t];
    }
    if (one_scale(values->of) && values->zeros)
#pragma omp simd reduction(+ : lift)
        for (int t = 0; t < tokens; t++) lift -= p[t] * values->zeros[t];
    if (one_scale(values->of))
        for (int t = 0; t < tokens; t++) p[t] *= values->scales[t];
    all.weight = weight, all.lift = lift;
    return all;
}

#ifdef MINIFLOAT_X86
static TARGET_AVX512 share softmax_avx512(const span *keys, const span *values, const uint8_t *mask,
                                          float q_sum, float *p) {
    return softmax(keys, values, mask, q_sum, p);
}
#endif

share mf_softmax(const span *keys, const span *values, const uint8_t *mask, float q_sum, float *p,
                 int level) {
#ifdef MINIFLOAT_X86
    if (level >= AVX512) return softmax_avx512(keys, values, mask, q_sum, p);
#endif
    (void)level;
    return softmax(keys, values, mask, q_sum, p);
}
