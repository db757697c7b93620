"""The law of seams on one model: random maps folded into it leave its outputs as they were.

Run as a program, it writes the table of `docs/seams.md` anew: python -m tests.models.fold_law
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from minifloat.models.diffusion_seams import diffusion_seams
from minifloat.models.hadamard import rotation
from minifloat.models.llama import LlamaAdapter
from minifloat.models.mamba import MambaAdapter
from minifloat.models.seam import (
    MAPS,
    Seam,
    fold_gains,
    fold_order,
    fold_rotation,
    fold_scale,
    tie_scale,
)
from minifloat.models.tied import untie
from minifloat.models.vlm import VLMAdapter
from tests.models import tiny_diffusion, tiny_lm, tiny_vlm

TINY = {"language": tiny_lm, "vision-language": tiny_vlm, "diffusion": tiny_diffusion}
MODELS = [(group, name) for group, tiny in TINY.items() for name in tiny.FAMILIES]
FOLD: dict[str, Callable[[nn.Module, Seam, Tensor], None]] = {
    "scale": fold_scale,
    "order": fold_order,
    "rotation": fold_rotation,
}
COLUMNS = (
    "norm",
    "modulation",
    "value",
    "query",
    "up",
    "residual",
    "latent",
    "conv",
    "state space",
)
PAGE = Path(__file__).parents[2] / "docs" / "seams.md"


@torch.no_grad()
def lively(group: str, name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A model whose every weight, gain and bias is random, and its run."""
    tiny = TINY[group]
    model = tiny.build(name)
    generator = torch.Generator().manual_seed(0)
    for key, p in model.named_parameters():
        if p.ndim > 1 and not key.endswith("A_log"):
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
        else:
            p.add_(0.6 * torch.rand(p.shape, generator=generator) - 0.3)
    _untie_head(model)
    return model, tiny.runner(name, model)


def seams_of(group: str, model: nn.Module) -> list[Seam]:
    if group == "diffusion":
        return diffusion_seams(model)
    if group == "vision-language":
        return VLMAdapter().seams(model)
    return (MambaAdapter() if MambaAdapter.accepts(model) else LlamaAdapter()).seams(model)


def random_map(seam: Seam, kind: str, generator: torch.Generator) -> Tensor:
    """A map that the seam admits and that is no identity."""
    cell = seam.cell or seam.width
    if kind == "scale":
        return tie_scale(seam, torch.randn(seam.width, generator=generator).exp())
    if kind == "order":
        orders = []
        for start in range(0, seam.width, cell):
            order = torch.randperm(cell, generator=generator)
            orders.append(start + (order if int(order[0]) else order.roll(1)))
        return torch.cat(orders)
    return rotation(cell, seed=int(torch.randint(1 << 20, (1,), generator=generator)))


@torch.no_grad()
def changes(group: str, name: str) -> Iterator[tuple[str, str, float, float]]:
    """(kind of seam, map, change by folds, change by half a fold) of all seams of a model.

    Half a fold goes into what produces the first seam's channels and not into what reads them: the
    output has to notice, or the law would say nothing.
    """
    model, run = lively(group, name)
    before, seams = run(), seams_of(group, model)
    generator = torch.Generator().manual_seed(2)
    for kind in dict.fromkeys(seam.kind for seam in seams):
        for which in MAPS:
            chosen = [seam for seam in seams if seam.kind == kind and which in seam.maps]
            if not chosen:
                continue
            if which == "rotation":
                fold_gains(model, seams)
            for seam in chosen:
                FOLD[which](model, seam, random_map(seam, which, generator))
            folded = _distance(run(), before)
            with _restored(model, chosen[0]):
                half = dataclasses.replace(chosen[0], consumers=(), followers=())
                FOLD[which](model, half, random_map(half, which, generator))
                yield kind, which, folded, _distance(run(), before)


class _restored:
    """Puts the parameters that a seam touches back as they were."""

    def __init__(self, model: nn.Module, seam: Seam) -> None:
        names = {slot.name for slot in seam.slots}
        self.kept = [(p, p.detach().clone()) for n, p in model.named_parameters() if n in names]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for parameter, value in self.kept:
            parameter.data.copy_(value)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _untie_head(model: nn.Module) -> None:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        name = next(n for n, module in model.named_modules() if module is head)
        untie(model, f"{name}.weight")


@cache
def row(group: str, name: str) -> str:
    """The table's row of a model: how many seams it has, and the maps that each kind admits."""
    seams = seams_of(group, lively(group, name)[0])
    cells = []
    for column in COLUMNS:
        kinds = ("channel", "head", "group", "state", "step", "gate")
        kinds = kinds if column == "state space" else (column,)
        maps = {which for seam in seams if seam.kind in kinds for which in seam.maps}
        cells.append(" ".join(which for which in MAPS if which in maps))
    return f"| {name} | {len(seams)} | " + " | ".join(cells) + " |"


def table() -> str:
    """The whole table of `docs/seams.md`."""
    head = "| class | seams | " + " | ".join(COLUMNS) + " |"
    lines = [head, "|---" * (len(COLUMNS) + 2) + "|"]
    for group, tiny in TINY.items():
        lines += [f"| *{group}* |" + " |" * (len(COLUMNS) + 1)]
        lines += [row(group, name) for name in tiny.FAMILIES]
    return "\n".join(lines)


def page_with(new: str) -> str:
    """The page with its table replaced."""
    text = PAGE.read_text()
    start, end = text.index("| class |"), text.index("\n\n", text.index("| class |"))
    return text[:start] + new + text[end:]


if __name__ == "__main__":
    PAGE.write_text(page_with(table()))
