/* What a kernel gets to see of a layer, and the order in which weights and activations meet.

   Compiled without -march: each function names its instruction set, and the choice is made at run time.

   Codes are read by the dword: P columns of a row, 8 at 4 bits and 4 at 8 bits. An engine multiplies
   units of 4 bytes: four 8-bit integers, two bf16 or one fp32, so a dword expands to U units. Unit i
   of dword j holds the columns P j + i + c U: those that one shift and one table look-up give at once.
   Activations are laid out in the same units, so nothing is shuffled in an inner loop. Codes of 6 bits
   are spread to bytes as they are loaded, four from three bytes, and are codes of 8 bits from there on.

   Interleaved weights store dword j of sixteen rows side by side, a strip, and its scales likewise. */

#ifndef MINIFLOAT_LAYER_H
#define MINIFLOAT_LAYER_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(MINIFLOAT_PORTABLE)
#define MINIFLOAT_X86
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define TARGET_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define TARGET_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#endif

/* NEON's dot product: compilers that may use it anywhere (Apple's) say so; elsewhere Linux says so at run
   time, and clang before 16 has no such attribute. */
#if defined(__aarch64__) && !defined(MINIFLOAT_PORTABLE)
#ifdef __ARM_FEATURE_DOTPROD
#define MINIFLOAT_DOTPROD
#define TARGET_DOTPROD
#elif defined(__linux__) && (!defined(__clang__) || __clang_major__ >= 16)
#define MINIFLOAT_DOTPROD
#define TARGET_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#endif

/* Sums in an array become registers only where every loop over them is unrolled early. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Each includes those before of its own processor: DOTPROD is ARM's, the later ones are x86's. */
enum level { PLAIN, DOTPROD, AVX2, AVX512, VNNI, BF16 };
enum kind { NONE = -1, FLOAT32, FLOAT16, BFLOAT16, CODED }; /* how numbers are stored */
enum input { AS_IT_COMES, INTEGERS, FLOATS };         /* the grid of the activations */

/* A layer's formats, fixed for all calls; `native/layer.py` fills it. */
typedef struct {
    int32_t bits;                    /* of a weight's code: 4, 6 or 8 */
    int32_t scale_kind;              /* of the stored scales */
    int32_t outer_kind;              /* of the scales' own scale, or NONE */
    int32_t outer_by_row;            /* one a row of tiles; else one for all */
    int64_t tile_rows, tile_columns; /* that share a scale; -1 the whole axis */
    const float *values;             /* of all codes */
    const float *scale_values;       /* of all codes of a coded scale */
    const uint16_t *brains;          /* the values as bf16, or NULL where that is inexact */
    float unit;                      /* values are unit * (levels - bias), or 0 where no integers */
    int32_t bias;
    uint8_t levels[16];              /* of 4-bit codes */
    int32_t middle;                  /* values are codes less this, and so are zero points */
    int32_t half_shift, half_mask;   /* how an 8-bit code moves to fp16's places; 0: an integer */
    float half_factor;               /* the power of two that is then missing */
    int32_t input, input_mantissa;   /* grid of the activations, with M mantissa bits */
    int32_t input_exponent;          /* of the binade of its subnormals */
    float input_min, input_max;
    int64_t input_columns;           /* that share a scale; -1 all */
} formats;

/* What stays of a layer from call to call; `native/products.py` fills it. */
typedef struct {
    const formats *how;
    const uint8_t *codes;
    const void *scales, *outer;
    const uint8_t *zeros; /* or NULL */
    const float *bias;    /* [rows] or NULL */
    int64_t rows, columns;
    int32_t interleaved;
} layer;

/* The weight of one call. */
typedef struct {
    const formats *how;
    const uint8_t *codes;
    const void *scales, *outer;
    const uint8_t *zeros; /* zero points of the tiles, or NULL */
    int64_t rows, columns;
    int64_t groups;  /* of a row */
    int interleaved; /* dwords of 16 rows lie side by side, and so do scales and zero points of tiles */
} weights;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* To the nearest bf16, ties to even; NaN stays NaN. */
static inline uint16_t brain_of(float x) {
    uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Whether the levels of a weight, less its bias, are bytes with a sign. */
static inline int has_signed_levels(const formats *how) {
    for (int i = 0; how->bits == 4 && i < 16; i++)
        if (how->levels[i] - how->bias < -128 || how->levels[i] - how->bias > 127) return 0;
    return 1;
}

/* Columns of a dword, and the bytes that they are stored in. */
static inline int dword_columns(const formats *how) { return how->bits == 4 ? 8 : 4; }
static inline int dword_bytes(const formats *how) { return how->bits == 6 ? 3 : 4; }

/* The code of a column, `codes` being the first one's byte. */
static inline int code_of(const uint8_t *codes, int64_t column, int bits) {
    const int64_t bit = column * bits, byte = bit / 8, shift = bit % 8;
    const int upper = shift + bits > 8 ? codes[byte + 1] << 8 : 0;
    return (codes[byte] | upper) >> shift & ((1 << bits) - 1);
}

static inline int64_t row_bytes(const weights *w) { return ceil_div(w->columns * w->how->bits, 8); }

static inline int64_t group_columns(const weights *w) {
    return w->how->tile_columns == -1 ? w->columns : w->how->tile_columns;
}

static inline weights weights_of(const layer *l) {
    weights w = {l->how, l->codes, l->scales, l->outer, l->zeros, l->rows, l->columns, 0, l->interleaved};
    w.groups = ceil_div(l->columns, group_columns(&w));
    return w;
}

/* fp32 scales of all groups of a row times a factor, in `scales.c`. */
void mf_row_scales(const weights *w, int64_t row, float factor, float *out);

/* The zero points of a row's groups, less the middle, times their scales; `out` may be `scales`. */
void mf_row_zeros(const weights *w, int64_t row, const float *scales, float *out);

/* The same for the 16 rows of a strip of interleaved weights: [groups][16]. */
void mf_strip_scales(const weights *w, int64_t row, float factor, float *out);
void mf_strip_zeros(const weights *w, int64_t row, const float *scales, float *out);

#endif
