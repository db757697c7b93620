"""Seams of feed-forward branches: from the layer that widens to the layer that narrows.

A gated branch is down(act(gate(x)) * up(x)): a scale of up's channels passes the product, an order has
to move the gate too. Without a gate the activation function lies between, which leaves orders; ReLU
lets positive scales pass.
"""

from typing import Any

from torch import nn

from minifloat.models.part import Part, strangers
from minifloat.models.seam import ORDER, SCALE, Seam
from minifloat.models.slots import columns, features, is_layer, rows

_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_GATED_FUSED = (("gate_up_proj", "down_proj"), ("input_linear", "output_linear"))
_PLAIN = (
    ("fc1", "fc2"),
    ("linear_1", "linear_2"),
    ("linear_fc1", "linear_fc2"),
    ("up_proj", "down_proj"),
    ("c_fc", "c_proj"),
    ("fc_in", "fc_out"),
    ("dense_h_to_4h", "dense_4h_to_h"),
)


def feed_forward_part(name: str, module: nn.Module, known: tuple[str, ...] = ()) -> Part | None:
    """The branch of a feed-forward module; None if it does more than is known here.

    `known` names children that belong to another branch, where a block holds the layers itself.
    """
    for gate, up, down in _GATED:
        if _has(module, gate, up, down) and not strangers(module, {gate, up, down, *known}):
            return _gated(name, module, gate, up, down)
    for both, down in _GATED_FUSED:
        if _has(module, both, down) and not strangers(module, {both, down, *known}):
            return _gated_fused(name, module, both, down)
    for up, down in _PLAIN:
        if _has(module, up, down) and not strangers(module, {up, down, *known}):
            same = features(getattr(module, up))[0] == features(getattr(module, down))[1]
            return _plain(name, module, up, down) if same else None
    return None


def _gated(name: str, module: nn.Module, gate: str, up: str, down: str) -> Part:
    layers = {n: (f"{name}.{n}", getattr(module, n)) for n in (gate, up, down)}
    seam = Seam(
        name,
        "up",
        features(layers[up][1])[0],
        rows(*layers[up]),
        columns(*layers[down]),
        (SCALE, ORDER),
        rows(*layers[gate]),
    )
    return Part("mlp", columns(*layers[gate]) + columns(*layers[up]), rows(*layers[down]), (seam,))


def _gated_fused(name: str, module: nn.Module, both: str, down: str) -> Part:
    first, last = (
        (f"{name}.{both}", getattr(module, both)),
        (f"{name}.{down}", getattr(module, down)),
    )
    width = features(last[1])[1]
    up, gate = rows(*first, start=width), rows(*first)
    seam = Seam(name, "up", width, up, columns(*last), (SCALE, ORDER), gate)
    return Part("mlp", columns(*first), rows(*last), (seam,))


def _plain(name: str, module: nn.Module, up: str, down: str) -> Part:
    first, last = (f"{name}.{up}", getattr(module, up)), (f"{name}.{down}", getattr(module, down))
    maps = (SCALE, ORDER) if _is_relu(module) else (ORDER,)
    seam = Seam(name, "up", features(first[1])[0], rows(*first), columns(*last), maps)
    return Part("mlp", columns(*first), rows(*last), (seam,))


def _is_relu(module: nn.Module) -> bool:
    return any(type(child) is nn.ReLU for child in module.children())


def _has(module: nn.Module, *names: str) -> bool:
    found: list[Any] = [getattr(module, name, None) for name in names]
    return all(is_layer(layer) for layer in found)
