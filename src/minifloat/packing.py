"""Codes to bytes and back: dense, little-endian, every row on a byte of its own.

Code i of a row takes bits [i * bits, (i + 1) * bits) of the row's bit string, lowest bit first. At
4 bits the even column is the low nibble, at 6 bits four codes fill three bytes: the order of
compressed-tensors, ModelOpt and Humming. What kernels read may lie otherwise (`kernels/interleave.py`).
"""

import torch
from torch import Tensor

from minifloat.errors import UserError

# Codes that are packed at once: the words on the way take eight bytes a code and more.
_PIECE = 1 << 20


def packed_width(columns: int, bits: int) -> int:
    """Bytes of a row of codes."""
    return -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [R, C], each below 2^bits, as bytes [R, ceil(C * bits / 8)]."""
    rows, columns = codes.shape
    if bits == 8:
        return codes.contiguous()
    if bits == 4:
        padded = torch.nn.functional.pad(codes, (0, columns % 2)) if columns % 2 else codes
        return padded[:, 1::2].bitwise_left_shift(4).bitwise_or_(padded[:, ::2])
    if rows * columns > _PIECE and rows > 1:
        step = max(1, _PIECE // columns)
        return torch.cat([pack(codes[i : i + step], bits) for i in range(0, rows, step)])
    octets = torch.nn.functional.pad(codes, (0, -columns % 8)).reshape(rows, -1, 8)
    word = torch.zeros(octets.shape[:2], dtype=torch.int64, device=codes.device)
    for i in range(8):
        word |= octets[..., i].long() << (bits * i)
    parts = torch.stack([(word >> (8 * j)) & 255 for j in range(bits)], dim=-1)
    return parts.to(torch.uint8).reshape(rows, -1)[:, : packed_width(columns, bits)].contiguous()


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The uint8 codes [R, columns] of `pack`."""
    if bits == 8:
        return packed
    if packed.shape[1] != packed_width(columns, bits):
        raise UserError(
            f"a row of {columns} codes of {bits} bits takes {packed_width(columns, bits)} bytes, "
            f"but the tensor has {packed.shape[1]}"
        )
    if bits == 4:
        pairs = torch.stack((packed & 15, packed >> 4), dim=-1)
        return pairs.reshape(packed.shape[0], -1)[:, :columns]
    if packed.shape[0] * columns > _PIECE and packed.shape[0] > 1:
        step = max(1, _PIECE // columns)
        pieces = range(0, packed.shape[0], step)
        return torch.cat([unpack(packed[i : i + step], bits, columns) for i in pieces])
    groups = -(-columns // 8)
    padded = torch.nn.functional.pad(packed, (0, groups * bits - packed.shape[1]))
    parts = padded.reshape(packed.shape[0], groups, bits).long()
    word = torch.zeros(parts.shape[:2], dtype=torch.int64, device=packed.device)
    for j in range(bits):
        word |= parts[..., j] << (8 * j)
    mask = 2**bits - 1
    codes = torch.stack([(word >> (bits * i)) & mask for i in range(8)], dim=-1)
    return codes.to(torch.uint8).reshape(packed.shape[0], -1)[:, :columns]
