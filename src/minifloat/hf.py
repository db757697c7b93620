"""Registration with transformers: after `import minifloat`, `from_pretrained` reads our folders.

Loading swaps empty packed layers in before the weights arrive by their names.
"""

from types import ModuleType
from typing import Any

from torch import nn

from minifloat.embedding import tie
from minifloat.errors import UserError
from minifloat.export.native import QUANT_METHOD
from minifloat.export.stored import stored_layers
from minifloat.models.experts import open_one
from minifloat.models.split import split_layer
from minifloat.plan import Plan
from minifloat.siblings import make_ready
from minifloat.substitute import packed_like

# What `quantization_config` holds beside the method's name.
CONFIG_KEYS = ("format_version", "rules", "layers", "splits", "experts", "tied")


def swap_in(model: nn.Module, config: dict[str, Any]) -> None:
    """Put empty packed layers where a checkpoint of ours has them.

    Raises:
        UserError: the model has no such layers or others, or the checkpoint is of a later version.
    """
    layers = stored_layers(config)
    for name, sizes in config.get("splits", {}).items():
        model.set_submodule(name, split_layer(_layer(model, name), sizes))
    for name in config.get("experts", ()):
        open_one(model, name)
    plan = Plan.from_json({"rules": config["rules"]})
    for name, stored in layers.items():
        old, spec = _layer(model, name), plan.spec_of(name)
        if spec is None:
            raise UserError(f"{name} is packed in the checkpoint, but not by its own plan")
        layer = packed_like(old, spec, stored.rank)
        stored.check(name, layer)
        model.set_submodule(name, layer)
    for head, table in config.get("tied", {}).items():
        _layer(model, head)
        tie(model, head, table)


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UserError(f"the checkpoint has a layer {name!r}, but the model has none") from None


def register(auto: ModuleType) -> None:
    """Add our quantizer to `transformers.quantizers.auto`, once."""
    if QUANT_METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @auto.register_quantization_config(QUANT_METHOD)
    class MinifloatConfig(QuantizationConfigMixin):  # type: ignore[misc]
        """The `quantization_config` of our config.json."""

        def __init__(self, **fields: Any) -> None:
            self.quant_method = QUANT_METHOD
            self.fields = {key: fields[key] for key in CONFIG_KEYS if key in fields}

        @classmethod
        def from_dict(cls, data: dict[str, Any], **_: Any) -> "MinifloatConfig":
            return cls(**data)

        def to_dict(self) -> dict[str, Any]:
            return {"quant_method": QUANT_METHOD, **self.fields}

    @auto.register_quantizer(QUANT_METHOD)
    class MinifloatQuantizer(HfQuantizer):  # type: ignore[misc]
        """Loads packed checkpoints; quantizing is `minifloat.quantize`'s."""

        requires_calibration = True

        def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
            super().__init__(quantization_config, **kwargs)
            self.pre_quantized = True

        def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
            swap_in(model, self.quantization_config.fields)

        def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> None:
            make_ready(model)

        def is_serializable(self) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return False

        @property
        def is_compileable(self) -> bool:
            return True  # `generate` may compile the decoding step
