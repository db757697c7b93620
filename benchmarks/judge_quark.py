"""Quark's own unpacking code judges our Quark exports: are its elements ours?

    python -m benchmarks.judge_quark

Needs amd-quark and what it imports (`pip install amd-quark onnxslim`); it is no dependency. Every code
of the three element types is written, packed and given to Quark; the scales of groups are E8M0.
"""

from importlib.metadata import PackageNotFoundError, version

import torch
from quark.torch.utils.pack import Pack_fp4, Pack_fp6

from minifloat.export.contract import Layer
from minifloat.export.quark import QUARK
from minifloat.formats import E8M0
from minifloat.qtensor import QTensor, decode
from minifloat.scales import Scale
from minifloat.spec import MXFP4, MXFP6, MXFP6_E3M2, LayerSpec

JUDGES = {
    MXFP4: Pack_fp4(None, "fp4"),
    MXFP6: Pack_fp6(None, "fp6_e2m3", 2, 3),
    MXFP6_E3M2: Pack_fp6(None, "fp6_e3m2", 3, 2),
}


def main() -> None:
    try:
        print(f"amd-quark {version('amd-quark')}, torch {torch.__version__}")
    except PackageNotFoundError:
        print(f"amd-quark of unknown version, torch {torch.__version__}")
    for spec, judge in JUDGES.items():
        bits = spec.format.bits
        codes = torch.arange(64 * 256).reshape(64, 256).remainder(2**bits).to(torch.uint8)
        exponents = torch.arange(64 * 8).reshape(64, 8).remainder(40).to(torch.uint8) + 107
        layer = Layer(LayerSpec(spec), QTensor(codes, Scale(exponents), spec, (64, 256)))
        found = QUARK.tensors(layer, QUARK.scheme(layer.spec, (64, 256)))
        elements = judge.unpack(found["weight"], reorder=False).float()
        scale = torch.exp2(found["weight_scale"].float() - E8M0.bias)
        theirs, ours = elements * scale.repeat_interleave(32, 1), decode(layer.q)
        print(f"{spec.format}: {'identical' if torch.equal(theirs, ours) else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
