"""torchao's INT8 and INT4 weights with INT8 activations a token, and INT8 weights alone.

`Int4WeightOnlyConfig` and the packed layouts of INT4 need kernels that its wheel has not for x86.
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


def build(config: AOBaseConfig, w: Tensor, count: int) -> Built:
    layers = [nn.Sequential(plain(w)) for _ in range(count)]
    for layer in layers:
        quantize_(layer, config)
    return Built(list(layers), layers[0][0].weight.dequantize())


INT4 = Int8DynamicActivationIntxWeightConfig(
    weight_dtype=torch.int4, weight_granularity=PerGroup(128)
)
PEERS = {
    "torchao int8 x int8": Peer(8, partial(build, Int8DynamicActivationInt8WeightConfig())),
    "torchao int8 x fp32": Peer(8, partial(build, Int8WeightOnlyConfig())),
    "torchao int4 g128 x int8 (unpacked)": Peer(8, partial(build, INT4)),
}
