/* Each pixel is put on its grid once. A unit holds neighbouring channels of one pixel, so that what a
   window sees are units as they lie, at places that are the same for every window. */

#include "planes.h"

#ifdef MINIFLOAT_X86
#define TOGETHER 512 /* pixels of a channel that are rounded at once, in whole lines */

/* Numbers of a unit's channels, `stride` apart, as units. */
static inline __attribute__((always_inline)) void join(const float *rows, int64_t stride, int64_t count,
                                                       enum engine engine, uint32_t *restrict out) {
    const float *a = rows, *b = a + stride, *c = b + stride, *d = c + stride;
    if (engine == REALS) memcpy(out, a, (size_t)count * sizeof(float));
    if (engine == BRAINS)
        for (int64_t i = 0; i < count; i++) out[i] = bits_of(a[i]) >> 16 | (bits_of(b[i]) & 0xffff0000);
    if (engine == BYTES)
        for (int64_t i = 0; i < count; i++)
            out[i] = (uint32_t)((int32_t)a[i] + LIFT) | (uint32_t)((int32_t)b[i] + LIFT) << 8 |
                     (uint32_t)((int32_t)c[i] + LIFT) << 16 | (uint32_t)((int32_t)d[i] + LIFT) << 24;
}

static inline void fill(uint32_t *out, int64_t count, uint32_t zero) {
    for (int64_t i = 0; i < count; i++) out[i] = zero;
}

/* Some lines of an image on the grid, with the padding beside and, at the ends, above and below them;
   whether there was a NaN. `rows` has room for the lines of a unit's channels. */
static TARGET_AVX512 int put_lines(const planes *p, int64_t image, int64_t y, int64_t count,
                                   float *rows) {
    const window *w = p->a->window;
    const int each = unit_columns(p->engine);
    const int64_t numbers = count * w->size[1], side = w->padding[1];
    const uint32_t zero = p->engine == BYTES ? LIFT * 0x01010101u : 0;
    int lost = 0;
    for (int64_t block = 0; block < p->blocks; block++) {
        for (int i = 0; i < each; i++) {
            const int64_t channel = block * each + i;
            const int64_t from = image * w->apart + (channel * w->size[0] + y) * w->size[1];
            if (channel < w->channels)
                lost |= mf_put(p->a, p->engine, from, numbers, rows + i * numbers);
            else
                memset(rows + i * numbers, 0, (size_t)numbers * sizeof(float));
        }
        uint32_t *top = p->units + (image * p->blocks + block) * p->plane;
        uint32_t *line = top + (w->padding[0] + y) * p->width;
        if (y == 0) fill(top, w->padding[0] * p->width, zero);
        for (int64_t l = 0; l < count; l++, line += p->width) {
            fill(line, side, zero);
            join(rows + l * w->size[1], numbers, w->size[1], p->engine, line + side);
            fill(line + side + w->size[1], side, zero);
        }
        if (y + count == w->size[0]) fill(line, w->padding[0] * p->width, zero);
    }
    return lost;
}

/* Some tokens on the grid, whose columns fill whole units. */
static TARGET_AVX512 int put_tokens(const planes *p, int64_t token, int64_t count, float *row) {
    const int64_t columns = p->a->columns, numbers = count * columns;
    uint32_t *out = p->units + token * p->blocks;
    uint8_t *bytes = (uint8_t *)out;
    const int lost = mf_put(p->a, p->engine, token * columns, numbers, row);
    if (p->engine == BYTES)
        for (int64_t i = 0; i < numbers; i++) bytes[i] = (uint8_t)((int32_t)row[i] + LIFT);
    else
        mf_narrow(row, numbers, p->engine, out);
    return lost;
}

/* Counts of what is put at once: runs of lines or tokens, and the numbers of one. */
typedef struct {
    int64_t images, each; /* runs of an image */
    int64_t length, numbers;
} runs;

static runs runs_of(const activations *a) {
    const window *w = a->window;
    if (!w) {
        const int64_t length = ceil_div(4 * TOGETHER, a->columns);
        return (runs){1, ceil_div(a->tokens, length), length, length * a->columns};
    }
    const int64_t length = least(ceil_div(TOGETHER, w->size[1]), w->size[0]);
    const int64_t images = a->tokens / (w->out[0] * w->out[1]);
    return (runs){images, ceil_div(w->size[0], length), length, 4 * length * w->size[1]};
}

static int put_run(const planes *p, const runs *r, int64_t i, float *own) {
    const window *w = p->a->window;
    const int64_t at = i % r->each * r->length;
    if (!w) return put_tokens(p, at, least(r->length, p->a->tokens - at), own);
    return put_lines(p, i / r->each, at, least(r->length, w->size[0] - at), own);
}

enum outcome mf_planes(const activations *a, enum engine engine, int threads, planes *p) {
    const window *w = a->window;
    const runs r = runs_of(a);
    const int64_t room = lines(r.numbers);
    int lost = 0;
    *p = (planes){.a = a, .engine = engine, .width = 1, .plane = a->tokens};
    p->blocks = ceil_div(w ? w->channels : a->columns, unit_columns(engine));
    if (w) p->width = w->size[1] + 2 * w->padding[1];
    if (w) p->plane = p->width * (w->size[0] + 2 * w->padding[0]);
    p->units = room_for(r.images * p->blocks * p->plane);
    float *own = room_for(threads * room);
    const enum outcome outcome = p->units && own ? DONE : NO_MEMORY;
    if (outcome == DONE)
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : lost)
        for (int64_t i = 0; i < r.images * r.each; i++)
            lost |= put_run(p, &r, i, own + thread_number() * room);
    free(own);
    if (lost || outcome == NO_MEMORY) free(p->units), p->units = NULL;
    return outcome;
}
#endif
