"""U-Nets through the walk: split layers, packed convolutions, diffusers' own classes."""

import copy
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from minifloat import formats
from minifloat.calibrate.trajectories import record
from minifloat.errors import UserError
from minifloat.export.native import save, whole_or_nothing
from minifloat.layers import QConv2d
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.seam import fold_order
from minifloat.models.split import SplitLayer, split_layer
from minifloat.models.unet import UNetAdapter
from minifloat.plan import Plan
from minifloat.qtensor import decode, encode, fake_quantize
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec
from minifloat.substitute import packed_like
from minifloat.tiles import as_matrix


def tiny() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
    ).eval()
    return model


def batches() -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([t, 900 - t]))
        for t in (10, 300, 600)
    ]


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(12, 5), nn.Conv2d(12, 5, 3, padding=1, stride=2), nn.Conv2d(12, 5, 1, bias=False)],
    ids=str,
)
def test_a_split_layer_is_the_same_function(layer: Any) -> None:
    x = torch.randn(2, 7, 12) if isinstance(layer, nn.Linear) else torch.randn(2, 12, 6, 6)
    split = split_layer(layer, [4, 8])
    assert len(list(split.parts)) == 2
    torch.testing.assert_close(split(x), layer(x))


def test_spans_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="12 channels"):
        split_layer(nn.Linear(12, 5), [4, 4])
    with pytest.raises(UserError, match="GroupNorm"):
        split_layer(nn.GroupNorm(2, 4), [2, 2])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("tile", [(-1, -1), (1, -1), (1, 20)], ids=str)
@pytest.mark.parametrize("static", [False, True])
def test_a_packed_convolution_is_a_fake_quantized_one(
    stride: int, tile: tuple[int, int], static: bool
) -> None:
    conv = nn.Conv2d(7, 9, 3, padding=1, stride=stride)
    weight = QuantSpec(formats.E2M1, tile, formats.FP16)
    act = QuantSpec(formats.E4M3, (-1, -1) if static else (1, -1), dynamic=not static)
    scale = Scale(torch.full((1, 1), 0.01)) if static else None
    q = encode(as_matrix(conv.weight.detach()), weight)
    layer = packed_like(conv, LayerSpec(weight, act))
    layer.fill(q, bias=conv.bias, input_scale=scale)
    x = torch.randn(2, 7, 11, 13)
    with torch.no_grad():
        seen = fake_quantize(x.movedim(1, -1), act, scale).movedim(-1, 1)
        conv.weight.copy_(decode(q).reshape(conv.weight.shape))
        torch.testing.assert_close(layer(x), conv(seen))


def test_diffusers_unet_is_walked_quantized_and_counted() -> None:
    model = tiny()
    before = {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        expected = model(*batches()[0]).sample
    settings = {"weight_bits": "8", "rounding": "nearest"}
    report = quantize(model, build("fp-diffusion", settings), batches(), adapter=UNetAdapter())
    with torch.no_grad():
        error = float((model(*batches()[0]).sample - expected).norm() / expected.norm())
    assert 0 < error < 0.05
    assert {row["name"] for row in report["ledger"]} == before
    assert any(isinstance(module, QConv2d) for module in model.modules())
    plan = Plan.from_json(report["plan"])
    for name, module in model.named_modules():
        if isinstance(module, QConv2d):
            assert plan.spec_of(name) == module.spec


def test_fp8_is_better_than_int8_and_learned_fp4_than_nearest() -> None:
    with torch.no_grad():
        expected = tiny()(*batches()[0]).sample
    errors = {}
    for name, settings in {
        "fp8": {"weight_bits": "8", "rounding": "nearest"},
        "int8": {"weight_bits": "8", "rounding": "nearest", "family": "int"},
        "fp4": {"rounding": "nearest"},
        "learned fp4": {"rounding": "learned", "steps": "60"},
        "gptq fp4": {"rounding": "gptq", "group_size": "32"},
    }.items():
        model = tiny()
        quantize(model, build("fp-diffusion", settings), batches(), adapter=UNetAdapter())
        with torch.no_grad():
            errors[name] = float((model(*batches()[0]).sample - expected).norm())
    assert errors["fp8"] < errors["int8"]
    assert errors["learned fp4"] < errors["fp4"]
    assert errors["gptq fp4"] < errors["fp4"]


def test_split_skips_get_scales_of_their_own() -> None:
    model = tiny()
    adapter = UNetAdapter(splits={"up_blocks.0.resnets.0.conv1": [32, 32]})
    with torch.no_grad():
        before = model(*batches()[0]).sample
        adapter.split(model)
        torch.testing.assert_close(model(*batches()[0]).sample, before, rtol=1e-4, atol=1e-4)
    plan = copy.deepcopy(build("fp-diffusion", {"weight_bits": "8", "rounding": "nearest"}))
    quantize(model, plan, batches(), adapter=adapter)
    split = model.get_submodule("up_blocks.0.resnets.0.conv1")
    assert isinstance(split, SplitLayer)
    scales = [float(part.get_buffer("input_scale")) for part in split.parts]
    assert scales[0] != scales[1]


def conditional() -> nn.Module:
    """A U-Net of Stable Diffusion's kinds of blocks, very small."""
    torch.manual_seed(0)
    model: nn.Module = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=8,
    ).eval()
    return model


def prompts() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "sample": torch.randn(2, 4, 8, 8, generator=generator),
            "timestep": torch.tensor([t, 900 - t]),
            "encoder_hidden_states": torch.randn(2, 5, 24, generator=generator),
        }
        for t in (20, 500)
    ]


@pytest.mark.parametrize("make", [tiny, conditional])
def test_skips_are_found_as_the_model_concatenates_them(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    seen: list[list[int]] = []
    cat = torch.cat

    def record_sizes(tensors: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if tensors[0].ndim == 4:
            seen.append([part.shape[1] for part in tensors])
        return cat(tensors, *args, **kwargs)

    monkeypatch.setattr(torch, "cat", record_sizes)
    batch = prompts()[0] if make is conditional else batches()[0]
    with torch.no_grad():
        UNetAdapter().run(model, batch)
    splits = UNetAdapter.of(model).splits
    assert [sizes for name, sizes in splits.items() if name.endswith("conv1")] == seen
    assert any(name.endswith("conv_shortcut") for name in splits)


def test_a_text_conditioned_unet_is_split_walked_and_quantized() -> None:
    model = conditional()
    with torch.no_grad():
        expected = model(**prompts()[0]).sample
    adapter = UNetAdapter.of(model)
    adapter.split(model)
    method = build("fp-diffusion", {"weight_bits": "8", "rounding": "gptq"})
    report = quantize(model, method, prompts(), adapter=adapter)
    with torch.no_grad():
        error = float((model(**prompts()[0]).sample - expected).norm() / expected.norm())
    assert 0 < error < 0.05
    kept = [row["name"] for row in report["ledger"] if row["status"] == "kept"]
    assert not any("attn2" in name and name.endswith("weight") for name in kept)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_saved_folder_loads_through_diffusers_and_gives_the_same_output(
    tmp_path: Any, dtype: torch.dtype | None
) -> None:
    model = conditional()
    adapter = UNetAdapter.of(model)
    adapter.split(model)
    method = build("fp-diffusion", {"rounding": "nearest", "group_size": "16"})
    report = quantize(model, method, prompts(), adapter=adapter)
    with whole_or_nothing(tmp_path / "unet") as folder:
        size = save(model, Plan.from_json(report["plan"]), folder)
        (folder / "report.json").write_text("{}")
    assert size == pytest.approx(report["size"]["theory"], rel=0.02)
    loaded = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=dtype)
    for (name, one), two in zip(
        model.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        if dtype is None or "scale" in name or one.dtype == torch.uint8:
            assert torch.equal(one, two), name
    if dtype is None:
        with torch.no_grad():
            assert torch.equal(model(**prompts()[0]).sample, loaded(**prompts()[0]).sample)


def test_a_pipeline_loads_a_quantized_component(tmp_path: Any) -> None:
    model = tiny()
    pipeline = diffusers.DDIMPipeline(model, diffusers.DDIMScheduler())
    pipeline.save_pretrained(tmp_path)
    report = quantize(
        model, build("fp-diffusion", {"rounding": "nearest"}), batches(), adapter=UNetAdapter()
    )
    for path in (tmp_path / "unet").iterdir():
        path.unlink()
    save(model, Plan.from_json(report["plan"]), tmp_path / "unet")
    loaded = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    images = []
    for each in (pipeline, loaded):
        each.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(each(generator=generator, num_inference_steps=3, output_type="np").images)
    assert (images[0] == images[1]).all()


def test_a_model_without_known_blocks_is_told_what_to_do() -> None:
    with pytest.raises(UserError, match="UNetAdapter"):
        UNetAdapter().blocks(nn.Sequential(nn.Linear(2, 2)))


def test_a_samplers_trajectory_is_recorded_by_name_and_thinned_over_all_times() -> None:
    model = tiny()
    pipeline = diffusers.DDIMPipeline(model, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)

    def draw() -> None:
        for _ in range(2):
            pipeline(batch_size=1, num_inference_steps=6, generator=generator, output_type="np")

    calls = record(model, draw)
    assert len(calls) == 12
    times = [int(call["timestep"]) for call in calls]
    assert times[:6] == times[6:] == sorted(times[:6], reverse=True)
    assert not torch.equal(calls[0]["sample"], calls[1]["sample"])
    adapter = UNetAdapter()
    adapter.run(model, calls[0])
    half = [int(call["timestep"]) for call in record(model, draw, limit=6)]
    assert len(half) == 6
    assert len(set(half)) >= 3


def test_seams_pass_layers_that_were_split() -> None:
    """The convolution that sees a skip is two by then, and both write the channels that are ordered."""
    model = tiny()
    adapter = UNetAdapter.of(model)
    with torch.no_grad():
        before = model(*batches()[0])[0]
        adapter.split(model)
        seams = [seam for seam in adapter.seams(model) if seam.kind == "conv"]
        assert any("parts.1" in slot.name for seam in seams for slot in seam.producers)
        for seam in seams:
            order = torch.arange(seam.width).reshape(-1, seam.cell).flip(1).flatten()
            fold_order(model, seam, order)
        torch.testing.assert_close(model(*batches()[0])[0], before)
