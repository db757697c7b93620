/* Convolutions whose weights have one scale a row (`direct.c`). */

#ifndef MINIFLOAT_DIRECT_H
#define MINIFLOAT_DIRECT_H

#include "call.h"

/* Whether `mf_direct` runs a convolution of many tokens. */
int mf_is_direct(const call *k);

/* Runs it, and whether it did: with a NaN among the activations of integers it does nothing. */
enum outcome mf_direct(const call *k, int *done);

#endif
