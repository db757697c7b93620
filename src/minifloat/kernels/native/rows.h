/* Few tokens: some rows of codes at a time, their columns in the lanes of a register (`rows.c`). */

#ifndef MINIFLOAT_ROWS_H
#define MINIFLOAT_ROWS_H

#include "tokens.h"

#define CHUNK 16 /* dwords that are read at once */
#define SHARED 4 /* tokens that share an expanded weight, at most */
#define BAND 4   /* rows that share a token's units, at most; two where the tokens are more than two */

/* Products of up to BAND rows with up to SHARED tokens. */
typedef struct {
    const uint8_t *codes;
    int64_t bytes, apart;  /* of a row; from one row to the next */
    const float *scales;   /* [rows][room] of their groups, 16 more that are never used */
    int64_t room;
    const int64_t *bases;  /* [chunks] the first group of a chunk */
    const int32_t *places; /* [chunks][16] the group of each dword, from the base on */
    const uint32_t *x;     /* [tokens][chunks][U][16] units */
    const int32_t *starts; /* [tokens][chunks][16] what integer sums start with */
    int64_t stride;        /* units of a token */
    int64_t chunks;
} row_problem;

/* out [rows][SHARED] */
typedef void (*row_kernel)(const row_problem *p, const formats *how, int rows, int tokens, float *out);

row_kernel mf_row_kernel(enum engine engine, int bits, int level);

#endif
