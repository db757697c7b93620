"""Does a folder load where it shall run? Answered from headers, configuration and a table of rules.

`verify` needs no reader's package, no GPU and no weights in memory.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minifloat.errors import UserError, unknown
from minifloat.export.contract import Layer
from minifloat.export.contract_folder import ContractFolder
from minifloat.export.open_contract import open_contract
from minifloat.export.readers import READERS, Fact, Verdict, Version
from minifloat.models.fused import fused_groups

_WORST: tuple[Verdict, ...] = ("loads", "needs", "differs", "refuses")


@dataclass(frozen=True)
class Finding:
    """What one reader does with some layers, and by which rule."""

    reader: str
    verdict: Verdict
    rule: str
    says: str
    evidence: str
    layers: tuple[str, ...]


def verify(path: Path, readers: dict[str, Version] | None = None) -> list[Finding]:
    """What readers do with a folder: one finding for every reader and rule that fired.

    Args:
        path: folder of a contract.
        readers: reader and version; every known reader at the version of the table if None.

    Raises:
        UserError: the folder is damaged or not what its own configuration says.
    """
    folder = open_contract(path)
    facts = dict(_facts(folder))
    if readers is None:
        readers = {name: reader.version for name, reader in READERS.items()}
    return [finding for name, v in readers.items() for finding in _findings(name, v, folder, facts)]


def parse_reader(text: str) -> dict[str, Version]:
    """'vllm==0.33' or 'vllm' as a reader and its version."""
    name, _, version = text.partition("==")
    if name not in READERS:
        raise unknown("reader", name, READERS)
    if not version:
        return {name: READERS[name].version}
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise UserError(f"--for takes NAME==VERSION, such as vllm==0.33, not {text!r}")
    return {name: tuple(int(part) for part in version.split("."))}


def worst(findings: list[Finding]) -> Verdict:
    """The gravest verdict of several findings."""
    return max((f.verdict for f in findings), key=_WORST.index, default="loads")


def _findings(
    reader: str, version: Version, folder: ContractFolder, facts: dict[str, Fact]
) -> Iterator[Finding]:
    label = f"{reader}=={'.'.join(map(str, version))}"
    everything = tuple(facts)
    if folder.name not in READERS[reader].contracts:
        says = f"it has no reader of {folder.name}"
        yield Finding(label, "refuses", "no-reader", says, "source: its registry", everything)
        return
    if folder.name in READERS[reader].untraced:
        says = "a reader is registered, but what it does was not traced"
        yield Finding(label, "needs", "not-traced", says, "source: its registry", everything)
    by_rule: dict[int, tuple[Any, list[str]]] = {}
    clean = []
    for name, fact in facts.items():
        rules = READERS[reader].fired(fact, version)
        for rule in rules:
            by_rule.setdefault(id(rule), (rule, []))[1].append(name)
        if not rules:
            clean.append(name)
    for rule, layers in by_rule.values():
        yield Finding(label, rule.verdict, rule.name, rule.says, rule.evidence, tuple(layers))
    if clean and folder.name not in READERS[reader].untraced:
        yield Finding(label, "loads", "", "loads as it is meant", "", tuple(clean))


def _facts(folder: ContractFolder) -> Iterator[tuple[str, Fact]]:
    """Check every layer against its own scheme, and gather what the rules ask."""
    partners = {m: members for members in _groups(folder).values() for m in members}
    dtype = str(folder.config.get("dtype") or folder.config.get("torch_dtype") or "float32")
    for name, scheme in folder.schemes.items():
        layer = _checked(folder, name)
        others = partners.get(name, (name,))
        yield (
            name,
            Fact(
                contract=folder.name,
                scheme=scheme,
                spec=layer.spec,
                dtype=dtype.removeprefix("torch."),
                scale_dtype=str(layer.q.scale.stored.dtype).removeprefix("torch."),
                fused=len(others) > 1,
                same_scheme=all(folder.schemes.get(other) == scheme for other in others),
                same_outer=_same(folder, others, ("weight_global_scale", "weight_scale_2")),
                same_input=_same(folder, others, ("input_scale", "input_global_scale")),
                tensors=frozenset(folder.contract.suffixes(scheme)),
            ),
        )


def _groups(folder: ContractFolder) -> dict[str, tuple[str, ...]]:
    names = {t.removesuffix(".weight") for t in folder.entries if t.endswith(".weight")}
    return fused_groups(names | set(folder.schemes))


def _same(folder: ContractFolder, members: tuple[str, ...], suffixes: tuple[str, ...]) -> bool:
    """Whether layers agree in the one number that any of these tensors holds."""
    found = []
    for name in members:
        for suffix in suffixes:
            entry = folder.entries.get(f"{name}.{suffix}")
            if entry is not None:
                found.append(float(entry.read()))
    return len(set(found)) <= 1


def _checked(folder: ContractFolder, name: str) -> Layer:
    """A layer's outline, whose tensors have the dtypes and shapes that its own scheme writes."""
    scheme, outline = folder.schemes[name], folder.outline(name)
    try:
        layer = folder.contract.read(scheme, outline)
        expected = folder.contract.tensors(layer, scheme)
    except (UserError, RuntimeError, KeyError, ValueError, IndexError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{name} is not what its scheme says: {first}") from error
    for suffix, tensor in expected.items():
        found = outline[suffix]
        if found.dtype != tensor.dtype or found.shape != tensor.shape:
            raise UserError(
                f"{name}.{suffix} is {found.dtype} {list(found.shape)}, but its scheme asks for "
                f"{tensor.dtype} {list(tensor.shape)}"
            )
    tiles = layer.q.spec.tiles((layer.q.shape[0], layer.q.shape[1]))
    if tuple(layer.q.scale.stored.shape) != tiles:
        raise UserError(
            f"{name} has scales {list(layer.q.scale.stored.shape)} for {list(tiles)} tiles"
        )
    given = layer.input_scale
    if given is not None and not bool((given.stored.isfinite() & (given.stored > 0)).all()):
        raise UserError(
            f"{name} has the input scale {given.stored.tolist()}, which is no positive number; "
            "quantize it again"
        )
    return layer
