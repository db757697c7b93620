"""The embedding and the output head, which the walk over blocks never meets.

In small models they are most of what is left in full precision, and the head is read whole for every
token. No calibration reaches them: scales have the least squared error of the weight, codes are the
nearest. Calibration sees the full-precision embedding, since both of its streams begin there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from minifloat.calibrate.walk import Window, Work, check_finite, replace_layers
from minifloat.embedding import tie
from minifloat.errors import UserError
from minifloat.kernels.table import pick
from minifloat.models.irreplaceable import why_irreplaceable
from minifloat.models.outside import outside_layers
from minifloat.passes.assign import assign_scales, round_to_nearest
from minifloat.spec import LayerSpec


def specs_outside(
    model: nn.Module, resolved: Mapping[str, LayerSpec | None]
) -> dict[str, LayerSpec | None]:
    """What a plan says of the layers outside the blocks, by the name of the layer that holds the weight.

    Args:
        model: the full-precision model.
        resolved: what `Plan.resolve` says of the layers that it names.

    Raises:
        UserError: a layer that cannot be packed, or not with this spec.
    """
    found: dict[str, LayerSpec | None] = {}
    names = outside_layers(model)
    for name, holder in names.items():
        if name not in resolved:
            continue
        spec = resolved[name]
        if found.setdefault(holder, spec) != spec:
            raise UserError(f"{name} is tied to {holder}, so the plan must say the same of both")
    for name, holder in names.items():
        if (spec := found.get(holder)) is not None:
            _check(name, model.get_submodule(name), spec, [*names.values()].count(holder) > 1)
    return found


def _check(name: str, layer: nn.Module, spec: LayerSpec, is_tied: bool) -> None:
    if why := why_irreplaceable(name, layer):
        raise UserError(f"{name} cannot be packed: {why}; take its rule out of the plan")
    if isinstance(layer, nn.Embedding) and not is_tied and (spec.input or spec.output):
        raise UserError(f"{name} looks rows up: give it the spec of a weight alone in the plan")
    if spec.static_input:
        raise UserError(
            f"{name} has a static input in the plan, but calibration does not reach it; "
            "give its input a dynamic spec, such as int8-token"
        )


@torch.no_grad()
def quantize_outside(
    model: nn.Module, specs: Mapping[str, LayerSpec | None]
) -> dict[str, dict[str, Any]]:
    """Put packed layers in the place of those that `specs_outside` gives a spec; what became of them."""
    names = outside_layers(model)
    outcome: dict[str, dict[str, Any]] = {}
    for holder, spec in specs.items():
        if spec is None or spec.weight is None:
            continue
        heads = [name for name, other in names.items() if other == holder != name]
        module: Any = model.get_submodule(holder)
        row = pick("linear", spec, module.weight.device.type).name
        note = f"{heads[0]} multiplies with the same codes, kernel {row}" if heads else ""
        window = Window(holder, module, {holder: Work(module, spec, note=note)}, [], [])
        check_finite(window)
        assign_scales(search=True)(window)
        round_to_nearest()(window)
        outcome |= replace_layers(model, window.layers)
        for head in heads:
            tie(model, head, holder)
    return outcome
