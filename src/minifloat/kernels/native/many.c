/* Many tokens, or interleaved weights: blocks of tokens are prepared in tiles, and every panel of rows goes
   through them.

   Columns are cut into segments that lie within a group of the weight, a group of the activations and a
   span that the cache holds. A segment's sum is scaled and added in fp32, in the order of the columns. */

#include "call.h"
#include "panels.h"
#include "results.h"
#include "windows.h"

#define BLOCK 528 /* tokens that are prepared at once: a multiple of every tile's */
#define REACH 1024 /* columns of interleaved codes that are multiplied with all tiles in turn */

/* What one call works with. */
typedef struct {
    const call *k;
    panel_kernel kernel;
    segment *segments;
    int64_t count;    /* of segments */
    int64_t stride;   /* units of a row */
    int64_t inputs;   /* groups of the activations */
    uint32_t *x;      /* units of tokens, see `unit_step` and `tile_step` */
    int32_t *starts;  /* [tiles][segments][T], T the tokens of a tile */
    float *x_scales;  /* [tiles][inputs][T] */
    float *x_sums;    /* [tiles][segments][T] for zero points */
    int64_t room;     /* numbers of a thread's own memory */
    float *own;       /* [threads][room] */
    pixels pixels;    /* of a convolution, if its windows are taken from them */
} plan;

/* A panel of rows at work. */
typedef struct {
    int64_t row, rows;    /* the first, and how many */
    const uint8_t *codes;
    int64_t apart;        /* bytes from a strip to the next, where codes are interleaved */
    uint32_t *expanded;   /* units of a span [units][PANEL], where they are expanded */
    float *c;             /* [tokens][PANEL] sums */
    float *scales, *zeros; /* [strips][groups][LANES] */
    float *line;          /* [groups] */
} panel;

/* Units of a tile lie together, or of a whole block where neighbouring pixels are taken side by side. */
static int64_t unit_step(const plan *p) { return p->pixels.numbers ? BLOCK : p->kernel.tokens; }
static int64_t tile_step(const plan *p) { return p->kernel.tokens * (p->pixels.numbers ? 1 : p->stride); }

/* Columns that all tiles of a block go through in turn: all of them, where a small tile is alone. */
static int64_t span(const plan *p) {
    if (p->kernel.expand) return SPAN;
    return p->k->a.tokens <= 2 ? p->k->dwords * dword_columns(p->k->w.how) : REACH;
}
static int64_t span_units(const plan *p) {
    return span(p) / dword_columns(p->k->w.how) * p->k->units;
}

/* Fills the plan's segments, or counts them where it has no room yet. */
static int64_t cut(const plan *p) {
    const call *k = p->k;
    const int64_t group = group_columns(&k->w), inputs = input_group(&k->a), P = dword_columns(k->w.how);
    const int64_t reach = span(p);
    int64_t count = 0;
    for (int64_t start = 0, end; start < k->w.columns; start = end, count++) {
        end = least(start / reach * reach + reach, k->w.columns);
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
    const int64_t T = p->kernel.tokens, tile = token / T, at = token % T, P = dword_columns(k->w.how);
    uint32_t *units = (uint32_t *)row + k->dwords * P, *x = p->x + tile * p->stride * T + at;
    float *scales = row + 2 * k->dwords * P;
    mf_prepare(&k->a, first + token, k->engine, k->dwords, row, units, scales);
    for (int64_t u = 0; u < p->stride; u++) x[u * T] = units[u];
    for (int64_t g = 0; g < p->inputs; g++) p->x_scales[(tile * p->inputs + g) * T + at] = scales[g];
    for (int64_t s = 0; s < p->count; s++) {
        const int64_t to = (tile * p->count + s) * T + at, columns = p->segments[s].units / k->units * P;
        const float *from = row + p->segments[s].unit / k->units * P;
        const float sum = k->engine == BYTES || k->w.zeros ? mf_sum(from, columns) : 0;
        if (k->engine == BYTES) p->starts[to] = -k->w.how->bias * (int32_t)sum;
        if (k->w.zeros) p->x_sums[to] = sum;
    }
}

static void start_segment(const plan *p, int64_t s, int64_t count) {
    const segment *at = p->segments + s;
    const int64_t T = p->kernel.tokens;
    int32_t starts[BLOCK];
    mf_window_starts(p->x + at->unit * BLOCK, BLOCK, at->units, count, p->k->w.how->bias, starts);
    for (int64_t t = 0; t < count; t++)
        p->starts[(t / T * p->count + s) * T + t % T] = starts[t];
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
#pragma omp parallel for num_threads(p->k->threads) schedule(static) if (count > 1)
    for (int64_t t = 0; t < count; t++) arrange(p, first, t, p->own + thread_number() * p->room);
}

/* All tiles of a block with the segments of one span of a panel. */
static void multiply(const plan *p, int64_t number, int64_t tokens, const panel *at) {
    const int64_t units = span_units(p), begin = number * units, T = p->kernel.tokens;
    int64_t from = 0, to;
    while (p->segments[from].unit < begin) from++;
    for (to = from; to < p->count && p->segments[to].unit < begin + units;) to++;
    for (int64_t t = 0; t < tokens; t += T) {
        const int64_t tile = t / T;
        const tile_problem problem = {
            .how = p->k->w.how, .panel = at->expanded, .codes = at->codes, .apart = at->apart,
            .rows = at->rows, .segments = p->segments + from, .count = to - from,
            .x = p->x + tile * tile_step(p), .step = unit_step(p),
            .starts = p->starts + (tile * p->count + from) * T,
            .x_scales = p->k->engine == REALS || p->inputs == 1 ? NULL : p->x_scales + tile * p->inputs * T,
            .x_sums = p->k->w.zeros ? p->x_sums + (tile * p->count + from) * T : NULL,
            .tile = T, .scales = at->scales, .zeros = at->zeros, .room = p->k->w.groups * LANES,
            .c = at->c + t * PANEL};
        p->kernel.multiply(&problem, (int)least(T, tokens - t));
    }
}

/* Where the number of a row's group lies. */
static int64_t place_of(const plan *p, int64_t row, int64_t group) {
    return (row / LANES * p->k->w.groups + group) * LANES + row % LANES;
}

/* Scales of a panel, and zero points where there are any: [strips][groups][LANES]. */
static void panel_scales(const plan *p, const panel *at) {
    const weights *w = &p->k->w;
    for (int64_t r = 0; w->interleaved && r < at->rows; r += LANES) {
        strip_scales(p->k, at->row + r, at->scales + r * w->groups);
        if (w->zeros)
            mf_strip_zeros(w, at->row + r, at->scales + r * w->groups, at->zeros + r * w->groups);
    }
    if (w->interleaved) return;
    memset(at->scales, 0, (size_t)(w->groups * PANEL) * sizeof(float));
    for (int64_t r = 0; r < at->rows; r++) {
        row_scales(p->k, at->row + r, at->line);
        for (int64_t g = 0; g < w->groups; g++) at->scales[place_of(p, r, g)] = at->line[g];
        if (!w->zeros) continue;
        mf_row_zeros(w, at->row + r, at->line, at->line);
        for (int64_t g = 0; g < w->groups; g++) at->zeros[place_of(p, r, g)] = at->line[g];
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
    const results y = {first, tokens, row, rows, scales, bias, c, p->kernel.turn};
    mf_write(k, &y);
}

/* Tokens that a panel has room for: tiles are whole, and so is what is turned at once. */
static int64_t summed(int64_t tokens) { return ceil_div(tokens, TOKENS) * TOKENS + ACROSS; }

/* Floats of a thread's own memory: sums, an expanded panel, scales, zero points and a line of them. */
static int64_t own_floats(const plan *p) {
    const int64_t tokens = summed(least(BLOCK, p->k->a.tokens));
    const int64_t panel = p->kernel.expand ? span_units(p) * PANEL : 0;
    return tokens * PANEL + panel + p->k->w.groups * (2 * PANEL + 1);
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
    const int64_t next = row + p->k->threads * p->kernel.rows, rows = least(p->kernel.rows, w->rows - next);
    for (int64_t r = next; r < next + rows; r++)
        (void)*(volatile const uint8_t *)(w->codes + r * row_bytes(w));
    fetch(w, next, rows, 0, bytes);
}

static void expand(const plan *p, int64_t number, const panel *at) {
    const weights *w = &p->k->w;
    const int64_t P = dword_columns(w->how), dword = number * SPAN / P, lanes = w->interleaved ? LANES : 1;
    const int64_t dwords = least(SPAN / P, p->k->dwords - dword), bytes = lanes * row_bytes(w);
    const int64_t size = lanes * dword_bytes(w->how), first = size * dword;
    p->kernel.expand(w->how, at->codes + first, bytes, bytes - first, at->rows, dwords, at->expanded);
    if (w->interleaved) return;
    if (first + size * dwords < bytes)
        fetch(w, at->row, at->rows, first + size * dwords, size * dwords);
    else
        fetch_panel(p, at->row, size * dwords);
}

static panel panel_of(const plan *p, int64_t row, int64_t tokens, float *own) {
    const weights *w = &p->k->w;
    panel at = {.row = row, .rows = least(p->kernel.rows, w->rows - row)};
    at.codes = w->codes + row * row_bytes(w), at.apart = LANES * row_bytes(w);
    at.expanded = (uint32_t *)own;
    at.c = own + (p->kernel.expand ? span_units(p) * PANEL : 0);
    at.scales = at.c + summed(tokens) * PANEL;
    at.zeros = at.scales + w->groups * PANEL;
    at.line = at.zeros + w->groups * PANEL;
    return at;
}

static void run_panel(const plan *p, int64_t first, int64_t tokens, int64_t row, float *own) {
    const panel at = panel_of(p, row, tokens, own);
    panel_scales(p, &at);
    memset(at.c, 0, (size_t)(tokens * PANEL) * sizeof(float));
    for (int64_t number = 0; number * span(p) < p->k->w.columns; number++) {
        if (p->kernel.expand) expand(p, number, &at);
        multiply(p, number, tokens, &at);
    }
    finish(p, first, tokens, row, at.rows, at.c);
}

static void run(const plan *p) {
    const int64_t tokens = p->k->a.tokens, rows = p->k->w.rows;
    for (int64_t first = 0; first < tokens; first += BLOCK) {
        const int64_t count = least(BLOCK, tokens - first);
        prepare(p, first, count);
#pragma omp parallel for num_threads(p->k->threads) schedule(dynamic)
        for (int64_t row = 0; row < rows; row += p->kernel.rows)
            run_panel(p, first, count, row, p->own + thread_number() * p->room);
    }
}

/* Codes whose look-up costs more than their product are expanded once for all tiles. */
static panel_kernel kernel_of(const call *k) {
    const int bits = k->w.how->bits, costly = bits != 4 && k->engine != BYTES && k->a.tokens > TOKENS;
    if (k->w.interleaved && !costly) return mf_strip_kernel(k->engine, bits, k->a.tokens, k->threads);
    return mf_panel_kernel(k->engine, bits, k->level, k->w.interleaved);
}

int mf_many(const call *k) {
    plan p = {.k = k, .kernel = kernel_of(k)};
    if (k->a.window && mf_shares_grid(k)) {
        const enum outcome outcome =
            mf_pixels(&k->a, k->engine, k->dwords, k->units, k->threads, &p.pixels);
        if (outcome != DONE) return outcome;
    }
    p.count = cut(&p), p.stride = k->dwords * k->units, p.inputs = input_groups(&k->a);
    p.room = lines(2 * k->dwords * dword_columns(k->w.how) + p.inputs), p.room += lines(own_floats(&p));
    const int64_t tokens =
        p.pixels.numbers ? BLOCK : ceil_div(least(BLOCK, k->a.tokens), p.kernel.tokens) * p.kernel.tokens;
    const int64_t own = k->threads * p.room, x = lines(tokens * p.stride);
    p.segments = malloc((size_t)p.count * sizeof(segment));
    const int64_t sums = k->w.zeros ? p.count : 0;
    float *memory = room_for(own + x + tokens * (p.count + p.inputs + sums));
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
