/* Keys and values to codes: scales, zero points, rounding and packing, a token of a head at a time. The bits
   are those of `States.of`; a group that holds NaN or Inf gets NaN for a scale. */

#include "call.h"

/* How the scale of a group is rounded to a power of two. */
enum direction { NEAREST, UP, DOWN, OCP };

/* A spec as it is written; `native/states.py` fills it. */
typedef struct {
    int32_t bits, integer, mantissa, exponent; /* the lowest binade's exponent */
    float min, max;
    int32_t top_exponent;                      /* of the largest number */
    int32_t asymmetric;                        /* with zero points */
    int64_t group;                             /* features that share a scale; -1 all */
    int32_t scale_kind;
    int32_t scale_mantissa, scale_exponent;    /* of coded scales, likewise */
    int32_t scale_power, direction;            /* powers of two, and how they are rounded */
    int32_t scale_nan;                         /* the code or bits of NaN */
    double scale_min, scale_max;
    const float *scale_values; /* of all codes of a coded scale */
} grid;

/* The sizes of x, and where its lines of codes and of groups' scales go: behind `first` others of a head. */
typedef struct {
    int64_t batch, heads, tokens, width, first;
    int64_t code_batch, code_head, scale_batch, scale_head;
} lying;

typedef struct {
    uint8_t *codes;
    void *scales;
    uint8_t *zeros; /* or NULL */
} stored;

/* Bits of a positive double. */
static inline uint64_t bits_of_double(double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    return bits;
}

/* fp16 of a number within its normal range, ties to even. */
static uint16_t half_of(float x) {
    const uint32_t bits = bits_of(x);
    return (uint16_t)((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
}

/* Codes of positive numbers, by the additions of `grids.py` in double. */
static int power_code(double x, const grid *g) {
    static const uint64_t carries[] = {1ull << 51, (1ull << 52) - 1, 0, 0};
    const int64_t first = 1023 + g->scale_exponent;
    const int64_t code = (int64_t)((bits_of_double(x) + carries[g->direction]) >> 52) - first;
    const int64_t top = (int64_t)(bits_of_double(g->scale_max) >> 52) - first;
    return (int)(code < 0 ? 0 : code > top ? top : code);
}

static int float_code(double x, const grid *g) {
    int64_t binade = (int64_t)(bits_of_double(x) >> 52) - 1023;
    binade = binade < g->scale_exponent ? g->scale_exponent : binade;
    const double magic = ldexp(1, (int)binade + 52 - g->scale_mantissa);
    const int64_t fraction = (int64_t)(bits_of_double(x + magic) - bits_of_double(magic));
    return (int)(((binade - g->scale_exponent) << g->scale_mantissa) + fraction);
}

static inline double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

/* Stores the scale of a group whose numbers reach as far as `range` at `to`, and returns it. */
static float store_scale(const grid *g, double range, void *scales, int64_t to) {
    double raw = range / (double)g->max;
    if (g->direction == OCP) raw = ldexp(g->asymmetric ? raw * (double)g->max : range, -g->top_exponent);
    raw = clamp(raw, g->scale_min, g->scale_max);
    const float real = (float)raw;
    uint8_t *codes = scales;
    uint16_t *words = scales;
    switch (g->scale_kind) {
    case FLOAT16: words[to] = half_of(real); return float_of((uint32_t)words[to] << 13) * 0x1p112f;
    case BFLOAT16: words[to] = brain_of(real); return float_of((uint32_t)words[to] << 16);
    case CODED:
        codes[to] = (uint8_t)(g->scale_power ? power_code(raw, g) : float_code(raw, g));
        return g->scale_values[codes[to]];
    default: ((float *)scales)[to] = real; return real;
    }
}

static void store_nan(const grid *g, void *scales, int64_t to) {
    switch (g->scale_kind) {
    case CODED: ((uint8_t *)scales)[to] = (uint8_t)g->scale_nan; break;
    case FLOAT32: ((float *)scales)[to] = NAN; break;
    default: ((uint16_t *)scales)[to] = (uint16_t)g->scale_nan;
    }
}

/* To the nearest whole number; beyond 2^22 there is nothing to round that would not be clamped. */
static inline float whole(float x) { return fabsf(x) < 0x1p22f ? (x + 0x1.8p23f) - 0x1.8p23f : x; }

static inline __attribute__((always_inline)) float within(float x, const grid *g) {
    x = x > g->max ? g->max : x;
    return x < g->min ? g->min : x;
}

static inline __attribute__((always_inline)) uint8_t code_of_float(float x, const grid *g) {
    const uint32_t lowest = (uint32_t)(g->exponent + 127) << 23, sign = bits_of(x) >> 31 << (g->bits - 1);
    const float a = fabsf(within(x, g));
    uint32_t binade = bits_of(a) & 0x7f800000;
    binade = binade < lowest ? lowest : binade;
    const uint32_t magic = binade + ((uint32_t)(23 - g->mantissa) << 23);
    const uint32_t fraction = bits_of(a + float_of(magic)) - magic;
    return (uint8_t)((((binade - lowest) >> 23 << g->mantissa) + fraction) | sign);
}

/* Codes of a group, one a byte. */
static inline __attribute__((always_inline)) void put(const grid *g, const float *x, int64_t count,
                                                      float scale, float zero, uint8_t *codes) {
    const grid to = *g; /* which bytes written to memory cannot change */
    const int mask = (1 << to.bits) - 1;
    if (to.asymmetric)
        for (int64_t k = 0; k < count; k++) codes[k] = (uint8_t)(int)within(whole(x[k] / scale) + zero, &to);
    else if (to.integer)
        for (int64_t k = 0; k < count; k++) codes[k] = (uint8_t)((int)whole(within(x[k] / scale, &to)) & mask);
    else
        for (int64_t k = 0; k < count; k++) codes[k] = code_of_float(x[k] / scale, &to);
}

/* One group: its codes, and its scale and zero point at place `to`. */
static inline __attribute__((always_inline)) void quantize(const grid *g, const float *x, int64_t count,
                                                           const stored *out, int64_t to, uint8_t *codes) {
    int32_t peak = 0;
    float low = 0, high = 0;
#pragma omp simd reduction(max : peak, high) reduction(min : low)
    for (int64_t k = 0; k < count; k++) {
        const int32_t bits = (int32_t)(bits_of(x[k]) & 0x7fffffff);
        peak = bits > peak ? bits : peak;
        low = x[k] < low ? x[k] : low;
        high = x[k] > high ? x[k] : high;
    }
    if (out->zeros) out->zeros[to] = 0;
    if (peak >= 0x7f800000) { /* NaN is above all numbers */
        store_nan(g, out->scales, to);
        memset(codes, 0, (size_t)count);
        return;
    }
    const float range = g->asymmetric ? high - low : float_of((uint32_t)peak);
    const float scale = store_scale(g, range, out->scales, to);
    const float zero = g->asymmetric ? whole(within(-low / scale, g)) : 0;
    if (out->zeros) out->zeros[to] = (uint8_t)zero;
    put(g, x, count, scale, zero, codes);
}

/* A token of a head, x [width], with its codes at `codes` and its first scale at place `to`; 4-bit codes are
   one a byte in `room` on the way. */
static inline __attribute__((always_inline)) void token(const grid *g, const float *x, int64_t width,
                                                        const stored *out, uint8_t *codes, int64_t to,
                                                        uint8_t *room) {
    const int64_t group = g->group == -1 ? width : g->group;
    uint8_t *each = g->bits == 8 ? codes : room;
    for (int64_t k = 0; k < width; k += group)
        quantize(g, x + k, least(group, width - k), out, to + k / group, each + k);
    if (g->bits == 8) return;
    room[width] = 0; /* beside the last code of an odd number */
    for (int64_t k = 0; k < width; k += 2) codes[k / 2] = (uint8_t)(room[k] | room[k + 1] << 4);
}

static void token_plain(const grid *g, const float *x, int64_t width, const stored *out, uint8_t *codes,
                        int64_t to, uint8_t *room) {
    token(g, x, width, out, codes, to, room);
}

#ifdef MINIFLOAT_X86
static TARGET_AVX512 void token_avx512(const grid *g, const float *x, int64_t width, const stored *out,
                                       uint8_t *codes, int64_t to, uint8_t *room) {
    token(g, x, width, out, codes, to, room);
}
#else
#define token_avx512 token_plain
#endif

/* Token i of all heads; `row` has room for it as fp32, and for its codes behind. */
static void write_token(const grid *g, const void *x, int kind, const stored *out, const lying *n, int64_t i,
                        int level, float *row) {
    const int64_t bytes = ceil_div(n->width * g->bits, 8);
    const int64_t groups = g->group == -1 ? 1 : ceil_div(n->width, g->group);
    const int64_t batch = i / n->tokens / n->heads, head = i / n->tokens % n->heads;
    const int64_t t = n->first + i % n->tokens;
    const int64_t to = batch * n->scale_batch + head * n->scale_head + t * groups;
    const float *from = (const float *)x + i * n->width;
    if (kind != FLOAT32) {
        const uint16_t *brains = (const uint16_t *)x + i * n->width;
        for (int64_t k = 0; k < n->width; k++) row[k] = float_of((uint32_t)brains[k] << 16);
        from = row;
    }
    uint8_t *codes = out->codes + batch * n->code_batch + head * n->code_head + t * bytes;
    uint8_t *room = (uint8_t *)(row + lines(n->width));
    (level >= AVX512 ? token_avx512 : token_plain)(g, from, n->width, out, codes, to, room);
}

/* x [batch, heads, tokens, width], of which a token of a head is whole, to codes, scales and zero points. */
int mf_states(const grid *g, const void *x, int kind, uint8_t *codes, void *scales, uint8_t *zeros,
              const lying *n, int level, int threads) {
    const stored out = {codes, scales, zeros};
    const int64_t tokens = n->batch * n->heads * n->tokens;
    const int64_t own = lines(n->width) + lines(n->width / 4 + 1);
    float *memory = room_for(threads * own);
    if (!memory) return NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < tokens; i++)
        write_token(g, x, kind, &out, n, i, level, memory + thread_number() * own);
    free(memory);
    return DONE;
}
