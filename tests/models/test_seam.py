"""Folding as arithmetic: on seams written by hand, where no model of a library is needed."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.models.hadamard import rotation, turn
from minifloat.models.seam import (
    MAPS,
    Seam,
    Slot,
    fold_gains,
    fold_order,
    fold_rotation,
    fold_scale,
    tie_scale,
)
from minifloat.models.tied import untie

WIDTH = 12


class Gated(nn.Module):
    """down(gate(x) * up(x)), with a gain that is used as 1 + w before it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(0.3 * torch.randn(6))
        self.gate, self.up = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH)
        self.down = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.rms_norm(x, (6,)) * (1 + self.gain)
        out: Tensor = self.down(self.gate(y).sigmoid() * self.up(y))
        return out


UP = Seam(
    "mlp",
    "up",
    WIDTH,
    (Slot("up.weight", 0), Slot("up.bias", 0)),
    (Slot("down.weight", 1),),
    ("scale", "order"),
    (Slot("gate.weight", 0), Slot("gate.bias", 0)),
)
NORM = Seam(
    "norm",
    "norm",
    6,
    (Slot("gain", 0, offset=1.0),),
    (Slot("gate.weight", 1), Slot("up.weight", 1)),
    ("scale",),
)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Gated().double()


def scales(width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(3)).exp().double()


def answer(model: nn.Module) -> Tensor:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(4)).double()
    with torch.no_grad():
        out: Tensor = model(x)
        return out


def test_a_scale_divides_what_is_produced_and_multiplies_what_is_read(model: nn.Module) -> None:
    before, up = answer(model), model.get_parameter("up.weight").detach().clone()
    down = model.get_parameter("down.weight").detach().clone()
    fold_scale(model, UP, scales(WIDTH))
    torch.testing.assert_close(model.get_parameter("up.weight").data, up / scales(WIDTH)[:, None])
    torch.testing.assert_close(model.get_parameter("down.weight").data, down * scales(WIDTH))
    torch.testing.assert_close(answer(model), before)


def test_an_order_moves_the_followers_too(model: nn.Module) -> None:
    before, order = answer(model), torch.randperm(WIDTH)
    gate = model.get_parameter("gate.bias").detach().clone()
    fold_order(model, UP, order)
    assert torch.equal(model.get_parameter("gate.bias").data, gate[order])
    torch.testing.assert_close(answer(model), before)


def test_a_gain_of_one_plus_w_keeps_its_offset(model: nn.Module) -> None:
    before, gain = answer(model), model.get_parameter("gain").detach().clone()
    fold_scale(model, NORM, scales(6))
    torch.testing.assert_close(model.get_parameter("gain").data, (1 + gain) / scales(6) - 1)
    torch.testing.assert_close(answer(model), before)


def test_folding_the_gains_leaves_gains_of_one(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("gain")[0] = -1  # a dead channel
        model.get_parameter("gain")[1] = -3  # a negative gain
    before = answer(model)
    fold_gains(model, [UP, NORM])
    assert torch.equal(model.get_parameter("gain").data, torch.zeros(6).double())
    torch.testing.assert_close(answer(model), before)


def test_folds_compose(model: nn.Module) -> None:
    """Two scales are their product, and a fold and its inverse are nothing."""
    first, second = scales(WIDTH), scales(WIDTH).flip(0)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    fold_scale(model, UP, first)
    fold_scale(model, UP, second)
    fold_scale(model, UP, 1 / (first * second))
    order = torch.randperm(WIDTH)
    fold_order(model, UP, order)
    fold_order(model, UP, order.argsort())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.data, kept[name])


def test_low_precision_is_computed_in_high(model: nn.Module) -> None:
    """bf16 weights are rounded once, however the fold came about."""
    half = model.bfloat16()
    wide = half.get_parameter("up.weight").float() / scales(WIDTH).float()[:, None]
    fold_scale(half, UP, scales(WIDTH))
    assert torch.equal(half.get_parameter("up.weight").data, wide.bfloat16())


class Heads(nn.Module):
    """Two value heads of 3 channels, each read by two query heads; v lies between q and k."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.out = nn.Linear(6, 18, bias=False), nn.Linear(12, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, v, b = self.fused(x).reshape(-1, 2, 3, 3).unbind(2)
        mixed = [(a + i * b).sum(-1, keepdim=True) * v for i in range(2)]
        out: Tensor = self.out(torch.stack(mixed, 2).flatten(1))
        return out


VALUE = Seam(
    "heads",
    "value",
    6,
    (Slot("fused.weight", 0, start=3, block=3, stride=9),),
    (Slot("out.weight", 1, block=3, copies=2),),
    MAPS,
    cell=3,
)


def test_heads_between_others_and_shared_by_queries() -> None:
    torch.manual_seed(1)
    model = Heads().double()
    before = answer(model)
    assert VALUE.producers[0].places(6)[:, 0].tolist() == [3, 4, 5, 12, 13, 14]
    assert VALUE.consumers[0].places(6).tolist()[3] == [6, 9]
    fold_scale(model, VALUE, scales(6))
    fold_order(model, VALUE, torch.tensor([2, 0, 1, 3, 5, 4]))
    each = torch.stack([rotation(3, seed=1), torch.linalg.qr(torch.randn(3, 3).double())[0]])
    fold_rotation(model, VALUE, each)
    torch.testing.assert_close(answer(model), before)


def test_a_rotation_may_be_a_function() -> None:
    one, two = Heads().double(), Heads().double()
    two.load_state_dict(one.state_dict())
    wide = replace(VALUE, width=8, cell=4, producers=(Slot("fused.weight", 0),), consumers=())
    fold_rotation(one, wide, partial(turn, seed=3))
    fold_rotation(two, wide, rotation(4, seed=3))
    torch.testing.assert_close(one.fused.weight, two.fused.weight)
    with pytest.raises(UserError, match="orthogonal"):
        fold_rotation(one, wide, lambda x: x * 2)
    with pytest.raises(UserError, match="of 4 channels"):
        fold_rotation(one, wide, lambda x: x[..., :2])


def test_across_heads_nothing_cancels() -> None:
    """The partition is no caution: an order that crosses it changes the output."""
    torch.manual_seed(1)
    model = Heads().double()
    before = answer(model)
    with pytest.raises(UserError, match="inside their 3"):
        fold_order(model, VALUE, torch.tensor([3, 1, 2, 0, 4, 5]))
    torch.testing.assert_close(answer(model), before)
    fold_order(model, replace(VALUE, cell=6), torch.tensor([3, 1, 2, 0, 4, 5]))
    assert not torch.allclose(answer(model), before, rtol=1e-2)


def test_units_move_together() -> None:
    slot = Slot("w", 0, start=2, unit=2)
    assert slot.places(3).tolist() == [[2, 3], [4, 5], [6, 7]]


def test_tied_channels_share_a_scale(model: nn.Module) -> None:
    tied = replace(UP, ties=tuple(i % 6 for i in range(WIDTH)))
    with pytest.raises(UserError, match="tie_scale"):
        fold_scale(model, tied, scales(WIDTH))
    scale = tie_scale(tied, scales(WIDTH))
    assert torch.equal(scale[:6], scale[6:])
    torch.testing.assert_close(scale[:6], (scales(WIDTH)[:6] * scales(WIDTH)[6:]).sqrt())
    assert torch.equal(tie_scale(UP, scales(WIDTH)), scales(WIDTH))
    fold_scale(model, tied, scale)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("rotation", torch.eye(WIDTH), "no rotation"),
        ("scale", torch.zeros(WIDTH), "positive"),
        ("scale", torch.full((WIDTH,), torch.inf), "finite"),
        ("scale", torch.ones(WIDTH - 1), f"{WIDTH} positive"),
        ("order", torch.zeros(WIDTH, dtype=torch.int64), "permutation"),
    ],
)
def test_what_does_not_cancel_is_refused(
    model: nn.Module, kind: str, wrong: Tensor, message: str
) -> None:
    fold = {"scale": fold_scale, "order": fold_order, "rotation": fold_rotation}[kind]
    before = answer(model)
    with pytest.raises(UserError, match=message):
        fold(model, UP, wrong)
    assert torch.equal(answer(model), before)


def test_rotations_are_orthogonal_and_pass_no_gain() -> None:
    model = Heads().double()
    for wrong in (2 * torch.eye(3), torch.eye(4)):
        with pytest.raises(UserError, match=r"orthogonal|3 x 3"):
            fold_rotation(model, VALUE, wrong)
    model.register_parameter("gain", nn.Parameter(torch.tensor([1.0, 1, 1, 1, 1, 2])))
    with pytest.raises(UserError, match="fold_gains"):
        fold_rotation(model, replace(VALUE, followers=(Slot("gain", 0),)), rotation(3))


class Tied(nn.Module):
    """An embedding that is also the head, and a gain before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.RMSNorm(6)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.embed(ids)))
        return out


LAST = Seam("norm", "norm", 6, (Slot("norm.weight", 0),), (Slot("head.weight", 1),), ("scale",))
STREAM = Seam(
    "model",
    "residual",
    6,
    (Slot("embed.weight", 1),),
    (Slot("head.weight", 1),),
    ("order", "rotation"),
    (Slot("norm.weight", 0),),
)


def test_tied_weights_turn_once_and_scale_not_at_all() -> None:
    torch.manual_seed(0)
    model, ids = Tied().double(), torch.arange(9)
    before = model(ids)
    fold_rotation(model, STREAM, rotation(6, seed=5))
    fold_order(model, STREAM, torch.tensor([5, 4, 3, 2, 1, 0]))
    torch.testing.assert_close(model(ids), before)
    with pytest.raises(UserError, match=r"tied to embed\.weight"):
        fold_scale(model, LAST, scales(6))
    untie(model, "head.weight")
    fold_scale(model, LAST, scales(6))
    torch.testing.assert_close(model(ids), before)
    with pytest.raises(UserError, match="not tied"):
        untie(model, "head.weight")


def test_packed_layers_are_named() -> None:
    with pytest.raises(UserError, match="fold before quantizing"):
        fold_scale(nn.Linear(2, 2), UP, torch.ones(WIDTH))
