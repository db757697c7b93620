"""minifloat: low-bit floating-point post-training quantization of generative models.

Every public name stands here. Names load on first use, because torch alone takes a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minifloat.autoload import register_on_import
from minifloat.errors import UserError

if TYPE_CHECKING:
    from minifloat.export.load import load
    from minifloat.formats import FORMATS, Format
    from minifloat.hf_cache import QuantizedCache
    from minifloat.method import Method, quantize
    from minifloat.methods import METHODS
    from minifloat.models.zoo import zoo
    from minifloat.plan import Plan
    from minifloat.qtensor import QTensor, decode, encode, fake_quantize
    from minifloat.rounding import round_to
    from minifloat.spec import SPECS, LayerSpec, QuantSpec

_HOMES = {
    "load": "export.load",
    "FORMATS": "formats",
    "Format": "formats",
    "QuantizedCache": "hf_cache",
    "Method": "method",
    "quantize": "method",
    "METHODS": "methods",
    "Plan": "plan",
    "QTensor": "qtensor",
    "decode": "qtensor",
    "encode": "qtensor",
    "fake_quantize": "qtensor",
    "round_to": "rounding",
    "SPECS": "spec",
    "LayerSpec": "spec",
    "QuantSpec": "spec",
    "zoo": "models.zoo",
}

__all__ = [
    "FORMATS",
    "METHODS",
    "SPECS",
    "Format",
    "LayerSpec",
    "Method",
    "Plan",
    "QTensor",
    "QuantSpec",
    "QuantizedCache",
    "UserError",
    "decode",
    "encode",
    "fake_quantize",
    "load",
    "quantize",
    "round_to",
    "zoo",
]


register_on_import()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minifloat' has no attribute {name!r}")
    return getattr(import_module(f"minifloat.{_HOMES[name]}"), name)
