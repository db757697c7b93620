/* Stored scales to fp32, a row at a time: a copy of all of them would cost memory traffic and memory. */

#include "tokens.h"

/* fp16 to fp32: its fields are moved to fp32's places and the exponent's bias is made up for, which
   is exact for subnormals as well. The largest exponent is that of Inf and NaN in both. */
static inline float half_value(uint16_t half) {
    const uint32_t fields = (uint32_t)(half & 0x7fff) << 13;
    const int finite = fields < 0x7c00u << 13;
    const float magnitude = finite ? float_of(fields) * 0x1p112f : float_of(fields | 0x7f800000);
    return half & 0x8000 ? -magnitude : magnitude;
}

#ifdef MINIFLOAT_X86
static TARGET_AVX512 void halves_avx512(const uint16_t *halves, int64_t count, float factor, float *out) {
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 some = (__mmask16)(count - i >= 16 ? 0xffff : (1u << (count - i)) - 1);
        const __m512 values = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, halves + i));
        _mm512_mask_storeu_ps(out + i, some, _mm512_mul_ps(values, _mm512_set1_ps(factor)));
    }
}
#endif

static void of_halves(const uint16_t *halves, int64_t count, float factor, float *out) {
#ifdef MINIFLOAT_X86
    if (has_avx512()) {
        halves_avx512(halves, count, factor, out);
        return;
    }
#endif
    for (int64_t i = 0; i < count; i++) out[i] = half_value(halves[i]) * factor;
}

static void to_floats(const void *stored, int64_t at, int64_t count, int kind, const float *table,
                      float factor, float *out) {
    const uint16_t *words = (const uint16_t *)stored + at;
    const uint8_t *codes = (const uint8_t *)stored + at;
    const float *floats = (const float *)stored + at;
    switch (kind) {
    case FLOAT16: of_halves(words, count, factor, out); break;
    case BFLOAT16:
        for (int64_t i = 0; i < count; i++) out[i] = float_of((uint32_t)words[i] << 16) * factor;
        break;
    case CODED:
        for (int64_t i = 0; i < count; i++) out[i] = table[codes[i]] * factor;
        break;
    default:
        for (int64_t i = 0; i < count; i++) out[i] = floats[i] * factor;
    }
}

static int64_t tile_row(const weights *w, int64_t row) {
    const int64_t rows = w->how->tile_rows;
    return rows == 1 ? row : rows == -1 ? 0 : row / rows;
}

void mf_row_scales(const weights *w, int64_t row, float factor, float *out) {
    const formats *how = w->how;
    const int64_t tile = tile_row(w, row);
    float outer = 1;
    if (how->outer_kind != NONE)
        to_floats(w->outer, how->outer_by_row ? tile : 0, 1, how->outer_kind, NULL, 1, &outer);
    to_floats(w->scales, tile * w->groups, w->groups, how->scale_kind, how->scale_values, outer * factor, out);
}

static void zeros_from(const weights *w, int64_t at, int64_t count, const float *scales, float *out) {
    for (int64_t i = 0; i < count; i++) out[i] = (float)(w->zeros[at + i] - w->how->middle) * scales[i];
}

void mf_row_zeros(const weights *w, int64_t row, const float *scales, float *out) {
    zeros_from(w, tile_row(w, row) * w->groups, w->groups, scales, out);
}

/* Scales of tiles that are not of one row: each row's are looked up. */
static void spread_scales(const weights *w, int64_t row, float factor, float *out) {
    const formats *how = w->how;
    for (int64_t r = 0; r < 16; r++) {
        const int64_t tile = tile_row(w, row + r);
        float outer = 1;
        if (how->outer_kind != NONE)
            to_floats(w->outer, how->outer_by_row ? tile : 0, 1, how->outer_kind, NULL, 1, &outer);
        for (int64_t g = 0; g < w->groups; g++)
            to_floats(w->scales, tile * w->groups + g, 1, how->scale_kind, how->scale_values,
                      outer * factor, out + g * 16 + r);
    }
}

void mf_strip_scales(const weights *w, int64_t row, float factor, float *out) {
    const formats *how = w->how;
    const int64_t count = 16 * w->groups;
    float outer[16] = {1};
    if (how->tile_rows != 1) {
        spread_scales(w, row, factor, out);
        return;
    }
    const int each = how->outer_kind != NONE && how->outer_by_row;
    if (how->outer_kind != NONE)
        to_floats(w->outer, each ? row : 0, each ? 16 : 1, how->outer_kind, NULL, 1, outer);
    to_floats(w->scales, row * w->groups, count, how->scale_kind, how->scale_values,
              each ? factor : outer[0] * factor, out);
    for (int64_t i = 0; each && i < count; i++) out[i] *= outer[i % 16];
}

void mf_strip_zeros(const weights *w, int64_t row, const float *scales, float *out) {
    zeros_from(w, row * w->groups, 16 * w->groups, scales, out);
}
