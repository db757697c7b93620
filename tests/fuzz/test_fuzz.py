"""Damaged input is refused in one sentence; `benchmarks/fuzz.py` runs the same over many more cases."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import fuzz
from minifloat.errors import UserError
from minifloat.plan import Plan
from minifloat.shards import entries

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
NAMED = st.dictionaries(st.sampled_from(["weight", "input", "format", "tile", "scale", "x"]), JSON)
QUICK = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_mutated_checkpoints_load_or_are_refused() -> None:
    outcomes, failures = fuzz(250, seed=1)
    assert not failures, failures[:5]
    assert sum(outcomes.values()) == 250
    assert outcomes["own folder: refused"] > outcomes["own folder: loaded"] > 0


@QUICK
@given(st.lists(st.tuples(st.text() | st.just("*"), NAMED | JSON)))
def test_any_json_is_a_plan_or_refused(rules: list[object]) -> None:
    data = json.loads(json.dumps({"rules": rules}))
    try:
        Plan.from_json(data).resolve(["model.layers.0.mlp.up_proj"])
    except UserError as error:
        assert "\n" not in str(error) or "\n" in json.dumps(rules)


@QUICK
@given(header=JSON | st.dictionaries(st.text(), st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "U8", "X"]), "shape": JSON, "data_offsets": JSON}
)), tail=st.binary(max_size=64))  # fmt: skip
def test_any_header_is_read_or_refused(header: object, tail: bytes, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + tail)
    try:
        for entry in entries(tmp_path).values():
            assert entry.read().numel() * entry.read().element_size() <= len(tail)
    except UserError as error:
        assert str(file) in str(error)


def test_the_mutations_do_change_something(tmp_path: Path) -> None:
    one, other = fuzz(20, seed=2)[0], fuzz(20, seed=2)[0]
    assert one == other  # a failure can be looked at again
    assert sum(count for kind, count in one.items() if "refused" in kind) > 5


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"rules": 3}', '{"rules": [[1, 2]]}'])
def test_texts_that_are_no_plan(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError):
        Plan.read(tmp_path / "plan.json")
