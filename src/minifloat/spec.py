"""How a tensor is quantized, as a value: element format, tile of a scale, and how scales are stored.

A tile is (rows, columns) of the matrix [rows, columns] that a tensor is seen as (leading axes
flattened); -1 is the whole axis. So (-1, -1) is a scale per tensor, (1, -1) per output channel of a
weight or per token of an activation, (1, 128) a group, (128, 128) a block. A tile that does not
divide the matrix leaves a smaller last one.

Scales are quantized too: `scale` is a format, or a second `QuantSpec` when scales have a scale of
their own. That one recursion says NVFP4 (E4M3 scales, one fp32 a tensor), QoQ's integer group scales
and ZeroQuant-FP's M2 (powers of two under one real scale a row).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from minifloat import formats
from minifloat.errors import UserError, unknown
from minifloat.formats import Format

ScaleRounding = Literal["nearest", "up", "down", "ocp"]


@dataclass(frozen=True)
class QuantSpec:
    """One tensor's quantization.

    Attributes:
        format: element format.
        tile: (rows, columns) that share a scale; -1 for the whole axis.
        scale: format of the scales, or the spec that quantizes them in turn.
        scale_rounding: nearest; up (never clips) and down for power-of-two scales;
            ocp, the MX rule 2^(floor(log2 amax) - emax) (OCP MX 1.0, section 6.3).
        zero_point: asymmetric with an integer zero point (unsigned integer formats only).
        dynamic: scales are computed from the tensor at run time (activations).
    """

    format: Format
    tile: tuple[int, int] = (1, -1)
    scale: "Format | QuantSpec" = formats.FP32
    scale_rounding: ScaleRounding = "nearest"
    zero_point: bool = False
    dynamic: bool = False

    def __post_init__(self) -> None:
        if any(size == 0 or size < -1 for size in self.tile):
            raise UserError(f"a tile is a positive size or -1 per axis, not {self.tile}")
        if isinstance(self.scale, QuantSpec) and isinstance(self.scale.scale, QuantSpec):
            raise UserError("scales of scales stop at two levels")
        if self.scale_rounding != "nearest" and not self.scale_format.is_power_of_two:
            raise UserError(
                f"scale_rounding {self.scale_rounding!r} needs power-of-two scales, "
                f"not {self.scale_format}"
            )
        if self.zero_point and (not self.format.is_integer or self.format.signed):
            raise UserError(f"a zero point needs an unsigned integer format, not {self.format}")

    @property
    def scale_format(self) -> Format:
        """The format that each tile's own scale is stored in."""
        return self.scale.format if isinstance(self.scale, QuantSpec) else self.scale

    @property
    def outer(self) -> "QuantSpec | None":
        """The spec of the scales, where they have a scale of their own."""
        return self.scale if isinstance(self.scale, QuantSpec) else None

    def tiles(self, shape: tuple[int, int]) -> tuple[int, int]:
        """How many tiles cover a matrix of this shape, per axis."""
        counts = []
        for size, tile in zip(shape, self.tile, strict=True):
            counts.append(1 if tile == -1 else -(-size // tile))
        return counts[0], counts[1]

    def bits_per_value(self, shape: tuple[int, int]) -> float:
        """Stored bits a value: codes, scales, scales of scales and zero points."""
        values = shape[0] * shape[1]
        tiles = self.tiles(shape)
        count = tiles[0] * tiles[1]
        bits = values * self.format.bits + count * self.scale_format.bits
        if self.outer is not None:
            outer = self.outer.tiles(tiles)
            bits += outer[0] * outer[1] * self.outer.scale_format.bits
        if self.zero_point:
            bits += count * 8
        return bits / values

    def __str__(self) -> str:
        tile = "x".join("all" if size == -1 else str(size) for size in self.tile)
        scale = str(self.scale_format) + (f"/{self.outer.scale_format}" if self.outer else "")
        marks = " zero" * self.zero_point + " dynamic" * self.dynamic
        return f"{self.format} {tile} {scale}{marks}"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `from_json` reads them back unchanged."""
        scale = self.scale
        return {
            "format": self.format.name,
            "tile": list(self.tile),
            "scale": scale.to_json() if isinstance(scale, QuantSpec) else scale.name,
            "scale_rounding": self.scale_rounding,
            "zero_point": self.zero_point,
            "dynamic": self.dynamic,
        }

    @staticmethod
    def from_json(data: "dict[str, Any] | str") -> "QuantSpec":
        """A spec from its JSON fields, or from the name of a preset."""
        if isinstance(data, str):
            if data not in SPECS:
                raise unknown("preset", data, SPECS)
            return SPECS[data]
        if not isinstance(data, dict):
            raise UserError(f"a quantization spec is a preset's name or an object, not {data!r}")
        fields = dict(data)
        known = ("format", "tile", "scale", "scale_rounding", "zero_point", "dynamic")
        for key in fields:
            if key not in known:
                raise unknown("key of a quantization spec", key, known)
        if "format" not in fields:
            raise UserError(f"a quantization spec needs a format: {data}")
        for key, (wanted, is_right) in _FIELDS.items():
            if key in fields and not is_right(fields[key]):
                raise UserError(f"{key} of a quantization spec is {wanted}, not {fields[key]!r}")
        fields["format"] = Format.parse(fields["format"])
        if "tile" in fields:
            fields["tile"] = tuple(fields["tile"])
        if isinstance(fields.get("scale"), dict):
            fields["scale"] = QuantSpec.from_json(fields["scale"])
        elif "scale" in fields:
            fields["scale"] = Format.parse(fields["scale"])
        return QuantSpec(**fields)


@dataclass(frozen=True)
class LayerSpec:
    """A layer's weight, input and output; None leaves that tensor in full precision.

    Inputs that are scaled by token are dynamic, since tokens are not known before; one scale for a
    tensor or a channel is calibrated and stored, unless the spec says dynamic. So is the one scale of
    NVFP4's block scales, though these are of the run. Outputs are dynamic.
    """

    weight: QuantSpec | None = None
    input: QuantSpec | None = None
    output: QuantSpec | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            spec = getattr(self, name)
            static = name == "input" and spec is not None and spec.tile[0] == -1
            if spec is not None and not static and not spec.dynamic:
                object.__setattr__(self, name, replace(spec, dynamic=True))

    @property
    def static_input(self) -> bool:
        """Whether all scales of the input are calibrated."""
        return self.input is not None and not self.input.dynamic

    @property
    def calibrated(self) -> QuantSpec | None:
        """The spec whose scales are calibrated and stored with the layer: the input's or its scales'."""
        if self.input is None or not self.input.dynamic:
            return self.input
        outer = self.input.outer
        fixed = outer is not None and outer.tile[0] == -1 and not outer.dynamic
        return outer if fixed else None

    def calibrated_tiles(self, features: int) -> tuple[int, int]:
        """How many of those scales an input of so many features has, per axis."""
        assert self.input is not None and self.calibrated is not None
        tiles = self.input.tiles((1, features))
        return tiles if self.static_input else self.calibrated.tiles(tiles)

    def to_json(self) -> dict[str, Any]:
        parts = {"weight": self.weight, "input": self.input, "output": self.output}
        return {key: spec and spec.to_json() for key, spec in parts.items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "LayerSpec":
        if not isinstance(data, dict):
            raise UserError(
                f"a layer's spec is an object with weight, input or output, not {data!r}"
            )
        for key in data:
            if key not in ("weight", "input", "output"):
                raise unknown("key of a layer's spec", key, ("weight", "input", "output"))
        return LayerSpec(
            **{k: None if v is None else QuantSpec.from_json(v) for k, v in data.items()}
        )


@dataclass(frozen=True)
class CacheSpec:
    """How attention's keys and values are kept, seen as a matrix of tokens by the features of a head.

    Both are dynamic. Scales belong to one token (and group of features), so that what is kept of it
    does not depend on the tokens after it.

    Raises:
        UserError: codes of more than 8 bits, a tile of several tokens, or scales of scales.
    """

    keys: QuantSpec
    values: QuantSpec

    def __post_init__(self) -> None:
        for name in ("keys", "values"):
            spec: QuantSpec = getattr(self, name)
            if spec.format.bits > 8:
                raise UserError(f"a cache keeps codes of at most 8 bits, not {spec.format}")
            if spec.tile[0] != 1:
                raise UserError(
                    f"the scales of a cache are one token's: the tile of its {name} is (1, -1) or "
                    f"(1, features), not {spec.tile}"
                )
            if spec.outer is not None:
                raise UserError(
                    f"the scales of a cache have no scale of their own; {spec.scale_format} scales "
                    "alone, or fp16, can be asked of it"
                )
            object.__setattr__(self, name, replace(spec, dynamic=True))

    def __str__(self) -> str:
        return f"keys {self.keys}, values {self.values}"

    def to_json(self) -> dict[str, Any]:
        return {"keys": self.keys.to_json(), "values": self.values.to_json()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "CacheSpec":
        return CacheSpec(*(QuantSpec.from_json(data[name]) for name in ("keys", "values")))


def _is_tile(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)


# What JSON may hold in a spec: in words, and as a test.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": ("a format's name", lambda value: isinstance(value, str)),
    "tile": ("[rows, columns]", _is_tile),
    "scale": ("a format's name or a spec", lambda value: isinstance(value, str | dict)),
    "scale_rounding": ("nearest, up, down or ocp", lambda value: value in get_args(ScaleRounding)),
    "zero_point": ("true or false", lambda value: isinstance(value, bool)),
    "dynamic": ("true or false", lambda value: isinstance(value, bool)),
}


def _mx(fmt: Format) -> QuantSpec:
    return QuantSpec(fmt, (1, 32), formats.E8M0, "ocp")


MXFP4, MXFP8 = _mx(formats.E2M1), _mx(formats.E4M3)
MXFP6, MXFP6_E3M2 = _mx(formats.E2M3), _mx(formats.E3M2)
NVFP4 = QuantSpec(formats.E2M1, (1, 16), QuantSpec(formats.E4M3, (-1, -1)))
FP8_TENSOR, FP8_CHANNEL = QuantSpec(formats.E4M3, (-1, -1)), QuantSpec(formats.E4M3, (1, -1))
FP8_BLOCK = QuantSpec(formats.E4M3, (128, 128))
FP8_TOKEN = replace(FP8_CHANNEL, dynamic=True)
INT8_CHANNEL = QuantSpec(formats.INT8, (1, -1))
INT8_TOKEN = replace(INT8_CHANNEL, dynamic=True)
FP4_G128 = QuantSpec(formats.E2M1, (1, 128), formats.FP16)
INT4_G128 = QuantSpec(formats.INT4, (1, 128), formats.FP16)
NF4_G64 = QuantSpec(formats.NF4, (1, 64), formats.FP32)
# QoQ's weights: integer scales and zero points under one FP16 scale a row, keys and values with an FP16
# scale and a zero point for each token of a head (arXiv 2405.04532).
QOQ_G128 = QuantSpec(
    formats.UINT4, (1, 128), QuantSpec(formats.UINT8, (1, -1), formats.FP16), zero_point=True
)
UINT4_TOKEN = QuantSpec(formats.UINT4, (1, -1), formats.FP16, zero_point=True, dynamic=True)

SPECS: dict[str, QuantSpec] = {
    "mxfp4": MXFP4,
    "mxfp6": MXFP6,
    "mxfp6-e3m2": MXFP6_E3M2,
    "mxfp8": MXFP8,
    "nvfp4": NVFP4,
    "fp8-tensor": FP8_TENSOR,
    "fp8-channel": FP8_CHANNEL,
    "fp8-block": FP8_BLOCK,
    "fp8-token": FP8_TOKEN,
    "int8-channel": INT8_CHANNEL,
    "int8-token": INT8_TOKEN,
    "fp4-g128": FP4_G128,
    "int4-g128": INT4_G128,
    "nf4-g64": NF4_G64,
    "qoq-g128": QOQ_G128,
    "uint4-token": UINT4_TOKEN,
}
