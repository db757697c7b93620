"""Models that come block by block give the same bytes as models that are held whole."""

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from minifloat.errors import UserError
from minifloat.jobs import images, text
from minifloat.jobs.job import Job
from minifloat.jobs.memory import Estimate, bytes_of, estimate
from minifloat.jobs.run import run
from minifloat.memory import give_back, resident
from minifloat.methods import build
from minifloat.models.families import adapter_for
from minifloat.models.lazy import load_lazily
from minifloat.models.lazy_denoiser import load_denoiser_lazily, open_lazily
from minifloat.models.load import load_model
from tests.jobs.tiny_folders import dit, unet
from tests.models import tiny_diffusion

MODEL = Path(__file__).parents[2] / "zoo" / "llama-tiny"


def quantized(out: Path) -> dict[str, Any]:
    settings = (("solver", "nearest"),)
    job = Job(str(MODEL), out, settings=settings, samples=2, length=64, evaluate=256)
    return run(job, say=lambda line: None)


def test_block_by_block_gives_the_same_bytes_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantized(tmp_path / "whole")
    # No real limit is low enough for a model of 8 MB.
    monkeypatch.setattr(text, "_is_too_large", lambda job: True)
    lazy = quantized(tmp_path / "lazy")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "lazy"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole["ledger"] == lazy["ledger"]
    assert whole["plan"] == lazy["plan"]
    # One was judged with decoded weights, the other packed: sums in another order, and a dynamic
    # activation that rounds the other way moves what follows.
    for before, after in zip(whole["metrics"], lazy["metrics"], strict=True):
        assert before["quantized"] == pytest.approx(after["quantized"], rel=0.05)


@torch.inference_mode()
def test_blocks_come_and_go() -> None:
    model, _, lazy = load_lazily(str(MODEL))
    tokens = torch.arange(3, 40)[None]
    with lazy.coming_and_going() as running:
        found = running(tokens).logits
    assert torch.equal(found, load_model(str(MODEL))[0](tokens).logits)
    inside = [p for name, p in model.named_parameters() if ".layers." in name]
    assert inside and all(p.is_meta for p in inside)
    assert lazy.bytes_outside() + 4 * lazy.bytes_of("model.layers.0") == 8_000_000


def test_weights_of_other_names_are_refused(tmp_path: Path) -> None:
    for path in MODEL.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(MODEL / "model.safetensors")
    tensors["model.norm.gain"] = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        load_lazily(str(tmp_path))


def test_too_low_a_limit_is_answered_with_the_parts() -> None:
    parts = Estimate(start=1 << 30, block=1 << 30, work=0, hessians=1 << 30, inside=0)
    assert parts.activations(8 << 30) > 4 << 30
    with pytest.raises(UserError, match=r"about 3\.\d+ GiB are needed .*Hessians 1\.00 GiB"):
        parts.activations(2 << 30)


@pytest.mark.parametrize(
    ("words", "size"),
    [("8GB", 8e9), ("1.5 GiB", 1.5 * 2**30), ("500m", 5e8), ("1024", 1024)],
)
def test_sizes_in_words(words: str, size: float) -> None:
    assert bytes_of(words) == size


@pytest.mark.parametrize("words", ["", "GB", "8XB", "1.2.3GB"])
def test_what_is_no_size(words: str) -> None:
    with pytest.raises(UserError, match="a size such as 8GB"):
        bytes_of(words)


def test_a_pipeline_block_by_block_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that see concatenations are split, and read their columns of the stored weight."""
    source = unet(tmp_path / "pipeline")
    settings = (("solver", "nearest"), ("search", "false"), ("group_size", "16"))
    quick: dict[str, Any] = {"samples": 2, "steps": 2, "evaluate": 4, "settings": settings}
    quick["method"] = "zeroquant-fp"
    monkeypatch.setattr(images, "PROMPTS", 4)
    whole = run(Job(str(source), tmp_path / "whole", **quick), say=lambda line: None)
    said: list[str] = []
    job = Job(str(source), tmp_path / "lazy", memory=6 << 30, **quick)
    monkeypatch.setattr(images, "stored_bytes", lambda folder: 6 << 30)
    lazy = run(job, say=said.append)
    assert said[0].startswith("block by block")
    file = Path("unet") / "diffusion_pytorch_model.safetensors"
    a, b = (load_file(tmp_path / name / file) for name in ("whole", "lazy"))
    assert a.keys() == b.keys()
    assert any(name.endswith(".parts.1.weight") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)
    # Weights lie at other addresses, where products sum in another order.
    for one, two in zip(whole["ledger"], lazy["ledger"], strict=True):
        assert one.pop("output_sqnr", 0) == pytest.approx(two.pop("output_sqnr", 0), rel=1e-2)
        assert one == two
    for before, after in zip(whole["metrics"], lazy["metrics"], strict=True):
        assert before["quantized"] == pytest.approx(after["quantized"], rel=0.05)


@torch.no_grad()
def test_a_transformer_without_its_blocks_computes_the_same(tmp_path: Path) -> None:
    name = "FluxTransformer2DModel"
    whole: Any = tiny_diffusion.build(name)
    whole.save_pretrained(tmp_path)
    network, _, lazy = load_denoiser_lazily(tmp_path, FluxTransformer2DModel)
    assert any(p.is_meta for p in network.parameters())
    with lazy.coming_and_going():
        found = tiny_diffusion.runner(name, network)()
    torch.testing.assert_close(found, tiny_diffusion.runner(name, whole)(), rtol=1e-9, atol=1e-9)


def test_a_network_that_needs_its_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run without --memory"):
        open_lazily(str(dit(tmp_path / "pipeline")))


def test_hessians_that_nobody_inverts_need_less() -> None:
    model, _, lazy = load_lazily(str(MODEL))
    adapter = adapter_for(model)
    more, less = (estimate(model, adapter, lazy, 64, (), inverts) for inverts in (True, False))
    feed = model.config.intermediate_size
    assert more.hessians - less.hessians == 3 * 4 * feed**2
    assert build("fp-diffusion", {}).inverts
    assert not build("fp-diffusion", {"start": "nearest"}).inverts
    assert not build("zeroquant-fp", {"solver": "nearest"}).inverts


def test_freed_memory_goes_back_to_the_system() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("only glibc can be asked to")
    pieces = [bytearray(os.urandom(1 << 16)) for _ in range(2000)]  # 128 MB, no piece mapped alone
    wall, before = pieces.pop(), resident()
    del pieces
    give_back()
    assert resident() < before - 100e6, len(wall)
