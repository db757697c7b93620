"""Experts that transformers 5 fuses in 3-D parameters, as linear layers again.

One parameter [experts, out, in] suits grouped products; calibration and packing work layer by layer,
each with the tokens that its router sends. So the fused module is replaced by the same function made of
layers, before the walk and again when a packed checkpoint is loaded (`experts` in its configuration).
What the module says of itself (transposed, interleaved, with bias, with a gate) covers every family.
"""

from typing import Any

import torch
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.plan import Plan


class ExpertLayers(nn.Module):
    """Experts as layers; each sees the tokens that its router chose.

    `layers[i]` holds `up`, which makes the gate too where there is one, and `down`. The function
    between them stays the original module's, which keeps no parameters.
    """

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.fused, self.transposed = _fused(experts), bool(experts.is_transposed)
        self.layers = nn.ModuleList(_expert(experts, i) for i in range(len(experts.down_proj)))
        for name in [name for name, _ in experts.named_parameters(recurse=False)]:
            delattr(experts, name)
        # A bound method and no child: transformers would look for the parameters of a child.
        self.between = experts._apply_gate if experts.has_gate else experts.act_fn

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Tokens [N, width], their experts [N, K] and the experts' weights [N, K]."""
        out = torch.zeros_like(hidden)
        experts: Any = self.layers
        for index, layer in enumerate(experts):
            token, place = torch.where(chosen == index)
            if len(token):
                y = layer.down(self.between(layer.up(hidden[token])))
                out.index_add_(0, token, (y * weights[token, place, None]).to(out.dtype))
        return out


def fused_experts(model: nn.Module) -> list[str]:
    """The names of the modules that hold fused experts of a form known here."""
    return [name for name, module in model.named_modules() if _is_fused(module)]


def open_experts(model: nn.Module) -> list[str]:
    """Replace all fused experts by layers, in place; the model's function stays the same.

    Returns the names of the modules that were replaced.
    """
    names = fused_experts(model)
    for name in names:
        open_one(model, name)
    return names


def open_planned(model: nn.Module, plan: Plan) -> list[str]:
    """Replace those fused experts of which the plan quantizes a layer; a rule of null keeps the others.

    Returns the names of the modules that were replaced.
    """
    names = []
    for name, layers in closed_layers(model).items():
        if any(spec is not None and spec.weight is not None for spec in map(plan.spec_of, layers)):
            open_one(model, name)
            names.append(name)
    return names


def closed_layers(model: nn.Module) -> dict[str, list[str]]:
    """By the name of each module of fused experts, the layers that it would have if it were opened."""
    found = {}
    for name in fused_experts(model):
        experts: Any = model.get_submodule(name)
        places = range(len(experts.down_proj))
        found[name] = [f"{name}.layers.{i}.{part}" for i in places for part in _fused(experts)]
    return found


def fused_name(model: nn.Module, layer: str) -> str | None:
    """Where the weight of an opened expert's layer lay in the model's own file; None of other layers."""
    name, _, rest = layer.rpartition(".layers.")
    experts = model.get_submodule(name)
    if not isinstance(experts, ExpertLayers):
        return None
    index, _, part = rest.partition(".")
    return f"{name}.{experts.fused[part]}[{index}]"


def open_one(model: nn.Module, name: str) -> None:
    """Replace the fused experts `name` by layers.

    Raises:
        UserError: the model has no fused experts of that name.
    """
    module = dict(model.named_modules()).get(name)
    if module is None or not _is_fused(module):
        raise UserError(f"the checkpoint has experts in {name!r}, but the model has none there")
    model.set_submodule(name, ExpertLayers(module))


def is_expert(name: str) -> bool:
    """Whether the layer `name` is one of many of which a token visits few."""
    return ".experts." in name


def is_opened(name: str) -> bool:
    """Whether the layer `name` belongs to `ExpertLayers`."""
    return ".experts.layers." in name


def _is_fused(module: Any) -> bool:
    """Whether a module has fused experts and says how they lie (transformers' experts interface)."""
    flags = ("has_gate", "has_bias", "is_transposed")
    if not all(hasattr(module, flag) for flag in flags) or not hasattr(module, "down_proj"):
        return False
    return module.down_proj.ndim == 3 and not getattr(module, "has_post_expert_norm", False)


def _fused(experts: Any) -> dict[str, str]:
    """The fused parameter of each layer of an expert."""
    return {"up": "gate_up_proj" if experts.has_gate else "up_proj", "down": "down_proj"}


def _expert(experts: Any, index: int) -> nn.Module:
    """Layers `up` and `down` of one expert."""
    expert = nn.Module()
    for name, fused in _fused(experts).items():
        weight = getattr(experts, fused)[index].detach()
        weight = weight.T if experts.is_transposed else weight
        bias = getattr(experts, f"{fused}_bias")[index].detach() if experts.has_bias else None
        expert.add_module(name, _linear(weight, bias))
    return expert


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer [out, in] with copies of these values."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), False)
    return layer
