"""Low-bit floating point for diffusion models (Chen, Giannoula, Moshovos 2024, arXiv 2408.06995).

Formats and clip values of weights and static activations are searched tensor by tensor; weights of
few bits learn their rounding by block reconstruction. Order of the card: weights are searched, then
rounded with activations as they come, and activations are searched last, behind quantized weights.

The paper does not print its candidates, its granularity below a tensor or its learning schedule.
Here the candidates are all splits of the bits, and unsigned ones for activations, which a search is
free to leave (`unsigned`): after a SiLU half of the codes of a signed format lie idle.
"""

from minifloat import formats
from minifloat.calibrate.walk import Pass
from minifloat.errors import UserError, unknown
from minifloat.formats import Format, floating, integer
from minifloat.method import Method
from minifloat.passes.assign import collect, round_to_nearest
from minifloat.passes.formats import search_inputs, search_weights
from minifloat.passes.gptq import solve_gptq
from minifloat.passes.learn import learn_rounding
from minifloat.plan import Plan
from minifloat.scales import FULL_GRID
from minifloat.spec import LayerSpec, QuantSpec


def fp_diffusion(
    weight_bits: int = 4,
    activation_bits: int = 8,
    family: str = "fp",
    group_size: int = 0,
    rounding: str = "learned",
    unsigned: bool = True,
    search: bool = True,
    objective: str = "output",
    steps: int = 500,
    lr: float = 3e-2,
) -> Method:
    """Searched formats, static activations, learned rounding.

    Args:
        weight_bits: 2 to 8.
        activation_bits: 2 to 8, or 16 to leave activations alone.
        family: fp, or int for the integer baseline.
        group_size: weights that share a scale; 0 for one scale a tensor, -1 for one a row.
        rounding: learned, nearest or gptq.
        unsigned: let activations choose unsigned formats.
        search: search clip values (111 factors of the maximum); otherwise clip at the maximum.
        objective: of the searches: output (a layer's) or tensor.
        steps: steps of learned rounding for each block.
        lr: its learning rate.
    """
    tile = (-1, -1) if group_size == 0 else (1, group_size)
    weights = _candidates(family, weight_bits)
    grid = FULL_GRID if search else (1.0,)
    rounders: dict[str, list[Pass]] = {
        "learned": [learn_rounding(steps=steps, lr=lr)],
        "nearest": [round_to_nearest()],
        "gptq": [solve_gptq()],
    }
    if rounding not in rounders:
        raise unknown("rounding", rounding, rounders)
    passes = [collect(), search_weights(weights, grid, objective=objective), *rounders[rounding]]
    x = None
    if activation_bits != 16:
        inputs = _candidates(family, activation_bits)
        if unsigned:
            inputs += _candidates(family, activation_bits, signed=False)
        x = QuantSpec(inputs[0], (-1, -1), formats.FP32)
        passes.append(search_inputs(inputs, grid, objective=objective))
    w = QuantSpec(weights[0], tile, formats.FP32 if group_size == 0 else formats.FP16)
    plan = Plan((("*", LayerSpec(weight=w, input=x)),))
    return Method("fp-diffusion", "arXiv 2408.06995", plan, tuple(passes))


def _candidates(family: str, bits: int, *, signed: bool = True) -> list[Format]:
    """All formats of a family and a width; floats have 1 to 5 exponent bits."""
    if not 2 <= bits <= 8:
        raise UserError(
            f"weights and activations take 2 to 8 bits (activations also 16), not {bits}"
        )
    if family == "int":
        return [integer(bits, signed=signed)]
    if family != "fp":
        raise unknown("family", family, ("fp", "int"))
    width = bits - signed
    return [
        floating(e, width - e, signed=signed)
        for e in range(min(1 if bits <= 4 else 2, width), min(5, width) + 1)
    ]
