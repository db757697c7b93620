"""Packed codes to numbers, on the GPU: device functions that the product calls on its tiles."""

import triton
import triton.language as tl


@triton.jit
def load_codes(
    codes, n, rows, row_bytes, first, BITS: tl.constexpr, COUNT: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Codes [n, COUNT] from column `first` on, as int32; zero beyond a row's end.

    They are read by the dword where rows are whole dwords and codes do not straddle them (WIDE), else by
    the shortest run of codes that fills whole bytes: two of 4 bits a byte, four of 6 bits three bytes,
    eight of an odd number of bits that many bytes.
    """
    CODES: tl.constexpr = 32 // BITS if WIDE else 8 if BITS % 2 else 4 if BITS % 4 else 8 // BITS
    BYTES: tl.constexpr = CODES * BITS // 8
    unit = first // CODES + tl.arange(0, COUNT // CODES)
    inside = (n < rows)[:, None]
    row = n.to(tl.int64)[:, None]
    if WIDE:
        line = codes.to(tl.pointer_type(tl.int32)) + row * (row_bytes // 4) + unit[None, :]
        word = tl.load(line, inside & (unit < row_bytes // 4)[None, :], 0)
    else:
        at = unit * BYTES
        line = codes + row * row_bytes + at[None, :]
        word = tl.load(line, inside & (at < row_bytes)[None, :], 0)
        word = word.to(tl.int64) if BYTES > 3 else word.to(tl.int32)
        for byte in tl.static_range(1, BYTES):
            more = tl.load(line + byte, inside & (at + byte < row_bytes)[None, :], 0)
            word |= more.to(word.dtype) << (8 * byte)
    if CODES > 1:
        shifts = (tl.arange(0, CODES) * BITS).to(word.dtype)
        word = (word[:, :, None] >> shifts[None, None, :]) & ((1 << BITS) - 1)
        word = tl.reshape(word, (n.shape[0], COUNT))
    return word.to(tl.int32)


@triton.jit
def numbers(
    code, table, BITS: tl.constexpr, KIND: tl.constexpr, M: tl.constexpr, BIAS: tl.constexpr,
    NAN: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    """What codes stand for: int32 for integers, else fp32."""
    SIGN: tl.constexpr = 1 << (BITS - 1)
    value = code
    if KIND == "table":
        value = tl.load(table + code)
    elif KIND == "float":  # fp32's own subnormals do the rest
        bits = ((code & SIGN) << (32 - BITS)) | ((code & (SIGN - 1)) << (23 - M))
        value = bits.to(tl.float32, bitcast=True) * (2.0 ** (127 - BIAS))
        if NAN != -1:
            value = tl.where((code & (SIGN - 1)) == NAN, float("nan"), value)
    elif SIGNED:
        value = (code ^ SIGN) - SIGN
    return value


@triton.jit
def load_scales(scales, scale_table, lines, g, groups):
    """fp32 scales of groups `g` in rows of tiles `lines`; zero beyond the last group."""
    s = tl.load(scales + lines * groups + g, g < groups, 0)
    if scale_table is not None:
        s = tl.load(scale_table + s)
    return s.to(tl.float32)


@triton.jit
def widen(s, SHARE: tl.constexpr):
    """[R, G] to [R, G * SHARE], each number SHARE times."""
    R: tl.constexpr = s.shape[0]
    G: tl.constexpr = s.shape[1]
    return tl.reshape(tl.broadcast_to(s[:, :, None], (R, G, SHARE)), (R, G * SHARE))


@triton.jit
def times(w, s, SHARE: tl.constexpr, INTEGER: tl.constexpr):
    """Numbers [R, G * SHARE] times their groups' scales [R, G], in fp32 or in integers."""
    if not INTEGER:
        w = w.to(tl.float32)
    return w * widen(s.to(w.dtype), SHARE)
