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

static inline float to_float(float x, uint32_t lowest, uint32_t lift) {
    float a = fabsf(x);
    uint32_t binade = bits_of(a) & 0x7f800000;
    float big = float_of((binade < lowest ? lowest : binade) + lift);
    return copysignf((a + big) - big, x);
}

/* `x` is `row` itself or lies apart from it. */
static inline __attribute__((always_inline)) void round_row(const float *x, float *row, int64_t count,
                                                            float scale, const formats *how) {
    const uint32_t lowest = (uint32_t)(how->input_exponent + 127) << 23;
    const uint32_t lift = (uint32_t)(23 - how->input_mantissa) << 23;
    if (how->input == INTEGERS) {
#pragma omp simd
        for (int64_t k = 0; k < count; k++) row[k] = to_integer(clamped(x[k] / scale, how));
    } else {
#pragma omp simd
        for (int64_t k = 0; k < count; k++) row[k] = to_float(clamped(x[k] / scale, how), lowest, lift);
    }
}

static inline float number(const activations *a, int64_t at) {
    if (a->kind == FLOAT32) return ((const float *)a->x)[at];
    return float_of((uint32_t)((const uint16_t *)a->x)[at] << 16);
}

/* Which steps of a window that begins at `first` lie within `size`. */
static void inside(int64_t first, int64_t step, int64_t count, int64_t size, int64_t range[2]) {
    range[0] = first < 0 ? least(ceil_div(-first, step), count) : 0;
    range[1] = size > first ? least(ceil_div(size - first, step), count) : 0;
}

static void load_window(const activations *a, int64_t token, float *row) {
    const window *w = a->window;
    const int64_t pixels = w->out[0] * w->out[1], image = token / pixels, pixel = token % pixels;
    const int64_t y = pixel / w->out[1] * w->stride[0] - w->padding[0];
    const int64_t x = pixel % w->out[1] * w->stride[1] - w->padding[1];
    const int64_t area = w->kernel[0] * w->kernel[1];
    int64_t ys[2], xs[2];
    inside(y, w->dilation[0], w->kernel[0], w->size[0], ys);
    inside(x, w->dilation[1], w->kernel[1], w->size[1], xs);
    if (ys[0] > 0 || xs[0] > 0 || ys[1] < w->kernel[0] || xs[1] < w->kernel[1])
        memset(row, 0, (size_t)a->columns * sizeof(float));
    for (int64_t i = ys[0]; i < ys[1]; i++)
        for (int64_t j = xs[0]; j < xs[1]; j++) {
            const int64_t line = (y + i * w->dilation[0]) * w->size[1];
            const int64_t at = image * w->apart + line + x + j * w->dilation[1];
            float *to = row + i * w->kernel[1] + j;
            for (int64_t c = 0; c < w->channels; c++)
                to[c * area] = number(a, at + c * w->size[0] * w->size[1]);
        }
}

static inline __attribute__((always_inline)) void load(const activations *a, int64_t from,
                                                       int64_t count, float *row) {
    if (a->kind == FLOAT32)
        memcpy(row, (const float *)a->x + from, (size_t)count * sizeof(float));
    else
        for (int64_t k = 0; k < count; k++) row[k] = number(a, from + k);
}

static inline __attribute__((always_inline)) void quantize(const activations *a, int64_t token,
                                                           enum engine engine, float *row,
                                                           float *scales) {
    const int64_t group = input_group(a);
    const int is_read_once = a->kind == FLOAT32 && !a->window && a->how->input != AS_IT_COMES;
    const float *x = is_read_once ? (const float *)a->x + token * a->columns : row;
    if (a->window)
        load_window(a, token, row);
    else if (!is_read_once)
        load(a, token * a->columns, a->columns, row);
    if (a->how->input == AS_IT_COMES) {
        scales[0] = 1;
        return;
    }
    for (int64_t start = 0, g = 0; start < a->columns; start += group, g++) {
        const int64_t count = least(group, a->columns - start);
        const uint32_t peak = peak_bits(x + start, count);
        float scale = a->given ? a->given[token * a->given_stride + g]
                               : scale_of(peak, a->how->input_max);
        round_row(x + start, row + start, count, scale, a->how);
        if (engine == REALS)
            for (int64_t k = start; k < start + count; k++) row[k] *= scale;
        scales[g] = scale;
        if (peak > 0x7f800000 && engine != REALS) { /* integers cannot say NaN */
            memset(row + start, 0, (size_t)count * sizeof(float));
            scales[g] = NAN;
        }
    }
}

static inline __attribute__((always_inline)) int put(const activations *a, enum engine engine,
                                                     int64_t from, int64_t count, float *row) {
    load(a, from, count, row);
    const int lost = engine != REALS && peak_bits(row, count) > 0x7f800000;
    if (a->how->input != AS_IT_COMES) round_row(row, row, count, a->given[0], a->how);
    if (a->how->input != AS_IT_COMES && engine == REALS)
        for (int64_t k = 0; k < count; k++) row[k] *= a->given[0];
    return lost && a->how->input != AS_IT_COMES;
}

static inline __attribute__((always_inline)) void narrow(const float *row, int64_t count,
                                                         enum engine engine, void *out) {
    uint8_t *bytes = out;
    uint16_t *words = out;
    if (engine == REALS) memcpy(out, row, (size_t)count * sizeof(float));
    if (engine == BYTES)
        for (int64_t k = 0; k < count; k++) bytes[k] = (uint8_t)(int32_t)row[k];
    if (engine == BRAINS)
        for (int64_t k = 0; k < count; k++) words[k] = (uint16_t)(bits_of(row[k]) >> 16);
    if (engine == WORDS)
        for (int64_t k = 0; k < count; k++) words[k] = (uint16_t)(int32_t)row[k];
}

/* Columns in their order to units, by way of an array of numbers of a unit's width. */
static inline __attribute__((always_inline)) void to_units(const float *row, int64_t columns, int U,
                                                           enum engine engine, uint32_t *units) {
    uint8_t *bytes = (uint8_t *)units;
    uint16_t *words = (uint16_t *)units;
    narrow(row, columns, engine, units);
    if (engine == BYTES && U == 2)
        for (int64_t k = 0; k < columns; k += 8) {
            uint64_t eight, even, odd;
            memcpy(&eight, bytes + k, 8);
            even = eight & 0x00ff00ff00ff00ff, odd = eight >> 8 & 0x00ff00ff00ff00ff;
            even = (even | even >> 8) & 0x0000ffff0000ffff, odd = (odd | odd >> 8) & 0x0000ffff0000ffff;
            eight = (uint32_t)(even | even >> 16) | (odd | odd >> 16) << 32;
            memcpy(bytes + k, &eight, 8);
        }
    if (engine == BRAINS || engine == WORDS)
        for (int64_t k = 0; k < columns; k += 2 * U) {
            uint16_t old[8];
            memcpy(old, words + k, (size_t)U * 4);
            for (int i = 0; i < U; i++) {
                words[k + 2 * i] = old[i];
                words[k + 2 * i + 1] = old[i + U];
            }
        }
}

static inline __attribute__((always_inline)) void prepare(const activations *a, int64_t token,
                                                          enum engine engine, int64_t dwords,
                                                          float *row, uint32_t *units,
                                                          float *scales) {
    const int64_t columns = dwords * dword_columns(a->how);
    quantize(a, token, engine, row, scales);
    memset(row + a->columns, 0, (size_t)(columns - a->columns) * sizeof(float));
    to_units(row, columns, dword_columns(a->how) / unit_columns(engine), engine, units);
}

#ifdef MINIFLOAT_X86
static TARGET_AVX512 void prepare_avx512(const activations *a, int64_t token, enum engine engine,
                                         int64_t dwords, float *row, uint32_t *units, float *scales) {
    prepare(a, token, engine, dwords, row, units, scales);
}

static TARGET_AVX512 int put_avx512(const activations *a, enum engine engine, int64_t from,
                                    int64_t count, float *row) {
    return put(a, engine, from, count, row);
}

static TARGET_AVX512 void narrow_avx512(const float *row, int64_t count, enum engine engine, void *out) {
    narrow(row, count, engine, out);
}
#endif

void mf_prepare(const activations *a, int64_t token, enum engine engine, int64_t dwords, float *row,
                uint32_t *units, float *scales) {
#ifdef MINIFLOAT_X86
    if (has_avx512()) {
        prepare_avx512(a, token, engine, dwords, row, units, scales);
        return;
    }
#endif
    prepare(a, token, engine, dwords, row, units, scales);
}

int mf_put(const activations *a, enum engine engine, int64_t from, int64_t count, float *row) {
#ifdef MINIFLOAT_X86
    if (has_avx512()) return put_avx512(a, engine, from, count, row);
#endif
    return put(a, engine, from, count, row);
}

void mf_narrow(const float *row, int64_t count, enum engine engine, void *out) {
#ifdef MINIFLOAT_X86
    if (has_avx512()) {
        narrow_avx512(row, count, engine, out);
        return;
    }
#endif
    narrow(row, count, engine, out);
}

static inline __attribute__((always_inline)) float sum_of(const float *columns, int64_t count) {
    float lanes[16] = {0}, sum = 0;
    int64_t at = 0;
    for (; at + 16 <= count; at += 16)
        for (int i = 0; i < 16; i++) lanes[i] += columns[at + i];
    for (; at < count; at++) sum += columns[at];
    for (int i = 0; i < 16; i++) sum += lanes[i];
    return sum;
}

#ifdef MINIFLOAT_X86
static TARGET_AVX512 float sum_avx512(const float *columns, int64_t count) { return sum_of(columns, count); }
#endif

float mf_sum(const float *columns, int64_t count) {
#ifdef MINIFLOAT_X86
    if (has_avx512()) return sum_avx512(columns, count);
#endif
    return sum_of(columns, count);
}
