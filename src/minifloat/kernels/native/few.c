/* Few tokens, row by row. */

#include "call.h"
#include "rows.h"

static void token_for_rows(const call *k, int64_t token, uint32_t *x, int32_t *starts, float *scale,
                           float *row) {
    const int P = dword_columns(k), U = k->units;
    mf_quantize(&k->a, token, k->engine, k->dwords * P, row, scale);
    for (int64_t c = 0; c < k->dwords / 16; c++)
        for (int i = 0; i < U; i++)
            for (int j = 0; j < 16; j++)
                x[(c * U + i) * 16 + j] = unit_of(row, (c * 16 + j) * P + i, U, k->engine);
    if (k->engine == BYTES)
        for (int64_t d = 0; d < k->dwords; d++) starts[d] = start_of(k, row, d);
}

static void places_of(const call *k, int64_t *bases, int32_t *places) {
    const int64_t group = group_columns(&k->w), P = dword_columns(k);
    for (int64_t d = 0; d < k->dwords; d++) {
        const int64_t first = d / 16 * 16 * P / group;
        bases[d / 16] = first;
        places[d] = (int32_t)(least(d * P, k->w.columns - 1) / group - first);
    }
}

int mf_few(const call *k) {
    const int64_t tokens = k->a.tokens, chunks = k->dwords / 16, stride = k->dwords * k->units;
    const int64_t groups = group_count(&k->w) + 16, P = dword_columns(k);
    uint32_t *x = malloc((size_t)(tokens * (stride + k->dwords)) * 4);
    int32_t *starts = (int32_t *)(x + tokens * stride);
    int64_t *bases = malloc((size_t)chunks * (8 + 16 * 4));
    int32_t *places = (int32_t *)(bases + chunks);
    const int64_t room = k->dwords * P > groups ? k->dwords * P : groups;
    const int64_t inputs = input_groups(&k->a);
    float *scratch = calloc((size_t)(k->threads * room + tokens * inputs), 4);
    float *x_scales = scratch + k->threads * room;
    if (!x || !bases || !scratch) {
        free(x), free(bases), free(scratch);
        return NO_MEMORY;
    }
    places_of(k, bases, places);
    for (int64_t t = 0; t < tokens; t++)
        token_for_rows(k, t, x + t * stride, starts + t * k->dwords, x_scales + t * inputs,
                       scratch);
    const row_kernel multiply = mf_row_kernel(k->engine, k->w.how->bits, k->level);
#pragma omp parallel for num_threads(k->threads) schedule(static)
    for (int64_t row = 0; row < k->w.rows; row++) {
        float y[SHARED], *scales = scratch + thread_number() * room;
        row_scales(k, row, scales);
        for (int64_t t = 0; t < tokens; t += SHARED) {
            const row_problem p = {
                k->w.codes + row * row_bytes(&k->w), row_bytes(&k->w), scales, bases, places,
                x + t * stride, k->engine == BYTES ? starts + t * k->dwords : NULL, stride, chunks};
            const int count = (int)least(SHARED, tokens - t);
            multiply(&p, k->w.how, count, y);
            for (int n = 0; n < count; n++)
                write(k, t + n, row, k->engine == REALS ? y[n] : y[n] * x_scales[(t + n) * inputs]);
        }
    }
    free(x), free(bases), free(scratch);
    return DONE;
}
