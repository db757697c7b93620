"""What calibrates a language model and what judges it: windows of text, or pictures with words."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from minifloat.errors import UserError
from minifloat.evaluate.compare import compare, rows_of
from minifloat.evaluate.divergence import score_calls
from minifloat.jobs.job import Task
from minifloat.models.adapter import Adapter
from minifloat.models.families import adapter_for
from minifloat.models.llama import LlamaAdapter
from minifloat.models.load import context, read_tokens, sample_windows
from minifloat.models.pairs import Pair, digest, encode, read_pairs
from minifloat.models.vlm import VLMAdapter

SAMPLES, EVALUATED = 32, 4096
PAIRS = 16  # that judge
_AT_ONCE = 4096  # tokens in a calibration batch
_PATCHES = 4  # of the vision tower, that a projector may merge into one token

Judge = Callable[[nn.Module, nn.Module, int], list[dict[str, Any]]]


@dataclass(frozen=True)
class Material:
    """Batches and judgment of one job.

    Attributes:
        batches: this process's part.
        tokens: in the largest batch.
        adapter: walks what the batches reach.
        settings: what the report and the journal say of it.
        judge: compares the full-precision model with the quantized one, so many windows at once; None
            if nothing shall be judged.
        apart: modules that the batches do not reach, with the reason.
    """

    batches: list[Any]
    tokens: int
    adapter: Adapter
    settings: dict[str, Any]
    judge: Judge | None
    apart: dict[str, str] = field(default_factory=dict)


def text_adapter(model: nn.Module) -> Adapter:
    """The adapter for batches of text alone, which reach one tower of a vision-language model."""
    return LlamaAdapter() if VLMAdapter.accepts(model) else adapter_for(model)


def from_text(task: Task, model: Any, tokenizer: Any) -> Material:
    """Random windows of the task's text; the packaged held-out text judges."""
    job = task.job
    samples = SAMPLES if job.samples is None else job.samples
    evaluated = EVALUATED if job.evaluate is None else job.evaluate
    length = context(model, job.length)
    tokens = read_tokens(tokenizer, job.data, default="calibration")
    windows = sample_windows(tokens, samples, length, job.seed)
    windows = windows[list(task.team.share(range(samples)))]
    batches = list(torch.split(windows.to(job.device), max(1, _AT_ONCE // length)))
    held_out = None
    if evaluated and task.team.rank == 0:
        held_out = read_tokens(tokenizer, None, default="heldout", limit=evaluated).to(job.device)

    def judge(reference: nn.Module, found: nn.Module, batch: int) -> list[dict[str, Any]]:
        assert held_out is not None
        return compare(reference, found, held_out, window=length, batch=batch)

    return Material(
        batches=batches,
        tokens=batches[0].numel(),
        adapter=text_adapter(model),
        settings={
            "samples": samples,
            "length": length,
            "data": "packaged State of the Union addresses to 2000"
            if job.data is None
            else str(job.data),
            "evaluated on": "packaged State of the Union addresses of 2009-2016",
            "evaluated tokens": evaluated,
        },
        judge=None if held_out is None else judge,
        apart=VLMAdapter.unread_towers(model) if VLMAdapter.accepts(model) else {},
    )


def from_pairs(task: Task, model: Any, processor: Any) -> Material:
    """Pictures with words; those at the end of the index judge, and of the others a random choice
    calibrates."""
    job = task.job
    assert job.data is not None
    if not VLMAdapter.accepts(model):
        raise UserError(f"{type(model).__name__} reads no pictures; give text with --data")
    pairs = read_pairs(job.data)
    samples, evaluated = _shares(len(pairs), job.samples, job.evaluate)
    generator = torch.Generator().manual_seed(job.seed)
    order = torch.randperm(len(pairs) - evaluated, generator=generator)[:samples].tolist()
    like = next(model.parameters())
    like = torch.empty(0, dtype=like.dtype, device=job.device)
    chosen = [pairs[i] for i in task.team.share(order)]
    batches = [encode(processor, pair, like) for pair in chosen]
    held_out = pairs[len(pairs) - evaluated :] if task.team.rank == 0 else []

    def call(pair: Pair) -> tuple[dict[str, Any], Any]:
        arguments = encode(processor, pair, like)
        return arguments, VLMAdapter().masks(model, arguments)["language"][0]

    def judge(reference: nn.Module, found: nn.Module, batch: int) -> list[dict[str, Any]]:
        return rows_of(score_calls(reference, found, map(call, held_out)))

    return Material(
        batches=batches,
        tokens=_PATCHES * max(batch["input_ids"].numel() for batch in batches),
        adapter=VLMAdapter(),
        settings={
            "samples": samples,
            "data": str(job.data),
            "pictures and words": digest(pairs),
            "evaluated pairs": evaluated,
        },
        judge=judge if held_out else None,
    )


def _shares(count: int, samples: int | None, evaluated: int | None) -> tuple[int, int]:
    """How many pairs calibrate and how many judge; at most a quarter, unless more are asked for."""
    if evaluated is None:
        evaluated = min(PAIRS, count // 4)
    if samples is None:
        samples = min(SAMPLES, count - evaluated)
    if samples < 1 or samples + evaluated > count:
        raise UserError(
            f"{count} pairs are too few for {samples} that calibrate and {evaluated} that judge; "
            "give more, or fewer with --samples and --evaluate"
        )
    return samples, evaluated
