"""What the zoo's few-step, video and class models learn from: paths of a teacher, clips, classes."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from minifloat.models.pipeline import open_pipeline, sample
from minifloat.models.prompts import read_prompts
from zoo import clips, dit_video, emoji, noising, unet_class, unet_text_1step
from zoo.captioned import TEXT
from zoo.emoji import GROUPS, Emoji
from zoo.noising import Data

ZOO = Path(__file__).resolve().parents[2] / "zoo"


# --- paths --------------------------------------------------------------------------------------


def test_a_path_ends_where_the_teacher_draws() -> None:
    asked = read_prompts(ZOO / "unet-text" / "heldout.safetensors").rows(0, 2)
    drawn = sample(
        open_pipeline(str(ZOO / "unet-text")), asked, seed=0, steps=10, guidance=2.0, batch=2
    )
    noise = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    words = {TEXT: asked.values["prompt_embeds"].half()}
    path = unet_text_1step.walk(unet_text_1step.build(), words, torch.cat(noise)).float()
    assert path.shape == (2, 11, 3, 32, 32)
    assert (path[:, 0] - torch.cat(noise)).abs().max() < 2e-3  # halves of what is below 4
    apart = ((path[:, -1] / 2 + 0.5).clamp(0, 1) - drawn).square().mean().sqrt()
    assert apart < 0.01  # the path is walked in bf16
    assert drawn.std() > 0.1


def test_from_every_point_the_velocity_leads_to_the_end_of_the_path() -> None:
    torch.manual_seed(0)
    data = Data(torch.randn(64, 11, 3, 4, 4).half(), {TEXT: torch.zeros(64, 2, 4).half()})
    batch = unet_text_1step.on_path(data, torch.Generator().manual_seed(0))
    assert set(batch.times.tolist()) == set(range(99, 1000, 100))
    places = (999 - batch.times) // 100
    assert torch.equal(batch.noisy, data.images[torch.arange(64), places].float())
    kept = noising.scheduler().alphas_cumprod[batch.times][:, None, None, None]
    end = kept.sqrt() * batch.noisy - (1 - kept).sqrt() * batch.velocity
    torch.testing.assert_close(end, data.images[:, -1].float(), atol=1e-5, rtol=1e-5)


# --- clips --------------------------------------------------------------------------------------


def animation(count: int) -> bytes:
    """A square that grows darker from frame to frame."""
    shades = [Image.new("RGBA", (64, 64), (255 - 8 * i,) * 3 + (255,)) for i in range(count)]
    file = io.BytesIO()
    shades[0].save(file, "WEBP", save_all=True, append_images=shades[1:], lossless=True)
    return file.getvalue()


def test_a_clip_is_eight_frames_of_the_whole_animation() -> None:
    found = clips.frames(animation(24))
    assert found is not None and found.shape == (3, 8, 32, 32)
    assert found[0, :, 16, 16].tolist() == [255 - 24 * i for i in range(8)]
    assert clips.frames(animation(15)) is None


def test_a_new_video_model_draws_every_frame_by_its_spatial_blocks_alone(tmp_path: Path) -> None:
    dit_video.pruned().save_pretrained(tmp_path)
    model = dit_video.build(tmp_path).eval()
    assert model.temp_pos_embed.abs().max() > 0.9
    model.temp_pos_embed.zero_()  # so that nothing but the temporal blocks tells frames apart
    noise, words = torch.randn(1, 3, 8, 32, 32), torch.randn(1, 4, 576)
    asked = {"timestep": torch.tensor([500]), "encoder_hidden_states": words}
    with torch.inference_mode():
        together = model(noise, **asked).sample
        alone = model(noise[:, :, 3:4], **asked, enable_temporal_attentions=False).sample
    torch.testing.assert_close(together[:, :3, 3:4], alone[:, :3])
    assert (together[:, 3:] == 0).all()
    assert together[:, :3].std() > 0.3


# --- classes ------------------------------------------------------------------------------------


def test_a_class_is_a_group_and_a_style() -> None:
    places = {
        unet_class.label(Emoji("", "", style, group, ""))
        for group in range(len(GROUPS))
        for style in (emoji.FLAT, emoji.SOLID)
    }
    assert places == set(range(len(unet_class.CLASSES)))
    cat = Emoji("cat face", "", emoji.SOLID, list(GROUPS).index("animal"), "")
    assert unet_class.CLASSES[unet_class.label(cat)] == "animal, 3d"
