"""Every seam of every family: what is folded in cancels, and would be seen if it did not."""

import pytest

from tests.models.fold_law import (
    MODELS,
    PAGE,
    TINY,
    changes,
    lively,
    page_with,
    seams_of,
    table,
)

pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers and diffusers warn


@pytest.mark.parametrize(("group", "name"), MODELS)
def test_folds_cancel(group: str, name: str) -> None:
    found = list(changes(group, name))
    assert found
    for kind, which, folded, half in found:
        assert folded < 1e-5, f"{which} at the {kind} seams changes the output by {folded:.1e}"
        assert half > 1e-4, f"{which} at the {kind} seams is not seen at all: {half:.1e}"


def test_there_are_as_many_families_as_we_say() -> None:
    counts = {group: len(tiny.FAMILIES) for group, tiny in TINY.items()}
    assert counts["language"] + counts["vision-language"] >= 25
    assert counts["diffusion"] >= 12


def test_the_table_in_the_docs_is_what_the_models_have() -> None:
    assert PAGE.read_text() == page_with(table()), "run: python -m tests.models.fold_law"


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("language", "Gemma2"),
        ("language", "Jamba"),
        ("language", "GptOss"),
        ("vision-language", "Qwen2VL"),
        ("diffusion", "FluxTransformer2DModel"),
        ("diffusion", "UNet2DConditionModel"),
    ],
)
def test_seams_are_found_without_weights(group: str, name: str) -> None:
    """A model that is loaded block by block has its seams before its weights."""
    model, _ = lively(group, name)
    found = seams_of(group, model)
    assert seams_of(group, model.to("meta")) == found
