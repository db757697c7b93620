"""Bytes computed by hand: one row of each contract, from its specification and not from our code."""

from typing import Any

import pytest
import torch

from minifloat.export.contracts import CONTRACTS
from minifloat.qtensor import decode

U8, I32, I64, F32 = torch.uint8, torch.int32, torch.int64, torch.float32
E4M3 = torch.float8_e4m3fn


def raw(values: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Bytes as a row of another dtype."""
    return torch.tensor([values], dtype=U8).view(dtype)


def args(**fields: Any) -> dict[str, Any]:
    return {"num_bits": 4, "type": "float", "symmetric": True, "dynamic": False, **fields}


def sdnq(dtype: str) -> dict[str, Any]:
    fixed = {"scale_dtype": None, "use_svd": False, "svd_rank": 0, "shape": [1, 4]}
    return {"weights_dtype": dtype, "group_size": -1, **fixed}


# 0x21 is code 1 (0.5) in the even column and code 2 (1.0) in the odd one; 0xF9 is -0.5, then -6.
FP4_ROW, FP4_VALUES = [0x21, 0xF9] + [0x00] * 6, [0.5, 1.0, -0.5, -6.0] + [0.0] * 12
# E4M3: 0x38 is 1, 0x40 is 2, 0xC8 is -4, 0x01 is the smallest, 2^-9, 0x7E is 448.
FP8_ROW, FP8_VALUES = [0x38, 0x40, 0xC8, 0x01] * 8, [1.0, 2.0, -4.0, 2.0**-9] * 8


def torchao(kind: str, pieces: str, **data: Any) -> dict[str, Any]:
    return {"_type": kind, "_data": data, "_tensor_data_names": pieces.split()}


GOLDEN: dict[str, tuple[str, dict[str, Any], dict[str, torch.Tensor], list[float]]] = {
    "NVFP4, global scale divides": (
        "compressed-tensors",
        {
            "format": "nvfp4-pack-quantized",
            "weights": args(strategy="tensor_group", group_size=16),
            "input_activations": None,
        },
        {
            "weight_packed": raw(FP4_ROW, U8),
            "weight_scale": raw([0x48], E4M3),  # 4
            "weight_global_scale": torch.tensor([8.0]),
        },
        [v * 4 / 8 for v in FP4_VALUES],
    ),
    "NVFP4, scale 2 multiplies": (
        "modelopt",
        {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        {
            "weight": raw(FP4_ROW, U8),
            "weight_scale": raw([0x48], E4M3),
            "weight_scale_2": torch.tensor(8.0),
        },
        [v * 4 * 8 for v in FP4_VALUES],
    ),
    "MXFP4, exponent bias 127": (
        "compressed-tensors",
        {
            "format": "mxfp4-pack-quantized",
            "weights": args(strategy="group", group_size=32, scale_dtype="torch.uint8"),
            "input_activations": None,
        },
        {"weight_packed": raw(FP4_ROW * 2, U8), "weight_scale": raw([129], U8)},  # 2^2
        [v * 4 for v in FP4_VALUES * 2],
    ),
    "MXFP8": (
        "compressed-tensors",
        {
            "format": "mxfp8-quantized",
            "weights": args(num_bits=8, strategy="group", group_size=32),
            "input_activations": None,
        },
        {"weight": raw(FP8_ROW, E4M3), "weight_scale": raw([126], U8)},  # 2^-1
        [v / 2 for v in FP8_VALUES],
    ),
    "FP8 by channel": (
        "compressed-tensors",
        {
            "format": "float-quantized",
            "weights": args(num_bits=8, strategy="channel"),
            "input_activations": None,
        },
        {"weight": raw(FP8_ROW, E4M3), "weight_scale": torch.tensor([[0.25]])},
        [v / 4 for v in FP8_VALUES],
    ),
    # Code 0 is -8, code 15 is 7: 0x0F says column 0 is 7 and column 1 is -8; 0x98 says 0, then 1.
    "INT4, offset 8": (
        "compressed-tensors",
        {
            "format": "pack-quantized",
            "weights": args(type="int", strategy="channel"),
            "input_activations": None,
        },
        {
            "weight_packed": raw([0x0F, 0x98, 0x88, 0x88], I32),
            "weight_scale": torch.tensor([[0.5]]),
            "weight_shape": torch.tensor([1, 8], dtype=I64),
        },
        [3.5, -4.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0],
    ),
    # Zero point 3 in the lowest nibble of the one word of the column: 0x0F is 15 - 3 = 12, 0 - 3 = -3.
    "INT4 with a zero point": (
        "compressed-tensors",
        {
            "format": "pack-quantized",
            "weights": args(type="int", strategy="group", group_size=8, symmetric=False),
            "input_activations": None,
        },
        {
            "weight_packed": raw([0x0F, 0x33, 0x33, 0x33], I32),
            "weight_scale": torch.tensor([[0.5]]),
            "weight_shape": torch.tensor([1, 8], dtype=I64),
            "weight_zero_point": raw([3, 0, 0, 0], I32),
        },
        [6.0, -1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ),
    # Four 6-bit codes in three bytes: 0x01 | 0x21 << 6 | 0x1F << 12 | 0x3F << 18 = 0xFDF841.
    # E3M2: code 1 is 2^-4, 0x21 is -2^-4, 0x1F is 28, 0x3F is -28.
    "FP6 E3M2": (
        "quark",
        {
            "weight": {"dtype": "fp6_e3m2"},
            "input_tensors": None,
        },
        {"weight": raw([0x41, 0xF8, 0xFD] * 8, U8), "weight_scale": raw([128], U8)},  # 2
        [0.125, -0.125, 56.0, -56.0] * 8,
    ),
    # The same bytes as E2M3: code 1 is 1/8, 0x1F is 7.5.
    "FP6 E2M3": (
        "quark",
        {"weight": {"dtype": "fp6_e2m3"}, "input_tensors": None},
        {"weight": raw([0x41, 0xF8, 0xFD] * 8, U8), "weight_scale": raw([127], U8)},
        [0.125, -0.125, 7.5, -7.5] * 8,
    ),
    "FP8 block, the 'inverse' scale multiplies": (
        "fp8",
        {"weight_block_size": [128, 128]},
        {"weight": raw(FP8_ROW, E4M3), "weight_scale_inv": torch.tensor([[0.5]])},
        [v / 2 for v in FP8_VALUES],
    ),
    # 3-bit floats with bias 0: codes 0 to 3 are 0, 1, 2, 3, and 4 is their sign.
    "E1M1 in words": (
        "humming",
        {"dtype": "float3e1m1", "weight_scale_type": "channel"},
        {
            # 001 010 011 101 from the lowest bit: 0b101_011_010_001 = 0xAD1, then zeros
            "weight": raw([0xD1, 0x0A] + [0] * 10, I32),
            "weight_scale": torch.tensor([[0.5]]),
        },
        [0.5, 1.0, 1.5, -0.5] + [0.0] * 28,
    ),
    # The fourth code, 0b100100 or -1/4, gives two bits to each of the others' bytes: 10, 01, 00.
    "FP6 E3M2 in units of SDNQ": (
        "sdnq",
        sdnq("float6_e3m2fn"),
        {"weight": raw([0x81, 0x61, 0x1F], U8), "scale": torch.tensor([[2.0]])},
        [0.125, -0.125, 56.0, -0.5],
    ),
    "UINT4 with a real zero point": (
        "sdnq",
        sdnq("uint4"),
        {
            "weight": torch.tensor([0x0F, 0x3A], dtype=U8),
            "scale": torch.tensor([[0.5]]).half(),
            "zero_point": torch.tensor([[-1.5]]),
        },
        [6.0, -1.5, 3.5, 0.0],
    ),
    "E4M3 under torchao": (
        "torchao",
        torchao("Float8Tensor", "qdata scale", block_size=[1, 32]),
        {"_weight_qdata": raw(FP8_ROW, E4M3), "_weight_scale": torch.tensor([[0.25]])},
        [v / 4 for v in FP8_VALUES],
    ),
    # Bytes of torchao's integers are the signed numbers, and so are zero points: (7 - -5) / 2 = 6.
    "INT4 with a zero point under torchao": (
        "torchao",
        torchao(
            "IntxUnpackedToInt8Tensor",
            "qdata scale zero_point",
            block_size=[1, 4],
            target_dtype={"_type": "torch.dtype", "_data": "int4"},
            activation_quantization=None,
        ),
        {
            "_weight_qdata": raw([7, 0xF8, 0xFB, 0], torch.int8),  # 7, -8, -5, 0
            "_weight_scale": torch.tensor([[0.5]]),
            "_weight_zero_point": torch.tensor([[-5]], dtype=torch.int8),
        },
        [6.0, -1.5, 0.0, 2.5],
    ),
    "INT8 under torchao": (
        "torchao",
        torchao("Int8Tensor", "qdata scale", block_size=[1, 4]),
        {
            "_weight_qdata": raw([1, 2, 255, 129], torch.int8),
            "_weight_scale": torch.tensor([[0.5]]),
        },
        [0.5, 1.0, -0.5, -63.5],
    ),
    "NVFP4 under torchao": (
        "torchao",
        torchao("NVFP4Tensor", "qdata scale per_tensor_scale", is_swizzled_scales=False),
        {
            "_weight_qdata": raw(FP4_ROW, U8),
            "_weight_scale": raw([0x48], E4M3),
            "_weight_per_tensor_scale": torch.tensor(8.0),
        },
        [v * 4 * 8 for v in FP4_VALUES],
    ),
    "MXFP4 under torchao": (
        "torchao",
        torchao(
            "MXTensor",
            "qdata scale",
            is_swizzled_scales=False,
            elem_dtype={"_type": "torch.dtype", "_data": "float4_e2m1fn_x2"},
        ),
        {
            "_weight_qdata": raw(FP4_ROW * 2, U8),
            "_weight_scale": raw([129], torch.float8_e8m0fnu),
        },
        [v * 4 for v in FP4_VALUES * 2],
    ),
}


# A static int8 input of scale 0.5: -28 is stored for the unsigned zero point 100.
STATIC: dict[str, tuple[str, dict[str, Any], dict[str, torch.Tensor], tuple[float, int | None]]] = {
    "INT8 with a zero point": (
        "compressed-tensors",
        {
            "format": "int-quantized",
            "weights": args(num_bits=8, type="int", strategy="channel"),
            "input_activations": args(num_bits=8, type="int", strategy="tensor", symmetric=False),
        },
        {
            "weight": raw([1, 2, 255, 128], torch.int8),
            "weight_scale": torch.tensor([[0.5]]),
            "input_scale": torch.tensor([0.5]),
            "input_zero_point": torch.tensor([-28], dtype=torch.int8),
        },
        (0.5, 100),
    ),
    "FP8, scalars": (
        "modelopt",
        {"quant_algo": "FP8"},
        {
            "weight": raw(FP8_ROW, E4M3),
            "weight_scale": torch.tensor(0.5),
            "input_scale": torch.tensor(0.25),
        },
        (0.25, None),
    ),
}


@pytest.mark.parametrize("case", STATIC)
def test_calibrated_inputs_are_the_numbers_on_paper(case: str) -> None:
    name, scheme, tensors, (scale, zero) = STATIC[case]
    layer = CONTRACTS[name].read(scheme, tensors)
    assert layer.spec.static_input
    assert layer.input_scale is not None
    assert layer.input_scale.stored.tolist() == [[scale]]
    if zero is not None:
        assert layer.input_scale.zero is not None
        assert layer.input_scale.zero.tolist() == [[zero]]
    again = CONTRACTS[name].tensors(layer, scheme)
    assert {n: t.reshape(-1).tolist() for n, t in again.items()} == {
        n: t.reshape(-1).tolist() for n, t in tensors.items()
    }


@pytest.mark.parametrize("case", GOLDEN)
def test_bytes_decode_to_the_numbers_on_paper(case: str) -> None:
    name, scheme, tensors, values = GOLDEN[case]
    found = decode(CONTRACTS[name].read(scheme, tensors).q)
    assert found.tolist() == [values]
