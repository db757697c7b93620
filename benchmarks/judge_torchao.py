"""torchao's own code reads our torchao exports: are its weights ours, and what models compute with them?

    python -m benchmarks.judge_torchao

Needs torchao (`pip install torchao`) beside diffusers and transformers; it is no dependency. First its
`unflatten_tensor_state_dict` builds every case's weight from a header and pieces of ours and decodes it,
and `flatten_tensor_state_dict` takes it to pieces again; then its layers put inputs on their grids; then
diffusers loads a small transformer and transformers a small Llama, each with several classes of weights.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchao.prototype.safetensors.safetensors_support import (
    flatten_tensor_state_dict,
    unflatten_tensor_state_dict,
)

from minifloat import formats
from minifloat.export.native import save
from minifloat.export.torchao import TORCHAO
from minifloat.export.torchao.scheme import SYMMETRIC
from minifloat.export.write import export
from minifloat.kernels.packed import PackedLinear
from minifloat.kernels.reference import linear
from minifloat.layers import packed_like
from minifloat.packing import pack
from minifloat.plan import Plan
from minifloat.qtensor import decode, encode
from minifloat.spec import FP8_CHANNEL, INT8_CHANNEL, MXFP8, NVFP4, LayerSpec, QuantSpec
from tests.export.cases import BY_CONTRACT, layer_of

SHAPE = (256, 384)
CASES = BY_CONTRACT["torchao"]


def weight_of(case: str) -> tuple[Tensor, dict[str, Tensor], dict[str, str]]:
    """torchao's tensor of a case, and the pieces and the header that it was made from."""
    layer = layer_of(CASES[case], SHAPE)
    scheme = TORCHAO.scheme(layer.spec, SHAPE)
    assert TORCHAO.header is not None
    header = TORCHAO.header({"layer": scheme}, {"layer.bias": torch.float32})
    pieces = {f"layer.{name}": piece for name, piece in TORCHAO.tensors(layer, scheme).items()}
    found, rest = unflatten_tensor_state_dict({**pieces, "layer.bias": torch.ones(256)}, header)
    assert not rest
    return found["layer.weight"], pieces, header


def decoded(case: str) -> bool:
    """Whether the package decodes one case to our values, bit for bit."""
    return torch.equal(weight_of(case)[0].dequantize(), decode(layer_of(CASES[case], SHAPE).q))


def taken_apart(case: str) -> bool:
    """Whether the package writes what we write: the same pieces, and the same row of the header."""
    weight, pieces, header = weight_of(case)
    theirs, said = flatten_tensor_state_dict({"layer.weight": weight})
    ours = json.loads(header["layer.weight"])
    ours.pop(SYMMETRIC, None)
    row = json.loads(said["layer.weight"])
    row["_tensor_data_names"].sort(), ours["_tensor_data_names"].sort()
    same = all(torch.equal(_raw(piece), _raw(theirs[name])) for name, piece in pieces.items())
    return same and set(theirs) == set(pieces) and row == ours


def _raw(piece: Tensor) -> Tensor:
    return piece.reshape(-1).view(torch.uint8)


def product(case: str) -> float:
    """How far a linear layer of torchao is from our reference over the same input, relatively."""
    layer = layer_of(CASES[case], SHAPE)
    x = torch.randn(2, 32, SHAPE[1], generator=torch.Generator().manual_seed(2))
    codes = pack(layer.q.codes, layer.q.spec.format.bits)
    packed = PackedLinear(codes, layer.q.scale, layer.spec, SHAPE, torch.float32)
    wanted = linear(x, packed)
    found = nn.functional.linear(x, weight_of(case)[0])
    return float((found - wanted).norm() / wanted.norm())


Kind = Callable[[], tuple[nn.Module, Plan, Callable[[nn.Module], Tensor]]]


def transformer() -> tuple[nn.Module, Plan, Callable[[nn.Module], Tensor]]:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, num_attention_heads=4, attention_head_dim=16, in_channels=4,
        out_channels=8, cross_attention_dim=64, caption_channels=32, norm_num_groups=4,
    )  # fmt: skip
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 32),
        "timestep": torch.tensor([10, 500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, PLAN, lambda m: m(**inputs).sample


def llama() -> tuple[nn.Module, Plan, Callable[[nn.Module], Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=160, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    tokens = torch.arange(64).view(2, 32)
    return LlamaForCausalLM(config), PLAN, lambda m: m(tokens).logits


PLAN = Plan(
    (
        ("lm_head", None),
        ("*.attn1.*", LayerSpec(FP8_CHANNEL)),
        ("*.attn2.*", LayerSpec(NVFP4)),
        ("*.ff.net.0.*", LayerSpec(QuantSpec(formats.INT4, (1, 32)))),
        ("*.ff.net.2", LayerSpec(QuantSpec(formats.UINT4, (1, 32), zero_point=True))),
        ("*.self_attn.*", LayerSpec(MXFP8, replace(MXFP8, dynamic=True))),
        ("*.gate_proj", LayerSpec(NVFP4)),
        ("*.up_proj", LayerSpec(QuantSpec(formats.INT3, (1, 32)))),
        ("*.down_proj", LayerSpec(INT8_CHANNEL)),
        ("*", None),
    )
)


def packed(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with packed layers, rounded to nearest."""
    for name, layer in list(model.named_modules()):
        spec = plan.spec_of(name)
        if isinstance(layer, nn.Linear) and spec is not None and spec.weight is not None:
            layer_packed = packed_like(layer, spec)
            layer_packed.fill(encode(layer.weight.data, spec.weight), bias=layer.bias)
            model.set_submodule(name, layer_packed)
    return model


def loaded(kind: Kind, dtype: torch.dtype) -> tuple[float, float]:
    """How far a loaded model is from ours, and ours from full precision; relative to the latter."""
    torch.manual_seed(0)
    model, plan, run = kind()
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        whole = run(model.eval())
        native, out = Path(place) / "native", Path(place) / "torchao"
        native.mkdir()
        save(packed(model.to(dtype), plan), plan, native)
        export(native, "torchao", out)
        key = "torch_dtype" if kind is transformer else "dtype"
        read = type(model).from_pretrained  # type: ignore[attr-defined]
        ours = run(read(native, **{key: torch.float32}).eval())
        theirs = run(read(out, **{key: dtype}).eval()).float()
        return float((theirs - ours).norm() / whole.norm()), float(
            (ours - whole).norm() / whole.norm()
        )


def main() -> None:
    os.environ["MINIFLOAT_KERNEL"] = "reference"
    print(f"torchao {version('torchao')}, torch {torch.__version__}")
    for what, same in (("decoded to our values", decoded), ("taken to our pieces", taken_apart)):
        different = [case for case in CASES if not same(case)]
        print(f"{len(CASES) - len(different)} of {len(CASES)} {what}; others: {different}")
    for case in CASES:
        print(f"{case}: a linear layer's output is {product(case):.1e} from our reference")
    for kind in (transformer, llama):
        apart, control = loaded(kind, torch.float32)
        print(f"{kind.__name__}: {apart:.1e} from ours, ours to full precision {control:.1e}")


if __name__ == "__main__":
    main()
