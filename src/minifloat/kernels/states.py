"""Attention's keys and values in few bits, as they lie in memory, and how they grow token by token.

A token of a head is quantized by itself, when it comes. What is kept of a sequence therefore does not
depend on whether it came at once or in pieces.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minifloat.packing import pack, packed_width, unpack
from minifloat.qtensor import QTensor, decode, encode
from minifloat.scales import Scale
from minifloat.spec import QuantSpec

# Room is made for so many tokens at least, and for an eighth of those that are there; in whole lines,
# for kernels are compiled anew where a stride is no multiple of 16.
_STEP, _LINE = 64, 16
_NATIVE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class States(NamedTuple):
    """Keys or values [batch, heads, tokens, width] as codes; views of the room that they have.

    Attributes:
        codes: uint8 [batch, heads, tokens, packed width].
        scale: stored scales and zero points [batch, heads, tokens, groups].
        spec: how to read them.
        width: features of a head.
    """

    codes: Tensor
    scale: Scale
    spec: QuantSpec
    width: int

    @staticmethod
    def of(x: Tensor, spec: QuantSpec) -> "States":
        """The codes of keys or values [batch, heads, tokens, width].

        Raises:
            UserError: NaN or Inf among them.
        """
        lead = x.shape[:-1]
        q = encode(x.reshape(-1, x.shape[-1]), spec)
        codes = pack(q.codes, spec.format.bits).reshape(*lead, -1)
        parts = [part if part is None else part.reshape(*lead, -1) for part in q.scale]
        return States(codes, Scale(*parts), spec, x.shape[-1])  # type: ignore[arg-type]

    @staticmethod
    def empty(x: Tensor, spec: QuantSpec) -> "States":
        """Room for the codes of keys or values, on their device."""
        lead, width = x.shape[:-1], x.shape[-1]
        codes = x.new_empty((*lead, packed_width(width, spec.format.bits)), dtype=torch.uint8)
        groups = spec.tiles((1, width))[1]
        dtype = _NATIVE_DTYPES.get(spec.scale_format.name, torch.uint8)
        scale = x.new_empty((*lead, groups), dtype=dtype)
        zero = torch.empty_like(scale, dtype=torch.uint8) if spec.zero_point else None
        return States(codes, Scale(scale, None, zero), spec, width)

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """What the codes stand for: [batch, heads, tokens, width]."""
        lead = self.codes.shape[:-1]
        codes = unpack(
            self.codes.reshape(-1, self.codes.shape[-1]), self.spec.format.bits, self.width
        )
        parts = [part if part is None else part.reshape(len(codes), -1) for part in self.scale]
        scale = Scale(*parts)  # type: ignore[arg-type]
        return decode(QTensor(codes, scale, self.spec, (*lead, self.width)), dtype)

    def tensors(self) -> list[Tensor]:
        """What is stored: codes, scales and, where there are any, zero points."""
        return [part for part in (self.codes, *self.scale) if part is not None]

    def through(self, tensors: list[Tensor]) -> "States":
        """The same of other tensors, in the order of `tensors`."""
        rest = iter(tensors)
        codes = next(rest)
        scale = Scale(*(part if part is None else next(rest) for part in self.scale))  # type: ignore[arg-type]
        return self._replace(codes=codes, scale=scale)

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that are there."""
        return sum(part.numel() * part.element_size() for part in self.tensors())


class GrowingStates:
    """States to which tokens are added; `held` are those that are there."""

    def __init__(self) -> None:
        self.held: States | None = None
        self._room: list[Tensor] = []

    @property
    def tokens(self) -> int:
        return 0 if self.held is None else self.held.codes.shape[2]

    def append(self, new: States) -> States:
        """All states, with new ones at their end."""
        before = self.tokens
        after = before + new.codes.shape[2]
        if not self._room or self._room[0].shape[2] < after:
            size = -(-(after + max(_STEP, after // 8)) // _LINE) * _LINE
            old = [] if self.held is None else self.held.tensors()
            self._room = [_empty(part, size) for part in new.tensors()]
            for room, part in zip(self._room, old, strict=False):
                room[:, :, :before] = part
        for room, part in zip(self._room, new.tensors(), strict=True):
            room[:, :, before:after] = part
        self.held = new.through([room[:, :, :after] for room in self._room])
        return self.held

    def crop(self, tokens: int) -> None:
        """Keep the first tokens only."""
        if self.held is not None:
            self.held = self.held.through([part[:, :, :tokens] for part in self.held.tensors()])

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        if self.held is not None:
            self._room = [part.index_select(0, rows.to(part.device)) for part in self._room]
            views = [part[:, :, : self.tokens] for part in self._room]
            self.held = self.held.through(views)


def _empty(like: Tensor, tokens: int) -> Tensor:
    batch, heads, _, last = like.shape
    return like.new_empty((batch, heads, tokens, last))
