"""The contracts by the name that `minifloat export --to` takes."""

from dataclasses import replace

from minifloat.export.compressed_tensors import COMPRESSED_TENSORS
from minifloat.export.contract import Contract, Refusal, Shape
from minifloat.export.hf_fp8 import HF_FP8
from minifloat.export.humming import HUMMING
from minifloat.export.modelopt import MODELOPT
from minifloat.export.quark import QUARK
from minifloat.export.sdnq import SDNQ
from minifloat.export.torchao import TORCHAO
from minifloat.spec import LayerSpec

CONTRACTS: dict[str, Contract] = {
    "compressed-tensors": COMPRESSED_TENSORS,
    "modelopt": MODELOPT,
    "quark": QUARK,
    "fp8": HF_FP8,
    "humming": HUMMING,
    "sdnq": SDNQ,
    "torchao": TORCHAO,
}


def able(spec: LayerSpec, shape: Shape) -> list[str]:
    """The contracts that can hold such a layer."""
    return [name for name in CONTRACTS if _can(name, spec, shape)]


def alternatives(spec: LayerSpec, shape: Shape) -> str:
    """The end of a refusal: which contracts can, if need be without quantized inputs."""
    if found := able(spec, shape):
        return f"{_listed(found)} can"
    if found := able(replace(spec, input=None), shape):
        return f"{_listed(found)} can, with --weights-only"
    return "no other contract can either"


def _listed(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _can(name: str, spec: LayerSpec, shape: Shape) -> bool:
    try:
        CONTRACTS[name].scheme(spec, shape)
    except Refusal:
        return False
    return True
