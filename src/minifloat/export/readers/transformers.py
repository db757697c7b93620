"""What transformers does with our folders."""

from minifloat.export.readers.rule import Fact, Reader, Rule
from minifloat.export.readers.torchao import TORCHAO_RULES


def _ct(fact: Fact) -> bool:
    return fact.contract == "compressed-tensors"


def _odd(fact: Fact) -> bool:
    weight = fact.spec.weight
    return (
        fact.layout == "pack-quantized"
        and weight is not None
        and weight.format.bits in (3, 5, 6, 7)
    )


RULES = (
    *TORCHAO_RULES,
    Rule(
        "asymmetric-needs-dequantize", "refuses",
        'zero points are laid out unpacked; set "dequantize": true in the quantization_config',
        "run: transformers 5.23 with compressed-tensors 0.20",
        lambda f: _ct(f) and "weight_zero_point" in f.tensors,
    ),
    Rule(
        "integer-inputs", "differs",
        "dynamic integer inputs are scaled by amax / 127.5 and not amax / 127",
        "run: transformers 5.23 with compressed-tensors 0.20",
        lambda f: _ct(f) and f.spec.input is not None and f.spec.input.dynamic
        and f.spec.input.format.is_integer,
    ),
    Rule(
        "mx-inputs", "differs",
        "power-of-two scales of inputs are rounded, where OCP's rule cuts",
        "run: transformers 5.23 with compressed-tensors 0.20",
        lambda f: _ct(f) and f.mx_input,
    ),
    Rule(
        "packed-needs-bf16", "needs",
        'a bfloat16 model, or "dequantize": true',
        "run: transformers 5.16 and 5.23 raise a dtype error in float32",
        lambda f: _ct(f) and ("fp4" in f.layout or f.layout.startswith("mx")) and f.dtype == "float32",
    ),
    Rule(
        "mxfp6-needs-0.20", "needs",
        "compressed-tensors 0.20 or later",
        "source: compressed-tensors 0.17 and 0.20 compared; run: 0.20",
        lambda f: f.layout == "mxfp6-pack-quantized",
    ),
    Rule(
        "odd-widths-dense", "needs",
        "compressed-tensors 0.19 or later, where codes of 3, 5, 6 and 7 bits straddle words",
        "run: compressed-tensors 0.17 fails on our 3-bit rows; 0.19 and 0.20 decode them",
        _odd,
    ),
    Rule(
        "quark-package", "needs",
        "the package amd-quark",
        "source: transformers 5.23 quantizers/quantizer_quark.py",
        lambda f: f.contract == "quark",
    ),
    Rule(
        "sdnq-package", "needs",
        "the package sdnq, imported first",
        "source: sdnq 0.2.8 quantizer.py",
        lambda f: f.contract == "sdnq",
    ),
    Rule(
        "fp8-dequantized", "differs",
        "without a GPU of SM89 or later weights are decoded and inputs are not quantized",
        "source: transformers 5.23 quantizers/quantizer_finegrained_fp8.py",
        lambda f: f.contract == "fp8",
    ),
)  # fmt: skip

TRANSFORMERS = Reader(
    (5, 23),
    ("compressed-tensors", "modelopt", "quark", "fp8", "gguf", "sdnq", "torchao"),
    RULES,
    ("modelopt",),
)
