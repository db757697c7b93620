"""The collapse guard: a result that nobody should use fails the run, with the list of what is wrong."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from minifloat.errors import UserError
from minifloat.models.experts import is_expert
from minifloat.spec import LayerSpec

_NAMED = 8  # of each kind


def refuse_void(
    ledger: Sequence[Mapping[str, Any]], specs: Mapping[str, LayerSpec | None], *, unseen: bool
) -> None:
    """Refuse a ledger with broken scales, skipped layers or experts that nothing was sent to.

    Args:
        ledger: one row for every parameter.
        specs: what the plan says of every layer by name.
        unseen: accept experts that no calibration token reached.

    Raises:
        UserError: one sentence with all that is wrong.
    """
    done = {row["name"]: row for row in ledger if row["status"] == "quantized"}
    if not done:
        raise UserError("the plan quantized nothing: no rule gives a layer a weight spec")
    problems = [
        *_list("scales that are zero, NaN or infinite", filter(_is_broken, done.values())),
        *_list("skipped though the plan quantizes them", _skipped(specs, done)),
    ]
    if problems:
        raise UserError(f"the run is void: {'; '.join(problems)}")
    lost = [] if unseen else [row for row in done.values() if _is_unseen(row)]
    for sentence in _list("experts that no calibration token reached", lost):
        raise UserError(
            f"{sentence}; give more samples, or accept with --unseen (with --resume the run goes "
            "on from its finished blocks) that these are calibrated on their weights alone"
        )


def _skipped(
    specs: Mapping[str, LayerSpec | None], done: Mapping[str, Any]
) -> list[dict[str, str]]:
    wanted = (name for name, spec in specs.items() if spec is not None and spec.weight is not None)
    return [{"name": f"{name}.weight"} for name in wanted if f"{name}.weight" not in done]


def _is_broken(row: Mapping[str, Any]) -> bool:
    low, high = row["scale_min"], row["scale_max"]
    return not (low > 0 and math.isfinite(high))


def _is_unseen(row: Mapping[str, Any]) -> bool:
    """A method that counts no tokens says None, and is believed."""
    return is_expert(row["name"]) and row["samples"] == 0


def _list(what: str, rows: Any) -> list[str]:
    """No sentence, or the one that counts these rows and names the first of them."""
    names = [row["name"] for row in rows]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{len(names)} tensors: {what} ({', '.join(names[:_NAMED])}{more})"] if names else []
