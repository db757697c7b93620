"""Benchmark tasks of the LM Evaluation Harness, run on the model in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from minifloat.errors import UserError, unknown


def tasks(
    model: nn.Module,
    tokenizer: Any,
    names: Sequence[str],
    *,
    limit: int | None = None,
    folder: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Metrics of each task by name.

    The live model is handed over, so a quantized model needs no detour over a saved file.

    Args:
        model: causal language model of transformers.
        tokenizer: its tokenizer.
        names: tasks of the harness, or of `folder`.
        limit: take only that many examples of each task.
        folder: YAML files of further tasks, such as ones whose data is at hand.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            "benchmark tasks need the LM Evaluation Harness; pip install 'minifloat[tasks]'"
        ) from error
    if not names:
        raise UserError("name at least one benchmark task")
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.all_tasks:
            raise unknown("task", name, manager.all_tasks)
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer),
        tasks=list(names),
        limit=limit,
        task_manager=manager,
    )
    return {name: dict(metrics) for name, metrics in found["results"].items()}
