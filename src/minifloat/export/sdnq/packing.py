"""SDNQ's packing: units of codes in as many bytes as they need, each layout its own.

Two- and four-bit codes fill bytes from the lowest bit. Of other widths the first codes of a unit lie at
the bottom of its bytes, one a byte, and the bits of the others are put above them.
"""

from torch import Tensor

from minifloat.export.sdnq.scheme import UNITS
from minifloat.packing import pack, unpack

# For every bit of a unit's later codes: (code, its bit, byte, the byte's bit).
_PLACES: dict[int, list[tuple[int, int, int, int]]] = {
    3: [
        *[(3 + i, bit, i, 3 + bit) for i in range(3) for bit in range(3)],
        *[(6 + i, bit, i, 6 + bit) for i in range(2) for bit in range(2)],
        (6, 2, 2, 6),
        (7, 2, 2, 7),
    ],
    5: [
        *[(5 + i, bit, i, 5 + bit) for i in range(3) for bit in range(3)],
        *[(5 + i, 3 + bit, 3 + i, 5 + bit) for i in range(2) for bit in range(2)],
        (7, 4, 3, 7),
        (7, 3, 4, 7),
    ],
    6: [(3, 4 - 2 * i + bit, i, 6 + bit) for i in range(3) for bit in range(2)],
    7: [(7, 6 - i, i, 7) for i in range(7)],
}


def to_bytes(codes: Tensor, bits: int) -> Tensor:
    """Codes of any shape as SDNQ's bytes: [units, bytes of one], or flat for 2 and 4 bits."""
    flat = codes.reshape(1, -1)
    if bits not in _PLACES:
        return pack(flat, bits).reshape(-1)
    units = flat.reshape(-1, UNITS[bits])
    out = units[:, : UNITS[bits] * bits // 8].clone()
    for code, bit, byte, place in _PLACES[bits]:
        out[:, byte] |= (units[:, code] >> bit & 1) << place
    return out


def from_bytes(packed: Tensor, bits: int, count: int) -> Tensor:
    """As many codes [count] of SDNQ's bytes."""
    if bits not in _PLACES:
        return unpack(packed.reshape(1, -1), bits, count)[0]
    whole = packed.shape[1]
    out = packed.new_zeros(packed.shape[0], UNITS[bits])
    out[:, :whole] = packed & (1 << bits) - 1
    for code, bit, byte, place in _PLACES[bits]:
        out[:, code] |= (packed[:, byte] >> place & 1) << bit
    return out.reshape(-1)[:count]
