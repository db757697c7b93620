"""Is an export what its checkpoint is? Every tensor decoded and held against our own, bit for bit."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Layer
from minifloat.export.contract_folder import ContractFolder
from minifloat.export.experts import under_hub_names
from minifloat.export.native_folder import NativeFolder
from minifloat.export.open_contract import open_contract
from minifloat.qtensor import decode
from minifloat.scales import Scale


def compare(path: Path, against: NativeFolder) -> list[str]:
    """Decode every tensor of a folder and hold it against our own checkpoint; what differs.

    Weights and calibrated scales of inputs agree bit for bit; where a contract stores the reciprocal
    of a scale of scales, within that one rounding. Tensors are also written again, so that stray bits of
    the padding are found.
    """
    folder = open_contract(path)
    if folder.contract.hub:
        against = under_hub_names(against)
    problems = [f"{n} is not quantized here" for n in against.specs if n not in folder.schemes]
    problems += [f"{n} is quantized here" for n in folder.schemes if n not in against.specs]
    for name in folder.schemes:
        if name in against.specs:
            problems += [f"{name}: {what}" for what in _differences(folder, name, against)]
    for name in against.others():
        if name not in folder.entries or not _same_values(
            folder.plain(name), against.entries[name].read()
        ):
            problems.append(f"{name} is not the same")
    return problems


def _differences(folder: ContractFolder, name: str, against: NativeFolder) -> Iterator[str]:
    tensors, scheme = folder.tensors(name), folder.schemes[name]
    try:
        theirs = folder.contract.read(scheme, tensors)
        again = folder.contract.tensors(theirs, scheme)
    except (UserError, RuntimeError, KeyError, ValueError, IndexError) as error:
        yield f"cannot be read: {str(error).strip().splitlines()[0]}"
        return
    ours = against.layer(name)
    for suffix, tensor in again.items():
        if not _same_bytes(tensor, tensors[suffix]):
            yield f"{suffix} holds bits that its codes do not (padding, or a constant)"
    if theirs.q.shape != ours.q.shape:
        yield f"shape {theirs.q.shape}, not {ours.q.shape}"
        return
    rounded = 2**-22 if folder.contract.reciprocal else 0.0
    yield from _input_differences(theirs, ours, rounded)
    if not _same_branch(theirs, ours):
        yield "its low-rank branch is another"
    got, wanted = decode(theirs.q), decode(ours.q)
    bound = wanted.abs() * (rounded if ours.q.scale.outer is not None else 0.0)
    wrong = ~((got - wanted).abs() <= bound)
    if bool(wrong.any()):
        most = float((got - wanted).abs().nan_to_num(torch.inf).max())
        yield f"{int(wrong.sum())} of {wrong.numel()} weights differ, the most by {most:.3g}"


def _input_differences(theirs: Layer, ours: Layer, bound: float) -> Iterator[str]:
    """What differs in calibrated inputs; an export of weights alone has none."""
    one, two = theirs.input_scale, ours.input_scale
    if theirs.spec.static_input:
        bound = 0.0
    elif one is not None and two is None:
        two = Scale(torch.ones_like(one.stored))  # block scales without a scale of their own
    if theirs.spec.input is None or one is two:
        return
    if one is None or two is None:
        yield f"its input is scaled {'at run time' if one is None else 'by a stored number'} here"
    elif not bool(((one.stored - two.stored).abs() <= bound * two.stored).all()):
        yield f"its input scale is {one.stored.tolist()}, not {two.stored.tolist()}"
    elif one.zero is not None and two.zero is not None and not torch.equal(one.zero, two.zero):
        yield f"its input's zero point is {one.zero.tolist()}, not {two.zero.tolist()}"


def _same_branch(theirs: Layer, ours: Layer) -> bool:
    one, two = theirs.low_rank, ours.low_rank
    if one is None or two is None:
        return one is two
    return all(_same_bytes(*pair) for pair in zip(one, two, strict=True))


def _same_bytes(one: Tensor, two: Tensor) -> bool:
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))


def _same_values(theirs: Tensor, ours: Tensor) -> bool:
    """Whether a tensor in full precision is ours, if need be in a wider dtype (GGUF's vectors)."""
    wider = torch.promote_types(theirs.dtype, ours.dtype) == theirs.dtype
    return wider and _same_bytes(theirs, ours.to(theirs.dtype))
