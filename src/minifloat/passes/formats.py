"""Search of the number format itself: formats x clip values by squared error (card 1b, step 1).

A real exponent bias is a scale, so "encoding and bias" of Kuzmin et al. (arXiv 2208.09225) and of
Chen et al. (arXiv 2408.06995) is a search over formats and clip values. It is run for weights as they
are, and for static activations on rows sampled from all calibration batches. Dynamic activations
choose a format alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from minifloat.calibrate.stats import Layer, stride_for
from minifloat.calibrate.walk import Pass, Window, Work
from minifloat.errors import UserError, unknown
from minifloat.formats import Format
from minifloat.qtensor import scale_of
from minifloat.scales import FULL_GRID, Scale, choose_format

# Of the 111 factors, the ones looked at first: within 1 % of the full search's error for a tensor.
_COARSE = 5
# Values of one layer's input that a search looks at.
_SAMPLE = 1 << 16


def search_weights(
    candidates: Sequence[Format], grid: Sequence[float] = FULL_GRID, *, objective: str = "output"
) -> Pass:
    """Give every weight the candidate and the scales of least squared error.

    Args:
        candidates: formats to choose from.
        grid: factors of the largest magnitude to clip at.
        objective: "tensor" for the error of the weight (Kuzmin et al.), "output" for that of the
            layer's output (LLM-FP4, arXiv 2310.16836), which needs Hessians.
    """
    _check_objective(objective)

    def apply(window: Window) -> None:
        for work in window.layers.values():
            assert work.spec.weight is not None
            moment = None
            if objective == "output" and work.hessian is not None:
                moment = work.hessian.value
            spec, work.scale = choose_format(
                work.weight(), work.spec.weight, candidates, grid, moment=moment, coarse=_COARSE
            )
            work.spec = replace(work.spec, weight=spec)

    return apply


def search_inputs(
    candidates: Sequence[Format] | None = None,
    grid: Sequence[float] = FULL_GRID,
    *,
    objective: str = "output",
) -> Pass:
    """Give every static input the candidate (its own format if None) and scales of least squared error.

    Block scales of the run under a calibrated one (NVFP4) get the one that the largest input asks.

    With the objective "output", errors count by what the layer's weights make of them; the taps of
    a convolution count one by one.

    The weights are the quantized ones by then, as the layers after a layer will see its output.
    """
    _check_objective(objective)

    def apply(window: Window) -> None:
        static = {
            name: work for name, work in window.layers.items() if work.spec.calibrated is not None
        }
        samples = sample_inputs(window, static)
        for name, work in static.items():
            spec, rows = work.spec.input, samples[name]
            assert spec is not None
            if not len(rows):
                raise UserError(
                    f"no calibration input reached {name}, so its inputs have no static scale; "
                    "use more batches or dynamic inputs"
                )
            if spec.dynamic:
                outer = scale_of(rows, spec).outer
                assert outer is not None
                work.input_scale = Scale(outer)
                continue
            if spec.zero_point:
                work.input_scale = scale_of(rows, spec)
                continue
            formats = [spec.format] if candidates is None else candidates
            moment = _weight_moment(work) if objective == "output" else None
            spec, work.input_scale = choose_format(
                rows, spec, formats, grid, moment=moment, coarse=_COARSE
            )
            work.spec = replace(work.spec, input=spec)

    return apply


def choose_online_formats(candidates: Sequence[Format]) -> Pass:
    """Give every dynamic input the candidate of least error in the layer's output.

    Scales follow the tokens at run time; the format is what a calibration can choose.
    """

    def apply(window: Window) -> None:
        online = {
            name: work
            for name, work in window.layers.items()
            if work.spec.input is not None and work.spec.input.dynamic
        }
        for name, rows in sample_inputs(window, online).items():
            work = online[name]
            assert work.spec.input is not None
            moment = _weight_moment(work)
            spec, _ = choose_format(rows, work.spec.input, candidates, (1.0,), moment=moment)
            work.spec = replace(work.spec, input=spec)

    return apply


def _check_objective(objective: str) -> None:
    if objective not in ("output", "tensor"):
        raise unknown("objective", objective, ("output", "tensor"))


def _weight_moment(work: Work) -> Tensor | None:
    """W^T W [in, in] over outputs and taps; None where channels do not meet (grouped layers)."""
    if getattr(work.module, "groups", 1) > 1:
        return None
    w = work.module.weight.detach().float()
    flat = w.movedim(1, -1).reshape(-1, w.shape[1])
    return flat.T @ flat


def sample_inputs(window: Window, works: dict[str, Work]) -> dict[str, Tensor]:
    """Rows [N, features] of the inputs of some layers, behind quantized weights; the whole team's."""
    if not works:
        return {}
    values = _SAMPLE // len(window.calls)
    samples = {name: Sample(values, work.module) for name, work in works.items()}
    handles = [
        work.module.register_forward_pre_hook(_sampler(samples[name]))
        for name, work in works.items()
    ]
    try:
        with quantized_weights(window):
            for index in range(len(window.calls)):
                window.forward(index)
    finally:
        for handle in handles:
            handle.remove()
    return {name: window.team.gather(sample.rows()) for name, sample in samples.items()}


class Sample:
    """Rows [N, features] of a layer's inputs: evenly spaced ones, and the one with the peak."""

    def __init__(self, values_a_call: int, module: Layer) -> None:
        features = module.weight.shape[1] * getattr(module, "groups", 1)
        self._values, self._none = values_a_call, module.weight.new_empty(0, features).float()
        self._parts: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take rows of x [rows, features]."""
        every = stride_for(x.shape[0], self._values // x.shape[1])
        peak = x.abs().amax(1).argmax()
        self._parts += [x[::every].float(), x[peak : peak + 1].float()]

    def rows(self) -> Tensor:
        """All rows taken; none where the layer was never called, such as an expert without tokens."""
        return torch.cat([self._none, *self._parts])


def _sampler(sample: Sample) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0].detach()
        sample.add(activation_matrix(x, module))

    return hook


def activation_matrix(x: Tensor, module: nn.Module) -> Tensor:
    """Activations as [tokens or pixels, channels]."""
    if isinstance(module, nn.Conv2d):
        x = x.movedim(1, -1)
    return x.reshape(-1, x.shape[-1])


@contextmanager
def quantized_weights(window: Window) -> Iterator[None]:
    """Let the window's layers compute with their quantized weights for a while."""
    kept = {}
    try:
        for name, work in window.layers.items():
            weight = work.module.weight
            kept[name] = weight.data
            weight.data = work.quantized_weight().reshape(weight.shape).to(weight.dtype)
        yield
    finally:
        for name, work in window.layers.items():
            if name in kept:
                work.module.weight.data = kept[name]
