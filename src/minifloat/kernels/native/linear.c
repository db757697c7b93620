/* y = x W^T with packed W: which engine multiplies, and how.

   Engines, by what is exact: integers times integers in 8 bits (VNNI, NEON's dot product) or 16; short
   floats as bf16 with fp32 sums (every value of 8 bits or less is a bf16; scales come after the sums);
   fp32 for the rest. An output is summed by one thread in an order that does not depend on their
   number. */

#include "call.h"
#include "direct.h"

#ifdef MINIFLOAT_X86
#include <cpuid.h>
#endif
#if defined(MINIFLOAT_DOTPROD) && !defined(__ARM_FEATURE_DOTPROD)
#include <sys/auxv.h>
#endif

#define FEW 4  /* tokens up to which row by row is faster than panels */

#ifdef MINIFLOAT_X86
/* A feature that clang's `__builtin_cpu_supports` does not know. */
static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static enum level best_level(void) {
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const int avx512 = avx2 && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const int vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    return vnni && __builtin_cpu_supports("avx512bf16") ? BF16
           : vnni                                       ? VNNI
           : avx512                                     ? AVX512
           : avx2                                       ? AVX2
                                                        : PLAIN;
}
#elif defined(MINIFLOAT_DOTPROD) && defined(__ARM_FEATURE_DOTPROD)
static enum level best_level(void) { return DOTPROD; }
#elif defined(MINIFLOAT_DOTPROD)
static enum level best_level(void) { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? DOTPROD : PLAIN; }
#else
static enum level best_level(void) { return PLAIN; }
#endif

/* The best `enum level` that runs here, or the best of those up to what is asked. */
int mf_level(int at_most) {
    const int best = (int)best_level(), found = best < at_most ? best : at_most;
    return found == DOTPROD && best > DOTPROD ? PLAIN : found;
}

static enum engine engine_of(const call *k, int few) {
    const formats *how = k->w.how;
    const int integers = how->input == INTEGERS && how->unit != 0;
    const int brains = how->brains && (how->input != AS_IT_COMES || k->a.kind == BFLOAT16);
    if (few && input_groups(&k->a) > 1) return REALS;
    if (integers && k->level >= VNNI) return BYTES;
    if (integers && k->level == DOTPROD && has_signed_levels(how)) return BYTES;
    if (brains && k->level >= BF16) return BRAINS;
    if (integers && k->level >= AVX2 && !few && !k->w.interleaved) return WORDS;
    return REALS;
}

static int run(call *k) {
    const int few = k->a.tokens <= FEW && !k->w.interleaved;
    int done = 0;
    if (k->a.tokens == 0) return DONE;
    k->dwords = ceil_div(k->w.columns, 16 * dword_columns(k->w.how)) * 16;
    k->engine = engine_of(k, few);
    k->units = dword_columns(k->w.how) / unit_columns(k->engine);
    if (!few && mf_is_direct(k)) {
        const enum outcome outcome = mf_direct(k, &done);
        if (done || outcome != DONE) return outcome;
    }
    return few ? mf_few(k) : mf_many(k);
}

/* out [tokens, rows] = x [tokens, columns] W^T + bias in the kind of x. Groups of the weight hold whole
   dwords of codes, or a whole row. */
int mf_linear(const layer *l, const void *x, int kind, const float *given, int64_t given_stride, void *out,
              int64_t tokens, int level, int threads) {
    call k = {.w = weights_of(l),
              .a = {l->how, x, kind, given, given_stride, tokens, l->columns, NULL},
              .level = level,
              .threads = threads,
              .bias = l->bias,
              .out = out};
    return run(&k);
}

/* out [images, rows, height, width] = the convolution of x [images, channels, height, width] with
   W [rows, channels, kernel, kernel]. All activations share the scale `given`, unless a window is a pixel. */
int mf_conv2d(const layer *l, const void *x, int kind, const float *given, void *out, int64_t images,
              const window *w, int level, int threads) {
    const int64_t pixels = w->out[0] * w->out[1];
    call k = {.w = weights_of(l),
              .a = {l->how, x, kind, given, 0, images * pixels, l->columns, w},
              .level = level,
              .threads = threads,
              .bias = l->bias,
              .out = out,
              .pixels = pixels};
    return run(&k);
}
