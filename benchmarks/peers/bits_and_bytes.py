"""bitsandbytes on the CPU: NF4 and FP4 in groups of 64 with bf16 products, and LLM.int8."""

from functools import partial

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from torch import Tensor

from benchmarks.peers.layer import Built, Peer


def four_bits(kind: str, w: Tensor, count: int) -> Built:
    """The codes are read before the first call, which lays them out for the CPU's kernel."""

    def layer() -> bnb.nn.Linear4bit:
        made = bnb.nn.Linear4bit(
            w.shape[1], len(w), bias=False, quant_type=kind, compute_dtype=torch.bfloat16
        )
        made.weight = bnb.nn.Params4bit(w.clone(), requires_grad=False, quant_type=kind)
        return made.to("cpu").eval()

    layers = [layer() for _ in range(count)]
    weight = layers[0].weight
    return Built(layers, functional.dequantize_4bit(weight.data, weight.quant_state).float())


def int8(w: Tensor, count: int) -> Built:
    """Without outliers' columns apart (threshold 0)."""

    def layer() -> bnb.nn.Linear8bitLt:
        made = bnb.nn.Linear8bitLt(
            w.shape[1], len(w), bias=False, has_fp16_weights=False, threshold=0.0
        )
        made.weight = bnb.nn.Int8Params(w.clone(), requires_grad=False, has_fp16_weights=False)
        return made.to("cpu").eval()

    codes, scales, _ = functional.int8_vectorwise_quant(w.half())
    return Built([layer() for _ in range(count)], codes * (scales[:, None] / 127))


PEERS = {
    "bitsandbytes nf4 g64 x bf16": Peer(4, partial(four_bits, "nf4")),
    "bitsandbytes fp4 g64 x bf16": Peer(4, partial(four_bits, "fp4")),
    "bitsandbytes int8 x int8": Peer(8, int8),
}
