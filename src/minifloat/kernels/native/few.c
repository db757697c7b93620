/* Few tokens, row by row. */

#include "call.h"
#include "rows.h"

/* Bands, at most, whose scales are laid out before the first is multiplied. A load waits for a narrower
   store just before it; so far behind, all is in the cache. */
#define AHEAD 8

/* What one call works with. */
typedef struct {
    const call *k;
    int64_t chunks, stride; /* of a row; units of a token */
    int64_t inputs, room;   /* groups of the activations; numbers of a thread's own memory */
    int64_t line, apart;    /* numbers for a row's scales and zero points; from a row of a band to the next */
    uint32_t *x;            /* [tokens][stride] */
    int32_t *starts;        /* [tokens][dwords] */
    float *x_scales;        /* [tokens][inputs] */
    float *x_sums;          /* [tokens][groups] for zero points */
    int64_t *bases;         /* [chunks] */
    int32_t *places;        /* [dwords] */
    float *own;             /* [threads][room] */
} plan;

/* Rows that are multiplied together, far apart: processors foresee reading where each of some streams runs
   on, and not where they share a page. */
typedef struct {
    int64_t row; /* the first */
    int rows;
} band;

/* Minus the bias times the sum of some columns of a quantized row. */
static int32_t start_of(const call *k, const float *columns, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (int32_t)columns[i];
    return -k->w.how->bias * sum;
}

/* Sums of a token's columns over the groups of the weight, in the units of its product; `row` and `scales`
   are `mf_prepare`'s. */
static void group_sums(const call *k, const float *row, const float *scales, float *out) {
    const int64_t group = group_columns(&k->w), input = input_group(&k->a);
    const int own = k->engine != REALS && input_groups(&k->a) > 1;
    for (int64_t g = 0; g < k->w.groups; g++) {
        double sum = 0;
        const int64_t end = least(g * group + group, k->w.columns);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = g * group; i < end; i++)
            sum += own ? (double)row[i] * scales[i / input] : row[i];
        out[g] = (float)sum;
    }
}

/* Puts a token on its grid and into units [chunks][U][16]. */
static void arrange(const plan *p, int64_t token, float *row) {
    const call *k = p->k;
    const int P = dword_columns(k->w.how), U = k->units;
    uint32_t *x = p->x + token * p->stride, *units = (uint32_t *)row + k->dwords * P;
    mf_prepare(&k->a, token, k->engine, k->dwords, row, units, p->x_scales + token * p->inputs);
    for (int64_t d = 0; d < k->dwords; d++)
        for (int i = 0; i < U; i++) x[(d / 16 * U + i) * 16 + d % 16] = units[d * U + i];
    if (k->w.zeros)
        group_sums(k, row, p->x_scales + token * p->inputs, p->x_sums + token * k->w.groups);
    if (k->engine == BYTES)
        for (int64_t d = 0; d < k->dwords; d++)
            p->starts[token * k->dwords + d] = start_of(k, row + d * P, P);
}

/* The group of every dword, counted from the first one of its chunk. */
static void place(const plan *p) {
    const call *k = p->k;
    const int64_t group = group_columns(&k->w), P = dword_columns(k->w.how);
    for (int64_t d = 0; d < k->dwords; d++) {
        const int64_t first = d / 16 * 16 * P / group;
        p->bases[d / 16] = first;
        p->places[d] = (int32_t)(least(d * P, k->w.columns - 1) / group - first);
    }
}

static int64_t place_of(const call *k, int64_t token, int64_t row) {
    if (!k->pixels) return token * k->w.rows + row;
    return (token / k->pixels * k->w.rows + row) * k->pixels + token % k->pixels;
}

/* What a row's zero points add to its sum for a token. */
static float share_of_zeros(const plan *p, int64_t token, const float *zeros) {
    const int64_t groups = p->k->w.groups;
    const float *sums = p->x_sums + token * groups;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t g = 0; g < groups; g++) sum += zeros[g] * sums[g];
    return sum;
}

/* Scales of a band, and zero points in the other half of each line. */
static void band_scales(const plan *p, const band *b, float *scales) {
    const weights *w = &p->k->w;
    for (int r = 0; r < b->rows; r++, scales += p->line) {
        row_scales(p->k, b->row + r * p->apart, scales);
        if (w->zeros) mf_row_zeros(w, b->row + r * p->apart, scales, scales + p->line / 2);
    }
}

/* The results of a band for some tokens from their sums y [rows][SHARED]. */
static void finish(const plan *p, const band *b, const float *scales, int64_t token, int count,
                   const float *y) {
    const call *k = p->k;
    for (int n = 0; n < count; n++) {
        const int64_t t = token + n;
        const float scale = k->engine == REALS ? 1 : p->x_scales[t * p->inputs];
        for (int r = 0; r < b->rows; r++) {
            const int64_t at = b->row + r * p->apart;
            const float bias = k->bias ? k->bias[at] : 0;
            const float *zeros = scales + r * p->line + p->line / 2;
            const float less = k->w.zeros ? share_of_zeros(p, t, zeros) : 0;
            write(k, place_of(k, t, at), (y[r * SHARED + n] - less) * scale + bias);
        }
    }
}

static void multiply(const plan *p, row_kernel kernel, const band *b, const float *scales) {
    const call *k = p->k;
    const int64_t bytes = row_bytes(&k->w);
    float y[BAND * SHARED];
    for (int64_t t = 0; t < k->a.tokens; t += SHARED) {
        const int count = (int)least(SHARED, k->a.tokens - t);
        const row_problem problem = {
            .codes = k->w.codes + b->row * bytes, .bytes = bytes, .apart = p->apart * bytes,
            .scales = scales, .room = p->line, .bases = p->bases, .places = p->places,
            .x = p->x + t * p->stride, .starts = p->starts + t * k->dwords, .stride = p->stride,
            .chunks = p->chunks};
        kernel(&problem, k->w.how, b->rows, count, y);
        finish(p, b, scales, t, count, y);
    }
}

/* `many` bands, one behind the other, or those that are left. */
static void bands(const plan *p, row_kernel kernel, int64_t first, int64_t many) {
    float *scales = p->own + thread_number() * p->room;
    band all[AHEAD];
    const int count = (int)least(many, p->apart - first);
    for (int i = 0; i < count; i++) {
        const int64_t row = first + i;
        all[i] = (band){row, 0};
        while (all[i].rows < BAND && row + all[i].rows * p->apart < p->k->w.rows) all[i].rows++;
        band_scales(p, all + i, scales + i * BAND * p->line);
    }
    for (int i = 0; i < count; i++) multiply(p, kernel, all + i, scales + i * BAND * p->line);
}

static void run(const plan *p) {
    const row_kernel kernel = mf_row_kernel(p->k->engine, p->k->w.how->bits, p->k->level);
    const int64_t many = least(AHEAD, ceil_div(p->apart, p->k->threads)); /* so that no thread idles */
    place(p);
    for (int64_t t = 0; t < p->k->a.tokens; t++) arrange(p, t, p->own);
#pragma omp parallel for num_threads(p->k->threads) schedule(static)
    for (int64_t first = 0; first < p->apart; first += many) bands(p, kernel, first, many);
}

int mf_few(const call *k) {
    const int64_t columns = k->dwords * dword_columns(k->w.how);
    plan p = {.k = k, .chunks = k->dwords / 16, .stride = k->dwords * k->units};
    p.inputs = input_groups(&k->a);
    p.line = lines(2 * (k->w.groups + 16));
    p.apart = ceil_div(k->w.rows, BAND);
    p.room = lines(AHEAD * BAND * p.line > 2 * columns ? AHEAD * BAND * p.line : 2 * columns);
    const int64_t x = lines(k->a.tokens * p.stride), starts = lines(k->a.tokens * k->dwords);
    const int64_t places = lines(k->dwords), bases = lines(2 * p.chunks), own = k->threads * p.room;
    const int64_t sums = k->w.zeros ? k->w.groups : 0;
    float *memory = room_for(x + starts + places + bases + own + k->a.tokens * (p.inputs + sums));
    if (!memory) return NO_MEMORY;
    p.x = (uint32_t *)memory;
    p.starts = (int32_t *)memory + x;
    p.places = p.starts + starts;
    p.bases = (int64_t *)(p.places + places);
    p.own = memory + x + starts + places + bases;
    p.x_scales = p.own + own;
    p.x_sums = p.x_scales + k->a.tokens * p.inputs;
    run(&p);
    free(memory);
    return DONE;
}
