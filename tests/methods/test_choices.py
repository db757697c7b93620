"""What methods for diffusion models let a user choose by name."""

import pytest

from minifloat import Format
from minifloat.errors import UserError
from minifloat.methods import build
from minifloat.methods.choices import by_width, candidates, every_input


def names(formats: list[Format]) -> list[str]:
    return [fmt.name for fmt in formats]


def test_all_splits_of_the_bits() -> None:
    assert names(candidates("fp", 4)) == ["e1m2", "e2m1", "e3m0"]
    assert names(candidates("fp", 8)) == ["e2m5", "e3m4", "e4m3", "e5m2"]
    assert names(candidates("int", 8)) == ["int8"]
    assert len(every_input("fp", 8, True)) == len(every_input("fp", 8, False)) + 4


def test_formats_by_name_go_to_the_side_of_their_width() -> None:
    assert [names(side) for side in by_width("e4m3, e2m1,e3m4", 4, 8)] == [
        ["e2m1"],
        ["e4m3", "e3m4"],
    ]
    assert by_width("", 4, 8) == [[], []]
    method = build("fp-diffusion", {"formats": "e4m3", "weight_bits": "4"})
    spec = method.plan.rules[0][1]
    assert spec is not None and spec.weight is not None and spec.input is not None
    assert (spec.weight.format.name, spec.input.format.name) == ("e1m2", "e4m3")


def test_a_format_of_another_width_is_refused() -> None:
    with pytest.raises(UserError, match="e3m2 has 6 bits, but 4 and 8 are asked for"):
        build("fp-diffusion", {"formats": "e3m2"})
    with pytest.raises(UserError, match="weights and activations take 2 to 8 bits"):
        candidates("fp", 9)
