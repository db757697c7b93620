"""Laws of quantized tensors, scales, packing and plans, over every preset and odd shapes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minifloat import formats, scales
from minifloat.errors import UserError
from minifloat.packing import pack, packed_width, unpack
from minifloat.plan import Plan
from minifloat.qtensor import decode, encode, fake_quantize
from minifloat.rounding import decode as decode_codes
from minifloat.scales import amax_range, choose_format, fit, percentile_range, search_scale
from minifloat.spec import QOQ_G128, SPECS, LayerSpec, QuantSpec

M1 = QuantSpec(formats.E2M1, (1, 128), formats.E8M0, "up")
M2 = QuantSpec(formats.E2M1, (1, 128), QuantSpec(formats.POW4, (1, -1)), "up")
ASYMMETRIC = QuantSpec(formats.UINT4, (1, 32), formats.FP16, zero_point=True)
QOQ = QuantSpec(formats.INT4, (1, 64), QuantSpec(formats.UINT8, (1, -1), formats.FP16))
ALL = {**SPECS, "m1": M1, "m2": M2, "asymmetric": ASYMMETRIC, "qoq-like": QOQ}
SHAPES = [(1, 1), (7, 33), (3, 129), (65, 300), (130, 257)]


def weight(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(shape[0], 1, generator=generator)
    return torch.randn(shape, generator=generator) * rows


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ALL)
def test_fake_quantize_is_decode_of_encode(name: str, shape: tuple[int, int]) -> None:
    w = weight(shape)
    one, two = decode(encode(w, ALL[name])), fake_quantize(w, ALL[name])
    assert torch.equal(one.view(torch.int32), two.view(torch.int32))


@pytest.mark.parametrize("name", ALL)
def test_zero_rows_and_groups_stay_zero_and_scales_positive(name: str) -> None:
    w = weight((8, 300))
    w[3], w[5, :128] = 0, 0
    q = encode(w, ALL[name])
    assert (q.scale.values(q.spec) > 0).all()
    assert torch.isfinite(q.scale.values(q.spec)).all()
    assert (decode(q)[3] == 0).all()
    assert (decode(q)[5, :128] == 0).all()
    assert (decode(encode(torch.zeros(4, 40), ALL[name])) == 0).all()


def extremes(peak: float) -> torch.Tensor:
    """Rows of four groups of 8: every range within ±peak to a quarter, beside one of all ±peak."""
    steps = torch.arange(0, peak + 1e-6, 0.25)
    low, high = torch.meshgrid(-steps, steps, indexing="ij")
    rows = torch.zeros(low.numel(), 16)
    rows[:, 0], rows[:, 1], rows[:, 8], rows[:, 9] = low.flatten(), high.flatten(), peak, -peak
    return rows


@pytest.mark.parametrize(
    "fmt", [formats.UINT2, formats.UINT3, formats.UINT4, formats.UINT6], ids=str
)
def test_every_code_of_integer_scales_is_an_int8(fmt: formats.Format, monkeypatch: Any) -> None:
    """Codes that no weight has now too, for GPTQ may choose them; QoQ's own range of 119 is too wide
    for that."""
    spec = replace(QOQ_G128, format=fmt, tile=(1, 8))

    def reach() -> tuple[float, float]:
        scale = encode(extremes(scales.protected_range(fmt)), spec).scale
        assert scale.zero is not None
        s, z = scale.stored.float(), scale.zero.float()
        return float((-z * s).min()), float(((fmt.max - z) * s).max())

    low, high = reach()
    assert low >= -128
    assert high <= 127
    if fmt == formats.UINT4:
        assert scales.protected_range(fmt) == 111
        monkeypatch.setattr(scales, "protected_range", lambda fmt: 119)
        assert reach()[1] > 127


def test_integer_scales_cost_next_to_nothing() -> None:
    """QoQ's weights against the same with an FP16 scale a group; a row's largest weight is far out."""
    w = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    plain = QuantSpec(formats.UINT4, (1, 128), formats.FP16, zero_point=True)
    progressive, real = ((fake_quantize(w, s) - w).square().mean() for s in (QOQ_G128, plain))
    assert 0.98 < progressive / real < 1.03
    assert QOQ_G128.bits_per_value((64, 1024)) < plain.bits_per_value((64, 1024)) - 0.04


def test_integer_scales_of_wide_codes_are_refused() -> None:
    with pytest.raises(UserError, match="integer scales need codes of fewer bits than uint8"):
        encode(torch.randn(2, 128), replace(QOQ_G128, format=formats.UINT8))


@pytest.mark.parametrize("name", ALL)
def test_spec_round_trips_through_json(name: str) -> None:
    spec = ALL[name]
    assert QuantSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("name", ALL)
def test_bits_per_value_counts_what_is_stored(name: str) -> None:
    spec, shape = ALL[name], (130, 257)
    q = encode(weight(shape), spec)
    bits = q.codes.numel() * spec.format.bits + q.scale.stored.numel() * spec.scale_format.bits
    if q.scale.outer is not None and spec.outer is not None:
        bits += q.scale.outer.numel() * spec.outer.scale_format.bits
    if q.scale.zero is not None:
        bits += q.scale.zero.numel() * 8
    assert spec.bits_per_value(shape) == pytest.approx(bits / (130 * 257))


def test_nan_and_infinity_are_refused() -> None:
    for bad in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="NaN or Inf"):
            encode(torch.tensor([[1.0, bad]]), SPECS["mxfp4"])


def test_fake_quantize_passes_nan_on() -> None:
    assert fake_quantize(torch.tensor([[1.0, torch.nan]]), SPECS["fp8-token"]).isnan().any()


def test_straight_through_gradient_is_one_inside() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    fake_quantize(x, SPECS["fp8-token"]).sum().backward()
    assert x.grad is not None
    # The largest element may round beyond max by one ulp of the division; all others are inside.
    assert (x.grad == 1).float().mean() > 0.9


def test_gradient_passes_a_zero_point() -> None:
    spec = QuantSpec(formats.UINT4, (1, 16), formats.FP16, zero_point=True)
    x = torch.randn(4, 32, requires_grad=True)
    y = fake_quantize(x, spec)
    y.sum().backward()
    assert torch.equal(y.detach(), fake_quantize(x.detach(), spec))
    assert x.grad is not None
    assert (x.grad == 1).float().mean() > 0.9


@pytest.mark.parametrize(
    "name", ["mxfp6", "nvfp4", "fp8-block", "int4-g128", "nf4-g64", "fp8-token"]
)
def test_pieces_do_not_change_the_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, spec = weight((37, 300), 5), SPECS[name]
    whole = encode(x, spec), fake_quantize(x, spec), search_scale(x, spec).stored
    for module in ("rounding", "tiles"):
        monkeypatch.setattr(f"minifloat.{module}.CHUNK", 700)
    assert torch.equal(encode(x, spec).codes, whole[0].codes)
    assert torch.equal(decode(whole[0]), whole[1])
    assert torch.equal(fake_quantize(x, spec), whole[1])
    assert torch.equal(search_scale(x, spec).stored, whole[2])


def error(w: torch.Tensor, spec: QuantSpec, scale: object = None) -> float:
    return float((fake_quantize(w, spec, scale) - w).square().sum())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "fp4-g128", "int4-g128", "m1", "m2", "nf4-g64"])
def test_searched_scales_are_never_worse_than_the_maximum(name: str) -> None:
    w = weight((16, 300), 3)
    assert error(w, ALL[name], search_scale(w, ALL[name])) <= error(w, ALL[name])


def test_nvfp4_search_takes_a_quarter_of_the_error_away() -> None:
    w = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    assert error(w, SPECS["nvfp4"], search_scale(w, SPECS["nvfp4"])) < 0.8 * error(
        w, SPECS["nvfp4"]
    )


def test_format_choice_follows_the_distribution() -> None:
    """Card diffusion 1d: Gaussian likes E2M1, uniform the integer grid, heavy tails more range."""
    generator = torch.Generator().manual_seed(0)
    spec = QuantSpec(formats.E2M1, (-1, -1))
    candidates = (formats.E1M2, formats.E2M1, formats.E3M0)
    normal = torch.randn(100, 1000, generator=generator)
    uniform = torch.rand(100, 1000, generator=generator) * 2 - 1
    assert choose_format(normal, spec, candidates)[0].format == formats.E2M1
    assert choose_format(uniform, spec, candidates)[0].format == formats.E1M2


def test_published_sqnr_of_four_bits_on_a_gaussian() -> None:
    """Card diffusion 1d, best clip of the 111-point grid: INT4 18.8 dB, E2M1 19.0, E3M0 14.2."""
    x = torch.randn(100, 1000, generator=torch.Generator().manual_seed(1))
    for fmt, expected in ((formats.E1M2, 18.8), (formats.E2M1, 19.0), (formats.E3M0, 14.2)):
        spec, scale = choose_format(x, QuantSpec(fmt, (-1, -1)), (fmt,))
        sqnr = 10 * torch.log10(x.square().sum() / error(x, spec, scale))
        assert float(sqnr) == pytest.approx(expected, abs=0.3)


def test_m1_is_a_power_of_two_that_never_clips() -> None:
    w = weight((16, 300))
    scale = encode(w, M1).scale.values(M1)
    assert torch.equal(scale.log2(), scale.log2().round())
    assert (scale * 6 >= amax_range(w, M1)).all()
    assert (scale * 3 <= amax_range(w, M1) * (1 + 1e-6)).all()


def test_m2_keeps_the_largest_group_and_shifts_the_rest() -> None:
    w = weight((16, 300))
    for rounding in ("up", "down"):
        spec = replace(M2, scale_rounding=rounding)
        clip = amax_range(w, spec)
        scale = fit(clip, spec)
        assert scale.outer is not None
        ratio = torch.log2(scale.values(spec) / scale.outer)
        assert torch.equal(ratio, ratio.round())
        assert (ratio <= 0).all()
        largest = scale.values(spec).amax(1) * 6
        assert torch.allclose(largest, clip.amax(1))
        clips = scale.values(spec) * 6 < clip * (1 - 1e-6)
        assert bool(clips.any()) == (rounding == "down")


def test_ocp_rule_is_the_floor_of_the_exponent() -> None:
    spec = SPECS["mxfp4"]
    for amax, expected in ((4.0, 1.0), (6.0, 1.0), (7.9, 1.0), (8.0, 2.0), (3.99, 0.5)):
        x = torch.full((1, 32), amax)
        assert float(encode(x, spec).scale.values(spec)) == expected


def test_percentile_is_a_rank() -> None:
    x = torch.arange(1.0, 101.0)[None]
    spec = QuantSpec(formats.INT8, (1, -1))
    assert float(percentile_range(x, spec, 99)) == 99
    assert float(percentile_range(x, spec, 100)) == 100
    with pytest.raises(UserError, match="percentile"):
        percentile_range(x, spec, 0)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 3, 7, 8, 9, 33, 576])
def test_packing_round_trips(bits: int, columns: int) -> None:
    codes = torch.randint(0, 2**bits, (5, columns), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (5, packed_width(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_packing_in_pieces_gives_the_same_bytes(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 2**bits, (37, 45), dtype=torch.uint8)
    whole = pack(codes, bits)
    monkeypatch.setattr("minifloat.packing._PIECE", 200)
    assert torch.equal(pack(codes, bits), whole)
    assert torch.equal(unpack(whole, bits, 45), codes)


def test_packing_order_is_little_endian() -> None:
    assert pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x03]]
    assert pack(torch.tensor([[63, 0, 0, 1]], dtype=torch.uint8), 6).tolist() == [[63, 0, 4]]
    with pytest.raises(UserError, match="takes 2 bytes"):
        unpack(torch.zeros(1, 5, dtype=torch.uint8), 4, 3)


def test_two_masks_and_two_shifts_turn_e2m1_into_e4m3() -> None:
    """Card llm 1b: sign << 7 | magnitude << 2 read as E4M3 is E2M1 * 2^-6, for all 16 codes."""
    codes = torch.arange(16, dtype=torch.uint8)
    cast = decode_codes((codes >> 3) << 7 | (codes & 7) << 2, formats.E4M3)
    assert torch.equal(cast, decode_codes(codes, formats.E2M1) / 64)


@pytest.mark.parametrize("shift", range(-10, 9))
def test_e2m1_shifts_are_exact_in_e4m3_over_fifteen_binades(shift: int) -> None:
    values = torch.tensor(formats.E2M1.values) * 2.0**shift
    exact = all(value in formats.E4M3.values for value in values.tolist())
    assert exact == (-8 <= shift <= 6)


NAMES = [f"model.layers.{i}.{part}" for i in range(3) for part in ("mlp.down_proj", "attn.q_proj")]


def test_first_rule_that_matches_decides() -> None:
    layer = LayerSpec(weight=SPECS["mxfp4"])
    plan = Plan((("*.0.*", None), ("*.down_proj", layer)))
    specs = plan.resolve(NAMES)
    assert specs["model.layers.0.mlp.down_proj"] is None
    assert specs["model.layers.1.mlp.down_proj"] == layer
    assert specs["model.layers.1.attn.q_proj"] is None
    text = json.dumps(plan.to_json())
    assert json.dumps(Plan.from_json(json.loads(text)).to_json()) == text


def test_plan_mistakes_are_named(tmp_path: Path) -> None:
    layer = LayerSpec(weight=SPECS["mxfp4"])
    with pytest.raises(UserError, match="matched no layer; did you mean 'down_proj'"):
        Plan((("*.down_prj", layer),)).resolve(NAMES)
    with pytest.raises(UserError, match="no plan file"):
        Plan.read(tmp_path / "none.json")
    for text, words in (
        ("{", "not JSON"),
        ("[]", "holds no plan"),
        ("{}", "no rules"),
        ('{"rulez": []}', "did you mean 'rules'"),
        ('{"rules": [["*"]]}', "a plan's rule is"),
        ('{"rules": [["*", {"wieght": "mxfp4"}]]}', "did you mean 'weight'"),
        ('{"rules": [["*", {"weight": "mxfp5"}]]}', "did you mean 'mxfp"),
        ('{"rules": [["*", {"weight": {"fromat": "e2m1"}}]]}', "did you mean 'format'"),
        ('{"rules": [["*", {"weight": {"format": "e2m9"}}]]}', "2 to 8 bits"),
        ('{"rules": [["*", {"weight": {"tile": [1, 1]}}]]}', "needs a format"),
    ):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(UserError, match=words):
            Plan.read(tmp_path / "plan.json")


def test_specs_refuse_what_makes_no_sense() -> None:
    with pytest.raises(UserError, match="power-of-two scales"):
        QuantSpec(formats.E2M1, scale=formats.FP16, scale_rounding="up")
    with pytest.raises(UserError, match="unsigned integer"):
        QuantSpec(formats.E2M1, zero_point=True)
    with pytest.raises(UserError, match="tile"):
        QuantSpec(formats.E2M1, (0, 1))
    with pytest.raises(UserError, match="two levels"):
        QuantSpec(formats.E2M1, scale=QuantSpec(formats.E4M3, scale=SPECS["fp8-tensor"]))
