"""Experts under the hub's names, as engines read them: a layer for every expert and projection.

transformers 5 holds a block's experts in one parameter [experts, out, in], and we as layers `up` (the
gate's rows before its own) and `down`. On the hub, and so for vLLM, SGLang and transformers' own
readers, gate, up and down of every expert are tensors of their own. Opened experts are cut into those,
and so are fused ones in full precision; values and scales stay as they are.

Source: transformers 5.23 (`conversion_mapping.py`), which turns these names into its own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Layer, Shape
from minifloat.export.native_folder import NativeFolder
from minifloat.models.experts import is_opened
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.shards import DTYPES, Entry

_PROJ = ("gate_proj", "up_proj", "down_proj")
# By model type: the hub's names of gate, up and down, and what its blocks are called for ours.
FAMILIES: dict[str, tuple[tuple[str, str, str], tuple[str, str]]] = {
    "mixtral": (("w1", "w3", "w2"), (".mlp.", ".block_sparse_moe.")),
    **dict.fromkeys(
        ("qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "jamba"),
        (_PROJ, ("", "")),
    ),
}
_OPENED = re.compile(r"(.+\.experts)\.layers\.(\d+)\.(up|down)")
_FUSED = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)")


@dataclass(frozen=True)
class Rows:
    """Some rows of a packed layer."""

    layer: str
    first: int
    last: int


@dataclass(frozen=True)
class HubFolder(NativeFolder):
    """A checkpoint of ours whose layers and tensors have the hub's names.

    Attributes:
        rows: of which layer each of these layers is a part.
        inner: the checkpoint as it lies.
    """

    rows: dict[str, Rows]
    inner: NativeFolder

    def weights_only(self) -> "HubFolder":
        found = super().weights_only()
        assert isinstance(found, HubFolder)
        return replace(found, inner=self.inner.weights_only())

    def shape(self, name: str) -> Shape:
        part = self.rows[name]
        return part.last - part.first, self.inner.shape(part.layer)[1]

    def layer(self, name: str) -> Layer:
        part = self.rows[name]
        return _cut(self.inner.layer(part.layer), part)

    def input_scale(self, name: str) -> Scale | None:
        return self.inner.input_scale(self.rows[name].layer)

    def outer(self, name: str) -> Tensor | None:
        return self.inner.outer(self.rows[name].layer)

    def others(self) -> Iterator[str]:
        yield from self.entries


def under_hub_names(folder: NativeFolder) -> NativeFolder:
    """The folder as the hub names its experts; itself if it has none.

    Raises:
        UserError: opened experts of a family whose names are not known here, or with biases.
    """
    kind = str(folder.config.get("model_type"))
    if kind not in FAMILIES:
        if opened := next((name for name in folder.specs if is_opened(name)), None):
            raise UserError(
                f"the hub's names of {kind}'s experts are not known here, which {opened} needs; known: "
                f"{', '.join(FAMILIES)}"
            )
        return folder
    rows: dict[str, Rows] = {}
    for name in folder.specs:
        rows |= dict(_parts(name, folder.shape(name)[0], kind))
    specs = {name: folder.specs[part.layer] for name, part in rows.items()}
    stored = {n: replace(folder.stored[part.layer], shape=None) for n, part in rows.items()}
    entries: dict[str, Entry] = {}
    for name in folder.others():
        entries |= dict(_kept(name, folder.entries[name], kind))
    found = dict(sorted(rows.items()))
    return HubFolder(folder.path, folder.config, specs, stored, entries, found, folder)


def _parts(name: str, size: int, kind: str) -> Iterator[tuple[str, Rows]]:
    """The hub's layers that a packed layer of `size` rows becomes."""
    names, _ = FAMILIES[kind]
    match = _OPENED.fullmatch(name)
    if match is None:
        yield _block(name, kind), Rows(name, 0, size)
        return
    block = f"{_block(match[1], kind)}.{match[2]}"
    if match[3] == "down":
        yield f"{block}.{names[2]}", Rows(name, 0, size)
    else:
        yield f"{block}.{names[0]}", Rows(name, 0, size // 2)
        yield f"{block}.{names[1]}", Rows(name, size // 2, size)


def _kept(name: str, entry: Entry, kind: str) -> Iterator[tuple[str, Entry]]:
    """The hub's tensors that a tensor in full precision becomes; slices lie in one piece in the file."""
    names, match = FAMILIES[kind][0], _FUSED.fullmatch(name)
    if _OPENED.match(name):
        if name.endswith(".bias"):
            raise UserError(f"{name} is an expert's bias, for which readers have no place")
        for part, rows in _parts(name.removesuffix(".weight"), entry.shape[0], kind):
            yield f"{part}.weight", _slice(entry, rows.first, rows.last)
        return
    if match is None:
        yield _block(name, kind), entry
        return
    experts, size, width = entry.shape
    halves = names[2:] if match[2] == "down_proj" else names[:2]
    step = size // len(halves)
    rows_of = replace(entry, shape=(experts * size, width))
    for i in range(experts):
        for j, half in enumerate(halves):
            first = i * size + j * step
            block = f"{_block(match[1], kind)}.{i}.{half}.weight"
            yield block, _slice(rows_of, first, first + step)


def _block(name: str, kind: str) -> str:
    ours, theirs = FAMILIES[kind][1]
    return name.replace(ours, theirs) if ours else name


def _slice(entry: Entry, first: int, last: int) -> Entry:
    width = entry.shape[1]
    start = entry.start + first * width * DTYPES[entry.dtype].itemsize
    return replace(entry, start=start, shape=(last - first, width))


def _cut(layer: Layer, part: Rows) -> Layer:
    """Some rows of a layer.

    Raises:
        UserError: a tile of scales crosses the cut.
    """
    q, size = layer.q, layer.q.spec.tile[0]
    span = slice(part.first, part.last)
    if (part.first, part.last) == (0, q.shape[0]):
        return layer
    if size > 1 and (part.first % size or part.last % size):
        raise UserError(
            f"{part.layer} has scales for {size} rows, which cross the border of gate and up; "
            "give experts scales by channel or group"
        )
    tiles = slice(None) if size == -1 else slice(part.first // size, part.last // size)
    scale, zero = q.scale, q.scale.zero
    outer = scale.outer if scale.outer is None or len(scale.outer) == 1 else scale.outer[tiles]
    cut = Scale(scale.stored[tiles], outer, None if zero is None else zero[tiles])
    shape = part.last - part.first, q.shape[1]
    return replace(layer, q=QTensor(q.codes[span], cut, q.spec, shape))


def check_experts(folder: NativeFolder) -> None:
    """Refuse experts of one block with several specs: engines compute them by one kernel."""
    found: dict[str, object] = {}
    for name in [*folder.specs, *folder.kept()]:
        block, experts, _ = name.partition(".experts.")
        spec = folder.specs.get(name)
        if experts and found.setdefault(block, spec) != spec:
            raise UserError(
                f"experts of {block} have different specs, but engines compute them as one; let one "
                "rule of the plan cover them"
            )
