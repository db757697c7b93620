"""Weights that two layers share: an embedding that is also the output layer."""

from torch import nn

from minifloat.errors import UserError


def untie(model: nn.Module, name: str) -> None:
    """Give the parameter `name` a copy of its own, and say so in the model's configuration.

    A fold that changes only one of two tied layers, such as the last norm's gain into lm_head, needs
    this first. The checkpoint grows by that parameter.

    Raises:
        UserError: the parameter is not tied to another.
    """
    owner, _, leaf = name.rpartition(".")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    twins = [other for other, p in parameters.items() if p is parameters.get(name)]
    if len(twins) < 2:
        raise UserError(f"{name} is not tied to another parameter")
    old = parameters[name]
    new = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
    setattr(model.get_submodule(owner), leaf, new)
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            setattr(config, "tie_word_embeddings", False)  # noqa: B010  # of any class
