"""The table of a user's own machine: which layers are timed, what is written, and the roofline."""

import json
import re
from pathlib import Path

import pytest

from minifloat import bench
from minifloat.errors import UserError
from minifloat.roofline import Dot, roofline
from minifloat.spec import FP4_G128, INT8_TOKEN, MXFP6, LayerSpec, QuantSpec
from tests.command_line import minifloat

FP4 = LayerSpec(FP4_G128, INT8_TOKEN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `config.json` of a checkpoint says of four layers; no weights are needed."""
    rules = [["*.up", FP4.to_json()], ["*", LayerSpec(MXFP6).to_json()]]
    shapes = {"0.up": [64, 48], "1.up": [64, 48], "0.down": [48, 64]}
    layers = {name: {"rank": 0, "shape": shape} for name, shape in shapes.items()}
    layers["conv"] = {"rank": 0, "shape": [8, 36], "kernel": [3, 3]}  # type: ignore[dict-item]
    config = {"quant_method": "minifloat", "format_version": 2, "rules": rules, "layers": layers}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    return tmp_path


def test_layers_of_a_checkpoint_are_counted_by_shape_and_spec(folder: Path) -> None:
    found = bench.layers_of(folder)
    assert found == {((64, 48), FP4): 2, ((48, 64), LayerSpec(MXFP6)): 1}


def test_a_folder_without_packed_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no minifloat checkpoint with packed linear layers"):
        bench.layers_of(tmp_path)


def test_the_command_times_a_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    arguments = ("--out", out, "--tokens", 1, "--tokens", 3, "--seconds", 0)
    assert minifloat("bench", folder, *arguments) == 0
    assert "bench.html" in capsys.readouterr().out.replace("\n", "")  # the path may be wrapped
    data = json.loads((out / "bench.json").read_text())
    assert [(row["shape"], row["tokens"]) for row in data["rows"]] == [
        ([64, 48], 1), ([64, 48], 3), ([48, 64], 1), ([48, 64], 3)
    ]  # fmt: skip
    assert all(min(row["ms"].values()) > 0 for row in data["rows"])
    assert data["bandwidth"] > 0
    page = (out / "bench.html").read_text()
    assert "<title>Roofline</title>" in page
    assert page.count("<circle") == 8


def test_what_falls_to_the_reference_is_said() -> None:
    spec = LayerSpec(QuantSpec.from_json({"format": "int5", "tile": [1, 32]}))
    (row,) = bench.measure({((8, 32), spec): 1}, (1,), 0)
    reason = bench.cells(row)[2]
    assert reason.startswith("reference (cpu: ")


def test_a_roof_is_as_high_as_memory_and_arithmetic_allow() -> None:
    """Two dots on the roof: one on its slope, one on its flat part."""
    svg = roofline([Dot("slow", 1, 10, "a"), Dot("fast", 100, 200, "a")], bandwidth=10, peak=200)
    (line,) = re.findall(r'points="([^"]+)"', svg)
    corners = [tuple(map(float, point.split(","))) for point in line.split()]
    slow, fast = (
        tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    )
    assert slow == pytest.approx(corners[0], abs=0.1)
    assert fast[1] == pytest.approx(corners[2][1], abs=0.1)
    assert corners[0][0] < corners[1][0] < fast[0] + 0.1
