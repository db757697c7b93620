/* Many tokens: blocks of tokens are prepared in tiles, and every panel of rows goes through them.

   Columns are cut into segments that lie within a group of the weight, a group of the activations and a
   span that the cache holds. A segment's sum is scaled and added in fp32, in the order of the columns. */

#include "call.h"
#include "panels.h"
#include "windows.h"

#define BLOCK 528 /* tokens that are prepared at once: a multiple of TOKENS */

typedef struct {
    int64_t unit, units; /* its place in a row */
    int64_t group, input_group;
} segment;

/* What one call works with. */
typedef struct {
    const call *k;
    panel_kernel kernel;
    segment *segments;
    int64_t count;    /* of segments */
    int64_t stride;   /* units of a row */
    int64_t inputs;   /* groups of the activations */
    uint32_t *x;      /* units of tokens, see `unit_step` and `tile_step` */
    int32_t *starts;  /* [tiles][segments][TOKENS] */
    float *x_scales;  /* [tiles][inputs][TOKENS] */
    float *x_sums;    /* [tokens][groups] for zero points */
    int64_t room;     /* numbers of a thread's own memory */
    float *own;       /* [threads][room] */
    pixels pixels;    /* of a convolution, if its windows are taken from them */
} plan;

/* Units of a tile lie together, or of a whole block where neighbouring pixels are taken side by side. */
static int64_t unit_step(const plan *p) { return p->pixels.numbers ? BLOCK : TOKENS; }
static int64_t tile_step(const plan *p) { return p->pixels.numbers ? TOKENS : p->stride * TOKENS; }

static int64_t span_units(const call *k) { return SPAN / dword_columns(k->w.how) * k->units; }

/* Fills the plan's segments, or counts them where it has no room yet. */
static int64_t cut(const plan *p) {
    const call *k = p->k;
    const int64_t group = group_columns(&k->w), inputs = input_group(&k->a), P = dword_columns(k->w.how);
    int64_t count = 0;
    for (int64_t start = 0, end; start < k->w.columns; start = end, count++) {
        end = least(start / SPAN * SPAN + SPAN, k->w.columns);
        end = least(end, start / group * group + group);
        end = least(end, start / inputs * inputs + inputs);
        if (p->segments)
            p->segments[count] = (segment){start / P * k->units, ceil_div(end - start, P) * k->units,
                                           start / group, start / inputs};
    }
    return count;
}

/* A token of a block on its grid and in its tile; `row` is a thread's own memory. */
static void arrange(const plan *p, int64_t first, int64_t token, float *row) {
    const call *k = p->k;
    const int64_t tile = token / TOKENS, at = token % TOKENS, P = dword_columns(k->w.how);
    uint32_t *units = (uint32_t *)row + k->dwords * P, *x = p->x + tile * p->stride * TOKENS + at;
    float *scales = row + 2 * k->dwords * P;
    mf_prepare(&k->a, first + token, k->engine, k->dwords, row, units, scales);
    for (int64_t u = 0; u < p->stride; u++) x[u * TOKENS] = units[u];
    for (int64_t g = 0; g < p->inputs; g++)
        p->x_scales[(tile * p->inputs + g) * TOKENS + at] = scales[g];
    if (k->w.zeros) group_sums(k, row, scales, p->x_sums + token * k->w.groups);
    for (int64_t s = 0; k->engine == BYTES && s < p->count; s++) {
        const int64_t begin = p->segments[s].unit / k->units * P, units_in = p->segments[s].units;
        p->starts[(tile * p->count + s) * TOKENS + at] =
            start_of(k, row + begin, units_in / k->units * P);
    }
}

static void start_segment(const plan *p, int64_t s, int64_t count) {
    const segment *at = p->segments + s;
    int32_t starts[BLOCK];
    mf_window_starts(p->x + at->unit * BLOCK, BLOCK, at->units, count, p->k->w.how->bias, starts);
    for (int64_t t = 0; t < count; t++)
        p->starts[(t / TOKENS * p->count + s) * TOKENS + t % TOKENS] = starts[t];
}

static void prepare_windows(const plan *p, int64_t first, int64_t count) {
    const call *k = p->k;
    const float scale = k->a.how->input == AS_IT_COMES ? 1 : k->a.given[0];
    stretch stretches[BLOCK];
    const int64_t found = mf_window_stretches(&p->pixels, first, count, stretches);
    for (int64_t t = 0; t < count; t++) p->x_scales[t] = scale;
#pragma omp parallel for num_threads(k->threads) schedule(static)
    for (int64_t u = 0; u < p->stride; u++)
        mf_window_unit(&p->pixels, u, stretches, found, p->x + u * BLOCK);
    if (k->engine != BYTES) return;
#pragma omp parallel for num_threads(k->threads) schedule(static)
    for (int64_t s = 0; s < p->count; s++) start_segment(p, s, count);
}

static void prepare(const plan *p, int64_t first, int64_t count) {
    if (p->pixels.numbers) {
        prepare_windows(p, first, count);
        return;
    }
#pragma omp parallel for num_threads(p->k->threads) schedule(static)
    for (int64_t t = 0; t < count; t++) arrange(p, first, t, p->own + thread_number() * p->room);
}

/* All tiles of a block with the segments of one expanded span. */
static void multiply(const plan *p, int64_t span, int64_t tokens, int64_t rows, const uint32_t *panel,
                     const float *scales, float *c) {
    const int64_t units = span_units(p->k), begin = span * units;
    int64_t from = 0, to;
    while (p->segments[from].unit < begin) from++;
    for (to = from; to < p->count && p->segments[to].unit < begin + units;) to++;
    for (int64_t t = 0; t < tokens; t += TOKENS)
        for (int64_t s = from; s < to; s++) {
            const segment *at = p->segments + s;
            const int64_t tile = t / TOKENS;
            const tile_problem problem = {
                panel + (at->unit - begin) * PANEL,
                p->x + tile * tile_step(p) + at->unit * unit_step(p),
                at->units,
                unit_step(p),
                rows,
                p->starts + (tile * p->count + s) * TOKENS,
                scales + at->group * PANEL,
                p->k->engine == REALS || p->inputs == 1
                    ? NULL
                    : p->x_scales + (tile * p->inputs + at->input_group) * TOKENS,
                c + t * PANEL};
            p->kernel.multiply(&problem, (int)least(TOKENS, tokens - t));
        }
}

/* Scales [groups][PANEL] of a panel, and zero points where there are any. */
static void panel_scales(const plan *p, int64_t row, int64_t rows, float *scales, float *zeros,
                         float *line) {
    const int64_t groups = p->k->w.groups;
    memset(scales, 0, (size_t)(groups * PANEL) * sizeof(float));
    if (zeros) memset(zeros, 0, (size_t)(groups * PANEL) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        row_scales(p->k, row + r, line);
        for (int64_t g = 0; g < groups; g++) scales[g * PANEL + r] = line[g];
        if (!zeros) continue;
        mf_row_zeros(&p->k->w, row + r, line, line);
        for (int64_t g = 0; g < groups; g++) zeros[g * PANEL + r] = line[g];
    }
}

/* Takes the zero points' share, which every column of a group has alike, from the sums. */
static void take_zeros(const plan *p, int64_t tokens, const float *zeros, float *c) {
    const int64_t groups = p->k->w.groups;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t g = 0; g < groups; g++)
            for (int64_t r = 0; r < PANEL; r++)
                c[t * PANEL + r] -= zeros[g * PANEL + r] * p->x_sums[t * groups + g];
}

/* Outputs that lie together in memory, in its kind. */
static void store(const call *k, int64_t at, int64_t count, const float *y) {
    if (k->a.kind == FLOAT32)
        memcpy((float *)k->out + at, y, (size_t)count * sizeof(float));
    else
        for (int64_t i = 0; i < count; i++) ((uint16_t *)k->out)[at + i] = brain_of(y[i]);
}

static void finish_tokens(const plan *p, int64_t first, int64_t tokens, int64_t row, int64_t rows,
                          const float *scales, const float *bias, const float *c) {
    float y[PANEL];
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t r = 0; r < PANEL; r++) y[r] = c[t * PANEL + r] * scales[t] + bias[r];
        store(p->k, (first + t) * p->k->w.rows + row, rows, y);
    }
}

static void finish_pixels(const plan *p, int64_t first, int64_t tokens, int64_t row, int64_t rows,
                          const float *scales, const float *bias, const float *c) {
    const int64_t pixels = p->k->pixels;
    float turned[PANEL * ACROSS], *y;
    for (int64_t t = 0, count; t < tokens; t += count) { /* of one image */
        const int64_t image = (first + t) / pixels, pixel = (first + t) % pixels;
        count = least(least(tokens - t, pixels - pixel), ACROSS);
        p->kernel.turn(c + t * PANEL, turned);
        for (int64_t r = 0; r < rows; r++) {
            y = turned + r * ACROSS;
            for (int64_t i = 0; i < count; i++) y[i] = y[i] * scales[t + i] + bias[r];
            store(p->k, (image * p->k->w.rows + row + r) * pixels + pixel, count, y);
        }
    }
}

/* Scales the sums c [tokens][PANEL] of some rows and writes them along the axis that is contiguous. */
static void finish(const plan *p, int64_t first, int64_t tokens, int64_t row, int64_t rows,
                   const float *c) {
    const call *k = p->k;
    const int own = k->engine != REALS && p->inputs == 1;
    float scales[BLOCK], bias[PANEL] = {0};
    for (int64_t t = 0; t < tokens; t++) scales[t] = own ? p->x_scales[t] : 1;
    for (int64_t r = 0; k->bias && r < rows; r++) bias[r] = k->bias[row + r];
    (k->pixels ? finish_pixels : finish_tokens)(p, first, tokens, row, rows, scales, bias, c);
}

/* Floats of a thread's own memory: sums, a panel, scales, a line of them and zero points. */
static int64_t own_floats(const plan *p) {
    const int each = p->k->w.zeros ? 2 * PANEL + 1 : PANEL + 1;
    return BLOCK * PANEL + span_units(p->k) * PANEL + p->k->w.groups * each;
}

/* Ask for the codes of the next span or panel: rows are far apart, and no processor guesses the next one. */
static void fetch(const weights *w, int64_t row, int64_t rows, int64_t first, int64_t bytes) {
    const int64_t end = least(first + bytes, row_bytes(w));
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t at = first; at < end; at += 64)
            __builtin_prefetch(w->codes + r * row_bytes(w) + at, 0, 2);
}

/* The same for the first span of the panel that this thread is likely to take next. Prefetches of pages
   that are not translated yet are dropped, so each row is read from first. */
static void fetch_panel(const plan *p, int64_t row, int64_t bytes) {
    const weights *w = &p->k->w;
    const int64_t next = row + p->k->threads * PANEL, rows = least(PANEL, w->rows - next);
    for (int64_t r = next; r < next + rows; r++)
        (void)*(volatile const uint8_t *)(w->codes + r * row_bytes(w));
    fetch(w, next, rows, 0, bytes);
}

static void panel(const plan *p, int64_t first, int64_t tokens, int64_t row, float *own) {
    const weights *w = &p->k->w;
    const int64_t rows = least(PANEL, w->rows - row), units = span_units(p->k), bytes = row_bytes(w);
    float *c = own, *scales = own + (BLOCK + units) * PANEL;
    uint32_t *expanded = (uint32_t *)own + BLOCK * PANEL;
    float *line = scales + w->groups * PANEL, *zeros = w->zeros ? line + w->groups : NULL;
    panel_scales(p, row, rows, scales, zeros, line);
    memset(c, 0, (size_t)(tokens * PANEL) * sizeof(float));
    for (int64_t span = 0; span * SPAN < w->columns; span++) {
        const int64_t dword = span * SPAN / dword_columns(p->k->w.how);
        const int64_t dwords = least(SPAN / dword_columns(p->k->w.how), p->k->dwords - dword);
        const int64_t size = dword_bytes(w->how), at = size * dword;
        p->kernel.expand(w->how, w->codes + row * bytes + at, bytes, bytes - at, rows,
                         dwords, expanded);
        if (at + size * dwords < bytes)
            fetch(w, row, rows, at + size * dwords, size * dwords);
        else
            fetch_panel(p, row, size * dwords);
        multiply(p, span, tokens, rows, expanded, scales, c);
    }
    if (w->zeros) take_zeros(p, tokens, zeros, c);
    finish(p, first, tokens, row, rows, c);
}

static void run(const plan *p) {
    const int64_t tokens = p->k->a.tokens, rows = p->k->w.rows;
    for (int64_t first = 0; first < tokens; first += BLOCK) {
        const int64_t count = least(BLOCK, tokens - first);
        prepare(p, first, count);
#pragma omp parallel for num_threads(p->k->threads) schedule(dynamic)
        for (int64_t row = 0; row < rows; row += PANEL)
            panel(p, first, count, row, p->own + thread_number() * p->room);
    }
}

int mf_many(const call *k) {
    plan p = {.k = k, .kernel = mf_panel_kernel(k->engine, k->w.how->bits, k->level)};
    if (k->a.window && mf_shares_grid(k)) {
        const enum outcome outcome =
            mf_pixels(&k->a, k->engine, k->dwords, k->units, k->threads, &p.pixels);
        if (outcome != DONE) return outcome;
    }
    p.count = cut(&p), p.stride = k->dwords * k->units, p.inputs = input_groups(&k->a);
    p.room = lines(2 * k->dwords * dword_columns(k->w.how) + p.inputs), p.room += lines(own_floats(&p));
    const int64_t tokens =
        p.pixels.numbers ? BLOCK : ceil_div(least(BLOCK, k->a.tokens), TOKENS) * TOKENS;
    const int64_t own = k->threads * p.room, x = lines(tokens * p.stride);
    p.segments = malloc((size_t)p.count * sizeof(segment));
    const int64_t groups = k->w.zeros ? k->w.groups : 0;
    float *memory = room_for(own + x + tokens * (p.count + p.inputs + groups));
    const int fits = p.segments && memory;
    if (fits) {
        p.own = memory;
        p.x = (uint32_t *)memory + own;
        p.starts = (int32_t *)p.x + x;
        p.x_scales = (float *)p.starts + tokens * p.count;
        p.x_sums = p.x_scales + tokens * p.inputs;
        cut(&p);
        run(&p);
    }
    free(p.segments), free(memory), mf_forget(&p.pixels);
    return fits ? DONE : NO_MEMORY;
}
