/* Stored scales to fp32, a row at a time: a copy of all of them would cost memory traffic and memory. */

#include "layer.h"

/* fp16 to fp32: its fields are moved to fp32's places and the exponent's bias is made up for, which
   is exact for subnormals as well. */
static inline float half_value(uint16_t half) {
    float magnitude = float_of((uint32_t)(half & 0x7fff) << 13) * 0x1p112f;
    return half & 0x8000 ? -magnitude : magnitude;
}

static void to_floats(const void *stored, int64_t at, int64_t count, int kind, const float *table,
                      float *out) {
    const uint16_t *words = (const uint16_t *)stored + at;
    const uint8_t *codes = (const uint8_t *)stored + at;
    switch (kind) {
    case FLOAT16:
        for (int64_t i = 0; i < count; i++) out[i] = half_value(words[i]);
        break;
    case BFLOAT16:
        for (int64_t i = 0; i < count; i++) out[i] = float_of((uint32_t)words[i] << 16);
        break;
    case CODED:
        for (int64_t i = 0; i < count; i++) out[i] = table[codes[i]];
        break;
    default: memcpy(out, (const float *)stored + at, (size_t)count * sizeof(float));
    }
}

static int64_t tile_row(const weights *w, int64_t row) {
    return w->how->tile_rows == -1 ? 0 : row / w->how->tile_rows;
}

void mf_row_scales(const weights *w, int64_t row, float *out) {
    const formats *how = w->how;
    const int64_t groups = group_count(w), tile = tile_row(w, row);
    to_floats(w->scales, tile * groups, groups, how->scale_kind, how->scale_values, out);
    if (how->outer_kind == NONE) return;
    float outer;
    to_floats(w->outer, how->outer_by_row ? tile : 0, 1, how->outer_kind, NULL, &outer);
    for (int64_t g = 0; g < groups; g++) out[g] *= outer;
}

void mf_row_zeros(const weights *w, int64_t row, const float *scales, float *out) {
    const int64_t groups = group_count(w);
    const uint8_t *zeros = w->zeros + tile_row(w, row) * groups;
    for (int64_t g = 0; g < groups; g++) out[g] = (float)(zeros[g] - w->how->middle) * scales[g];
}
