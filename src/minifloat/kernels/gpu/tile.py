"""Which piece of a product one program of the GPU computes."""

from typing import Literal, NamedTuple

from minifloat.kernels.gpu.recipe import SHORTEST, Recipe

Scaled = Literal["row", "block", "element"]
# Programs that keep a processor's memory requests coming.
_PROGRAMS = 2


class Tile(NamedTuple):
    """Rows, tokens and columns of a step; how many programs share a row's columns; and when scales come.

    Scales are applied to finished sums where a row has one scale (`row`), to the sum of every step
    that lies within a group (`block`), else to each weight (`element`), as the reference does.
    """

    rows: int
    tokens: int
    columns: int
    split: int
    scaled: Scaled
    warps: int
    stages: int


def tile_of(recipe: Recipe, tokens: int, rows: int, columns: int, processors: int) -> Tile:
    """A tile for a product [tokens, columns] x [rows, columns] on so many multiprocessors.

    Few tokens need many bytes in flight: long steps, and programs that share a row. Many tokens
    need large tiles, since expanded weights then serve more of them.
    """
    width = next((size for size in (16, 32, 64) if tokens <= size), 128)
    height = 32 if tokens <= 16 and rows < 64 * processors else 64 if tokens <= 64 else 128
    step, scaled = _step(recipe, 128 if tokens <= 64 or recipe.operand != "float" else 64)
    programs = -(-rows // height) * -(-tokens // width)
    most = max(1, columns // (4 * step))
    split = min(most, max(1, _PROGRAMS * processors // programs)) if tokens <= 16 else 1
    return Tile(height, width, step, split, scaled, 8 if width == height == 128 else 4, 4)


def _step(recipe: Recipe, longest: int) -> tuple[int, Scaled]:
    """Columns of a step, and when scales come."""
    group = recipe.group
    if recipe.exact or not recipe.short:
        # Zero points and integer scales take registers too: at 128 columns some were spilled.
        return (64 if recipe.operand == "int8" else longest), "element"
    if group == -1:
        return longest, "row"
    shortest = 64 if recipe.operand == "float" else SHORTEST
    within = [step for step in (128, 64, SHORTEST) if shortest <= step <= longest]
    fits = next((step for step in within if group % step == 0), None)
    return (longest, "element") if fits is None else (fits, "block")
