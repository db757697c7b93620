"""Measures of images on cases whose answer is known."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.evaluate.bootstrap import bootstrap, of_mean
from minifloat.evaluate.eyes import Eyes, Seen
from minifloat.evaluate.frechet import frechet, spatial
from minifloat.evaluate.images import compare_images, compare_match, compare_seen
from minifloat.evaluate.manifold import precision_recall
from minifloat.evaluate.perceptual import perceptual
from minifloat.evaluate.steps import follow


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    found = [of_mean(noise(40, seed=seed)) for seed in range(200)]
    assert 0.88 < sum(one.low <= 0 <= one.high for one in found) / 200 < 0.99
    width = sum(one.high - one.low for one in found) / 200
    assert width == pytest.approx(2 * 1.96 / math.sqrt(40), rel=0.05)
    assert bootstrap(lambda rows: float(len(rows)), 7) == (7, 7, 7)


def test_precision_falls_with_strangers_and_recall_with_what_is_missing() -> None:
    two = noise(200, 4)
    two[:100] += 20  # two clouds
    assert precision_recall(two, two) == (1, 1)
    one = precision_recall(noise(200, 4, seed=1), two)
    assert one.precision > 0.85
    assert one.recall == pytest.approx(0.5, abs=0.08)
    strange = precision_recall(torch.cat([two[:150], noise(50, 4, seed=2) - 50]), two)
    assert strange.precision == pytest.approx(0.75, abs=0.02)


def test_pixels_in_other_places_are_seen_by_the_spatial_distance_alone() -> None:
    maps = noise(400, 3, 4) + torch.tensor([0.0, 1, 2, 3])
    torn = maps[:, :, torch.tensor([3, 2, 1, 0])]
    pooled = frechet(torn.mean(2), maps.mean(2))
    assert pooled == pytest.approx(0, abs=1e-6)
    assert frechet(spatial(torn), spatial(maps)) > 10


def test_the_perceptual_distance_by_hand() -> None:
    east, north = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [3.0]]])
    assert perceptual([east], [5 * east]).item() == 0  # directions of channels alone
    assert perceptual([east], [north]).item() == pytest.approx(2)
    assert perceptual([east, east], [north, east]).item() == pytest.approx(1)


def test_rows_of_a_better_and_a_worse_model() -> None:
    def seen(images: Tensor) -> Seen:
        flat = images.flatten(1)[:, :8]
        return Seen(flat, [images.flatten(2)])

    references = noise(64, 3, 12, 12).mul(0.1).add(0.5)
    real = seen(noise(100, 3, 12, 12, seed=5).mul(0.1).add(0.5))
    tables = []
    for error in (0.01, 0.3):
        images = (references + error * noise(64, 3, 12, 12, seed=1)).clamp(0, 1)
        rows = compare_images(references, images)[:1]
        rows += compare_seen(seen(images), seen(references), real)
        tables.append({row["name"]: row for row in rows})
    good, bad = tables
    for name in ("perceptual distance", "Frechet distance to full precision", "its change"):
        assert good[name]["quantized"] < bad[name]["quantized"]
    assert good["precision to full precision"]["quantized"] == 1
    assert bad["precision to real pictures"]["quantized"] < 0.5
    low, high = bad["its change"]["quantized_interval"]
    assert 0 < low < high
    few = compare_seen(seen(references[:12]), seen(references[:12]))
    assert not any("Frechet" in row["name"] for row in few)  # 12 images, 8 features


def test_the_change_of_a_match_is_taken_in_pairs() -> None:
    before = noise(50)
    match, change = compare_match(before, before - 0.01)
    assert match["full_precision"] == pytest.approx(float(before.mean()))
    assert change["quantized_interval"] == pytest.approx([-0.01, -0.01])


class Half(nn.Module):
    """A denoiser of one argument beside its time."""

    def forward(self, sample: Tensor, timestep: float) -> tuple[Tensor]:
        return (sample / 2,)


def test_the_error_by_step_is_of_the_same_questions() -> None:
    network = Half()

    def sampler() -> Tensor:
        x = noise(2, 3)
        for time in (30.0, 20.0, 10.0):
            x = network(x, time)[0]
        return x

    made, trajectory = follow(network, sampler)
    assert torch.equal(made, sampler())

    class Worse(Half):
        def forward(self, sample: Tensor, timestep: float) -> tuple[Tensor]:
            return (sample / 2 * (1 + 1 / timestep),)

    expected = [("t = 30", 20 * math.log10(30)), ("t = 20", 20 * math.log10(20)), ("t = 10", 20.0)]
    for (time, found), (label, value) in zip(trajectory.sqnr(Worse()), expected, strict=True):
        assert time == label
        assert found == pytest.approx(value, abs=1e-3)
    assert all(math.isinf(value) for _, value in trajectory.sqnr(network))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP of random weights."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "zoo" / "llama-tiny")
    tokenizer.pad_token = tokenizer.eos_token
    text = small | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = small | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side).save_pretrained(folder)
    return folder


def test_a_vision_model_looks_and_reads(clip: Path) -> None:
    eyes, images = Eyes(str(clip)), torch.rand(5, 3, 32, 32)
    seen, again = eyes.see(images, batch=2), eyes.see(images)
    assert seen.features.shape == (5, 16)
    assert [one.shape for one in seen.maps] == [(5, 16, 5)] * 2  # 4 patches and the class token
    assert torch.allclose(seen.features, again.features, atol=1e-5)
    captions = ["a cat", "two dogs on a hill", "red", "the moon", "a cat"]
    match = eyes.match(images, captions)
    assert match is not None
    swapped = eyes.match(images.flip(0), captions[::-1])
    assert swapped is not None
    assert torch.allclose(match, swapped.flip(0), atol=1e-5)
    assert (match.abs() <= 1).all()


def test_the_tower_of_a_vision_language_model_serves_and_has_no_words() -> None:
    eyes = Eyes("zoo:vlm")
    assert eyes.see(torch.rand(2, 3, 32, 32)).features.shape == (2, 128)
    assert eyes.match(torch.rand(1, 3, 32, 32), ["a cat"]) is None


def test_what_is_no_vision_model_is_refused() -> None:
    with pytest.raises(UserError, match="is no vision model of transformers"):
        Eyes("zoo:llama-tiny")
