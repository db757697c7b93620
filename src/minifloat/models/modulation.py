"""Seams behind norms that a condition modulates: norm(x) * (1 + scale) + shift, read by linear layers.

The scale and shift are rows of a linear layer of the time embedding; where it has a bias, dividing its
rows, and 1 + the scale's bias, divides what the readers see (ViDiT-Q's balancing of AdaLN, arXiv
2406.02540). PixArt, Wan, LTX and Sana share that layer among all blocks and give each a table of
offsets: there one scale goes through all blocks at once, and no block has a seam of its own.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from minifloat.models.seam import SCALE, Seam, Slot
from minifloat.models.slots import columns, features, gains, is_layer

# Chunks of the modulating layer by the class of the norm: (chunks, {use: (shifts, scales)}).
_Chunks = tuple[int, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]
_SIX: _Chunks = (6, {"mixer": ((0,), (1,)), "mlp": ((3,), (4,))})
_CHUNKS: dict[str, _Chunks] = {
    "AdaLayerNormZero": _SIX,
    "AdaLayerNormZeroSingle": (3, {"mixer": ((0,), (1,))}),
    "SD35AdaLayerNormZeroX": (9, {**_SIX[1], "second": ((6,), (7,))}),
    "AdaLayerNormContinuous": (2, {"mixer": ((1,), (0,))}),
    "CogVideoXLayerNormZero": (6, {"mixer": ((0, 3), (1, 4))}),  # both streams share the readers
    "CogView4AdaLayerNormZero": (12, {"mixer": ((0, 1), (2, 3)), "mlp": ((6, 7), (8, 9))}),
    "Sequential": _SIX,  # Qwen-Image: SiLU and the layer
}
_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def _under(parent: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{parent}.{name}" for name in names)


_ATTN, _FF = _under("attn", _QKV), ("ff.net.0.proj",)
_CONTEXT, _FF_CONTEXT = _under("attn", _ADDED), ("ff_context.net.0.proj",)
# What reads a norm in a block of this class: (norm, use, layers); "" is a norm with its own gain.
_Row = tuple[str, str, tuple[str, ...]]
_JOINT: tuple[_Row, ...] = (
    ("norm1", "mixer", _ATTN),
    ("norm1", "second", _under("attn2", _QKV)),
    ("norm1", "mlp", _FF),
    ("norm1_context", "mixer", _CONTEXT),
    ("norm1_context", "mlp", _FF_CONTEXT),
)
_SINGLE: tuple[_Row, ...] = (("norm", "mixer", (*_ATTN, "proj_mlp")),)
_READERS: dict[str, tuple[_Row, ...]] = {
    "JointTransformerBlock": _JOINT,
    "SD3SingleTransformerBlock": _JOINT,
    "FluxTransformerBlock": _JOINT,
    "HunyuanVideoTransformerBlock": _JOINT,
    "FluxSingleTransformerBlock": _SINGLE,
    "HunyuanVideoSingleTransformerBlock": _SINGLE,
    "CogVideoXBlock": (
        ("norm1", "mixer", _under("attn1", _QKV)),
        ("norm2", "mixer", _FF),
    ),
    "CogView4TransformerBlock": (
        ("norm1", "mixer", _under("attn1", _QKV)),
        ("norm1", "mlp", _FF),
    ),
    "QwenImageTransformerBlock": (
        ("img_mod", "mixer", _ATTN),
        ("img_mod", "mlp", ("img_mlp.net.0.proj",)),
        ("txt_mod", "mixer", _CONTEXT),
        ("txt_mod", "mlp", ("txt_mlp.net.0.proj",)),
    ),
    "HunyuanDiTBlock": (("norm2", "", ("attn2.to_q",)), ("norm3", "", _FF)),
    "WanTransformerBlock": (("norm2", "", ("attn2.to_q",)),),
    "Lumina2TransformerBlock": (
        ("norm1.norm", "", _ATTN),
        ("ffn_norm1", "", ("feed_forward.linear_1", "feed_forward.linear_3")),
    ),
}
_TABLED = {
    "BasicTransformerBlock": "ff.net.0.proj",
    "LTXVideoTransformerBlock": "ff.net.0.proj",
    "WanTransformerBlock": "ffn.net.0.proj",
    "SanaTransformerBlock": "ff.conv_inverted",
}
_SHARED = ("adaln_single.linear", "time_embed.linear", "condition_embedder.time_proj")


def block_seams(name: str, block: Any) -> Iterator[Seam]:
    """From the norms of a block, modulated or not, to the layers that read them."""
    kind = type(block).__name__
    table = _basic_readers(block) if kind == "BasicTransformerBlock" else _READERS.get(kind, ())
    for norm, use, leaves in table:
        reads = _columns(name, block, leaves)
        producers = _producers(name, block, norm, use)
        if reads and producers:
            width = _width(block, leaves)
            what = f"{name}.{norm}.{use}".rstrip(".")
            yield Seam(what, "modulation" if use else "norm", width, producers, reads, (SCALE,))


def shared_seams(model: nn.Module) -> Iterator[Seam]:
    """The two seams of models whose blocks share the modulating layer and have tables of offsets."""
    layers = [(n, layer) for n in _SHARED if (layer := _find(model, n)) is not None]
    blocks = [
        (name, block)
        for name, block in model.named_modules()
        if type(block).__name__ in _TABLED and _table(block) is not None
    ]
    if not blocks or len(layers) != 1 or not isinstance(layers[0][1].bias, Tensor):
        return
    name = layers[0][0]
    width = features(layers[0][1])[0] // 6
    for use, (shifts, scales) in _SIX[1].items():
        rows = [
            Slot(f"{name}.{kind}", 0, start=i * width)
            for i in (*shifts, *scales)
            for kind in ("weight", "bias")
        ]
        rows += [slot for block in blocks for slot in _offsets(*block, shifts[0], scales[0])]
        reads = [slot for block in blocks for slot in _tabled_reads(*block, use)]
        yield Seam(f"{name}.{use}", "modulation", width, tuple(rows), tuple(reads), (SCALE,))


def _offsets(name: str, block: nn.Module, shift: int, scale: int) -> tuple[Slot, Slot]:
    """A block's own addends to the shared shift and scale; the 1 + is counted here."""
    ahead, table = (0,) * (_table(block).ndim - 2), f"{name}.scale_shift_table"
    return Slot(table, 0, at=(*ahead, shift)), Slot(table, 0, at=(*ahead, scale), offset=1.0)


def _tabled_reads(name: str, block: nn.Module, use: str) -> tuple[Slot, ...]:
    mlp = (_TABLED[type(block).__name__],)
    return _columns(name, block, _under("attn1", _QKV) if use == "mixer" else mlp)


def last_seam(model: Any) -> Iterator[Seam]:
    """From the model's last, modulated norm to its output layer."""
    out, norm = _find(model, "proj_out"), _find(model, "norm_out")
    if is_layer(out) and type(norm).__name__ == "AdaLayerNormContinuous":
        producers = _producers("", model, "norm_out", "mixer")
        if producers:
            reads = columns("proj_out", out)
            yield Seam("norm_out", "modulation", features(out)[1], producers, reads, (SCALE,))
    first, last = _find(model, "proj_out_1"), _find(model, "proj_out_2")
    if is_layer(first) and is_layer(last):  # DiT
        width = features(last)[1]
        producers = _modulated("proj_out_1", first, width, (0,), (1,))
        reads = columns("proj_out_2", last)
        yield Seam("proj_out_1", "modulation", width, producers, reads, (SCALE,))


def _basic_readers(block: Any) -> tuple[_Row, ...]:
    """diffusers' transformer block of U-Nets, DiT and PixArt, by the kind of its norms."""
    first = ("to_q",) if getattr(block, "only_cross_attention", False) else _QKV
    crossed = ("attn2.to_q",) if not block.double_self_attention else _under("attn2", _QKV)
    if block.norm_type == "layer_norm":
        return (("norm1", "", _under("attn1", first)), ("norm2", "", crossed), ("norm3", "", _FF))
    if block.norm_type == "ada_norm_zero":
        return (("norm1", "mixer", _under("attn1", first)), ("norm1", "mlp", _FF))
    return ()


def _producers(name: str, block: nn.Module, norm: str, use: str) -> tuple[Slot, ...]:
    """The rows that scale and shift a norm's output, or its own gain."""
    module: Any = _find(block, norm)
    full = f"{name}.{norm}".lstrip(".")
    if module is None:
        return ()
    if not use:
        return gains(full, module)
    chunks, uses = _CHUNKS.get(type(module).__name__, (0, {}))
    if use not in uses:
        return ()
    leaf, layer = (
        ("1", module[1]) if isinstance(module, nn.Sequential) else ("linear", module.linear)
    )
    return _modulated(f"{full}.{leaf}", layer, features(layer)[0] // chunks, *uses[use])


def _modulated(
    name: str, layer: Any, width: int, shifts: tuple[int, ...], scales: tuple[int, ...]
) -> tuple[Slot, ...]:
    """Rows of shifts and scales; nothing without a bias, since 1 + scale could not be divided."""
    if not isinstance(layer.bias, Tensor):
        return ()
    weight, bias = f"{name}.weight", f"{name}.bias"
    found = [Slot(kind, 0, start=i * width) for i in shifts for kind in (weight, bias)]
    for i in scales:
        found.append(Slot(weight, 0, start=i * width))
        found.append(Slot(bias, 0, start=i * width, offset=1.0))
    return tuple(found)


def _columns(name: str, block: nn.Module, leaves: tuple[str, ...]) -> tuple[Slot, ...]:
    found = [(f"{name}.{leaf}", _find(block, leaf)) for leaf in leaves]
    return tuple(s for n, layer in found if layer is not None for s in columns(n, layer))


def _width(block: nn.Module, leaves: tuple[str, ...]) -> int:
    return next(features(layer)[1] for leaf in leaves if (layer := _find(block, leaf)) is not None)


def _table(block: Any) -> Any:
    """A block's table of six offsets, [6, width] or [1, 6, width]."""
    table = getattr(block, "scale_shift_table", None)
    return table if isinstance(table, Tensor) and table.shape[-2] == 6 else None


def _find(module: Any, path: str) -> Any:
    for part in path.split("."):
        is_index = part.isdigit() and isinstance(module, nn.ModuleList | nn.Sequential)
        module = module[int(part)] if is_index else getattr(module, part, None)
    return module
