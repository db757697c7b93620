"""Imports go downhill: a file imports only from lower layers, never up, never a sibling leaf."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "minifloat"
LAYERS = (
    ("errors", "autoload", "charts", "memory"),
    ("formats", "fetch", "shards", "page"),
    ("grids", "demo", "arena"),
    ("rounding",),
    ("spec", "tiles"),
    ("scales", "packing", "plan"),
    ("qtensor",),
    ("kernels",),
    ("layers",),
    ("embedding", "siblings"),
    ("substitute",),
    ("models",),
    ("calibrate",),
    ("export", "evaluate"),
    ("passes",),
    ("guard", "outside"),
    ("method",),
    ("methods",),
    ("hf",),
    ("hf_diffusers", "hf_cache"),
    ("report", "pictures", "timing", "roofline"),
    ("card", "bench", "gallery"),
    ("jobs",),
    ("cli", "__init__"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Top-level imports; those inside functions wait until they are needed (`autoload`, `cli`)."""
    tree = ast.parse(path.read_text())
    names = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minifloat"):
            below = (node.module or "").split(".")[1:]
            names += [below[0]] if below else [alias.name for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downhill(path: Path) -> None:
    own = room(path.relative_to(ROOT).parts)
    assert own in LEVEL, f"{own} has no layer; give it one in this test"
    for target in imports(path):
        assert target == own or LEVEL[target] < LEVEL[own], f"{own} imports {target}"
