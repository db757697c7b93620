"""Experts under the hub's names on their way in: gate and up become one layer of ours, down another.

The way back from `experts.py`. Blocks of which no expert is quantized keep the hub's names, which
transformers itself turns into its own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Layer
from minifloat.export.contract_folder import ContractFolder
from minifloat.models.hub_experts import FAMILIES
from minifloat.qtensor import QTensor
from minifloat.scales import Scale

Parts = dict[str, tuple[str, ...]]
_ONE = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")


@dataclass(frozen=True)
class Names:
    """What the modules of a folder are called in our checkpoint.

    Attributes:
        kind: the model's type.
        opened: our names of the modules whose experts become layers.
    """

    kind: str
    opened: frozenset[str]

    def ours(self, module: str) -> tuple[str, int]:
        """Our name of a module, and its place among those that share the name."""
        if self.kind not in FAMILIES:
            return module, 0
        names, (own, theirs) = FAMILIES[self.kind]
        match = _ONE.fullmatch(module)
        block = match[1].replace(theirs, own) if match and own else match and match[1]
        if match is not None and block in self.opened and match[3] in names:
            place = names.index(match[3])
            return f"{block}.layers.{match[2]}.{'down' if place == 2 else 'up'}", place % 2
        return (module.replace(theirs, own) if own and self.opened else module), 0

    def together(self, modules: Iterable[str]) -> Parts:
        """Modules by our names, those of one name in the order of its rows."""
        found: dict[str, list[tuple[int, str]]] = {}
        for module in modules:
            name, place = self.ours(module)
            found.setdefault(name, []).append((place, module))
        return {name: tuple(m for _, m in sorted(parts)) for name, parts in found.items()}


def names_of(folder: ContractFolder) -> Names:
    """How a folder's modules are called here.

    Raises:
        UserError: experts of a family whose names are not known here.
    """
    kind = str(folder.config.get("model_type"))
    matches = [match for match in map(_ONE.fullmatch, folder.schemes) if match is not None]
    if matches and kind not in FAMILIES:
        raise UserError(
            f"the hub's names of {kind}'s experts are not known here, which {matches[0][0]} needs; "
            f"known: {', '.join(FAMILIES)}"
        )
    own, theirs = FAMILIES[kind][1] if matches else ("", "")
    blocks = (match[1].replace(theirs, own) if own else match[1] for match in matches)
    return Names(kind, frozenset(blocks))


def joined(name: str, parts: list[Layer]) -> Layer:
    """The layer whose rows are those of gate and up; a layer alone is itself.

    Raises:
        UserError: they have different specs, or different numbers where one layer has one.
    """
    if len(parts) == 1:
        return parts[0]
    gate, up = parts
    apart = UserError(
        f"gate and up of {name} have different specs or scales, but are one layer here; quantize the "
        "experts' gate and up alike"
    )
    spec, (rows, columns) = gate.q.spec, gate.q.shape
    if (
        gate.spec != up.spec
        or columns != up.q.shape[1]
        or (spec.tile[0] > 1 and rows % spec.tile[0])
    ):
        raise apart
    one, two = gate.q.scale, up.q.scale
    shared = spec.tile[0] == -1
    pairs = [(one.stored, two.stored, shared), (one.zero, two.zero, shared)]
    pairs.append((one.outer, two.outer, spec.outer is not None and spec.outer.tile[0] == -1))
    if gate.input_scale is not None and up.input_scale is not None:
        pairs += [(x, y, True) for x, y in zip(gate.input_scale, up.input_scale, strict=True)]
    if any(same and not _equal(x, y) for x, y, same in pairs):
        raise apart
    stored, zero, outer = (x if same else _rows(x, y) for x, y, same in pairs[:3])
    assert stored is not None
    q = QTensor(
        torch.cat([gate.q.codes, up.q.codes]),
        Scale(stored, outer, zero),
        spec,
        (rows + up.q.shape[0], columns),
    )
    return Layer(gate.spec, q, gate.input_scale)


def _rows(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return None if one is None or two is None else torch.cat([one, two])


def _equal(one: Tensor | None, two: Tensor | None) -> bool:
    """Whether numbers agree; outlines of large tensors, which hold none, do."""
    if one is None or two is None:
        return one is two
    return one.is_meta or torch.equal(one, two)
