"""How far the largest entries of weights and activations stand out.

Why this file exists: methods against outliers can only be judged on a model whose outliers are known,
measured in the same way for all of the zoo.
"""

from typing import NamedTuple

from torch import Tensor


class Peaks(NamedTuple):
    """How far a matrix's largest entries stand out; a Gaussian one has about 4 to 5, and 1.1.

    Rows are a weight's output channels or an input's tokens; columns are the input channels.
    """

    whole: float  # largest entry / rms of the matrix
    in_row: float  # the worst row's largest entry / its own rms: what a per-row scale must span
    in_column: float  # the same by column
    between_rows: float  # largest row rms / median row rms: what one scale for all rows must span
    between_columns: float  # the same by column


def peaks(matrix: Tensor) -> Peaks:
    """Measure the outliers of a matrix [rows, columns]."""
    size = matrix.float().abs()
    row, column = (size.square().mean(axis).sqrt() for axis in (1, 0))
    return Peaks(
        (size.amax() / size.square().mean().sqrt()).item(),
        (size.amax(1) / row).amax().item(),
        (size.amax(0) / column).amax().item(),
        (row.amax() / row.median()).item(),
        (column.amax() / column.median()).item(),
    )
