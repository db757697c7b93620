/* Codes of 4 bits are looked up as levels less the bias, and codes of 8 bits are multiplied as they lie.
   Both sides have a sign, so integer sums start at zero: `starts` are for processors that multiply
   unsigned levels. Registers hold four dwords, and kernels are inlined for constant BITS, R and T. */

#include "neon.h"

#ifdef MINIFLOAT_DOTPROD
#include <arm_neon.h>

#define QUARTER 4 /* dwords of a register */
#define INLINE static inline __attribute__((always_inline)) TARGET_DOTPROD

INLINE int8x16_t signed_levels(const formats *how) {
    return vreinterpretq_s8_u8(vsubq_u8(vld1q_u8(how->levels), vdupq_n_u8((uint8_t)how->bias)));
}

/* Four dwords of codes, or those that are left of a row and zeros. */
INLINE uint8x16_t load_codes(const uint8_t *at, int64_t left) {
    if (left >= 16) return vld1q_u8(at);
    uint8_t some[16] = {0};
    if (left > 0) memcpy(some, at, (size_t)left);
    return vld1q_u8(some);
}

/* Unit i of four dwords. */
INLINE int8x16_t unit_of(uint8x16_t codes, int i, int8x16_t levels, int BITS) {
    if (BITS == 8) return vreinterpretq_s8_u8(codes);
    return vqtbl1q_s8(levels, i ? vshrq_n_u8(codes, 4) : vandq_u8(codes, vdupq_n_u8(15)));
}

INLINE int8x16_t load_units(const uint32_t *units) { return vreinterpretq_s8_u32(vld1q_u32(units)); }

/* Scales of four dwords, which share one as a rule. */
INLINE float32x4_t load_scales(const float *near, const int32_t *places) {
    float32x4_t four = vld1q_dup_f32(near + places[0]);
    if (places[0] == places[3]) return four;
    four = vld1q_lane_f32(near + places[1], four, 1);
    four = vld1q_lane_f32(near + places[2], four, 2);
    return vld1q_lane_f32(near + places[3], four, 3);
}

/* Few tokens: R rows with T of them. A chunk that lies in one group is scaled once. */
INLINE void dot_rows(const row_problem *p, const formats *how, int BITS, int R, int T, float *out) {
    const int U = BITS == 4 ? 2 : 1;
    const int8x16_t levels = signed_levels(how);
    float32x4_t total[BAND][SHARED];
    int32x4_t sum[BAND][SHARED];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < T; n++) total[r][n] = vdupq_n_f32(0), sum[r][n] = vdupq_n_s32(0);
    for (int64_t d = 0; d < p->chunks * CHUNK; d += QUARTER) {
        const int64_t chunk = d / CHUNK, at = 4 * d;
        const uint32_t *x = p->x + chunk * CHUNK * U + d % CHUNK;
        uint8x16_t codes[BAND];
        UNROLL for (int r = 0; r < R; r++)
            codes[r] = load_codes(p->codes + r * p->apart + at, p->bytes - at);
        UNROLL for (int i = 0; i < U; i++) {
            int8x16_t w[BAND];
            UNROLL for (int r = 0; r < R; r++) w[r] = unit_of(codes[r], i, levels, BITS);
            UNROLL for (int n = 0; n < T; n++) {
                const int8x16_t unit = load_units(x + n * p->stride + i * CHUNK);
                UNROLL for (int r = 0; r < R; r++) sum[r][n] = vdotq_s32(sum[r][n], w[r], unit);
            }
        }
        const int32_t *places = p->places + d;
        const int whole = p->places[chunk * CHUNK + CHUNK - 1] == 0;
        if (whole && d % CHUNK != CHUNK - QUARTER) continue;
        UNROLL for (int r = 0; r < R; r++) {
            const float *near = p->scales + r * p->room + p->bases[chunk];
            const float32x4_t scales = load_scales(near, places);
            UNROLL for (int n = 0; n < T; n++) {
                total[r][n] = vfmaq_f32(total[r][n], vcvtq_f32_s32(sum[r][n]), scales);
                sum[r][n] = vdupq_n_s32(0);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < T; n++) out[r * SHARED + n] = vaddvq_f32(total[r][n]);
}

#define ROWS(BITS, R, T)                                                                          \
    static TARGET_DOTPROD void rows_##BITS##_##R##_##T(const row_problem *p, const formats *how,  \
                                                       float *out) {                              \
        dot_rows(p, how, BITS, R, T, out);                                                        \
    }

#define ALL_ROWS(BITS)                                                                            \
    ROWS(BITS, 1, 1) ROWS(BITS, 1, 2) ROWS(BITS, 1, 3) ROWS(BITS, 1, 4)                           \
    ROWS(BITS, 2, 1) ROWS(BITS, 2, 2) ROWS(BITS, 2, 3) ROWS(BITS, 2, 4)                           \
    ROWS(BITS, 4, 1) ROWS(BITS, 4, 2)

ALL_ROWS(4)
ALL_ROWS(8)

#define TABLE(BITS)                                                                               \
    {{rows_##BITS##_1_1, rows_##BITS##_1_2, rows_##BITS##_1_3, rows_##BITS##_1_4},                \
     {rows_##BITS##_2_1, rows_##BITS##_2_2, rows_##BITS##_2_3, rows_##BITS##_2_4},                \
     {rows_##BITS##_4_1, rows_##BITS##_4_2}}

void mf_rows_dotprod(const row_problem *p, const formats *how, int rows, int tokens, float *out) {
    static void (*const kernels[2][3][SHARED])(const row_problem *, const formats *, float *) = {
        TABLE(4), TABLE(8)};
    for (int r = 0, which; r < rows; r += 1 << which) {
        which = rows - r >= 4 && tokens <= 2 ? 2 : rows - r >= 2;
        row_problem some = *p;
        some.codes += r * p->apart, some.scales += r * p->room;
        kernels[how->bits == 8][which][tokens - 1](&some, how, out + r * SHARED);
    }
}

/* Four rows of four dwords to four dwords of four rows. */
INLINE void transpose(uint8x16_t rows[4]) {
    uint32x4_t r[4], pairs[4];
    UNROLL for (int i = 0; i < 4; i++) r[i] = vreinterpretq_u32_u8(rows[i]);
    UNROLL for (int i = 0; i < 4; i += 2) {
        pairs[i] = vtrn1q_u32(r[i], r[i + 1]);
        pairs[i + 1] = vtrn2q_u32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        const uint64x2_t a = vreinterpretq_u64_u32(pairs[i]), b = vreinterpretq_u64_u32(pairs[i + 2]);
        rows[i] = vreinterpretq_u8_u64(vtrn1q_u64(a, b));
        rows[i + 2] = vreinterpretq_u8_u64(vtrn2q_u64(a, b));
    }
}

INLINE void expand(const formats *how, const uint8_t *codes, int64_t stride, int64_t left,
                   int64_t rows, int64_t dwords, uint32_t *panel, int BITS) {
    const int U = BITS == 4 ? 2 : 1;
    const int8x16_t levels = signed_levels(how);
    for (int64_t row = 0; row < ceil_div(rows, LANES) * LANES; row += 4)
        for (int64_t d = 0; d < dwords; d += QUARTER) {
            uint8x16_t r[4];
            UNROLL for (int i = 0; i < 4; i++)
                r[i] = load_codes(codes + least(row + i, rows - 1) * stride + 4 * d, left - 4 * d);
            transpose(r);
            UNROLL for (int j = 0; j < QUARTER; j++)
                UNROLL for (int i = 0; i < U; i++)
                    vst1q_u32(panel + ((d + j) * U + i) * PANEL + row,
                              vreinterpretq_u32_s8(unit_of(r[j], i, levels, BITS)));
        }
}

TARGET_DOTPROD void mf_expand_dotprod(const formats *how, const uint8_t *codes, int64_t stride,
                                      int64_t left, int64_t rows, int64_t dwords, uint32_t *panel) {
    if (how->bits == 4)
        expand(how, codes, stride, left, rows, dwords, panel, 4);
    else
        expand(how, codes, stride, left, rows, dwords, panel, 8);
}

/* A token's unit, which is a lane of others of its tile: 24 sums, four registers of weights and two of
   tokens are all that there are. */
#define DOT(N, DOT_LANE, UNITS, LANE)                                                             \
    if (N < T)                                                                                    \
        UNROLL for (int q = 0; q < 4; q++) sum[N][q] = DOT_LANE(sum[N][q], w[q], UNITS, LANE);

/* Many tokens: T of them with a strip of a panel. */
INLINE void tile(const tile_problem *p, const segment *at, int64_t strip, int T) {
    const uint32_t *panel = p->panel + (at->unit - p->segments->unit) * PANEL + LANES * strip;
    const uint32_t *x = p->x + at->unit * p->step;
    const float *own = p->x_scales ? p->x_scales + at->input_group * p->tile : NULL;
    int32x4_t sum[AT_ONCE][4];
    UNROLL for (int n = 0; n < T; n++)
        UNROLL for (int q = 0; q < 4; q++) sum[n][q] = vdupq_n_s32(0);
    for (int64_t u = 0; u < at->units; u++, panel += PANEL, x += p->step) {
        int8x16_t w[4];
        UNROLL for (int q = 0; q < 4; q++) w[q] = load_units(panel + 4 * q);
        const int8x16_t four = load_units(x);
        const int8x8_t two = vreinterpret_s8_u32(vld1_u32(x + 4));
        DOT(0, vdotq_laneq_s32, four, 0)
        DOT(1, vdotq_laneq_s32, four, 1)
        DOT(2, vdotq_laneq_s32, four, 2)
        DOT(3, vdotq_laneq_s32, four, 3)
        DOT(4, vdotq_lane_s32, two, 0)
        DOT(5, vdotq_lane_s32, two, 1)
    }
    UNROLL for (int q = 0; q < 4; q++) {
        const float *scales = p->scales + strip * p->room + at->group * LANES + 4 * q;
        UNROLL for (int n = 0; n < T; n++) {
            float *c = p->c + n * PANEL + LANES * strip + 4 * q;
            float32x4_t y = vcvtq_f32_s32(sum[n][q]);
            if (own) y = vmulq_n_f32(y, own[n]);
            vst1q_f32(c, vfmaq_f32(vld1q_f32(c), y, vld1q_f32(scales)));
        }
    }
}

TARGET_DOTPROD void mf_tile_dotprod(const tile_problem *p, int64_t s, int tokens) {
    const segment *at = p->segments + s;
    for (int64_t strip = 0; strip < ceil_div(p->rows, LANES); strip++)
        switch (tokens) {
        case 1: tile(p, at, strip, 1); break;
        case 2: tile(p, at, strip, 2); break;
        case 3: tile(p, at, strip, 3); break;
        case 4: tile(p, at, strip, 4); break;
        case 5: tile(p, at, strip, 5); break;
        default: tile(p, at, strip, AT_ONCE);
        }
}
#endif
