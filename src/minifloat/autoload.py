"""Waits for transformers and diffusers: our quantizer is registered when a program imports them.

They take seconds to import, so `import minifloat` must not do it, and yet `from_pretrained` has to
know our checkpoints afterwards. They have no entry points for that.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# Their modules that list quantizers, and ours that add one to the list.
_TARGETS = {
    "transformers.quantizers.auto": "minifloat.hf",
    "diffusers.quantizers.auto": "minifloat.hf_diffusers",
}


def register_on_import() -> None:
    """Register now where the quantizers are loaded, elsewhere as soon as they are."""
    waiting = {finder.target for finder in sys.meta_path if isinstance(finder, _Finder)}
    for target in _TARGETS:
        if target in sys.modules:
            _register(sys.modules[target])
        elif target not in waiting:
            sys.meta_path.insert(0, _Finder(target))


def _register(module: ModuleType) -> None:
    importlib.import_module(_TARGETS[module.__name__]).register(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module by the ordinary way and registers once it has run."""

    def __init__(self, target: str) -> None:
        self.target = target

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.target:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
