/* Activations on their grid: the largest magnitude of a group gives the scale, and rounding to M
   mantissa bits is one addition (see `grids.py`, whose numbers these are bit for bit). */

#include "tokens.h"

/* Bits of the largest magnitude: NaN is above all numbers. */
static inline __attribute__((always_inline)) uint32_t peak_bits(const float *row, int64_t count) {
    int32_t peak = 0;
    for (int64_t k = 0; k < count; k++) {
        int32_t bits = (int32_t)(bits_of(row[k]) & 0x7fffffff);
        peak = bits > peak ? bits : peak;
    }
    return (uint32_t)peak;
}

/* As `scales.fit` stores it in fp32. */
static float scale_of(uint32_t peak, float max) {
    double raw = (double)float_of(peak) / (double)max;
    if (raw < 0x1p-126) raw = 0x1p-126;
    return raw > 0x1.fffffep127 ? 0x1.fffffep127f : (float)raw;
}

static inline float clamped(float x, const formats *how) {
    x = x > how->input_max ? how->input_max : x;
    return x < how->input_min ? how->input_min : x;
}

static inline float to_integer(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

static inline float to_float(float x, int32_t lowest, int32_t lift) {
    float a = fabsf(x);
    int32_t magic = (int32_t)(bits_of(a) & 0x7f800000);
    magic = (magic < lowest ? lowest : magic) + lift;
    float big = float_of((uint32_t)magic);
    return copysignf((a + big) - big, x);
}

static inline __attribute__((always_inline)) void round_row(float *row, int64_t count, float scale,
                                                            const formats *how) {
    const int32_t lowest = (how->input_exponent + 127) * (1 << 23);
    const int32_t lift = (23 - how->input_mantissa) * (1 << 23);
    if (how->input == INTEGERS)
        for (int64_t k = 0; k < count; k++) row[k] = to_integer(clamped(row[k] / scale, how));
    else
        for (int64_t k = 0; k < count; k++)
            row[k] = to_float(clamped(row[k] / scale, how), lowest, lift);
}

static inline float number(const activations *a, int64_t at) {
    if (a->kind == FLOAT32) return ((const float *)a->x)[at];
    return float_of((uint32_t)((const uint16_t *)a->x)[at] << 16);
}

/* One line of a window: `count` pixels from column `x` of the line that begins at `line`. */
static inline void load_line(const activations *a, int64_t line, int64_t x, float *out) {
    const window *w = a->window;
    const int64_t count = w->kernel[1], step = w->dilation[1];
    const int inside = x >= 0 && x + (count - 1) * step < w->size[1];
    for (int64_t i = 0; i < count; i++, x += step)
        out[i] = inside || (x >= 0 && x < w->size[1]) ? number(a, line + x) : 0;
}

static void load_window(const activations *a, int64_t token, float *row) {
    const window *w = a->window;
    const int64_t pixels = w->out[0] * w->out[1], image = token / pixels, pixel = token % pixels;
    const int64_t y = pixel / w->out[1] * w->stride[0] - w->padding[0];
    const int64_t x = pixel % w->out[1] * w->stride[1] - w->padding[1];
    for (int64_t c = 0; c < w->channels; c++)
        for (int64_t i = 0; i < w->kernel[0]; i++, row += w->kernel[1]) {
            const int64_t at = y + i * w->dilation[0];
            const int64_t line = ((image * w->channels + c) * w->size[0] + at) * w->size[1];
            if (at >= 0 && at < w->size[0])
                load_line(a, line, x, row);
            else
                memset(row, 0, (size_t)w->kernel[1] * sizeof(float));
        }
}

static inline __attribute__((always_inline)) void load_row(const activations *a, int64_t token,
                                                           float *row) {
    const int64_t first = token * a->columns;
    if (a->window)
        load_window(a, token, row);
    else if (a->kind == FLOAT32)
        memcpy(row, (const float *)a->x + first, (size_t)a->columns * sizeof(float));
    else
        for (int64_t k = 0; k < a->columns; k++) row[k] = number(a, first + k);
}

static inline __attribute__((always_inline)) void quantize(const activations *a, int64_t token,
                                                           enum engine engine, float *row,
                                                           float *scales) {
    const int64_t group = input_group(a);
    load_row(a, token, row);
    if (a->how->input == AS_IT_COMES) {
        scales[0] = 1;
        return;
    }
    for (int64_t start = 0, g = 0; start < a->columns; start += group, g++) {
        const int64_t count = least(group, a->columns - start);
        const uint32_t peak = peak_bits(row + start, count);
        float scale = a->given ? a->given[token * a->given_stride + g]
                               : scale_of(peak, a->how->input_max);
        round_row(row + start, count, scale, a->how);
        if (engine == REALS)
            for (int64_t k = start; k < start + count; k++) row[k] *= scale;
        scales[g] = peak > 0x7f800000 ? NAN : scale; /* integers cannot say NaN */
    }
}

#ifdef MINIFLOAT_X86
static TARGET_AVX512 void quantize_avx512(const activations *a, int64_t token, enum engine engine,
                                          float *row, float *scales) {
    quantize(a, token, engine, row, scales);
}
#endif

void mf_quantize(const activations *a, int64_t token, enum engine engine, int64_t padded, float *row,
                 float *scales) {
#ifdef MINIFLOAT_X86
    if (__builtin_cpu_supports("avx512dq"))
        quantize_avx512(a, token, engine, row, scales);
    else
#endif
        quantize(a, token, engine, row, scales);
    memset(row + a->columns, 0, (size_t)(padded - a->columns) * sizeof(float));
}
