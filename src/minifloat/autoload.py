"""Waits for transformers: our quantizer is registered when a program imports transformers.

transformers takes seconds to import, so `import minifloat` must not do it, and yet
`from_pretrained` has to know our checkpoints afterwards. transformers has no entry points for that.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_TARGET = "transformers.quantizers.auto"


def register_on_import() -> None:
    """Register now if transformers' quantizers are loaded, else as soon as they are."""
    if _TARGET in sys.modules:
        _register(sys.modules[_TARGET])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(module: ModuleType) -> None:
    from minifloat.hf import register

    register(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module by the ordinary way and registers once it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _TARGET:
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
