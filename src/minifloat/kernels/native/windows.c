/* What the windows of a convolution see, without a copy for every window: each pixel is put on its grid
   once, and a unit of many neighbouring tokens is a few stretches of pixels side by side. */

#include "windows.h"

int mf_shares_grid(const call *k) {
    if (k->w.zeros) return 0; /* zero points ask for sums of every window */
    if (k->a.how->input == AS_IT_COMES) return 1;
    return k->a.given && k->a.given_stride == 0 && input_groups(&k->a) == 1;
}

/* A column's place from the first pixel of a window; columns past the last lie in the channel of zeros. */
static int64_t place_of(const pixels *p, int64_t column) {
    const window *w = p->a->window;
    const int64_t area = w->kernel[0] * w->kernel[1], at = column % area;
    if (column >= p->a->columns) return w->channels * p->plane;
    const int64_t y = at / w->kernel[1] * w->dilation[0], x = at % w->kernel[1] * w->dilation[1];
    return column / area * p->plane + y * p->width + x;
}

/* A line of an image on the grid; whether it had a NaN that the engine's numbers cannot say. */
static int put_line(const pixels *p, int64_t image, int64_t channel, int64_t y, float *line) {
    const window *w = p->a->window;
    const int64_t from = image * w->apart + (channel * w->size[0] + y) * w->size[1];
    const int64_t plane = image * (w->channels + 1) + channel;
    const int64_t to = plane * p->plane + (y + w->padding[0]) * p->width + w->padding[1];
    const int lost = mf_put(p->a, p->engine, from, w->size[1], line);
    mf_narrow(line, w->size[1], p->engine, (uint8_t *)p->numbers + to * p->bytes);
    return lost;
}

/* The places of a dword's columns in the order of its units. */
static void find_places(pixels *p, int64_t dwords, int U) {
    const int each = unit_columns(p->engine);
    for (int64_t i = 0; i < dwords * U * each; i++) {
        const int64_t dword = i / (U * each), unit = i / each % U;
        p->places[i] = place_of(p, dword * U * each + unit + i % each * U);
    }
}

enum outcome mf_pixels(const activations *a, enum engine engine, int64_t dwords, int U, int threads,
                       pixels *p) {
    const window *w = a->window;
    const int64_t images = a->tokens / (w->out[0] * w->out[1]), lines = images * w->channels * w->size[0];
    int lost = 0;
    *p = (pixels){.a = a, .engine = engine, .bytes = 4 / unit_columns(engine)};
    p->width = w->size[1] + 2 * w->padding[1];
    p->plane = p->width * (w->size[0] + 2 * w->padding[0]);
    p->numbers = calloc((size_t)(images * (w->channels + 1) * p->plane), (size_t)p->bytes);
    p->places = malloc((size_t)(dwords * U * unit_columns(engine)) * sizeof(int64_t));
    float *own = malloc((size_t)(threads * w->size[1]) * sizeof(float));
    const enum outcome outcome = p->numbers && p->places && own ? DONE : NO_MEMORY;
    if (outcome == DONE) {
        find_places(p, dwords, U);
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : lost)
        for (int64_t i = 0; i < lines; i++)
            lost |= put_line(p, i / w->size[0] / w->channels, i / w->size[0] % w->channels,
                             i % w->size[0], own + thread_number() * w->size[1]);
    }
    free(own);
    if (lost || outcome == NO_MEMORY) mf_forget(p);
    return outcome;
}

void mf_forget(pixels *p) {
    free(p->numbers), free(p->places);
    p->numbers = NULL, p->places = NULL;
}

/* Units of `count` tokens of one line, `step` pixels apart, from the places of a unit's columns. */
static inline __attribute__((always_inline)) void unit_run(const pixels *p, const int64_t *places,
                                                           int64_t first, int64_t count, int64_t step,
                                                           uint32_t *restrict out) {
    if (p->engine == REALS) {
        const uint32_t *a = (const uint32_t *)p->numbers + first + places[0];
        for (int64_t t = 0; t < count; t++) out[t] = a[t * step];
    } else if (p->engine == BYTES) {
        const uint8_t *numbers = (const uint8_t *)p->numbers + first;
        const uint8_t *a = numbers + places[0], *b = numbers + places[1];
        const uint8_t *c = numbers + places[2], *d = numbers + places[3];
        for (int64_t t = 0, i = 0; t < count; t++, i += step)
            out[t] = (uint32_t)a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 | (uint32_t)d[i] << 24;
    } else {
        const uint16_t *numbers = (const uint16_t *)p->numbers + first;
        const uint16_t *a = numbers + places[0], *b = numbers + places[1];
        for (int64_t t = 0, i = 0; t < count; t++, i += step)
            out[t] = (uint32_t)a[i] | (uint32_t)b[i] << 16;
    }
}

static inline __attribute__((always_inline)) void window_unit(const pixels *p, int64_t unit,
                                                              const stretch *stretches, int64_t count,
                                                              uint32_t *out) {
    const int64_t *places = p->places + unit * unit_columns(p->engine);
    const int64_t step = p->a->window->stride[1];
    for (int64_t i = 0; i < count; out += stretches[i++].count)
        if (step == 1)
            unit_run(p, places, stretches[i].first, stretches[i].count, 1, out);
        else
            unit_run(p, places, stretches[i].first, stretches[i].count, step, out);
}

int64_t mf_window_stretches(const pixels *p, int64_t token, int64_t count, stretch *stretches) {
    const window *w = p->a->window;
    const int64_t area = w->out[0] * w->out[1];
    int64_t found = 0;
    for (int64_t end = token + count; token < end; token += stretches[found++].count) {
        const int64_t image = token / area, y = token % area / w->out[1], x = token % w->out[1];
        const int64_t line = image * (w->channels + 1) * p->plane + y * w->stride[0] * p->width;
        stretches[found] = (stretch){line + x * w->stride[1], least(end - token, w->out[1] - x)};
    }
    return found;
}

/* Minus the bias times the sum of all columns of some units of a token. */
static inline __attribute__((always_inline)) void window_starts(const uint32_t *x, int64_t step,
                                                                int64_t units, int64_t count,
                                                                int32_t bias, int32_t *starts) {
    memset(starts, 0, (size_t)count * sizeof(int32_t));
    for (int64_t u = 0; u < units; u++)
        for (int64_t t = 0; t < count; t++) {
            const int32_t unit = (int32_t)x[u * step + t];
            starts[t] -= bias * ((int8_t)unit + (int8_t)(unit >> 8) + (int8_t)(unit >> 16) + (unit >> 24));
        }
}

#ifdef MINIFLOAT_X86
static TARGET_AVX512 void window_unit_avx512(const pixels *p, int64_t unit, const stretch *stretches,
                                             int64_t count, uint32_t *out) {
    window_unit(p, unit, stretches, count, out);
}

static TARGET_AVX512 void window_starts_avx512(const uint32_t *x, int64_t step, int64_t units,
                                               int64_t count, int32_t bias, int32_t *starts) {
    window_starts(x, step, units, count, bias, starts);
}
#endif

void mf_window_unit(const pixels *p, int64_t unit, const stretch *stretches, int64_t count, uint32_t *out) {
#ifdef MINIFLOAT_X86
    if (has_avx512()) {
        window_unit_avx512(p, unit, stretches, count, out);
        return;
    }
#endif
    window_unit(p, unit, stretches, count, out);
}

void mf_window_starts(const uint32_t *x, int64_t step, int64_t units, int64_t count, int32_t bias,
                      int32_t *starts) {
#ifdef MINIFLOAT_X86
    if (has_avx512()) {
        window_starts_avx512(x, step, units, count, bias, starts);
        return;
    }
#endif
    window_starts(x, step, units, count, bias, starts);
}
