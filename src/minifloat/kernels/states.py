"""Attention's keys and values in few bits, as they lie in memory, and how they grow token by token.

A token of a head is quantized by itself, when it comes. What is kept of a sequence therefore does not
depend on whether it came at once or in pieces.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from minifloat.errors import UserError
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
    def empty(x: Tensor, spec: QuantSpec, tokens: int | None = None) -> "States":
        """Room for the codes of keys or values, or of so many tokens like them, on their device."""
        lead, width = (*x.shape[:2], x.shape[2] if tokens is None else tokens), x.shape[3]
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
    def tokens(self) -> int:
        return self.codes.shape[2]

    def some(self, first: int, tokens: int) -> "States":
        """Views of `tokens` of them, from the first on."""
        stored, outer, zero = self.scale
        if zero is not None:
            zero = zero.narrow(2, first, tokens)
        scale = Scale(stored.narrow(2, first, tokens), outer, zero)
        return States(self.codes.narrow(2, first, tokens), scale, self.spec, self.width)

    def write(self, first: int | Tensor, new: "States") -> None:
        """Put new tokens into the place of some, from the first on; its number may be a tensor's."""
        if isinstance(first, int):
            there = self.some(first, new.tokens).tensors()
            for part, other in zip(there, new.tensors(), strict=True):
                part.copy_(other)
        else:
            places = first + torch.arange(new.tokens, device=first.device)
            for part, other in zip(self.tensors(), new.tensors(), strict=True):
                part.index_copy_(2, places, other)

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that are there."""
        return sum(part.numel() * part.element_size() for part in self.tensors())


# Writes the codes of keys or values into the place of some tokens, from the first on.
Put = Callable[[Tensor, States, int | Tensor], None]


class GrowingStates:
    """States to which tokens are added; `held` are those that are there."""

    def __init__(self) -> None:
        self.held: States | None = None
        self._room: States | None = None

    @property
    def tokens(self) -> int:
        return 0 if self.held is None else self.held.tokens

    def visible(self, new: int) -> int:
        """How many tokens attention gets with so many new ones."""
        return self.tokens + new

    def append(self, x: Tensor, spec: QuantSpec, put: Put) -> States:
        """All states, with new keys or values [batch, heads, tokens, width] at their end."""
        before = self.tokens
        after = before + x.shape[2]
        room = self._room
        if room is None or room.tokens < after:
            size = -(-(after + max(_STEP, after // 8)) // _LINE) * _LINE
            room = States.empty(x, spec, size)
            if self.held is not None:
                room.write(0, self.held)
        put(x, room, before)
        self._room, self.held = room, room.some(0, after)
        return self.held

    def crop(self, tokens: int) -> None:
        """Keep the first tokens only."""
        if self.held is not None:
            self.held = self.held.some(0, min(tokens, self.tokens))

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        if self._room is not None:
            tokens = self.tokens
            parts = [part.index_select(0, rows.to(part.device)) for part in self._room.tensors()]
            self._room = self._room.through(parts)
            self.held = self._room.some(0, tokens)


def check_room(tokens: int, room: int) -> None:
    """Refuse more tokens than there is room for."""
    if tokens > room:
        raise UserError(f"the cache has room for {room} tokens; make it of more")


class FixedStates:
    """States of a fixed number of tokens, which never move: a compiled step can write to them.

    Attention gets all of them, and a mask that hides those that are not there.
    """

    def __init__(self, capacity: int) -> None:
        self.held: States | None = None
        self.capacity = capacity
        self.tokens: int | Tensor = 0

    def visible(self, new: int) -> int:
        return self.capacity

    def append(self, x: Tensor, spec: QuantSpec, put: Put) -> States:
        """All states, with new keys or values [batch, heads, tokens, width] behind the others."""
        if self.held is None:
            self.held = States.empty(x, spec, self.capacity)
            for part in self.held.tensors():
                part.zero_()  # what is hidden must not be NaN
            self.tokens = torch.zeros((), dtype=torch.int64, device=x.device)
        assert isinstance(self.tokens, Tensor)
        looks = x.device.type == "cpu" and not torch.compiler.is_compiling()  # else it would wait
        if looks:
            check_room(int(self.tokens) + x.shape[2], self.capacity)
        put(x, self.held, self.tokens)
        self.tokens.add_(x.shape[2])
        return self.held

    def crop(self, tokens: int) -> None:
        """Keep the first tokens only."""
        if isinstance(self.tokens, Tensor):
            self.tokens.fill_(tokens)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        if self.held is not None:
            parts = [part.index_select(0, rows.to(part.device)) for part in self.held.tensors()]
            self.held = self.held.through(parts)
