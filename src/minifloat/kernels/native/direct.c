/* A layer whose rows have one scale, and so have its activations: columns may be summed in any order. In
   that of a kernel's places, with neighbouring channels in one unit, windows are read where the pixels
   lie (`planes.c`); tokens of a linear layer are windows of one pixel. The weights are brought into this
   order as they are expanded, once for all tokens. */

#include "direct.h"
#include "panels.h"
#include "places.h"
#include "planes.h"
#include "windows.h"

#define LINEAR 256 /* tokens of a linear layer from which on it pays to bring its weights into order */

#ifdef MINIFLOAT_X86
#define BLOCK 192   /* tokens whose sums wait: a multiple of AT_ONCE and of ACROSS */
#define NEAR 1024   /* units whose weights the second-level cache holds beside the pixels */
#define COLUMNS 512 /* that are expanded at once, but at least 8 channels */

typedef struct {
    const call *k;
    panel_kernel kernel;
    place_kernel multiply;
    planes x;
    int64_t channels, area; /* of a window: the places of its kernel, or one */
    int64_t units;          /* of a row */
    int64_t step;           /* channels that are expanded at once */
    int64_t *places;
    int64_t room;           /* numbers of a thread's own memory */
    int32_t *own;           /* [threads][room] */
} plan;

/* What a thread works with. */
typedef struct {
    uint32_t *panel, *scratch; /* weights in our order, and in the checkpoint's */
    int32_t *sums;             /* [BLOCK + ACROSS][PANEL] */
    int32_t starts[PANEL];     /* what integer sums begin with */
    float scales[PANEL], bias[PANEL]; /* of the rows */
    int64_t first[BLOCK];      /* units of the windows of a block's tokens */
} bench;

/* One number of a unit's channels from the unit that holds it to its place among them, for all rows. */
static TARGET_AVX512 void move(const uint32_t *from, int shift, uint32_t mask, int to, int32_t bias,
                               uint32_t *restrict out, uint32_t *restrict sums) {
    for (int r = 0; r < PANEL; r++) {
        const uint32_t number = (from[r] >> shift & mask) - (uint32_t)bias;
        sums[r] += number;
        out[r] |= (number & mask) << to;
    }
}

/* Channels from `first` on, expanded to `scratch`, in the order of the planes. */
static void arrange(const plan *p, int64_t first, const uint32_t *scratch, uint32_t *panel,
                    uint32_t *sums) {
    const call *k = p->k;
    const int each = unit_columns(k->engine), bits = 32 / each, U = k->units;
    const int64_t P = dword_columns(k->w.how);
    const int64_t channels = least(p->step, p->channels - first);
    const uint32_t mask = each == 1 ? ~0u : (1u << bits) - 1;
    const int32_t bias = k->engine == BYTES ? k->w.how->bias : 0;
    panel += first / each * p->area * PANEL;
    memset(panel, 0, (size_t)(ceil_div(channels, each) * p->area * PANEL) * sizeof(uint32_t));
    for (int64_t channel = 0; channel < channels; channel++)
        for (int64_t place = 0; place < p->area; place++) {
            const int64_t column = channel * p->area + place, within = column % P;
            const uint32_t *from = scratch + (column / P * U + within % U) * PANEL;
            uint32_t *out = panel + (channel / each * p->area + place) * PANEL;
            move(from, (int)(within / U) * bits, mask, (int)(channel % each) * bits, bias, out, sums);
        }
}

/* A panel of weights, with what belongs to its rows. */
static void take_panel(const plan *p, int64_t row, int64_t rows, bench *b) {
    const weights *w = &p->k->w;
    const int64_t P = dword_columns(w->how), lanes = w->interleaved ? LANES : 1, line = lanes * row_bytes(w);
    const uint8_t *codes = w->codes + row * row_bytes(w);
    uint32_t sums[PANEL] = {0};
    for (int64_t c = 0; c < p->channels; c += p->step) {
        const int64_t columns = least(p->step, p->channels - c) * p->area;
        const int64_t at = lanes * (c * p->area * w->how->bits / 8);
        p->kernel.expand(w->how, codes + at, line, line - at, rows, ceil_div(columns, P), b->scratch);
        arrange(p, c, b->scratch, b->panel, sums);
    }
    for (int r = 0; r < PANEL; r++) b->starts[r] = p->k->engine == BYTES ? -LIFT * (int32_t)sums[r] : 0;
    for (int64_t r = 0; r < rows; r++) {
        row_scales(p->k, row + r, b->scales + r); /* one a row: interleaved or not, it is the same */
        b->bias[r] = p->k->bias ? p->k->bias[row + r] : 0;
    }
}

/* Where the windows of some tokens begin. */
static void find_windows(const plan *p, int64_t token, int64_t count, int64_t *first) {
    const window *w = p->k->a.window;
    for (int64_t t = 0; !w && t < count; t++) first[t] = (token + t) * p->units;
    if (!w) return;
    int64_t image = token / p->k->pixels, y = token % p->k->pixels / w->out[1], x = token % w->out[1];
    for (int64_t t = 0; t < count; t++) {
        first[t] = image * p->x.blocks * p->x.plane + y * w->stride[0] * p->x.width + x * w->stride[1];
        if (++x == w->out[1]) x = 0, y++;
        if (y == w->out[0]) y = 0, image++;
    }
}

/* Writes up to 16 results that lie together from their sums. */
static inline TARGET_AVX512 void store(const call *k, const void *sums, __m512 scale, __m512 bias,
                                       int64_t at, int64_t count) {
    const __m512i sum = _mm512_loadu_si512(sums);
    const __m512 own = k->engine == BYTES ? _mm512_cvtepi32_ps(sum) : _mm512_castsi512_ps(sum);
    const __m512 factor = _mm512_set1_ps(k->engine == REALS || !k->a.given ? 1 : k->a.given[0]);
    const __m512 result = _mm512_fmadd_ps(_mm512_mul_ps(own, factor), scale, bias);
    float y[ACROSS];
    if (k->a.kind == FLOAT32) {
        _mm512_mask_storeu_ps((float *)k->out + at, (__mmask16)((1u << count) - 1), result);
        return;
    }
    _mm512_storeu_ps(y, result);
    for (int64_t i = 0; i < count; i++) write(k, at + i, y[i]);
}

/* Results of a convolution from their sums: up to ACROSS pixels of an image lie together. */
static TARGET_AVX512 void finish_pixels(const plan *p, int64_t token, int64_t tokens, int64_t row,
                                        int64_t rows, const bench *b) {
    const call *k = p->k;
    float turned[PANEL * ACROSS];
    for (int64_t t = 0, count; t < tokens; t += count) {
        const int64_t image = (token + t) / k->pixels, pixel = (token + t) % k->pixels;
        const int64_t at = (image * k->w.rows + row) * k->pixels + pixel;
        count = least(least(tokens - t, k->pixels - pixel), ACROSS);
        p->kernel.turn((const float *)b->sums + t * PANEL, turned);
        for (int64_t r = 0; r < rows; r++)
            store(k, turned + r * ACROSS, _mm512_set1_ps(b->scales[r]), _mm512_set1_ps(b->bias[r]),
                  at + r * k->pixels, count);
    }
}

/* The same for a linear layer: rows lie together. */
static TARGET_AVX512 void finish_tokens(const plan *p, int64_t token, int64_t tokens, int64_t row,
                                        int64_t rows, const bench *b) {
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t r = 0; r < rows; r += 16) {
            const __m512 scales = _mm512_loadu_ps(b->scales + r), bias = _mm512_loadu_ps(b->bias + r);
            const int64_t at = (token + t) * p->k->w.rows + row + r;
            store(p->k, b->sums + t * PANEL + r, scales, bias, at, least(16, rows - r));
        }
}

/* A block of tokens with a panel of rows: span by span of weights, and every tile with each. */
static void block(const plan *p, int64_t token, int64_t tokens, int64_t row, int64_t rows, bench *b) {
    find_windows(p, token, tokens, b->first);
    for (int64_t unit = 0; unit < p->units; unit += NEAR)
        for (int64_t t = 0; t < tokens; t += AT_ONCE) {
            int32_t *sums = b->sums + t * PANEL;
            const place_tile tile = {
                b->panel + unit * PANEL, p->places + unit, least(NEAR, p->units - unit), p->x.units,
                b->first + t, unit ? sums : b->starts, unit ? PANEL : 0, sums};
            p->multiply(&tile, (int)least(AT_ONCE, tokens - t), rows > PANEL / 2);
        }
    (p->k->pixels ? finish_pixels : finish_tokens)(p, token, tokens, row, rows, b);
}

/* Blocks of tokens times panels of rows, panel by panel: a thread expands those that it works with. */
static void run(const plan *p) {
    const int64_t tokens = p->k->a.tokens, blocks = ceil_div(tokens, BLOCK);
    const int64_t all = blocks * ceil_div(p->k->w.rows, PANEL);
#pragma omp parallel num_threads(p->k->threads)
    {
        bench b;
        b.panel = (uint32_t *)p->own + thread_number() * p->room;
        b.sums = (int32_t *)b.panel + p->units * PANEL;
        b.scratch = (uint32_t *)b.sums + (BLOCK + ACROSS) * PANEL;
        int64_t taken = -1;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < all; i++) {
            const int64_t row = i / blocks * PANEL, token = i % blocks * BLOCK;
            const int64_t rows = least(PANEL, p->k->w.rows - row);
            if (row != taken) take_panel(p, row, rows, &b);
            taken = row;
            block(p, token, least(BLOCK, tokens - token), row, rows, &b);
        }
    }
}

static void find_places(const plan *p) {
    const window *w = p->k->a.window;
    for (int64_t u = 0; u < p->units; u++) {
        int64_t place = u; /* of a linear layer */
        if (w) {
            const int64_t y = u % p->area / w->kernel[1] * w->dilation[0];
            const int64_t x = u % w->kernel[1] * w->dilation[1];
            place = u / p->area * p->x.plane + y * p->x.width + x;
        }
        p->places[u] = place * (int64_t)sizeof(uint32_t);
    }
}

enum outcome mf_direct(const call *k, int *done) {
    const window *w = k->a.window;
    plan p = {.k = k, .kernel = mf_panel_kernel(k->engine, k->w.how->bits, k->level, k->w.interleaved)};
    p.multiply = mf_place_kernel(k->engine);
    const enum outcome outcome = mf_planes(&k->a, k->engine, k->threads, &p.x);
    *done = p.x.units != NULL;
    if (!*done) return outcome;
    p.area = w ? w->kernel[0] * w->kernel[1] : 1, p.channels = k->w.columns / p.area;
    p.units = p.x.blocks * p.area;
    p.step = least(ceil_div(COLUMNS / p.area + 1, 8) * 8, ceil_div(p.channels, 8) * 8);
    const int64_t dwords = lines(ceil_div(p.step * p.area, dword_columns(k->w.how)));
    p.room = (p.units + BLOCK + ACROSS + dwords * k->units) * PANEL;
    p.places = malloc((size_t)p.units * sizeof(int64_t));
    p.own = room_for(k->threads * p.room);
    const int fits = p.places && p.own;
    if (fits) find_places(&p), run(&p);
    free(p.places), free(p.own), free(p.x.units);
    return fits ? DONE : NO_MEMORY;
}

int mf_is_direct(const call *k) {
    if (!mf_shares_grid(k) || k->w.groups != 1 || k->level < AVX512 || k->engine == WORDS) return 0;
    if (!k->a.window && (k->engine == REALS || k->w.columns % unit_columns(k->engine))) return 0;
    if (!k->a.window && k->a.tokens < LINEAR) return 0;
    return k->engine != BYTES || (k->w.columns <= 1 << 16 && has_signed_levels(k->w.how));
}
#else
int mf_is_direct(const call *k) { return (void)k, 0; }

enum outcome mf_direct(const call *k, int *done) { return (void)k, *done = 0, DONE; }
#endif
