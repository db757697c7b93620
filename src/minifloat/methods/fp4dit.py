"""FP4DiT (Chen, Mills, Niu 2025, arXiv 2503.15465): FP4 weights and FP6 or FP8 activations of DiTs.

Weights in groups of 128, rounded by block reconstruction; activations scaled token by token as they
come, since in a transformer their scale varies over tokens and hardly over time. The paper gives the
layer before a GELU the powers of two (E3M0) and the others E2M1, clips at the maximum and learns
V' = V s, which it calls scale-aware.

Here every layer's format is searched on its own weights and inputs, with its clip values, unless the
published ones are asked for: on bell-shaped weights E3M0 costs 5 dB before a GELU too (card 2e).
Learning starts near GPTQ's solution, from which it needs a tenth of the steps. The published setting is
`formats="published", search=False, start="nearest", scale_aware=True, lr=1e-4, steps=2500`.
Calibration follows the sampler's real time steps; the authors' scripts see only the first few.
"""

from minifloat.errors import UserError, unknown
from minifloat.formats import E1M2, E2M1, E2M3, E3M0, E3M4, FP16, FP32, Format
from minifloat.method import Method
from minifloat.methods.choices import by_width, candidates, inverts, rounder
from minifloat.passes.assign import assign_scales, collect
from minifloat.passes.formats import choose_online_formats, search_inputs, search_weights
from minifloat.plan import Plan
from minifloat.scales import FULL_GRID
from minifloat.spec import LayerSpec, QuantSpec

BEFORE_GELU = "*.net.0.proj"  # the first layer of a feed-forward of diffusers
_PUBLISHED = {"published": E2M1, "published-sigma": E1M2}  # but for the layer before a GELU
QUERIES_KEYS_VALUES = "*.to_[qkv]"


def fp4dit(
    formats: str = "searched",
    weight_bits: int = 4,
    activation_bits: int = 6,
    family: str = "fp",
    group_size: int = 128,
    online: bool = True,
    attention: bool = False,
    rounding: str = "learned",
    start: str = "gptq",
    scale_aware: bool = False,
    search: bool = True,
    steps: int = 300,
    lr: float = 0.1,
    mixed: bool = False,
    window: int = 1,
    overlap: int = 0,
) -> Method:
    """Searched formats, groups, learned rounding, activations scaled by token.

    Args:
        formats: searched; published (E3M0 before a GELU and E2M1, inputs in E2M3 or E3M4);
            published-sigma (E1M2 in the place of E2M1, as for PixArt-Sigma); or names to choose
            from, such as "e2m1, e2m3".
        weight_bits: 2 to 8; the published formats have 4.
        activation_bits: 2 to 8, or 16 to leave activations alone; the published ones have 6 or 8.
        family: fp, or int for the integer baseline.
        group_size: input channels that share a scale; -1 for the whole row.
        online: scale activations token by token at run time; otherwise one calibrated scale a tensor.
        attention: quantize queries, keys and values too.
        rounding: learned, nearest or gptq.
        start: of learned rounding: gptq, or nearest as published.
        scale_aware: the paper's parametrization of learned rounding.
        search: search clip values; otherwise clip at the maximum, as published.
        steps: steps of learned rounding for each block.
        lr: its learning rate, of V' where scale-aware.
        mixed: let it compute in bfloat16, for processors that have instructions for it.
        window: blocks in a row that learn together.
        overlap: blocks of a window that the next one learns anew (CBQ has 1 of 2).
    """
    others, before_gelu, inputs = _formats(formats, family, weight_bits, activation_bits)
    grid = FULL_GRID if search else (1.0,)
    by_role = formats in _PUBLISHED
    scales = assign_scales(search=search, grid=grid) if by_role else search_weights(others, grid)
    learning = {"steps": steps, "lr": lr, "start": start, "mixed": mixed}
    passes = [collect(), scales, rounder(rounding, scale_aware=scale_aware, **learning)]
    x = None
    if inputs:
        x = QuantSpec(inputs[0], (1, -1) if online else (-1, -1), FP32, dynamic=online)
        passes.append(choose_online_formats(inputs) if online else search_inputs(inputs, grid))
    plan = _plan(others[0], before_gelu, group_size, x, attention=attention)
    return Method(
        "fp4dit",
        "arXiv 2503.15465",
        plan,
        tuple(passes),
        window,
        overlap,
        inverts=inverts(rounding, start),
    )


def _formats(
    name: str, family: str, weight_bits: int, activation_bits: int
) -> tuple[list[Format], Format | None, list[Format]]:
    """Candidates for weights, the format before a GELU if it has one, candidates for inputs."""
    if name == "searched" or any(map(str.isdigit, name)):
        names = "" if name == "searched" else name
        weights, inputs = by_width(names, weight_bits, activation_bits)
        if activation_bits != 16:
            inputs = inputs or candidates(family, activation_bits)
        return weights or candidates(family, weight_bits), None, inputs
    if name not in _PUBLISHED:
        raise unknown("formats", name, ("searched", *_PUBLISHED))
    published = {6: [E2M3], 8: [E3M4], 16: []}
    if weight_bits != 4 or activation_bits not in published or family != "fp":
        raise UserError(
            "the published formats are FP4 weights with FP6 or FP8 activations (or 16 bits, to "
            "leave them alone); use formats=searched for others"
        )
    return [_PUBLISHED[name]], E3M0, published[activation_bits]


def _plan(
    weight: Format,
    before_gelu: Format | None,
    group_size: int,
    x: QuantSpec | None,
    *,
    attention: bool,
) -> Plan:
    """The rules by the roles of layers."""
    w = QuantSpec(weight, (1, group_size), FP16)
    rules: list[tuple[str, LayerSpec | None]] = [("*", LayerSpec(weight=w, input=x))]
    if attention and x is not None:
        token = QuantSpec(x.format, (1, -1), FP32, dynamic=True)
        rules.insert(0, (QUERIES_KEYS_VALUES, LayerSpec(weight=w, input=x, output=token)))
    if before_gelu is not None:
        first = QuantSpec(before_gelu, (1, group_size), FP16)
        rules.insert(0, (BEFORE_GELU, LayerSpec(weight=first, input=x)))
    return Plan(tuple(rules))
