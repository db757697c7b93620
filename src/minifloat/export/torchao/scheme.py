"""A layer's spec as the class and attributes of a tensor of torchao, or the reason why there is none."""

from dataclasses import replace
from typing import Any

from minifloat.export.contract import Refusal, Scheme, Shape, is_integer, no_ragged, weight_of
from minifloat.formats import E2M1, E4M3, E5M2, E8M0, INT8, Format
from minifloat.spec import FP8_TOKEN, INT8_TOKEN, NVFP4, LayerSpec, QuantSpec

FLOAT8 = {E4M3: "float8_e4m3fn", E5M2: "float8_e5m2"}
MX = {E4M3: "float8_e4m3fn", E2M1: "float4_e2m1fn_x2"}
# A key of ours in the header, which torchao ignores: whether its obligatory zero points are all 0.
SYMMETRIC = "symmetric"
ROW: Scheme = {"_type": "PerRow", "_data": {"dim": -1}}
TENSOR: Scheme = {"_type": "PerTensor", "_data": {}}
FP8_TENSOR_INPUT = QuantSpec(E4M3, (-1, -1), dynamic=True)


def scheme(spec: LayerSpec, shape: Shape) -> Scheme:
    """`_type`, `_data` and `_tensor_data_names` of the header, without the model's dtype."""
    weight = weight_of(spec)
    no_ragged(weight, shape)
    if spec.static_input:
        raise Refusal(
            "its calibrated inputs have a scale of as many axes as the input, which models change"
        )
    if weight == NVFP4:
        return _nvfp4(spec.input)
    if weight.scale == E8M0 and weight.tile == (1, 32) and weight.format in MX:
        return _mx(weight, spec.input)
    if not weight.scale_format.is_native or weight.outer is not None:
        raise Refusal(f"it has no {weight.format} with {weight.scale} scales")
    block = [size if tile == -1 else tile for size, tile in zip(shape, weight.tile, strict=True)]
    if weight.format in FLOAT8:
        return _float8(weight, spec.input, block)
    if weight.format == INT8:
        return _int8(weight, spec.input, block)
    return _intx(weight, spec.input, block)


def named(name: str, value: Any) -> Scheme:
    """A value of torchao by its class, as its JSON says it."""
    return {"_type": name, "_data": value}


def _tensor(name: str, pieces: tuple[str, ...], **attributes: Any) -> Scheme:
    return {**named(name, attributes), "_tensor_data_names": list(pieces)}


def _float8(weight: QuantSpec, given: QuantSpec | None, block: list[int]) -> Scheme:
    inputs = {((1, -1), FP8_TOKEN): ROW, ((-1, -1), FP8_TENSOR_INPUT): TENSOR}
    kernel = named("KernelPreference", "AUTO")
    multiplies, act = None, None
    if given is not None:
        if weight.format != E4M3 or (weight.tile, given) not in inputs:
            raise Refusal(f"beside {weight} it has no input like {given}")
        fast = {"emulate": False, "use_fast_accum": True, "pad_inner_dim": False}
        multiplies = named("Float8MMConfig", fast)
        act = named(
            "QuantizeTensorToFloat8Kwargs",
            {
                "float8_dtype": dtype(FLOAT8[E4M3]),
                "granularity": inputs[weight.tile, given],
                "mm_config": multiplies,
                "hp_value_lb": None,
                "hp_value_ub": None,
                "kernel_preference": kernel,
            },
        )
    return _tensor(
        "Float8Tensor",
        ("qdata", "scale"),
        block_size=block,
        mm_config=multiplies,
        act_quant_kwargs=act,
        kernel_preference=kernel,
    )


def _int8(weight: QuantSpec, given: QuantSpec | None, block: list[int]) -> Scheme:
    act = None
    if given is not None:
        if weight.tile != (1, -1) or given != INT8_TOKEN:
            raise Refusal(f"beside {weight} it has no input like {given}")
        act = named(
            "QuantizeTensorToInt8Kwargs",
            {
                "granularity": ROW,
                "mapping_type": named("MappingType", "SYMMETRIC"),
                "reduce_range": False,
            },
        )
    return _tensor(
        "Int8Tensor",
        ("qdata", "scale"),
        block_size=block,
        act_quant_kwargs=act,
        reduce_range=False,
    )


def _intx(weight: QuantSpec, given: QuantSpec | None, block: list[int]) -> Scheme:
    fmt = weight.format
    if not (is_integer(fmt) or weight.zero_point):
        raise Refusal(f"it has no {fmt}: its floats are e2m1, e4m3 and e5m2, its integers signed")
    if given is not None:
        raise Refusal(f"beside {weight} it has no input like {given}")
    found = _tensor(
        "IntxUnpackedToInt8Tensor",
        ("qdata", "scale", "zero_point"),
        target_dtype=dtype(f"int{fmt.bits}"),
        block_size=block,
        activation_quantization=None,
    )
    return {**found, SYMMETRIC: not weight.zero_point}


def _nvfp4(given: QuantSpec | None) -> Scheme:
    if given is not None:
        raise Refusal(f"inputs beside NVFP4, such as {given}, run on SM100 alone")
    return _tensor(
        "NVFP4Tensor",
        ("qdata", "scale", "per_tensor_scale"),
        block_size=16,
        is_swizzled_scales=False,
        use_triton_kernel=False,
        act_quant_kwargs=None,
    )


def _mx(weight: QuantSpec, given: QuantSpec | None) -> Scheme:
    if given is None or replace(given, scale_rounding="ocp") != mx_input(weight.format):
        raise Refusal(f"its MX weights meet inputs of their own format, not {given}")
    kernel, element = named("KernelPreference", "EMULATED"), dtype(MX[weight.format])
    act = {
        "elem_dtype": element,
        "block_size": 32,
        "scaling_mode": named("ScaleCalculationMode", "FLOOR"),
        "kernel_preference": kernel,
        "is_swizzled_scales": False,
    }
    return _tensor(
        "MXTensor",
        ("qdata", "scale"),
        elem_dtype=element,
        block_size=32,
        kernel_preference=kernel,
        act_quant_kwargs=named("QuantizeTensorToMXKwargs", act),
        is_swizzled_scales=False,
    )


def mx_input(fmt: Format) -> QuantSpec:
    """The input beside MX weights."""
    return QuantSpec(fmt, (1, 32), E8M0, "ocp", dynamic=True)


def dtype(name: str) -> Scheme:
    return named("torch.dtype", name)
