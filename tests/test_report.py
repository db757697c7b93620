"""The report must be valid, safe and complete for whatever a run could or could not measure."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minifloat.charts import Series, histogram, plot, ticks
from minifloat.report import human_bytes, summary_table, write_report

GRID = [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order; keeps the tags and the text it saw."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(name in ("src", "href") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def layer(name: str, i: int, **changes: Any) -> dict[str, Any]:
    counts = [round(9e5 * math.exp(-((v / 2.5) ** 2))) for v in GRID]
    return {
        "name": name, "shape": [1024, 3072], "parameters": 3145728, "status": "quantized",
        "reason": "", "weight": "e2m1 1x128 fp16", "input": None, "bits": 4.125,
        "bytes": 1622016, "weight_sqnr": 18.9 + math.sin(i) * 0.6,
        "output_sqnr": 21 + 2.4 * math.cos(i * 1.7), "samples": 131072,
        "scale_min": 0.00131, "scale_max": 0.0894,
        "histogram": [list(pair) for pair in zip(GRID, counts, strict=True)],
    } | changes  # fmt: skip


def full() -> dict[str, Any]:
    kinds = [f"self_attn.{k}_proj" for k in "qkvo"] + [
        f"mlp.{k}_proj" for k in ("gate", "up", "down")
    ]
    names = [f"model.layers.{b}.{kind}" for b in range(28) for kind in kinds]
    kept = {"status": "kept", "weight": None, "bits": 16.0, "weight_sqnr": None,
            "output_sqnr": None, "samples": None, "scale_min": None, "scale_max": None,
            "histogram": None}  # fmt: skip
    embedding = layer("model.embed_tokens", 0, reason="embedding", shape=[151936, 1024],
                      parameters=155582464, bytes=311164928, **kept)  # fmt: skip
    return {
        "minifloat": "0.1.0", "model": "Qwen/Qwen3-0.6B", "method": "gptq",
        "paper": "Frantar et al. 2022, arXiv 2210.17323",
        "settings": {"weight": "e2m1 1x128 fp16", "damping": 0.01, "order": True}, "seed": 0,
        "plan": {"rules": [["model.layers.*", {"weight": "e2m1 1x128 fp16"}], ["*", None]]},
        "versions": {"torch": "2.8.0", "python": "3.12.3"},
        "ledger": [embedding, *(layer(n, i) for i, n in enumerate(names))],
        "size": {"before": 1192135096, "after": 539234816, "theory": 538112000},
        "metrics": [
            {"name": "perplexity (wikitext)", "full_precision": 20.958,
             "full_precision_error": 0.152, "quantized": 22.731, "quantized_error": 0.167},
            {"name": "KL divergence", "full_precision": 0.0, "full_precision_error": None,
             "quantized": 0.0812, "quantized_error": 0.0011},
        ],
        "block_sqnr": [[f"model.layers.{b}", 24 - 9 * math.log1p(b) / 3.4] for b in range(28)],
        "seconds": {"load": 2.1, "calibrate": 41.7, "evaluate": 63.04},
        "peak_memory": 3_900_000_000,
        "warnings": ["model.layers.3.mlp.down_proj: 2 dead input channels"],
    }  # fmt: skip


def test_full(tmp_path: Path) -> None:
    page = write_report(full(), tmp_path / "new" / "folder")
    assert page == tmp_path / "new" / "folder" / "report.html"
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]
    assert json.loads((page.parent / "report.json").read_text()) == full()
    html = Balanced(page.read_text())
    assert "script" not in html.seen and "://" not in page.read_text()
    assert html.seen.count("circle") == 2 * 196 + 2 + 28  # two dots a layer, legend, blocks
    assert html.seen.count("figure") == 1 + 8
    for name in [e["name"] for e in full()["ledger"]]:
        assert name in html.text
    assert "2.21x smaller" in html.text and "+8.46 %" in html.text


@pytest.mark.parametrize("report", [{"ledger": []}, {}, dict.fromkeys(full())])
def test_empty(report: dict[str, Any], tmp_path: Path) -> None:
    html = Balanced(write_report(report, tmp_path).read_text())
    assert "No size or quality" in html.text
    assert summary_table(report) == []


def test_missing_fields(tmp_path: Path) -> None:
    report = {"ledger": [{}, {"name": "x", "status": "quantized"}], "size": {"before": 5},
              "metrics": [{}], "block_sqnr": [["b", None]]}  # fmt: skip
    Balanced(write_report(report, tmp_path).read_text())
    assert len(summary_table(report)) == 2


def test_nan_is_null(tmp_path: Path) -> None:
    nan = float("nan")
    names = ("a", "b", "c")
    ledger = [layer(n, i, weight_sqnr=math.inf, output_sqnr=nan) for i, n in enumerate(names)]
    ledger[1]["weight_sqnr"] = 3.0
    metric = {"name": "perplexity", "full_precision": nan, "quantized": math.inf}
    report = full() | {
        "ledger": ledger,
        "metrics": [metric],
        "settings": {"x": nan, "y": Path("z"), "n": np.float32(0.5), "t": torch.ones(2)},
    }
    page = write_report(report, tmp_path)
    Balanced(page.read_text())
    assert "nan" not in page.read_text().lower().replace("nance", "")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert [e["weight_sqnr"] for e in data["ledger"]] == [None, 3.0, None]
    assert data["settings"] == {"x": None, "y": "z", "n": 0.5, "t": [1.0, 1.0]}


def test_escapes(tmp_path: Path) -> None:
    evil = "</title><script>alert('1')</script>\""
    report = full() | dict.fromkeys(("model", "method", "paper"), evil)
    report |= {"ledger": [layer(evil, 0, reason=evil, weight=evil, input=evil)], "warnings": [evil]}
    report |= {
        "block_sqnr": [[evil, 1.0], [evil, 2.0]],
        "settings": {evil: evil},
        "plan": {evil: 1},
    }
    report |= {"versions": {evil: evil}, "seconds": {evil: 1.0}, "size": {evil: 1}}
    report["plan"] = {evil: 1}
    report["metrics"] = [{"name": evil, "full_precision": 1.0, "quantized": 2.0}]
    page = write_report(report, tmp_path)
    assert "script" not in Balanced(page.read_text()).seen
    assert evil in Balanced(page.read_text()).text


def test_summary() -> None:
    assert summary_table(full()) == [
        ("perplexity (wikitext)", "20.96 ± 0.15", "22.73 ± 0.17", "+8.46 %"),
        ("KL divergence", "0", "0.0812 ± 0.0011", "+0.0812"),
        ("size", "1.11 GiB", "514.3 MiB", "2.21x smaller"),
    ]
    assert human_bytes(12) == "12 B"


def test_charts() -> None:
    assert ticks(17.3, 24.9) == [16, 18, 20, 22, 24, 26]
    assert len(ticks(3.0, 3.0)) > 1
    assert plot([], "x", "y") == "" == histogram([]) == histogram([(1.0, 0)])
    one = plot(
        [Series("s", "a", [("p", 1.0), ("q", None), ("r", 2.0), ("t", 3.0)], True)], "x", "y"
    )
    assert one.count("<polyline") == 1 and one.count("<circle") == 3  # a gap is not bridged
    for count in (1, 2, 3, 256):
        Balanced(histogram([(float(i), i + 1) for i in range(count)]))
