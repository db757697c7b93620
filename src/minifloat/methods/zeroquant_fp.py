"""ZeroQuant-FP (Wu, Yao, He 2023, arXiv 2307.09782): FP4 or FP8 weights, FP8 activations, no training.

Weights by group, activations per token, GPTQ on the floating-point grid, LoRC on what is left. The
constraints make scales cheap to apply in a kernel: M1 rounds each group's scale up to a power of
two, M2 writes it as a row's one real scale over a power of two. Here both are scale formats of the
weight's spec, so GPTQ sees them frozen and absorbs their error (card 1b.6).

Differs from the paper where it is silent: scales are searched (`search`), group size is 128 because
256 divides few widths, and M2's compute group is a row.
"""

from dataclasses import replace

from minifloat import formats
from minifloat.calibrate.walk import Pass
from minifloat.errors import unknown
from minifloat.formats import Format
from minifloat.method import Method
from minifloat.passes.assign import assign_scales, collect, round_to_nearest
from minifloat.passes.formats import search_inputs
from minifloat.passes.gptq import solve_gptq
from minifloat.passes.learn import learn_rounding
from minifloat.passes.low_rank import compensate
from minifloat.plan import Plan
from minifloat.spec import LayerSpec, QuantSpec


def zeroquant_fp(
    weight: str = "e2m1",
    activation: str = "e4m3",
    group_size: int = 128,
    constraint: str = "none",
    scale_rounding: str = "up",
    solver: str = "gptq",
    rank: int = 8,
    search: bool = True,
    act_order: bool = True,
    damp: float = 0.01,
    head: str = "none",
) -> Method:
    """Weights in groups, activations per token.

    Args:
        weight: format of the weights (e2m1, e3m0, e1m2, int4, e4m3, int8 ...).
        activation: format of the activations, or "none".
        group_size: input channels that share a scale; -1 for the whole row.
        constraint: none, m1 (power-of-two scales) or m2 (powers of two under a row's scale).
        scale_rounding: of constrained scales: up never clips, down is M2 as printed, nearest.
        solver: gptq, nearest, or learned (block reconstruction, minutes a block).
        rank: rank of the LoRC branch, 0 for none.
        search: search clip values instead of taking the largest magnitude.
        act_order: GPTQ takes columns of large inputs first.
        damp: GPTQ's damping.
        head: format of the output layer, and of the embedding where the two are tied; none keeps them.
            Rows of 8 bits have one scale, fewer bits have those of groups.
    """
    w = _weight_spec(Format.parse(weight), group_size, constraint, scale_rounding)
    x = None
    if activation != "none":
        x = QuantSpec(Format.parse(activation), (1, -1), formats.FP32, dynamic=True)
    solvers: dict[str, Pass] = {
        "gptq": solve_gptq(damp=damp, act_order=act_order),
        "learned": learn_rounding(start="gptq", lr=0.1),
        "nearest": round_to_nearest(),
    }
    if solver not in solvers:
        raise unknown("solver", solver, solvers)
    passes = (
        collect(),
        assign_scales(search=search),
        solvers[solver],
        compensate(rank),
        search_inputs(grid=(1.0,)),  # for plans with static inputs; the method's own are dynamic
    )
    plan = Plan((*_head_rule(head, group_size, x), ("*", LayerSpec(weight=w, input=x))))
    return Method("zeroquant-fp", "arXiv 2307.09782", plan, passes, inverts=solver != "nearest")


def _head_rule(
    head: str, group_size: int, x: QuantSpec | None
) -> tuple[tuple[str, LayerSpec], ...]:
    if head == "none":
        return ()
    fmt = Format.parse(head)
    tile = (1, -1 if fmt.bits == 8 else group_size)
    return (("lm_head", LayerSpec(weight=QuantSpec(fmt, tile, formats.FP16), input=x)),)


def _weight_spec(fmt: Format, group_size: int, constraint: str, scale_rounding: str) -> QuantSpec:
    spec = QuantSpec(fmt, (1, group_size), formats.FP16)
    if constraint == "none":
        return spec
    if constraint == "m1":
        return replace(spec, scale=formats.E8M0, scale_rounding=scale_rounding)  # type: ignore[arg-type]
    if constraint == "m2":
        ratio = QuantSpec(formats.POW4, (1, -1), formats.FP32)
        return replace(spec, scale=ratio, scale_rounding=scale_rounding)  # type: ignore[arg-type]
    raise unknown("constraint", constraint, ("none", "m1", "m2"))
