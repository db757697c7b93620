"""The committed models of classes and of clips draw what they are asked for, and the video model's two
stages go on after a kill. Nothing here needs a network."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from minifloat.models.pipeline import open_pipeline, sample
from minifloat.models.prompts import Prompts, read_prompts
from zoo import captioned, clips, dit_video, judge, prompts
from zoo.captioned import TEXT
from zoo.judge import STYLES, Labels
from zoo.noising import Data
from zoo.unet_class import CLASS, CLASSES
from zoo.video_card import framed, motion

ZOO = Path(__file__).resolve().parents[2] / "zoo"


def test_a_picture_of_a_class_is_taken_for_it() -> None:
    asked = torch.arange(len(CLASSES)).repeat_interleave(2)
    request = Prompts([CLASSES[i] for i in asked], {CLASS: asked.tolist()})
    pipe = open_pipeline(str(ZOO / "unet-class"))
    drawn = sample(pipe, request, seed=0, steps=8, guidance=1.0, batch=len(asked))
    said = Labels(asked // len(STYLES), asked % len(STYLES))
    pictures = (255 * drawn).round().byte()
    found = judge.score(judge.load(), pictures, said)
    others = judge.score(judge.load(), pictures, Labels(*(own.roll(8) for own in said)))
    assert found.group > 0.6
    assert others.group < 0.3
    assert found.style > 0.8


def test_frames_of_a_clip_belong_together() -> None:
    asked = read_prompts(ZOO / "dit-video" / "heldout.safetensors").spread(6)
    pipe = open_pipeline(str(ZOO / "dit-video"))
    drawn = sample(pipe, asked, seed=0, steps=5, guidance=2.0, batch=6)
    frames = framed((255 * drawn).round().byte())
    assert frames.shape == (6, clips.FRAMES, 3, 32, 32)
    neighbours, apart = motion(frames)
    assert 2 < neighbours < apart / 2


def test_the_video_model_goes_on_in_the_stage_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)

    def made_up(*shape: int) -> tuple[Data, Data]:
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        words = torch.randn(shape[0], 3, prompts.WIDTH, generator=generator).half()
        data = Data(images, {TEXT: words})
        return data, data.rows(slice(2))

    pictures, moving = made_up(8, 3, 32, 32), made_up(4, 3, clips.FRAMES, 32, 32)
    monkeypatch.setattr(captioned, "load", lambda options, masked: pictures)
    short: Any = {"batch": 4, "validate_every": 100}
    monkeypatch.setattr(dit_video, "PICTURES", replace(dit_video.PICTURES, **short))
    monkeypatch.setattr(dit_video, "CPU", replace(dit_video.CPU, **short))

    def options(out: Path, resume: bool = False) -> argparse.Namespace:
        return argparse.Namespace(out=out, steps=2, resume=resume, device="cpu")

    def killed(options: argparse.Namespace) -> tuple[Data, Data]:
        raise KeyboardInterrupt

    monkeypatch.setattr(dit_video, "load", killed)
    with pytest.raises(KeyboardInterrupt):
        dit_video.train(options(tmp_path / "a"))
    monkeypatch.setattr(dit_video, "load", lambda options: moving)
    dit_video.train(options(tmp_path / "a", resume=True))
    dit_video.train(options(tmp_path / "b"))
    file = Path("pipeline") / "transformer" / "diffusion_pytorch_model.safetensors"
    a, b = ((tmp_path / name / file).read_bytes() for name in "ab")
    assert a == b
