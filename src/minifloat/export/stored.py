"""What a checkpoint's config.json says of every packed layer, and which versions of it are read.

Version 1 mapped a layer's name to the rank of its branch; version 2 maps it to an object with the shape,
because packed bytes do not tell it: a row of 5 codes of 3 bits takes as many bytes as one of 4.
"""

from dataclasses import dataclass, replace
from typing import Any

from minifloat.embedding import QEmbedding
from minifloat.errors import UserError
from minifloat.layers import QConv2d, QLayer

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Stored:
    """One packed layer, without its tensors.

    Attributes:
        rank: of its low-rank branch, 0 for none.
        shape: [out, in], or [out, in / groups * height * width]; None in version 1.
        kernel: (height, width) of a convolution, None for a linear layer.
        embedding: whether rows are looked up in it.
    """

    rank: int
    shape: tuple[int, int] | None = None
    kernel: tuple[int, int] | None = None
    embedding: bool = False

    @staticmethod
    def of(layer: QLayer) -> "Stored":
        """What is stored of a layer."""
        kernel = None
        if isinstance(layer, QConv2d):
            kernel = layer.kernel_size[0], layer.kernel_size[1]
        return Stored(layer.rank, layer.shape, kernel, isinstance(layer, QEmbedding))

    def check(self, name: str, layer: QLayer) -> None:
        """Raise a `UserError` if the model has another layer in this place."""
        found = Stored.of(layer)
        if self.shape is not None and self != replace(found, rank=self.rank):
            raise UserError(
                f"{name} is {self} in the checkpoint, but {found} in the model; "
                "config.json and the weights are of different models"
            )

    def to_json(self) -> dict[str, Any]:
        assert self.shape is not None
        kernel = {} if self.kernel is None else {"kernel": list(self.kernel)}
        table = {"embedding": True} if self.embedding else {}
        return {"rank": self.rank, "shape": list(self.shape), **kernel, **table}

    def __str__(self) -> str:
        kind = "an embedding" if self.embedding else "linear"
        if self.kernel is not None:
            kind = f"a {self.kernel[0]}x{self.kernel[1]} convolution"
        return f"{kind} {list(self.shape or ())}"


def stored_layers(quantization: dict[str, Any]) -> dict[str, Stored]:
    """The packed layers of a `quantization_config` of any version so far, by name.

    Raises:
        UserError: a later version, or a damaged entry.
    """
    version = quantization.get("format_version", 1)
    if version not in (1, FORMAT_VERSION):
        raise UserError(
            f"the checkpoint has format version {version}, but this minifloat reads versions up to "
            f"{FORMAT_VERSION}; update minifloat to read it"
        )
    layers = quantization.get("layers")
    if not isinstance(layers, dict):
        raise UserError("the quantization_config names no packed layers; config.json is damaged")
    return {name: _entry(name, entry, version) for name, entry in layers.items()}


def _entry(name: str, entry: Any, version: int) -> Stored:
    try:
        if version == 1:
            return Stored(_count(entry))
        rows, columns = map(_count, entry["shape"])
        kernel = None
        if entry.get("kernel") is not None:
            height, width = map(_count, entry["kernel"])
            kernel = height, width
        table = entry.get("embedding") is True
        return Stored(_count(entry["rank"]), (rows, columns), kernel, table)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"config.json says {entry!r} of {name}, in place of its rank and shape"
        ) from error


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value
