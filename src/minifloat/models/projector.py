"""Seams of the projectors between a vision tower and a language model."""

from collections.abc import Mapping

from torch import nn

from minifloat.models.seam import ORDER, SCALE, Seam, Slot
from minifloat.models.slots import columns, features, gains, is_layer, rows

# (norm, first layer, last layer) of the projectors in transformers.
_FORMS = (
    ("layer_norm", "linear_1", "linear_2"),  # InternVL
    ("", "linear_1", "linear_2"),  # LLaVA
    ("ln_q", "mlp.0", "mlp.2"),  # Qwen2-VL
    ("norm", "linear_fc1", "linear_fc2"),  # Qwen3-VL
    ("", "", "modality_projection.proj"),  # Idefics3, SmolVLM
    ("", "", "linear"),  # PaliGemma
)


def projector_seams(name: str, projector: nn.Module) -> list[Seam]:
    """From the norm to the first layer, and from the first layer to the last."""
    form = _form(projector)
    if form is None or not form[1]:
        return []
    norm, first, last = form
    one, two = ((f"{name}.{n}", projector.get_submodule(n)) for n in (first, last))
    up = Seam(name, "up", features(one[1])[0], rows(*one), columns(*two), (ORDER,))
    if not norm:
        return [up]
    gain = gains(f"{name}.{norm}", projector.get_submodule(norm))
    width = len(projector.get_parameter(f"{norm}.weight"))
    # Tokens are merged after the norm: their channels lie one after the other.
    reads = columns(*one, block=width, copies=features(one[1])[1] // width)
    return [up, Seam(f"{name}.{norm}", "norm", width, gain, reads, (SCALE,))]


def projector_writers(
    model: nn.Module, projectors: Mapping[str, nn.Module]
) -> tuple[Slot, ...] | None:
    """What projectors write to the language model's stream; None where one is not known."""
    found: tuple[Slot, ...] = ()
    for name, projector in projectors.items():
        form = _form(projector)
        if form is None:
            return None
        found += rows(f"{name}.{form[2]}", projector.get_submodule(form[2]))
    newline = (name for name, _ in model.named_parameters() if name.endswith("image_newline"))
    return *found, *(Slot(name, 0) for name in newline)


def _form(projector: nn.Module) -> tuple[str, str, str] | None:
    """The names of a projector's norm, first and last layer; None if it holds anything else."""
    wide = {name for name, m in projector.named_modules() if list(m.parameters(recurse=False))}
    for norm, first, last in _FORMS:
        if wide == {name for name in (norm, first, last) if name}:
            layers = [projector.get_submodule(name) for name in (first, last) if name]
            return (norm, first, last) if all(map(is_layer, layers)) else None
    return None
