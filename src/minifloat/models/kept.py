"""Why a parameter stays in full precision, in words for the ledger: nothing is skipped silently."""

from collections.abc import Callable

from torch import nn

from minifloat.models.irreplaceable import why_irreplaceable


def _is_fused_expert(name: str, module: nn.Module) -> bool:
    parameter = getattr(module, name.rpartition(".")[2], None)
    return "experts" in name and isinstance(parameter, nn.Parameter) and parameter.ndim == 3


# The first that is true of (parameter's name, the module that holds it) gives the reason.
_REASONS: tuple[tuple[Callable[[str, nn.Module], bool], str], ...] = (
    (lambda name, _: name.endswith("bias"), "biases stay in full precision"),
    (
        lambda _, module: isinstance(module, nn.Conv1d),
        "one-dimensional convolutions stay in full precision",
    ),
    (
        lambda name, _: name.endswith((".A_log", ".D")),
        "the parameters of state spaces stay in full precision",
    ),
    (
        _is_fused_expert,
        "experts fused in one 3-D parameter stay in full precision",
    ),
    (
        lambda name, _: "embed" in name or "lm_head" in name,
        "embeddings and the output head stay in full precision unless a rule names them",
    ),
    (
        lambda name, module: "norm" in name or "norm" in type(module).__name__.lower(),
        "normalization gains stay in full precision",
    ),
    (
        lambda _, module: "router" in type(module).__name__.lower(),
        "routers that are no linear layers stay in full precision",
    ),
)


def why_kept(name: str, module: nn.Module, is_planned: bool) -> str:
    """The reason for the parameter `name` of a module; `is_planned` if the plan had a say in it."""
    if name.endswith(".weight"):
        if is_planned:
            return "the plan keeps this layer"
        if reason := why_irreplaceable(name.removesuffix(".weight"), module):
            return reason
    found = (reason for applies, reason in _REASONS if applies(name, module))
    return next(found, "not a linear layer or convolution inside a block")
