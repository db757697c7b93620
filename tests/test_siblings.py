"""Layers that read one input are one product, and what they compute and save is as before."""

import copy

import pytest
import torch
from torch import Tensor, nn

from minifloat import arena, siblings
from minifloat.arena import Arena
from minifloat.kernels import native, ops
from minifloat.layers import QLinear
from minifloat.qtensor import encode, fake_quantize
from minifloat.siblings import make_ready
from minifloat.spec import FP4_G128, INT4_G128, INT8_TOKEN, NVFP4, LayerSpec

SPEC = LayerSpec(FP4_G128, INT8_TOKEN)
# The third does not fit behind the first two, and the last is larger than a room.
SIZES = ((10, torch.uint8), (40, torch.float16), (120, torch.float32), (700, torch.uint8))


@pytest.fixture(autouse=True)
def built() -> None:
    if not native.reads_interleaved():
        pytest.skip("no kernels for rows side by side: no C compiler at install time, or no VNNI")


class Attention(nn.Module):
    """Three projections of one input, or the first of another."""

    def __init__(
        self, specs: tuple[LayerSpec, ...] = (SPEC, SPEC, SPEC), bias: bool = False
    ) -> None:
        super().__init__()
        sizes = (64, 16, 32)
        for name, spec, rows in zip(("q_proj", "k_proj", "v_proj"), specs, sizes, strict=True):
            assert spec.weight is not None
            q = encode(torch.randn(rows, 256), spec.weight)
            layer = QLinear.pack(q, spec, torch.randn(rows) if bias else None, torch.float32)
            self.add_module(name, layer)

    def forward(self, x: Tensor, states: Tensor | None = None) -> Tensor:
        context = x if states is None else states
        return torch.cat([self.q_proj(x), self.k_proj(context), self.v_proj(context)], -1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the products since the test began."""
    found: list[int] = []

    def linear(x: Tensor, codes: Tensor, *rest: object) -> Tensor:
        found.append(len(codes))
        return torch.ops.minifloat.linear.default(x, codes, *rest)

    monkeypatch.setattr(ops, "linear", linear)
    return found


@pytest.mark.parametrize("bias", [False, True])
def test_three_layers_are_one_product(calls: list[int], bias: bool) -> None:
    model, x = Attention(bias=bias), torch.randn(2, 3, 256)
    y, saved = model(x), model.state_dict()
    size = sum(b.nbytes for b in model.buffers())
    make_ready(model)
    assert calls == [64, 16, 32]
    assert torch.equal(model(x), y)
    assert torch.equal(model(x), y)
    assert calls[3:] == [112, 112]
    storages = {
        b.untyped_storage().data_ptr(): b.untyped_storage().nbytes() for b in model.buffers()
    }
    assert sum(storages.values()) == size
    assert all(torch.equal(now, saved[name]) for name, now in model.state_dict().items())


def test_outputs_are_rounded_layer_by_layer() -> None:
    """FP4DiT's query, key and value have a scale each, whoever multiplies them."""
    spec = LayerSpec(FP4_G128, INT8_TOKEN, output=INT8_TOKEN)
    model, x = Attention((spec, spec, spec)), torch.randn(2, 3, 256)
    y = model(x)
    make_ready(model)
    assert model.q_proj.siblings is not None
    assert torch.equal(model(x), y)
    for part in y.split((64, 16, 32), -1):
        assert torch.equal(fake_quantize(part, INT8_TOKEN), part)


@pytest.mark.parametrize("alone", [False, True])
def test_large_models_move_to_one_place(monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    monkeypatch.setattr(siblings, "_LARGE", 0)
    specs = (SPEC, LayerSpec(INT4_G128), LayerSpec(NVFP4)) if alone else (SPEC, SPEC, SPEC)
    model, x = Attention(specs), torch.randn(2, 3, 256)
    y, saved = model(x), model.state_dict()
    make_ready(model)
    weights = [layer.weight for layer in model.children()]
    assert len({w.untyped_storage().data_ptr() for w in weights}) == 1
    assert torch.equal(model(x), y)
    assert all(torch.equal(now, saved[name]) for name, now in model.state_dict().items())
    make_ready(model)
    assert [layer.weight.data_ptr() for layer in model.children()] == [
        w.data_ptr() for w in weights
    ]
    model.bfloat16().float()
    assert torch.equal(model(x), y)


def test_an_arena_takes_more_room_where_a_piece_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arena, "_ROOM", 1000)
    room, parts = Arena(), [torch.arange(n).view(-1, 2).to(d) for n, d in SIZES]
    copies = [room.joined([part, part]) for part in parts]
    for copied, part in zip(copies, parts, strict=True):
        assert torch.equal(copied, torch.cat([part, part]))
        assert copied.data_ptr() % 64 == 0
    assert len({copied.untyped_storage().data_ptr() for copied in copies}) == 3


def test_a_copy_has_siblings_of_its_own() -> None:
    model, x = Attention(), torch.randn(1, 256)
    make_ready(model)
    other = copy.deepcopy(model)
    y = model(x)
    other.q_proj.weight.zero_()
    assert not torch.equal(other(x)[:, :64], y[:, :64])
    assert torch.equal(other(x)[:, 64:], y[:, 64:])
    assert torch.equal(model(x), y)


def test_layers_that_read_different_inputs_are_parted(calls: list[int]) -> None:
    model, x, states = Attention(), torch.randn(3, 256), torch.randn(5, 256)[:3]
    y = model(x, states)
    make_ready(model)
    assert torch.equal(model(x, states), y)
    calls.clear()
    assert torch.equal(model(x, states), y)
    assert calls == [64, 16, 32]


def test_new_weights_and_other_devices_part_them() -> None:
    model, x = Attention(), torch.randn(1, 256)
    other = Attention()
    make_ready(model)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x))
    make_ready(model)
    model.q_proj.to(torch.float32)
    assert torch.equal(model(x), other(x))


def test_an_input_from_elsewhere_parts_them() -> None:
    model = Attention()
    make_ready(model)
    siblings = model.q_proj.siblings
    assert siblings is not None
    assert siblings.output(model.q_proj, torch.empty(1, 256, device="meta")) is None
    assert model.v_proj.siblings is None


def test_a_first_call_alone_leaves_nothing_wrong() -> None:
    model, x = Attention(), torch.randn(1, 256)
    y = model(x)
    make_ready(model)
    model.q_proj(torch.randn(1, 256))
    assert torch.equal(model(x), y)
    assert torch.equal(model.v_proj(x), y[:, 80:])


@pytest.mark.parametrize(
    "other", [LayerSpec(INT4_G128, INT8_TOKEN), LayerSpec(FP4_G128), LayerSpec(NVFP4)], ids=str
)
def test_unlike_layers_stay_apart(other: LayerSpec) -> None:
    model = Attention((SPEC, other, SPEC))
    make_ready(model)
    assert model.q_proj.siblings is None


def test_scales_of_scales_stay_apart() -> None:
    model = Attention((LayerSpec(NVFP4),) * 3)
    make_ready(model)
    assert model.q_proj.siblings is None


def test_gradients_flow_through_siblings() -> None:
    model, x = Attention(), torch.randn(2, 256, requires_grad=True)
    model(x).sum().backward()
    expected, x.grad = x.grad, None
    make_ready(model)
    model(x).sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_a_compiler_sees_one_product() -> None:
    model, x = Attention(), torch.randn(2, 256)
    y = model(x)
    make_ready(model)
    graph = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(graph(x), y)
        assert torch.equal(graph(x + 0), y)
