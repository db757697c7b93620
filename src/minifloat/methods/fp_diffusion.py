"""Low-bit floating point for diffusion models (Chen, Giannoula, Moshovos 2024, arXiv 2408.06995).

Formats and clip values of weights and static activations are searched tensor by tensor; weights of
few bits learn their rounding by block reconstruction. Order of the card: weights are searched, then
rounded with activations as they come, and activations are searched last, behind quantized weights.

The paper does not print its candidates, its granularity below a tensor or its learning schedule.
Here the candidates are all splits of the bits, and unsigned ones for activations, which a search is
free to leave (`unsigned`): after a SiLU half of the codes of a signed format lie idle.
"""

from minifloat.formats import FP16, FP32
from minifloat.method import Method
from minifloat.methods.choices import by_width, candidates, every_input, inverts, rounder
from minifloat.passes.assign import collect
from minifloat.passes.formats import search_inputs, search_weights
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
    formats: str = "",
    search: bool = True,
    objective: str = "output",
    start: str = "gptq",
    steps: int = 300,
    lr: float = 0.1,
    mixed: bool = False,
    window: int = 1,
    overlap: int = 0,
) -> Method:
    """Searched formats, static activations, learned rounding.

    Args:
        weight_bits: 2 to 8.
        activation_bits: 2 to 8, or 16 to leave activations alone.
        family: fp, or int for the integer baseline.
        group_size: weights that share a scale; 0 for one scale a tensor, -1 for one a row.
        rounding: learned, nearest or gptq.
        unsigned: let activations choose unsigned formats.
        formats: names to choose from in place of all of the family, such as "e4m3, e2m1"; each is for
            the weights or the activations of its width.
        search: search clip values (111 factors of the maximum); otherwise clip at the maximum.
        objective: of the searches: output (a layer's) or tensor.
        start: of learned rounding: gptq, or nearest as published.
        steps: its steps for each block.
        lr: its learning rate.
        mixed: let it compute in bfloat16, for processors that have instructions for it.
        window: blocks in a row that learn together.
        overlap: blocks of a window that the next one learns anew (CBQ has 1 of 2).
    """
    tile = (-1, -1) if group_size == 0 else (1, group_size)
    own_weights, own_inputs = by_width(formats, weight_bits, activation_bits)
    weights = own_weights or candidates(family, weight_bits)
    grid = FULL_GRID if search else (1.0,)
    passes = [
        collect(),
        search_weights(weights, grid, objective=objective),
        rounder(rounding, start=start, steps=steps, lr=lr, mixed=mixed),
    ]
    x = None
    if activation_bits != 16:
        inputs = own_inputs or every_input(family, activation_bits, unsigned)
        x = QuantSpec(inputs[0], (-1, -1), FP32)
        passes.append(search_inputs(inputs, grid, objective=objective))
    w = QuantSpec(weights[0], tile, FP32 if group_size == 0 else FP16)
    plan = Plan((("*", LayerSpec(weight=w, input=x)),))
    return Method(
        "fp-diffusion",
        "arXiv 2408.06995",
        plan,
        tuple(passes),
        window,
        overlap,
        inverts=inverts(rounding, start),
    )
