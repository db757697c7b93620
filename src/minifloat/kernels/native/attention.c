/* Attention of new tokens over keys and values in few bits.

   A task has one head of the keys, all queries that share it and a span of the tokens; spans are put together
   in their order, so that a result does not depend on the number of threads. A span that a mask hides whole
   is not read. */

#include "cache.h"

/* The sizes and strides of a call, as Python has them. */
typedef struct {
    int64_t batch, heads, shared, tokens; /* `shared`: queries a head of the keys */
    int64_t keys[5], values[5];           /* width, and strides as in `states` */
} attention_sizes;

/* All of a call. */
typedef struct {
    states keys, values;
    int64_t batch, heads, shared, tokens, spans;
    const uint8_t *mask; /* [batch][tokens] or NULL */
    int level, threads;
    products_kernel products;
    sums_kernel sums;
    float *q, *q_sums;                /* [batch * heads * shared][room], [..] */
    float *parts;                     /* [spans][batch * heads * shared][room] sums of the values */
    share *shares;                    /* [spans][batch * heads * shared] */
    float *own;                       /* [threads][own_room] */
    int64_t own_room, k_room, v_room; /* `k_room` and `v_room`: numbers for a span's scales */
} plan;

static states states_of(const formats *how, const uint8_t *codes, const void *scales, const uint8_t *zeros,
                        const int64_t *sizes) {
    states s = {.how = how, .codes = codes, .scales = scales, .zeros = zeros, .width = sizes[0],
                .batch = sizes[1], .head = sizes[2], .scale_batch = sizes[3], .scale_head = sizes[4]};
    s.bytes = ceil_div(s.width * how->bits, 8);
    s.groups = how->tile_columns == -1 ? 1 : ceil_div(s.width, how->tile_columns);
    s.chunks = ceil_div(s.bytes, 16);
    s.room = s.chunks * 16 * (8 / how->bits);
    return s;
}

/* The group of every byte of a token, counted from the first one of its chunk. */
static void place(const states *s) {
    const int64_t U = 8 / s->how->bits, group = s->groups == 1 ? s->width : s->how->tile_columns;
    for (int64_t byte = 0; byte < s->chunks * 16; byte++) {
        const int64_t first = byte / 16 * 16 * U / group;
        s->bases[byte / 16] = first;
        s->places[byte] = (int32_t)(least(byte * U, s->width - 1) / group - first);
    }
}

/* One query in its places, times the scaling. */
static void arrange(const plan *p, const void *query, int kind, float scaling, int64_t row) {
    const states *k = &p->keys;
    float *q = p->q + row * k->room, sum = 0;
    memset(q, 0, (size_t)k->room * sizeof(float));
    for (int64_t i = 0; i < k->width; i++) {
        const int64_t at = row * k->width + i;
        const float x = kind == FLOAT32 ? ((const float *)query)[at]
                                        : float_of((uint32_t)((const uint16_t *)query)[at] << 16);
        q[place_of(k->how, i)] = x * scaling;
        sum += x * scaling;
    }
    p->q_sums[row] = sum;
}

static int64_t scale_bytes(const formats *how) {
    return how->scale_kind == FLOAT32 ? 4 : how->scale_kind == CODED ? 1 : 2;
}

/* Some tokens of a head, whose scales become fp32 in `room` numbers. The wide path reads 8-bit floats as
   fp16; the power of two that they then lack is the scales'. */
static span span_of(const states *s, int64_t batch, int64_t head, int64_t first, int tokens, int level,
                    float *room) {
    const int64_t at = batch * s->scale_batch + head * s->scale_head + first * s->groups;
    const weights stored = {.how = s->how,
                            .scales = (const uint8_t *)s->scales + at * scale_bytes(s->how),
                            .zeros = s->zeros ? s->zeros + at : NULL,
                            .groups = tokens * s->groups};
    span some = {.of = s, .tokens = tokens, .scales = room};
    some.codes = s->codes + batch * s->batch + head * s->head + first * s->bytes;
    mf_row_scales(&stored, 0, level >= AVX512 ? s->how->half_factor : 1, room);
    if (s->zeros) {
        some.zeros = room + lines(SPAN * s->groups + 16);
        mf_row_zeros(&stored, 0, room, (float *)some.zeros);
    }
    return some;
}

static int sees_none(const uint8_t *mask, int tokens) { return mask && !memchr(mask, 1, (size_t)tokens); }

/* The share of a span in the queries of a head. */
static void attend(const plan *p, int64_t head, int64_t which) {
    const int64_t first = which * SPAN, rows = p->batch * p->heads * p->shared, row = head * p->shared;
    const int tokens = (int)least(SPAN, p->tokens - first);
    const uint8_t *mask = p->mask ? p->mask + head / p->heads * p->tokens + first : NULL;
    share *shares = p->shares + which * rows + row;
    float *sums = p->parts + (which * rows + row) * p->values.room;
    if (sees_none(mask, tokens)) {
        memset(sums, 0, (size_t)(p->shared * p->values.room) * sizeof(float));
        for (int64_t r = 0; r < p->shared; r++) shares[r] = (share){.peak = -INFINITY};
        return;
    }
    float *own = p->own + thread_number() * p->own_room, *weights = own + p->k_room + p->v_room;
    const int64_t batch = head / p->heads, h = head % p->heads;
    const span keys = span_of(&p->keys, batch, h, first, tokens, p->level, own);
    const span values = span_of(&p->values, batch, h, first, tokens, p->level, own + p->k_room);
    p->products(&keys, p->q + row * p->keys.room, (int)p->shared, weights);
    for (int64_t r = 0; r < p->shared; r++)
        shares[r] = mf_softmax(&keys, &values, mask, p->q_sums[row + r], weights + r * SPAN, p->level);
    p->sums(&values, weights, (int)p->shared, sums);
}

/* One query's sums over the spans, in their order, over its weights; 0 where it sees nothing. */
static void together(const plan *p, int64_t row, void *out, int kind) {
    const int64_t rows = p->batch * p->heads * p->shared, room = p->values.room;
    float *total = p->parts + row * room, peak = -INFINITY, weight = 0, lift = 0;
    for (int64_t s = 0; s < p->spans; s++) {
        const float other = p->shares[s * rows + row].peak;
        peak = other > peak ? other : peak;
    }
    for (int64_t s = 0; s < p->spans; s++) {
        const share *part = p->shares + s * rows + row;
        const float *sums = p->parts + (s * rows + row) * room;
        const float less = expf(part->peak - (peak == -INFINITY ? 0 : peak));
        for (int64_t k = 0; k < room; k++) total[k] = (s ? total[k] : 0) + sums[k] * less;
        weight += part->weight * less, lift += part->lift * less;
    }
    for (int64_t k = 0; k < p->values.width; k++) {
        const float y = weight == 0 ? 0 : (total[place_of(p->values.how, k)] + lift) / weight;
        const int64_t at = row * p->values.width + k;
        if (kind == FLOAT32)
            ((float *)out)[at] = y;
        else
            ((uint16_t *)out)[at] = brain_of(y);
    }
}

static void run(const plan *p, const void *query, int kind, float scaling, void *out) {
    const int64_t rows = p->batch * p->heads * p->shared, tasks = p->batch * p->heads * p->spans;
    place(&p->keys), place(&p->values);
    for (int64_t r = 0; r < rows; r++) arrange(p, query, kind, scaling, r);
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int64_t i = 0; i < tasks; i++) attend(p, i / p->spans, i % p->spans);
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) together(p, r, out, kind);
}

/* out [batch, heads * shared, v_width] = attention of query [batch, heads * shared, k_width], of the kind of
   both, over keys and values; `mask` [batch, tokens] says which tokens are seen, or is NULL. */
int mf_attention(const formats *k_how, const formats *v_how, const void *query, int kind,
                 const uint8_t *k_codes, const void *k_scales, const uint8_t *k_zeros,
                 const uint8_t *v_codes, const void *v_scales, const uint8_t *v_zeros, const uint8_t *mask,
                 void *out, const attention_sizes *n, float scaling, int level, int threads) {
    plan p = {.keys = states_of(k_how, k_codes, k_scales, k_zeros, n->keys),
              .values = states_of(v_how, v_codes, v_scales, v_zeros, n->values),
              .batch = n->batch, .heads = n->heads, .shared = n->shared, .tokens = n->tokens,
              .spans = ceil_div(n->tokens, SPAN), .mask = mask, .level = level, .threads = threads};
    p.products = mf_products(&p.keys, level);
    p.sums = mf_sums(&p.values, level);
    p.k_room = 2 * lines(SPAN * p.keys.groups + 16);
    p.v_room = 2 * lines(SPAN * p.values.groups + 16);
    p.own_room = p.k_room + p.v_room + p.shared * SPAN;
    const int64_t rows = p.batch * p.heads * p.shared;
    const int64_t q = rows * p.keys.room, parts = p.spans * rows * p.values.room, own = threads * p.own_room;
    const int64_t chunks = p.keys.chunks + p.values.chunks, places = 16 * chunks, bases = 2 * chunks;
    float *memory = room_for(q + parts + own + places + bases + rows + 3 * p.spans * rows);
    if (!memory) return NO_MEMORY;
    p.q = memory;
    p.parts = p.q + q;
    p.own = p.parts + parts;
    p.keys.places = (int32_t *)(p.own + own);
    p.values.places = p.keys.places + 16 * p.keys.chunks;
    p.keys.bases = (int64_t *)(p.keys.places + places);
    p.values.bases = p.keys.bases + p.keys.chunks;
    p.q_sums = (float *)(p.values.bases + p.values.chunks);
    p.shares = (share *)(p.q_sums + rows);
    run(&p, query, kind, scaling, out);
    free(memory);
    return DONE;
}
