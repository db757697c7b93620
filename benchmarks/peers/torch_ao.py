"""torchao's INT8 and INT4 weights with INT8 activations a token, and INT8 weights alone.

INT8 by INT8 also compiled, as torchao advises; the others decode their weight compiled too and stay
far behind. `Int4WeightOnlyConfig` and packed INT4 need kernels that its wheel lacks for x86.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    PerGroup,
    quantize_,
)

from benchmarks.peers.layer import Built, Peer
from minifloat.timing import plain

INT8 = Int8DynamicActivationInt8WeightConfig()
INT4 = Int8DynamicActivationIntxWeightConfig(
    weight_dtype=torch.int4, weight_granularity=PerGroup(128)
)


def build(config: AOBaseConfig, w: Tensor, count: int) -> Built:
    def layer() -> nn.Sequential:
        made = nn.Sequential(plain(w))
        quantize_(made, config)
        return made

    layers = [layer() for _ in range(count)]
    return Built(list(layers), layers[0][0].weight.dequantize())


def compiled(config: AOBaseConfig, w: Tensor, count: int) -> Built:
    """One function for all copies, compiled for every number of tokens."""
    layers, weight = build(config, w, count)
    product = torch.compile(lambda codes, x: nn.functional.linear(x, codes), dynamic=False)
    return Built([partial(product, layer[0].weight) for layer in layers], weight)


PEERS = {
    "torchao int8 x int8": Peer(8, partial(build, INT8)),
    "torchao int8 x int8 (compiled)": Peer(8, partial(compiled, INT8)),
    "torchao int8 x fp32": Peer(8, partial(build, Int8WeightOnlyConfig())),
    "torchao int4 g128 x int8 (unpacked)": Peer(8, partial(build, INT4)),
}
