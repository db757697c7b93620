/* Few tokens, row by row. */

#include "call.h"
#include "rows.h"

/* What one call works with. */
typedef struct {
    const call *k;
    int64_t chunks, stride; /* of a row; units of a token */
    int64_t inputs, room;   /* groups of the activations; numbers of a thread's own memory */
    uint32_t *x;            /* [tokens][stride] */
    int32_t *starts;        /* [tokens][dwords] */
    float *x_scales;        /* [tokens][inputs] */
    float *x_sums;          /* [tokens][groups] for zero points */
    int64_t *bases;         /* [chunks] */
    int32_t *places;        /* [dwords] */
    float *own;             /* [threads][room] */
} plan;

/* Puts a token on its grid and into units [chunks][U][16]. */
static void arrange(const plan *p, int64_t token, float *row) {
    const call *k = p->k;
    const int P = dword_columns(k->w.how), U = k->units;
    uint32_t *x = p->x + token * p->stride, *units = (uint32_t *)row + k->dwords * P;
    mf_prepare(&k->a, token, k->engine, k->dwords, row, units, p->x_scales + token * p->inputs);
    for (int64_t d = 0; d < k->dwords; d++)
        for (int i = 0; i < U; i++) x[(d / 16 * U + i) * 16 + d % 16] = units[d * U + i];
    if (k->w.zeros)
        group_sums(k, row, p->x_scales + token * p->inputs, p->x_sums + token * group_count(&k->w));
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
    const int64_t groups = group_count(&p->k->w);
    const float *sums = p->x_sums + token * groups;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t g = 0; g < groups; g++) sum += zeros[g] * sums[g];
    return sum;
}

/* Row `row` and the one `apart` rows on, if there is one: far apart, since processors foresee reading
   where each of two streams runs on, and not where they share a page. */
static void multiply(const plan *p, row_kernel kernel, int64_t row, int64_t apart) {
    const call *k = p->k;
    const int rows = row + apart < k->w.rows ? 2 : 1;
    float y[PAIR * SHARED], *scales = p->own + thread_number() * p->room;
    const int64_t line = p->room / PAIR;
    for (int r = 0; r < rows; r++) {
        float *own = scales + r * line;
        row_scales(k, row + r * apart, own);
        if (k->w.zeros) mf_row_zeros(&k->w, row + r * apart, own, own + line / 2);
    }
    for (int64_t t = 0; t < k->a.tokens; t += SHARED) {
        const int32_t *starts = k->engine == BYTES ? p->starts + t * k->dwords : NULL;
        const row_problem problem = {
            k->w.codes + row * row_bytes(&k->w), row_bytes(&k->w), apart * row_bytes(&k->w), scales,
            line, p->bases, p->places, p->x + t * p->stride, starts, p->stride, p->chunks};
        const int count = (int)least(SHARED, k->a.tokens - t);
        kernel(&problem, k->w.how, rows, count, y);
        for (int r = 0; r < rows; r++)
            for (int n = 0; n < count; n++) {
                const float scale = k->engine == REALS ? 1 : p->x_scales[(t + n) * p->inputs];
                const int64_t at = row + r * apart;
                const float bias = k->bias ? k->bias[at] : 0;
                const float *zeros = scales + r * line + line / 2;
                const float less = k->w.zeros ? share_of_zeros(p, t + n, zeros) : 0;
                write(k, place_of(k, t + n, at), (y[r * SHARED + n] - less) * scale + bias);
            }
    }
}

static void run(const plan *p) {
    const row_kernel kernel = mf_row_kernel(p->k->engine, p->k->w.how->bits, p->k->level);
    const int64_t half = ceil_div(p->k->w.rows, PAIR);
    place(p);
    for (int64_t t = 0; t < p->k->a.tokens; t++) arrange(p, t, p->own);
#pragma omp parallel for num_threads(p->k->threads) schedule(static)
    for (int64_t row = 0; row < half; row++) multiply(p, kernel, row, half);
}

int mf_few(const call *k) {
    const int64_t columns = k->dwords * dword_columns(k->w.how), groups = group_count(&k->w) + 16;
    const int64_t line = lines(columns > 2 * groups ? columns : 2 * groups);
    plan p = {.k = k, .chunks = k->dwords / 16, .stride = k->dwords * k->units};
    p.inputs = input_groups(&k->a);
    p.room = PAIR * line; /* a token, or two rows' scales and zero points, each in half of a line */
    const int64_t x = lines(k->a.tokens * p.stride), starts = lines(k->a.tokens * k->dwords);
    const int64_t places = lines(k->dwords), bases = lines(2 * p.chunks), own = k->threads * p.room;
    const int64_t sums = k->w.zeros ? group_count(&k->w) : 0;
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
