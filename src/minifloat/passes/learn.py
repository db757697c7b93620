"""Learned rounding: every weight goes to one of its two neighbours, chosen by block reconstruction.

AdaRound (Nagel et al. 2020, arXiv 2004.10568) with BRECQ's block objective, on any grid. Adam lowers

    |f(x; w(V)) - target|^2 + lambda sum (1 - |2 h(V) - 1|^beta)

for the soft weights w(V) of `rounder.py`, while beta falls and drives every h to 0 or 1. All tensors
that a block returns count: a block of SD3 or Flux hands on the text as well as the image.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from minifloat.calibrate.line import tensors
from minifloat.calibrate.walk import Pass, Window
from minifloat.errors import UserError, unknown
from minifloat.passes.gptq import gptq_targets
from minifloat.passes.rounder import Annealing, Rounder
from minifloat.qtensor import QTensor, decode, encode

_CHECKS = 8  # how often hard weights are judged on the way
_SETTLED = 1e-3  # share of undecided weights with which nothing changes any more
_LEAN = 0.6  # of the way to GPTQ's solution, where V starts


def learn_rounding(
    *,
    steps: int = 500,
    lr: float = 3e-2,
    scale_aware: bool = False,
    start: str = "nearest",
    mixed: bool = False,
    annealing: Annealing | None = None,
    seed: int = 0,
) -> Pass:
    """Learned rounding of all layers of a window together; a step sees one calibration batch a process.

    An eighth of the batches is held out. The hard weights that reconstruct them best, of all that
    were seen on the way, are kept: never worse than the start, and than rounding to nearest. It ends
    before its steps when no weight is undecided; a held-out error that stands still is no such
    sign, since hard weights get better until beta has fallen.

    Args:
        steps: Adam's steps a window.
        lr: learning rate of V, or of V' where `scale_aware`.
        scale_aware: FP4DiT's parametrization.
        start: nearest, or gptq, which needs Hessians: the neighbours are those of what GPTQ rounds,
            and V begins near its solution.
        mixed: compute the block in bfloat16, with sums and soft weights in float32: twice as fast
            where the processor has instructions for it.
        annealing: of the regularizer.
        seed: of the order of the batches.
    """
    if start not in ("nearest", "gptq"):
        raise unknown("start", start, ("nearest", "gptq"))

    def apply(window: Window) -> None:
        if not window.layers:
            return
        descent = Descent(window, annealing or Annealing(), scale_aware=scale_aware, mixed=mixed)
        if start == "gptq":
            descent.start_at_gptq()
        descent.run(steps, lr, seed)

    return apply


class Descent:
    """The learning of one window: its rounders, and the best hard weights so far."""

    def __init__(
        self, window: Window, annealing: Annealing, *, scale_aware: bool, mixed: bool
    ) -> None:
        self.window, self.annealing = window, annealing
        self.scale_aware, self.mixed = scale_aware, mixed
        self.learned, self.held_out = _hold_out(len(window.calls))
        self.rounders = {}
        for name, work in window.layers.items():
            assert work.spec.weight is not None and work.scale is not None
            work.q = encode(work.weight(), work.spec.weight, work.scale)
            self.rounders[name] = Rounder(
                work.weight(), work.spec.weight, work.scale, scale_aware=scale_aware
            )
        nearest = {name: work.quantized_weight() for name, work in window.layers.items()}
        self.floor = [self._error([i], nearest) for i in range(len(window.calls))]
        self.best = window.team.total(sum(self.floor[i] for i in self.held_out))

    def start_at_gptq(self) -> None:
        """Choose between the neighbours of what GPTQ rounded, beginning near its solution."""
        solved = {}
        for name, work in self.window.layers.items():
            if getattr(work.module, "groups", 1) > 1:  # no Hessian is kept of such small layers
                continue
            if work.hessian is None:
                raise UserError(
                    "start 'gptq' needs Hessians: put collect() before learn_rounding()"
                )
            assert work.spec.weight is not None and work.scale is not None
            solved[name] = gptq_targets(
                work.weight(), work.hessian.value, work.spec.weight, scale=work.scale
            )
        for name, (q, missing) in solved.items():
            self.rounders[name] = Rounder(
                decode(q) + missing, q.spec, q.scale, scale_aware=self.scale_aware
            )
        self.judge()
        for name in solved:
            self.rounders[name].lean(_LEAN)

    def run(self, steps: int, lr: float, seed: int) -> None:
        """Adam on the soft weights of all layers; errors count relative to rounding to nearest."""
        generator = torch.Generator().manual_seed(seed)
        rounders = list(self.rounders.values())
        optimizer = torch.optim.Adam([r.logits for r in rounders], lr=lr, fused=True)
        weight = self.annealing.weight / sum(r.logits.numel() for r in rounders)
        settings = {"steps": steps, "lr": lr, "seed": seed}
        for step in range(self._recall(optimizer, generator, settings), steps):
            choice = int(torch.randint(len(self.learned), (), generator=generator))
            index = self.learned[choice]
            soft = {name: rounder.soften() for name, rounder in self.rounders.items()}
            with torch.enable_grad(), _frozen(self.window.block):
                loss = self._squared_error(index, soft) / max(self.floor[index], 1e-30)
                loss.backward()  # type: ignore[no-untyped-call]
            self._agree(soft.values())
            beta = self.annealing.beta(step / steps)
            for rounder in rounders:
                rounder.descend(beta, weight)
            optimizer.step()
            if (step + 1) % -(-steps // _CHECKS) == 0 or step + 1 == steps:
                self.judge()
                if self.undecided() < _SETTLED:
                    break
            draft = self.window.draft
            if draft is not None and draft.due() and self.window.team.rank == 0:
                notes = settings | {"done": step + 1, "best": self.best}
                draft.save(self._state(optimizer, generator), notes)

    def _state(self, optimizer: torch.optim.Adam, generator: torch.Generator) -> dict[str, Tensor]:
        """All that the rest of the steps depends on, and the codes that are kept so far."""
        state = {"generator": generator.get_state()}
        for name, rounder in self.rounders.items():
            kept = self.window.layers[name].q
            assert kept is not None
            state[f"{name}/logits"], state[f"{name}/codes"] = rounder.logits.detach(), kept.codes
            for key, value in optimizer.state[rounder.logits].items():
                state[f"{name}/{key}"] = value
        return state

    def _recall(
        self, optimizer: torch.optim.Adam, generator: torch.Generator, settings: dict[str, float]
    ) -> int:
        """Take up the state of a run that was stopped; returns how many steps it holds."""
        known = self.window.draft and self.window.draft.load()
        if not known or any(known[1].get(key) != value for key, value in settings.items()):
            return 0
        state, notes = known
        generator.set_state(state["generator"])
        for name, rounder in self.rounders.items():
            device = rounder.logits.device
            own = {k: state[f"{name}/{k}"].to(device) for k in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[rounder.logits] = own
            rounder.logits.data = state[f"{name}/logits"].to(device)
            work = self.window.layers[name]
            assert work.q is not None
            work.q = replace(work.q, codes=state[f"{name}/codes"].to(device))
        self.best = notes["best"]
        return int(notes["done"])

    def undecided(self) -> float:
        """The share of weights that are on their way between their neighbours."""
        counts = [(r.undecided(), r.logits.numel()) for r in self.rounders.values()]
        return sum(found for found, _ in counts) / sum(count for _, count in counts)

    def _agree(self, soft: Iterable[Tensor]) -> None:
        """The mean gradient over the team, whose members each saw a batch of their own."""
        team = self.window.team
        for weight in soft if team.size > 1 else ():
            assert weight.grad is not None
            team.sum(weight.grad).div_(team.size)

    def judge(self) -> None:
        """Keep the hard weights as they are now, if none before reconstructed as well."""
        hard = {name: rounder.hard() for name, rounder in self.rounders.items()}
        error = self.window.team.total(self._error(self.held_out, hard))
        if error < self.best:
            self.best = error
            self._keep({name: rounder.quantized() for name, rounder in self.rounders.items()})

    def _keep(self, found: dict[str, QTensor | None]) -> None:
        for name, work in self.window.layers.items():
            work.q = found[name]

    @torch.no_grad()
    def _error(self, batches: Sequence[int], weights: dict[str, Tensor]) -> float:
        """Sum of squares of output minus target over some batches, with these weights [out, in]."""
        return sum(float(self._squared_error(index, weights)) for index in batches)

    def _squared_error(self, index: int, weights: dict[str, Tensor]) -> Tensor:
        """The same for one batch, where gradients are wanted."""
        window, call = self.window, self.window.calls[index]
        named = {}
        for name, w in weights.items():
            weight = window.layers[name].module.weight
            named[f"{window.path(name)}.weight".removeprefix(".")] = w.view(weight.shape).to(
                weight.dtype
            )
        device = next(iter(weights.values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.mixed):
            output = functional_call(window.block, named, call.args, call.kwargs)
        pairs = zip(tensors(output), tensors(window.targets[index]), strict=True)
        errors = [(found.float() - target.float()).square().sum() for found, target in pairs]
        return torch.stack(errors).sum()


def _hold_out(count: int) -> tuple[list[int], list[int]]:
    """Batches to learn on and batches to judge on; a single batch serves for both."""
    last = max(1, count // 8)
    return list(range(count - last)) or [0], list(range(count - last, count))


@contextmanager
def _frozen(block: nn.Module) -> Iterator[None]:
    """No gradients for the block's own parameters."""
    asking = [p for p in block.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
