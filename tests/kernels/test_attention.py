"""Attention over keys and values in few bits: what is kept, and what both rows make of it."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minifloat import formats
from minifloat.errors import UserError
from minifloat.kernels import reference
from minifloat.kernels.states import GrowingStates, States
from minifloat.kernels.table import pick, why
from minifloat.qtensor import fake_quantize
from minifloat.spec import (
    FP8_TOKEN,
    INT8_TOKEN,
    MXFP4,
    NF4_G64,
    NVFP4,
    UINT4_TOKEN,
    CacheSpec,
    QuantSpec,
)
from tests.kernels.problems import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP4_G16 = QuantSpec(formats.E2M1, (1, 16), formats.FP16)
SPECS = {
    "int4 zero": UINT4_TOKEN,
    "int8": INT8_TOKEN,
    "e4m3": FP8_TOKEN,
    "fp4 g16": FP4_G16,
    "mxfp4": MXFP4,
    "nf4": NF4_G64,
    "int3 g24": QuantSpec(formats.INT3, (1, 24)),
    "uint2 zero g8": QuantSpec(formats.UINT2, (1, 8), formats.FP16, zero_point=True),
    "e3m2": QuantSpec(formats.E3M2),
}
SHAPES = [  # batch, heads, heads of the keys, tokens, width
    (1, 9, 3, 1, 64),
    (2, 4, 4, 7, 40),
    (1, 2, 1, 129, 33),
    (2, 6, 2, 200, 80),
]


def states(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A query, keys and values; some features of the keys are large, as in real models."""
    batch, heads, shared, tokens, width = shape
    torch.manual_seed(seed)
    keys = torch.randn(batch, shared, tokens, width)
    keys[..., 3] *= 10
    return torch.randn(batch, heads, 1, width), keys, torch.randn(batch, shared, tokens, width)


def on_gpu(q: Tensor, k: States, v: States, mask: Tensor | None, scaling: float) -> Tensor:
    """The op's own code; the interpreter reads tensors of the CPU."""
    pytest.importorskip("triton", reason="triton is not installed: pip install 'minifloat[gpu]'")
    from minifloat.kernels import fast
    from minifloat.kernels.gpu import attention

    stored = [part for s in (k, v) for part in (s.codes, s.scale.stored, s.scale.zero)]
    given = [part if part is None else part.to(DEVICE) for part in (q, *stored, mask)]
    name = fast._spec_name(k.spec, v.spec)
    return attention.attention_kv(*given, scaling, v.width, name).to(q.device)  # type: ignore[arg-type]


CASES = [(name, SHAPES[i % 4]) for i, name in enumerate(SPECS)]
CASES += [("int4 zero", shape) for shape in SHAPES[1:]]


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_both_rows_equal_attention_over_the_decoded(name: str, shape: tuple[int, ...]) -> None:
    q, keys, values = states(shape)
    spec = SPECS[name]
    k, v = States.of(keys, spec), States.of(values, spec)
    wide = [fake_quantize(x, spec) for x in (keys, values)]
    expected = scaled_dot_product_attention(q, *wide, scale=0.2, enable_gqa=True)
    assert pick("attention_kv", CacheSpec(spec, spec), "cuda").name == "triton"
    torch.testing.assert_close(reference.attention_kv(q, k, v, None, 0.2), expected)
    assert_close(on_gpu(q, k, v, None, 0.2), expected)


def test_keys_and_values_may_differ_in_format_and_width() -> None:
    q, keys, _ = states((1, 4, 2, 70, 48))
    values = torch.randn(1, 2, 70, 20)
    k, v = States.of(keys, INT8_TOKEN), States.of(values, UINT4_TOKEN)
    assert_close(on_gpu(q, k, v, None, 0.1), reference.attention_kv(q, k, v, None, 0.1))


def test_what_a_mask_hides_is_not_seen() -> None:
    """Left padding as `generate` makes it: the second row of the batch is 70 tokens shorter."""
    q, keys, values = states((2, 4, 2, 100, 32))
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[1, :70] = False
    k, v = States.of(keys, UINT4_TOKEN), States.of(values, UINT4_TOKEN)
    y = on_gpu(q, k, v, mask, 0.2)
    assert_close(y, reference.attention_kv(q, k, v, mask, 0.2))
    short = [States.of(x[1:, :, 70:], UINT4_TOKEN) for x in (keys, values)]
    assert_close(y[1:], reference.attention_kv(q[1:], *short, None, 0.2))


def test_programs_share_a_long_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'minifloat[gpu]'")
    from minifloat.kernels.gpu import attention

    monkeypatch.setattr(attention, "device_of", lambda device: (True, 132))
    q, keys, values = states((1, 2, 1, 450, 16))
    assert attention._spans(450, 1, 132) == 4
    mask = torch.arange(450)[None, :] > 140  # the whole of the first program's tokens is hidden
    k, v = States.of(keys, FP4_G16), States.of(values, FP4_G16)
    for seen in (None, mask):
        assert_close(on_gpu(q, k, v, seen, 0.3), reference.attention_kv(q, k, v, seen, 0.3))


def test_fp16_goes_in_and_out() -> None:
    q, keys, values = states((1, 4, 2, 90, 64))
    for spec in (UINT4_TOKEN, MXFP4):
        k, v = States.of(keys, spec), States.of(values, spec)
        y = on_gpu(q.half(), k, v, None, 0.125)
        assert y.dtype == torch.float16
        expected = reference.attention_kv(q, k, v, None, 0.125)
        torch.testing.assert_close(y.float(), expected, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_kept_does_not_depend_on_how_tokens_came(name: str) -> None:
    """At once, token by token, or in pieces: the same bits, and no row knows of the others."""
    _, keys, _ = states((2, 4, 2, 150, 40))
    whole = States.of(keys, SPECS[name])
    put = pick("states", CacheSpec(SPECS[name], SPECS[name]), "cpu").run
    for sizes in ([1] * 150, [100, 1, 49], [150]):
        growing = GrowingStates()
        for piece in keys.split(sizes, 2):
            held = growing.append(piece, SPECS[name], put)
        for part, other in zip(held.tensors(), whole.tensors(), strict=True):
            assert torch.equal(part, other)


@pytest.mark.parametrize("name", SPECS)
def test_bytes_are_what_the_spec_says(name: str) -> None:
    spec, width, tokens = SPECS[name], 40, 1000
    held = States.of(torch.randn(2, 3, tokens, width), spec)
    codes = math.ceil(width * spec.format.bits / 8)  # a token begins on a byte
    bits = spec.bits_per_value((1, width)) - spec.format.bits
    assert held.nbytes == 2 * 3 * tokens * (codes + round(bits * width / 8))


def test_room_is_made_an_eighth_at_a_time() -> None:
    growing = GrowingStates()
    for _ in range(100):
        held = growing.append(torch.randn(1, 1, 10, 16), INT8_TOKEN, reference.put_states)
    assert growing._room is not None
    room = sum(part.numel() * part.element_size() for part in growing._room.tensors())
    assert held.nbytes == 1000 * (16 + 4)
    assert room <= 1.15 * held.nbytes


WRITTEN = ["int4 zero", "int8", "e4m3", "fp4 g16", "uint2 zero g8"]


@pytest.mark.parametrize("width", [33, 64])
@pytest.mark.parametrize("name", WRITTEN)
def test_the_kernel_keeps_the_reference_s_bits(name: str, width: int) -> None:
    """Small numbers, zeros, halves between two codes and numbers beyond fp16 too."""
    pytest.importorskip("triton", reason="triton is not installed: pip install 'minifloat[gpu]'")
    from minifloat.kernels.gpu.states import states_of

    spec = SPECS[name]
    assert pick("states", CacheSpec(spec, spec), "cuda").name == "triton"
    x = torch.randn(1, 2, 9, width, generator=torch.Generator().manual_seed(0))
    x[0, 0] *= torch.logspace(-12, 9, 9)[:, None]
    x[0, 1, :3] = torch.arange(width) / 2 - 5
    x[0, 1, 3] = 0
    found, expected = states_of(x.to(DEVICE), spec), States.of(x, spec)
    for part, other in zip(found.tensors(), expected.tensors(), strict=True):
        assert torch.equal(part.cpu(), other)
    x[0, 1, 2, 5] = torch.nan
    lost = states_of(x.to(DEVICE), spec).decoded(torch.float32).isnan()
    assert int(lost.any(-1).sum()) == 1
    assert bool(lost[0, 1, 2].any())


def test_what_is_not_written_on_the_gpu_is_said() -> None:
    for name, reason in {
        "nf4": "codes of nf4 are not packed on the GPU",
        "mxfp4": "scales of e8m0 are not found on the GPU",
        "int3 g24": "codes of int3 are not packed",
    }.items():
        assert reason in why("states", CacheSpec(INT8_TOKEN, SPECS[name]), "cuda")


def test_states_are_cropped_and_chosen() -> None:
    _, keys, _ = states((3, 2, 2, 20, 16))
    growing = GrowingStates()
    growing.append(keys, UINT4_TOKEN, reference.put_states)
    growing.select(torch.tensor([2, 0, 0]))
    growing.crop(5)
    again = growing.append(keys[:, :, 7:9], UINT4_TOKEN, reference.put_states)
    expected = torch.cat([keys[[2, 0, 0]][:, :, :5], keys[:, :, 7:9]], 2)
    assert torch.equal(again.decoded(torch.float32), fake_quantize(expected, UINT4_TOKEN))


def test_what_a_cache_cannot_keep_is_said() -> None:
    for spec, reason in {
        QuantSpec(formats.FP16): "at most 8 bits, not fp16",
        QuantSpec(formats.INT8, (-1, -1)): r"one token's: the tile of its keys is \(1, -1\)",
        QuantSpec(formats.INT4, (2, 32)): r"not \(2, 32\)",
        NVFP4: "no scale of their own",
    }.items():
        with pytest.raises(UserError, match=reason):
            CacheSpec(spec, INT8_TOKEN)


def test_a_cache_spec_goes_through_json() -> None:
    spec = CacheSpec(INT8_TOKEN, UINT4_TOKEN)
    assert CacheSpec.from_json(spec.to_json()) == spec


def test_nan_is_refused() -> None:
    with pytest.raises(UserError, match="NaN or Inf"):
        States.of(torch.full((1, 1, 1, 8), torch.nan), UINT4_TOKEN)


def test_the_op_has_a_shape_without_a_device() -> None:
    q, keys, values = states((2, 6, 2, 5, 32))
    k, v = States.of(keys, UINT4_TOKEN), States.of(values[..., :24], UINT4_TOKEN)
    from minifloat.kernels import fast

    for spec in SPECS.values():
        expected = States.of(keys, spec).tensors()
        found = fast.states(keys.to("meta"), spec).tensors()
        assert [(f.shape, f.dtype) for f in found] == [(e.shape, e.dtype) for e in expected]
    meta = [s.through([part.to("meta") for part in s.tensors()]) for s in (k, v)]
    assert fast.attention_kv(q.to("meta"), *meta, None, 1.0).shape == (2, 6, 1, 24)
