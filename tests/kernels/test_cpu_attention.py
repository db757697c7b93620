"""Keys and values in few bits on the CPU: codes and attention as the reference has them."""

import pytest
import torch
from torch import Tensor

from minifloat import formats
from minifloat.kernels import fast, native, ops, reference
from minifloat.kernels.states import GrowingStates, States
from minifloat.kernels.table import pick, why
from minifloat.spec import (
    FP8_TOKEN,
    INT8_TOKEN,
    MXFP4,
    MXFP8,
    NF4_G64,
    UINT4_TOKEN,
    CacheSpec,
    QuantSpec,
)
from tests.kernels.problems import assert_close
from tests.kernels.test_attention import FP4_G16, states

SPECS = {
    "int4 zero": UINT4_TOKEN,
    "int4": QuantSpec(formats.INT4, (1, -1), formats.BF16),
    "int8": INT8_TOKEN,
    "int8 g4": QuantSpec(formats.INT8, (1, 4), formats.FP16),
    "int4 zero g8": QuantSpec(formats.UINT4, (1, 8), formats.FP16, zero_point=True),
    "e4m3": FP8_TOKEN,
    "e5m2 e4m3 scales": QuantSpec(formats.E5M2, (1, 48), formats.E4M3),
    "fp4 g16": FP4_G16,
    "mxfp4": MXFP4,
    "mxfp8": MXFP8,
}
READ = SPECS | {"nf4": NF4_G64, "e3m0": QuantSpec(formats.E3M0)}
WRITTEN = SPECS | {
    "e8m0 up": QuantSpec(formats.E2M1, (1, 32), formats.E8M0, "up"),
    "e8m0 down": QuantSpec(formats.INT8, (1, 32), formats.E8M0, "down"),
    "e8m0 nearest": QuantSpec(formats.E3M4, (1, -1), formats.E8M0),
    "e8m0 ocp zero": QuantSpec(formats.UINT4, (1, 8), formats.E8M0, "ocp", zero_point=True),
    "uint8 zero": QuantSpec(formats.UINT8, zero_point=True),
}
# batch, heads, heads of the keys, tokens, width: 1, 3 and 8 queries share a head, 1 to 5 spans.
SHAPES = [
    (1, 9, 3, 1, 64),
    (2, 4, 4, 3, 16),
    (1, 8, 1, 7, 80),
    (2, 3, 1, 33, 33),
    (1, 2, 2, 129, 128),
    (1, 9, 3, 577, 64),
]

both_paths = pytest.mark.parametrize("isa", ["plain", "avx512"], indirect=True)


def stored(
    shape: tuple[int, ...], keys: QuantSpec, values: QuantSpec | None = None
) -> tuple[Tensor, States, States]:
    """A query, and packed keys and values whose magnitudes differ from token to token."""
    q, k, v = states(shape)
    growing = torch.logspace(-1, 1, shape[3])[:, None]
    return q, States.of(k * growing, keys), States.of(v / growing, values or keys)


@both_paths
@pytest.mark.parametrize("name", READ)
def test_attention_equals_the_reference(isa: str, name: str) -> None:
    spec = READ[name]
    assert pick("attention_kv", CacheSpec(spec, spec), "cpu").name == "cpu"
    for shape in SHAPES:
        q, k, v = stored(shape, spec)
        expected = reference.attention_kv(q, k, v, None, 0.1)
        assert_close(fast.attention_kv(q, k, v, None, 0.1), expected, within=5e-6)


@both_paths
def test_keys_and_values_may_differ_in_format_and_width(isa: str) -> None:
    for keys, values in ((INT8_TOKEN, UINT4_TOKEN), (MXFP4, FP8_TOKEN)):
        q, k, _ = stored((1, 4, 2, 150, 48), keys)
        v = States.of(torch.randn(1, 2, 150, 20), values)
        expected = reference.attention_kv(q, k, v, None, 0.1)
        assert_close(fast.attention_kv(q, k, v, None, 0.1), expected)


@both_paths
def test_what_a_mask_hides_is_not_seen(isa: str) -> None:
    """Left padding, of whole spans too; a query that sees nothing gets zeros, as torch has it."""
    for spec in (UINT4_TOKEN, FP4_G16):
        q, k, v = stored((3, 4, 2, 300, 32), spec)
        mask = torch.rand(3, 300) > 0.5
        mask[1, :290] = False
        mask[2] = False
        y = fast.attention_kv(q, k, v, mask, 0.2)
        assert_close(y, reference.attention_kv(q, k, v, mask, 0.2))
        assert not y[2].any()


@both_paths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_queries_go_in_and_out(isa: str, dtype: torch.dtype) -> None:
    """The sums are fp32's; only the query and the result are short."""
    q, k, v = stored((1, 6, 2, 200, 64), INT8_TOKEN)
    expected = reference.attention_kv(q.to(dtype).float(), k, v, None, 0.125)
    y = fast.attention_kv(q.to(dtype), k, v, None, 0.125)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


@both_paths
def test_several_queries_of_the_op_see_the_same_tokens(isa: str) -> None:
    q, k, v = stored((2, 6, 2, 140, 64), INT8_TOKEN)
    several = torch.cat([q, -q, q.flip(3)], 2)
    parts = [part for s in (k, v) for part in (s.codes, s.scale.stored, s.scale.zero)]
    y = ops.attention_kv(several, *parts, None, 0.1, 64, fast._spec_name(k.spec, v.spec))
    assert_close(y, reference.attention_kv(several, k, v, None, 0.1))


@both_paths
def test_tokens_are_read_where_they_lie(isa: str) -> None:
    """In room for more of them, and in tensors whose tokens are apart."""
    q, keys, _ = states((2, 4, 2, 90, 64))
    growing = GrowingStates()
    for piece in keys.split([60, 29, 1], 2):
        held = growing.append(piece, UINT4_TOKEN, reference.put_states)
    apart = held.through([part.repeat_interleave(2, 2)[:, :, ::2] for part in held.tensors()])
    whole = States.of(keys, UINT4_TOKEN)
    expected = fast.attention_kv(q, whole, whole, None, 0.1)
    for given in (held, apart):
        assert not given.codes.is_contiguous()
        assert torch.equal(fast.attention_kv(q, given, given, None, 0.1), expected)


@both_paths
def test_the_number_of_threads_changes_nothing(isa: str) -> None:
    q, k, v = stored((1, 6, 3, 700, 64), UINT4_TOKEN)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(fast.attention_kv(q, k, v, None, 0.1))
    torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


@both_paths
@pytest.mark.parametrize("name", WRITTEN)
def test_the_kernel_keeps_the_reference_s_bits(isa: str, name: str) -> None:
    """Numbers near fp32's ends, zeros of both signs and halves between two codes too."""
    spec = WRITTEN[name]
    assert pick("states", CacheSpec(spec, spec), "cpu").name == "cpu"
    for width in (33, 64):
        x = torch.randn(2, 3, 9, width, generator=torch.Generator().manual_seed(0))
        x[0, 0] *= torch.logspace(-44, 38, 9)[:, None]
        x[0, 1, :3] = torch.arange(width) / 2 - 5
        x[0, 1, 3] = 0
        x[0, 1, 4] = -0.0
        for given in (x, x.bfloat16(), x.transpose(1, 2)):
            found, expected = fast.states(given, spec), States.of(given, spec)
            for part, other in zip(found.tensors(), expected.tensors(), strict=True):
                assert torch.equal(part, other)


@both_paths
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_lost_token_becomes_nan(isa: str, name: str, bad: float) -> None:
    """In its own group alone; attention of its head is then NaN, and no other head's."""
    _, x, _ = states((1, 4, 2, 9, 64))
    x[0, 1, 2, 5] = bad
    held = fast.states(x, WRITTEN[name])
    lost = held.decoded(torch.float32).isnan()
    group = WRITTEN[name].tile[1]
    assert int(lost.sum()) == (64 if group == -1 else group)
    assert bool(lost[0, 1, 2, 5])
    if name in READ:
        y = fast.attention_kv(torch.randn(1, 4, 1, 64), held, held, None, 0.1)
        assert y.isnan().any(-1)[0, :, 0].tolist() == [False, False, True, True]


def test_what_it_does_not_take_goes_to_the_reference() -> None:
    for spec, reading, writing in (
        (QuantSpec(formats.INT5), "codes have 5 bits, not 4", "codes have 5 bits, not 4 or 8"),
        (QuantSpec(formats.E3M2), "codes have 6 bits, not 4 or 8", "codes have 6 bits"),
        (NF4_G64, "", "numbers are not rounded to nf4 in C"),
        (QuantSpec(formats.INT8, (1, 3)), "groups are no multiples of 4 columns", ""),
        (WRITTEN["uint8 zero"], "uint8 does not fit fp16", ""),
        (QuantSpec(formats.E2M1, (1, 16), formats.E5M2), "", ""),
        (QuantSpec(formats.E2M1, (1, 16), formats.UINT8), "", "scales of uint8 are not found in C"),
    ):
        for op, reason in (("attention_kv", reading), ("states", writing)):
            found = why(op, CacheSpec(INT8_TOKEN, spec), "cpu")
            assert reason in found
            assert bool(found) == bool(reason)


def test_gradients_take_the_reference() -> None:
    q, k, v = stored((1, 4, 2, 9, 16), INT8_TOKEN)
    q.requires_grad_()
    fast.attention_kv(q, k, v, None, 0.1).sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("name", ["int4 zero", "mxfp8"])
def test_the_ops_are_what_torch_asks_of_ops(name: str) -> None:
    if native.library() is None:
        pytest.skip("minifloat was installed without a C compiler, so there is no op to check")
    q, k, v = stored((1, 4, 2, 9, 64), SPECS[name])
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    parts = [part for s in (k, v) for part in (s.codes, s.scale.stored, s.scale.zero)]
    operands = (q, *parts, None, 0.1, 64, fast._spec_name(k.spec, v.spec))
    torch.library.opcheck(ops.attention_kv, operands, test_utils=checks)
    operands = (torch.randn(1, 2, 3, 64), fast._spec_name(SPECS[name]))
    torch.library.opcheck(ops.states, operands, test_utils=checks)
    room = (k.codes, k.scale.stored, k.scale.zero)
    operands = (torch.randn(1, 2, 3, 64), *room, torch.tensor(5), fast._spec_name(SPECS[name]))
    torch.library.opcheck(ops.put_states, operands, test_utils=checks)
