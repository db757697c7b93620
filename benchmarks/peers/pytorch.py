"""torch's own layers: fp32, bf16, dynamic INT8 of both engines, and the packed weights of ATen."""

import copy
from functools import partial

import torch
from torch import Tensor

from benchmarks.peers.layer import Built, Peer
from minifloat.qtensor import decode, encode
from minifloat.spec import INT4_G128
from minifloat.timing import dynamic_int8, half, plain


def fp32(w: Tensor, count: int) -> Built:
    return Built([plain(w) for _ in range(count)], w)


def bf16(w: Tensor, count: int) -> Built:
    return Built([half(w) for _ in range(count)], w.bfloat16().float())


def int8(engine: str, w: Tensor, count: int) -> Built:
    """`quantize_dynamic`; the engine is chosen where the weight is packed."""
    usual, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    layer = dynamic_int8(w)
    calls = [copy.deepcopy(layer) for _ in range(count)]
    torch.backends.quantized.engine = usual
    return Built(calls, layer[0].weight().dequantize())


def int4(w: Tensor, count: int) -> Built:
    """ATen's weight-only kernel, which has no INT8 activations; codes count from the smallest value."""
    q = encode(w, INT4_G128)
    scales = q.scale.values(q.spec).T
    pairs = torch.stack((scales, torch.zeros_like(scales)), dim=-1).bfloat16().contiguous()
    codes = (q.codes ^ 8).int()
    weights = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1) for _ in range(count)]

    def layer(weight: Tensor, x: Tensor) -> Tensor:
        short = x.bfloat16()
        return torch.ops.aten._weight_int4pack_mm_for_cpu(short, weight, 128, pairs).float()

    return Built([partial(layer, weight) for weight in weights], decode(q))


PEERS = {
    "torch fp32": Peer(32, fp32),
    "torch bf16": Peer(16, bf16),
    "torch int8 x int8 (x86)": Peer(8, partial(int8, "x86")),
    "torch int8 x int8 (onednn)": Peer(8, partial(int8, "onednn")),
    "torch int4 g128 x bf16": Peer(4, int4),
}
