"""The main job on pipelines of diffusers: command line to reloaded folder. Weights are random here:
these tests are about the way of the data, quality is judged on trained models elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file

from minifloat.evaluate.images import collapsed, compare_images, psnr, ssim
from minifloat.layers import weights_held
from minifloat.models.pipeline import open_pipeline, sample
from minifloat.models.prompts import Prompts, read_prompts
from tests.command_line import minifloat
from tests.jobs.tiny_folders import unet
from tests.zoo import tiny_makers
from zoo.noising import scheduler

UP, DOWN = ("CrossAttnUpBlock2D", "UpBlock2D"), ("DownBlock2D", "CrossAttnDownBlock2D")
QUICK = ("--samples", "2", "--steps", "2", "--evaluate", "4", "--set", "steps=2")


def embeddings(path: Path, seed: int, count: int = 20) -> None:
    torch.manual_seed(seed)
    tensors = {"prompt_embeds": torch.randn(count, 4, 16).half()}
    tensors["negative_prompt_embeds"] = torch.zeros(1, 4, 16).half()
    captions = [f"picture {seed} {i}" for i in range(count)]
    save_file(tensors, path, {"captions": json.dumps(captions)})


@pytest.fixture(scope="module")
def text_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image pipeline of pixels, without VAE and text encoder."""
    folder = tmp_path_factory.mktemp("pipelines") / "text"
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=DOWN,
        up_block_types=UP,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        layers_per_block=1,
    )
    empty = {"vae": None, "text_encoder": None, "tokenizer": None, "safety_checker": None}
    # What Stable Diffusion asks of its scheduler.
    scheduler = DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False)
    pipe = StableDiffusionPipeline(
        unet=unet,
        scheduler=scheduler,
        feature_extractor=None,
        requires_safety_checker=False,
        **empty,
    )
    pipe.save_pretrained(folder)
    embeddings(folder / "prompts.safetensors", 1)
    embeddings(folder / "heldout.safetensors", 2)
    return folder


def test_text_to_image_from_the_command_line_to_equal_images(
    text_pipeline: Path, tmp_path: Path
) -> None:
    out = tmp_path / "packed"
    assert minifloat("quantize", text_pipeline, "--out", out, *QUICK) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["method"] == "fp-diffusion"
    assert len(report["pictures"]) == 4
    assert report["pictures"][0]["caption"] == "picture 2 0"
    assert report["zeros"]["before"] == 0 < report["zeros"]["after"] < 0.5
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 4
    judged = read_prompts(text_pipeline / "heldout.safetensors").spread(4)
    opened = open_pipeline(str(out))
    with weights_held(opened.unet):  # as the job judges
        again = sample(opened, judged, seed=1 << 20, steps=2, guidance=None)
    other = sample(open_pipeline(str(text_pipeline)), judged, seed=1 << 20, steps=2, guidance=None)
    assert psnr(again, other).mean() == pytest.approx(report["metrics"][0]["quantized"])
    assert len(report["step_sqnr"]) == 2
    assert all(10 < value < 60 for _, value in report["step_sqnr"])
    pipe: Any = DiffusionPipeline.from_pretrained(out, vae=None, text_encoder=None, tokenizer=None)
    with weights_held(pipe.unet):
        assert torch.equal(sample(pipe, judged, seed=1 << 20, steps=2, guidance=None), again)


def test_a_sampler_of_one_step_takes_its_prompts_again(text_pipeline: Path, tmp_path: Path) -> None:
    """Six calls of four images at one step are 24 prompts, of which the folder has 20."""
    ask = ("--samples", "6", "--steps", "1", "--evaluate", "0", "--set", "rounding=nearest")
    assert minifloat("quantize", text_pipeline, "--out", tmp_path / "out", *ask) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["calibration prompts"] == 24


def test_pipelines_beside_each_other(text_pipeline: Path, tmp_path: Path) -> None:
    settings = ("--samples", "2", "--steps", "2", "--evaluate", "4", "--set", "rounding=nearest")
    for bits in ("8", "3"):
        out = tmp_path / bits
        ask = ("quantize", text_pipeline, "--out", out, *settings, "--set", f"weight_bits={bits}")
        assert minifloat(*ask) == 0
    (tmp_path / "real").mkdir()
    for i in range(6):
        Image.new("RGB", (9, 7), (40 * i, 0, 0)).save(tmp_path / "real" / f"{i}.png")
    where = ("--against", text_pipeline, "--out", tmp_path / "both", "--steps", "2")
    eyes = ("--features", "zoo:vlm", "--real", tmp_path / "real", "--images", "4")
    assert minifloat("evaluate", tmp_path / "8", tmp_path / "3", *where, *eyes) == 0
    report = json.loads((tmp_path / "both" / "compare.json").read_text())
    fine, coarse = report["models"]
    own = json.loads((tmp_path / "8" / "report.json").read_text())
    assert fine["metrics"][0] == own["metrics"][0]
    assert fine["step_sqnr"] == own["step_sqnr"]
    values = [{row["name"]: row["quantized"] for row in m["metrics"]} for m in (fine, coarse)]
    assert values[0]["PSNR to full precision, dB"] > values[1]["PSNR to full precision, dB"]
    assert values[0]["perceptual distance"] < values[1]["perceptual distance"]
    assert "precision to real pictures" in values[0]
    with Image.open(tmp_path / "both" / report["pictures"][0]["file"]) as strip:
        assert strip.size == (3 * 8, 8)
    page = (tmp_path / "both" / "compare.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert page.count('class="line') == 2


def test_only_pipelines_and_real_pictures_are_compared(
    text_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--against", text_pipeline, "--out", tmp_path / "out")
    assert minifloat("evaluate", tmp_path, *where) == 2
    assert "is no pipeline of diffusers" in capsys.readouterr().err
    eyes = ("--features", "zoo:vlm", "--real", tmp_path, "--images", "1", "--steps", "1")
    assert minifloat("evaluate", text_pipeline, *where, *eyes) == 2
    assert "holds no pictures" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert minifloat("evaluate", text_pipeline, *where, *eyes) == 2
    assert "cannot read the picture" in capsys.readouterr().err


def test_a_pipeline_without_words(tmp_path: Path) -> None:
    plain = unet(tmp_path / "plain")
    out = tmp_path / "packed"
    settings = ("--set", "weight_bits=8", "--set", "rounding=nearest")
    assert minifloat("quantize", plain, "--out", out, *QUICK, *settings) == 0
    assert (out / "unet" / "config.json").is_file()
    assert "## Other engines" in (out / "README.md").read_text()
    assert json.loads((out / "report.json").read_text())["pictures"][0]["file"].endswith(".png")


@pytest.mark.parametrize("kind", ["video", "class"])
def test_clips_and_classes(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    maker, source, out = tiny_makers.MAKERS[kind], tmp_path / "source", tmp_path / "packed"
    maker.pipeline(maker.build(), scheduler()).save_pretrained(source)
    if kind == "video":
        for name in ("prompts", "heldout"):
            embeddings(source / f"{name}.safetensors", 1)
    settings = ("--set", "weight_bits=8", "--set", "rounding=nearest", "--set", "group_size=8")
    assert minifloat("quantize", source, "--out", out, *QUICK, *settings) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["evaluated images"] == 4
    asked = tiny_makers.requests(opened := open_pipeline(str(out)), kind)
    found = sample(opened, asked, seed=0, steps=2, guidance=1.0)
    expected = sample(open_pipeline(str(source)), asked, seed=0, steps=2, guidance=1.0)
    assert found.shape == (2, 3, 32, 32 * tiny_makers.FRAMES if kind == "video" else 32)
    assert psnr(found, expected).min() > 20  # of random weights, whose pictures are noise
    assert not torch.equal(found, expected)


def test_prompts_are_taken_from_the_whole_file() -> None:
    words = [str(i) for i in range(11)]
    prompts = Prompts(words, {"prompt": words, "prompt_embeds": torch.arange(11)})
    some = prompts.spread(4)
    assert some.captions == some.values["prompt"] == ["0", "2", "5", "8"]
    assert some.values["prompt_embeds"].tolist() == [0, 2, 5, 8]
    assert len(prompts.spread(0)) == 0
    assert prompts.spread(20).captions == words
    assert prompts.rows(0, 3).cycled(5).values["prompt_embeds"].tolist() == [0, 1, 2, 0, 1]


def test_images_do_not_depend_on_their_batch(text_pipeline: Path) -> None:
    pipe = open_pipeline(str(text_pipeline))
    prompts = read_prompts(text_pipeline / "prompts.safetensors").rows(0, 3)
    three = sample(pipe, prompts, seed=7, steps=2, guidance=3.0, batch=3)
    one = sample(pipe, prompts.rows(2, 3), seed=9, steps=2, guidance=3.0)
    torch.testing.assert_close(one[0], three[2], atol=1e-5, rtol=0)


def test_mistakes_are_said(
    text_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a cat\na dog\n")
    assert minifloat("quantize", text_pipeline, "--data", words) == 2
    assert "2 prompts are too few" in capsys.readouterr().err
    words.write_text("a cat\n" * 40)
    assert minifloat("quantize", text_pipeline, "--data", words) == 2
    assert "no text encoder: give embeddings" in capsys.readouterr().err
    bad = tmp_path / "bad.safetensors"
    save_file({"prompt_embeds": torch.zeros(3, 2), "mask": torch.zeros(2)}, bad)
    assert minifloat("quantize", text_pipeline, "--data", bad) == 2
    assert "mask" in capsys.readouterr().err
    bad.write_bytes(b"no header")
    assert minifloat("quantize", text_pipeline, "--data", bad) == 2
    assert "cannot read the embeddings" in capsys.readouterr().err


def test_measures_of_images() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16)
    noisy = (images + 0.1 * torch.randn_like(images)).clamp(0, 1)
    assert torch.isinf(psnr(images, images)).all()
    assert torch.allclose(psnr(images * 0, images * 0 + 0.1), torch.tensor(20.0))
    assert (ssim(images, images) > 0.999).all()
    assert (ssim(noisy, images) < ssim(images, images)).all()
    rows = {row["name"]: row for row in compare_images(images, noisy)}
    low, high = rows["PSNR to full precision, dB"]["quantized_interval"]
    assert low < rows["PSNR to full precision, dB"]["quantized"] < high
    assert not collapsed(images, noisy)
    assert collapsed(images, images.roll(1, 0))
    assert collapsed(images, images * float("nan"))


def test_rows_of_prompts_go_together() -> None:
    prompts = Prompts(["a", "b", "c"], {"prompt": ["a", "b", "c"]})
    assert prompts.rows(1, 3) == Prompts(["b", "c"], {"prompt": ["b", "c"]})
