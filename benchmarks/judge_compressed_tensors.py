"""Any version of compressed-tensors decompresses our tensors: are its values ours?

    python -m benchmarks.judge_compressed_tensors

The tests ask the version of constraints.txt; this asks whichever is installed, such as those that
servers pin. Needs torch, compressed-tensors and this checkout on the path, and no transformers.
"""

from importlib.metadata import version

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

from minifloat.export.contracts import CONTRACTS
from minifloat.qtensor import decode
from minifloat.spec import LayerSpec
from tests.export.cases import BY_CONTRACT, layer_of


def verdict(spec: LayerSpec) -> str:
    """Identical, the largest relative difference, or the package's refusal."""
    contract, layer = CONTRACTS["compressed-tensors"], layer_of(spec)
    scheme = contract.scheme(spec, (256, 384))
    tensors = contract.tensors(layer, scheme)
    if tensors["weight_scale"].dtype in (torch.float16, torch.bfloat16):
        tensors["weight_scale"] = tensors["weight_scale"].float()  # its product takes this dtype
    try:
        judge = BaseCompressor.get_value_from_registry(scheme["format"])
        found = judge.decompress(tensors, QuantizationScheme(targets=["Linear"], **scheme))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    ours, theirs = decode(layer.q), found["weight"].float()
    if ours.shape != theirs.shape:
        return f"another shape: {list(theirs.shape)}"
    if torch.equal(ours, theirs):
        return "identical"
    return f"within {float(((theirs - ours) / ours).abs().nan_to_num().max()):.1e} (bfloat16)"


def main() -> None:
    print(f"| preset | compressed-tensors {version('compressed-tensors')} |\n|---|---|")
    for case, spec in BY_CONTRACT["compressed-tensors"].items():
        print(f"| {case} | {verdict(spec)} |")


if __name__ == "__main__":
    main()
