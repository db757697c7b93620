"""Images for people, as files."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from minifloat.pictures import write_strips


@pytest.mark.parametrize(
    ("height", "width", "size"), [(8, 8, (24, 8)), (8, 16, (48, 8)), (8, 64, (64, 24))]
)
def test_strips_of_frames_lie_below_each_other(
    height: int, width: int, size: tuple[int, int], tmp_path: Path
) -> None:
    images = torch.rand(1, 3, height, width)
    [found] = write_strips(images, images, ["A clip"], tmp_path)
    with Image.open(tmp_path / found["file"]) as drawn:
        assert drawn.size == size
