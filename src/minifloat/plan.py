"""The plan: which layer is quantized how, as data that a user can edit.

An ordered list of (pattern, LayerSpec); the first pattern that matches a layer's full name decides,
a rule without a spec keeps the layer, and so does the lack of a rule. The embedding and the output head
listen only to a rule that is their name ("lm_head"), since "*" is said of blocks. A pattern that matches
nothing is an error, because a plan that silently does nothing is how models lose their meaning.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from minifloat.errors import UserError, unknown
from minifloat.spec import LayerSpec


@dataclass(frozen=True)
class Plan:
    """Ordered rules (glob pattern, spec or None to keep)."""

    rules: tuple[tuple[str, LayerSpec | None], ...]

    def resolve(
        self, names: Iterable[str], by_name: Iterable[str] = ()
    ) -> dict[str, LayerSpec | None]:
        """The spec of every layer by name.

        Args:
            names: layers that any pattern reaches.
            by_name: layers outside the blocks, which only a rule of their very name reaches, wherever
                it stands; the others of them are not in the answer.

        Raises:
            UserError: a rule that matches no layer.
        """
        layers, outside = list(names), list(by_name)
        own = {pattern: spec for pattern, spec in reversed(self.rules) if pattern in outside}
        for pattern, _ in self.rules:
            if pattern not in own and not any(fnmatchcase(name, pattern) for name in layers):
                raise UserError(_no_match(pattern, layers + outside))
        return {name: self.spec_of(name) for name in layers} | own

    def spec_of(self, name: str) -> LayerSpec | None:
        """What the first matching rule says of one layer."""
        return next((spec for pattern, spec in self.rules if fnmatchcase(name, pattern)), None)

    def to_json(self) -> dict[str, Any]:
        return {"rules": [[pattern, spec and spec.to_json()] for pattern, spec in self.rules]}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Plan":
        for key in data:
            if key != "rules":
                raise unknown("key of a plan", key, ("rules",))
        if not isinstance(data.get("rules", []), list):
            raise UserError(f"a plan's rules are a list, not {data['rules']!r}")
        rules = []
        for rule in data.get("rules", []):
            if not isinstance(rule, list) or len(rule) != 2 or not isinstance(rule[0], str):
                raise UserError(f"a plan's rule is [pattern, spec or null], not {rule!r}")
            rules.append((rule[0], None if rule[1] is None else LayerSpec.from_json(rule[1])))
        if not rules:
            raise UserError("the plan has no rules; write {'rules': [['*', {'weight': 'mxfp4'}]]}")
        return Plan(tuple(rules))

    @staticmethod
    def read(path: Path) -> "Plan":
        """The plan of a JSON file."""
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"there is no plan file {path}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        if not isinstance(data, dict):
            raise UserError(f"{path} holds no plan: expected an object with 'rules'")
        return Plan.from_json(data)


def _no_match(pattern: str, layers: list[str]) -> str:
    tail = pattern.rsplit(".", 1)[-1]
    tails = sorted({name.rsplit(".", 1)[-1] for name in layers})
    close = get_close_matches(tail, tails, n=3, cutoff=0.4) or tails[:8]
    hint = " or ".join(repr(name) for name in close)
    return f"plan rule {pattern!r} matched no layer; did you mean {hint}?"
