"""Registration with diffusers: after `import minifloat`, its `from_pretrained` reads our folders.

diffusers has its own copy of transformers' quantizer classes, and a loader that casts every
floating-point tensor to the model's dtype; scales must come in as they are stored.
"""

from enum import StrEnum
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from minifloat.export.native import QUANT_METHOD
from minifloat.hf import CONFIG_KEYS, swap_in
from minifloat.layers import QLayer
from minifloat.siblings import make_ready


class _Name(StrEnum):  # diffusers asks for `.value`
    MINIFLOAT = QUANT_METHOD


def register(auto: ModuleType) -> None:
    """Add our quantizer to `diffusers.quantizers.auto`, once."""
    if QUANT_METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return
    quantizer: Any = import_module("diffusers.quantizers.base").DiffusersQuantizer
    config: Any = import_module("diffusers.quantizers.quantization_config").QuantizationConfigMixin

    class MinifloatConfig(config):  # type: ignore[misc]
        """The `quantization_config` of our config.json."""

        def __init__(self, **fields: Any) -> None:
            self.quant_method = _Name.MINIFLOAT
            self.fields = {key: fields[key] for key in CONFIG_KEYS if key in fields}

        def to_dict(self) -> dict[str, Any]:
            return {"quant_method": QUANT_METHOD, **self.fields}

        to_diff_dict = to_dict

    class MinifloatQuantizer(quantizer):  # type: ignore[misc]
        """Loads packed checkpoints; quantizing is `minifloat.quantize`'s."""

        is_serializable = True
        is_trainable = False

        def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
            swap_in(model, self.quantization_config.fields)

        def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> None:
            make_ready(model)

        def check_if_quantized_param(
            self, model: nn.Module, value: Tensor, name: str, state: dict[str, Tensor], **_: Any
        ) -> bool:
            owner, _dot, own = name.rpartition(".")
            layer = model.get_submodule(owner)
            return isinstance(layer, QLayer) and own in layer._buffers

        def create_quantized_param(
            self,
            model: nn.Module,
            value: Tensor,
            name: str,
            device: torch.device,
            state: dict[str, Tensor],
            *_: Any,
            **__: Any,
        ) -> None:
            owner, _dot, own = name.rpartition(".")
            model.get_submodule(owner)._buffers[own] = state[name].to(device)

    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = MinifloatQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = MinifloatConfig
