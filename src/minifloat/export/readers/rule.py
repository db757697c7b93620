"""What a rule of a reader is: what it may ask of a layer, and what it says when it holds.

Evidence is one of: run (we ran that version), source (read in the released package of that version,
or the nearest one named), issue (a thread of the reader's tracker). No rule is a guess; where a
reader was not examined, it says so by `untraced`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from minifloat.export.contract import Scheme
from minifloat.spec import LayerSpec

Verdict = Literal["loads", "needs", "differs", "refuses"]
Version = tuple[int, ...]


@dataclass(frozen=True)
class Fact:
    """What a rule may ask of one layer.

    Attributes:
        contract, scheme: how it is written.
        spec: what that means.
        dtype: of the model, such as "bfloat16".
        scale_dtype: of the stored scales, such as "float16".
        fused: whether engines compute it together with others.
        same_scheme, same_outer, same_input: whether it agrees with those.
        tensors: suffixes that are stored.
    """

    contract: str
    scheme: Scheme
    spec: LayerSpec
    dtype: str
    scale_dtype: str
    fused: bool
    same_scheme: bool
    same_outer: bool
    same_input: bool
    tensors: frozenset[str]

    @property
    def layout(self) -> str:
        """The format or algorithm by the reader's own name."""
        return str(self.scheme.get("format") or self.scheme.get("quant_algo") or self.contract)

    @property
    def strategy(self) -> str:
        """compressed-tensors' name of the tile; empty elsewhere."""
        return str(
            self.scheme.get("weights", {}).get("strategy", "") if "format" in self.scheme else ""
        )

    @property
    def mx_input(self) -> bool:
        """Whether inputs have power-of-two scales."""
        return self.spec.input is not None and self.spec.input.scale_format.is_power_of_two


@dataclass(frozen=True)
class Rule:
    """A reader's habit: where `holds`, it does `verdict`. Versions since <= v < until."""

    name: str
    verdict: Verdict
    says: str
    evidence: str
    holds: Callable[[Fact], bool]
    since: Version = (0,)
    until: Version = (10**6,)


@dataclass(frozen=True)
class Reader:
    """A program that loads checkpoints.

    Attributes:
        version: the newest one that the rules were taken from.
        contracts: those that it reads.
        rules: its habits.
        untraced: contracts that it registers, but whose reading was not examined.
    """

    version: Version
    contracts: tuple[str, ...]
    rules: tuple[Rule, ...]
    untraced: tuple[str, ...] = ()

    def fired(self, fact: Fact, version: Version) -> list[Rule]:
        """The rules that hold for a layer."""
        known = (rule for rule in self.rules if rule.since <= version < rule.until)
        return [rule for rule in known if rule.holds(fact)]


def w4afp8(fact: Fact) -> bool:
    """Whether packed integers meet inputs of 8-bit floats in compressed-tensors."""
    given = fact.spec.input
    packed = fact.contract == "compressed-tensors" and fact.layout == "pack-quantized"
    return packed and given is not None and not given.format.is_integer
