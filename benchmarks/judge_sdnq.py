"""SDNQ's own code reads our SDNQ exports: are its weights ours, and what diffusers computes with them?

    python -m benchmarks.judge_sdnq

Needs sdnq (`pip install sdnq`) beside diffusers; it is no dependency. First every format is decoded by
the package's `dequantize_weight`; then diffusers loads two small models, a transformer with several
formats and low-rank branches and an autoencoder with packed convolutions, and is compared with our own.
"""

import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from sdnq.dequantizer import dequantize_weight
from torch import Tensor, nn

from minifloat import formats
from minifloat.export.native import save
from minifloat.export.sdnq import SDNQ
from minifloat.export.write import export
from minifloat.plan import Plan
from minifloat.qtensor import decode, encode
from minifloat.spec import MXFP4, NVFP4, LayerSpec, QuantSpec
from minifloat.substitute import packed_like
from tests.export.cases import BY_CONTRACT, layer_of

SHAPE = (256, 384)
E3M2, E2M3 = QuantSpec(formats.E3M2, (1, -1)), QuantSpec(formats.E2M3, (1, 32), formats.FP16)


def decoded(case: str) -> bool:
    """Whether the package decodes one case to our values, bit for bit."""
    layer = layer_of(BY_CONTRACT["sdnq"][case], SHAPE)
    scheme = SDNQ.scheme(layer.spec, SHAPE)
    found = SDNQ.tensors(layer, scheme)
    scale_2, size = found.get("scale_2"), scheme["group_size"]
    grouped = torch.Size((SHAPE[0], SHAPE[1] // size, size) if size > 0 else SHAPE)
    theirs = dequantize_weight(
        scheme["weights_dtype"],
        found["weight"],
        found["scale"] if scale_2 is not None else found["scale"].float(),
        scale_2=scale_2,
        scale_dtype=scheme["scale_dtype"],
        zero_point=found.get("zero_point"),
        zero_point_dtype="none",
        group_size=size,
        result_shape=torch.Size(SHAPE),
        quantized_weight_shape=grouped,
        quantized_scale_shape=found["scale"].shape,
    )
    return torch.equal(theirs, decode(layer.q))


def transformer() -> tuple[nn.Module, Plan, Callable[[nn.Module], Tensor]]:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, num_attention_heads=4, attention_head_dim=16, in_channels=4,
        out_channels=8, cross_attention_dim=64, caption_channels=32, norm_num_groups=4,
    )  # fmt: skip
    rules = (
        ("*.attn1.*", LayerSpec(MXFP4)),
        ("*.attn2.*", LayerSpec(NVFP4)),
        ("*.ff.net.0.*", LayerSpec(E3M2)),
        ("*.ff.net.2", LayerSpec(E2M3)),
        ("*", None),
    )
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 32),
        "timestep": torch.tensor([10, 500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, Plan(rules), lambda m: m(**inputs).sample


def autoencoder() -> tuple[nn.Module, Plan, Callable[[nn.Module], Tensor]]:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8,
    )  # fmt: skip
    rules = (("*.conv1", LayerSpec(E3M2)), ("*.conv2", LayerSpec(E3M2)), ("*", None))
    x = torch.randn(1, 3, 16, 16)
    return model, Plan(rules), lambda m: m(x).sample


def packed(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with packed layers, rounded to nearest; second layers of feed-forwards get a branch."""
    for name, layer in list(model.named_modules()):
        spec = plan.spec_of(name)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or spec is None or spec.weight is None:
            continue
        w = layer.weight.data.flatten(1)
        rank = 4 * name.endswith("ff.net.2")
        branch = (torch.randn(len(w), 4).half() / 8, torch.randn(4, w.shape[1]).half() / 8)
        layer_packed = packed_like(layer, spec, rank)
        layer_packed.fill(
            encode(w, spec.weight), bias=layer.bias, low_rank=branch if rank else None
        )
        model.set_submodule(name, layer_packed)
    return model


def loaded(
    kind: Callable[[], tuple[nn.Module, Plan, Callable[[nn.Module], Tensor]]],
) -> tuple[float, float]:
    """How far diffusers' outputs are from ours, and ours from full precision; relative to the latter."""
    torch.manual_seed(0)
    model, plan, run = kind()
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        whole = run(model.eval())
        native, out = Path(place) / "native", Path(place) / "sdnq"
        native.mkdir()
        save(packed(model, plan), plan, native)
        export(native, "sdnq", out)
        ours, theirs = (run(type(model).from_pretrained(f).eval()) for f in (native, out))
        size = whole.norm()
        return float((theirs - ours).norm() / size), float((ours - whole).norm() / size)


def main() -> None:
    try:
        print(f"sdnq {version('sdnq')}, torch {torch.__version__}")
    except PackageNotFoundError:
        print(f"sdnq of unknown version, torch {torch.__version__}")
    cases = BY_CONTRACT["sdnq"]
    different = [case for case in cases if not decoded(case)]
    print(f"{len(cases) - len(different)} of {len(cases)} formats identical; others: {different}")
    for kind in (transformer, autoencoder):
        apart, control = loaded(kind)
        print(
            f"{kind.__name__}: diffusers to ours {apart:.1e}, ours to full precision {control:.1e}"
        )


if __name__ == "__main__":
    main()
