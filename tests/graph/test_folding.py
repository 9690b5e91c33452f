"""Folding: every pair that may be folded is, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from globalcnn import GlobalLayer, create_model
from globalcnn.engines.program import exported_program
from globalcnn.graph import fold_batch_norms

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def settle(model: nn.Module) -> nn.Module:
    """Eval mode, with norms that do something: an untrained one subtracts 0 and divides by 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for t in (module.running_mean, module.bias):
                if t is not None:
                    nn.init.normal_(t, std=0.2)
            for t in (module.running_var, module.weight):
                if t is not None:
                    nn.init.uniform_(t, 0.5, 1.5)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@torch.no_grad()
def test_folding_finds_every_pair_of_a_network():
    model = settle(timm.create_model("resnet18")).double()
    images = IMAGES.double()
    expected = model(images)
    folding = fold_batch_norms(model)
    assert (len(folding.norms), folding.notes) == (20, ())
    assert folding.norms[0] == "bn1"
    assert norms(model) == 0
    assert torch.allclose(model(images), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_coefficients_of_a_layer_that_cannot_be_fused_are_folded():
    layer = settle(GlobalLayer(3, coefficients="full"))
    expected = layer(IMAGES)
    assert len(fold_batch_norms(layer).norms) == 4
    assert torch.allclose(layer(IMAGES), expected, atol=1e-5)


@torch.no_grad()
def test_the_init_blocks_of_global_layers_are_folded_and_their_own_norms_are_not():
    model = settle(create_model("densenet_global_cifar")).double()
    images = IMAGES[:2, :, :8, :8].double()
    expected = model(images)
    found = fold_batch_norms(model).norms
    assert any(name.startswith("features.global1.init.") for name in found)
    assert not any("velocity" in name for name in found)
    assert torch.allclose(model(images), expected, rtol=1e-9)


@dataclass(frozen=True)
class Pair:
    """A pair that is folded: its name, the layer, the norm, and the shape that it takes."""

    name: str
    before: Callable[[], nn.Module]
    norm: Callable[[], nn.Module]
    shape: tuple[int, ...] = (4, 3, 7, 6)


PAIRS = [
    Pair("bias", lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4)),
    Pair("groups and stride", lambda: nn.Conv2d(3, 6, 3, 2, groups=3), lambda: nn.BatchNorm2d(6)),
    Pair("wraps", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), lambda: nn.BatchNorm2d(4)),
    Pair("reflect", lambda: nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1), lambda: nn.BatchNorm2d(4)),
    Pair("no weights", lambda: nn.Conv2d(3, 4, 1, bias=False), lambda: nn.BatchNorm2d(4, affine=False)),
    Pair("norm without momentum", lambda: nn.Conv2d(3, 4, 1), lambda: nn.BatchNorm2d(4, momentum=None)),
    Pair("large eps", lambda: nn.Conv2d(3, 4, 1), lambda: nn.BatchNorm2d(4, eps=4.0)),
    Pair("pads its input itself", lambda: timm.layers.Conv2dSame(3, 4, 3, 2), lambda: nn.BatchNorm2d(4)),
    Pair("with activation", lambda: nn.Conv2d(3, 4, 1), lambda: timm.layers.BatchNormAct2d(4)),
    Pair("linear", lambda: nn.Linear(3, 4), lambda: nn.BatchNorm1d(4), (5, 3)),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@torch.no_grad()
def test_every_kind_of_pair_is_folded_exactly(pair):
    model = settle(nn.Sequential(pair.before(), pair.norm())).double()
    x = torch.randn(pair.shape, dtype=torch.float64)
    expected = model(x)
    assert fold_batch_norms(model, x).norms == ("1",)
    assert norms(model) == 0
    assert torch.allclose(model(x), expected, rtol=1e-12, atol=1e-12)


class Plain(nn.Module):
    """A convolution and its norm, as every case below changes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class UsedElsewhere(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class CalledTwice(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(x))))


class Between(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu())


class WrittenInPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.relu_()
        return self.norm(y)


class WeightRead(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.conv.weight.sum()


class WeightComputedWith(Plain):
    def forward(self, x: Tensor) -> Tensor:
        scale = float(self.conv.weight.detach().abs().max())
        return self.norm(self.conv(x)) * scale


class ControlFlow(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > -1e9 else x


class Taps(nn.Module):
    """Steps through its part layer by layer, and uses the convolution's output as well."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < -1e9:  # torch.fx stops here
            return x
        y = self.part[0](x)
        return self.part[1](y) + y


class Scaled(nn.Conv2d):
    """Uses its weight in another way."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 + super().forward(x)


def hooked(make: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = Plain()
        make(net)
        return net

    return build


def _other_forward(net: nn.Module) -> None:
    forward = net.conv.forward
    net.conv.forward = lambda x: forward(x) + 1


def _other_method(net: nn.Module) -> None:
    convolve = net.conv._conv_forward
    net.conv._conv_forward = lambda *arguments: convolve(*arguments) + 1


def _other_forward_of_the_network(net: nn.Module) -> None:
    net.forward = lambda x: net.norm(net.conv(x)) + net.conv(x)


KEPT: dict[str, Callable[[], nn.Module]] = {
    "used elsewhere": UsedElsewhere,
    "called twice": CalledTwice,
    "something between": Between,
    "written in place between": WrittenInPlace,
    "weight read by the forward": WeightRead,
    "weight computed with": WeightComputedWith,
    "control flow": ControlFlow,
    "stepped through": Taps,
    "a subclass": lambda: nn.Sequential(Scaled(3, 3, 1), nn.BatchNorm2d(3)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 1), nn.BatchNorm2d(3)),
    "another name": hooked(lambda net: setattr(net, "alias", net.conv)),
    "held by a list": hooked(lambda net: setattr(net, "layers", [net.conv])),
    "hook": hooked(lambda net: net.conv.register_forward_hook(lambda m, i, out: out + 1)),
    "hook before": hooked(lambda net: net.norm.register_forward_pre_hook(lambda m, i: (i[0] + 1,))),
    "forward on the instance": hooked(_other_forward),
    "forward of the network on the instance": hooked(_other_forward_of_the_network),
    "method on the instance": hooked(_other_method),
    "weight norm": hooked(lambda net: nn.utils.parametrizations.weight_norm(net.conv)),
    "pruned": hooked(lambda net: prune.l1_unstructured(net.conv, "weight", 1)),
    "no statistics": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
}  # fmt: skip


@pytest.mark.parametrize("why", KEPT)
@pytest.mark.parametrize("given", ["an example", "no example"])
@torch.no_grad()
def test_what_may_not_be_folded_is_not(why, given):
    model = settle(KEPT[why]())
    keys, expected = list(model.state_dict()), model(IMAGES)
    folding = fold_batch_norms(model, IMAGES if given == "an example" else None)
    assert folding.norms == ()
    assert list(model.state_dict()) == keys
    assert torch.equal(model(IMAGES), expected)


def test_a_norm_in_training_mode_stays():
    model = settle(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    model[1].train()
    assert fold_batch_norms(model).norms == ()


def test_a_linear_layer_on_three_dimensions_is_not_folded():
    """Its norm takes the second dimension for the channels; here it happens to have their number."""
    model, x = settle(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))), torch.randn(2, 4, 3)
    expected = model(x)
    assert fold_batch_norms(model, x).norms == ()
    assert torch.equal(model(x), expected)


class Parts(ControlFlow):
    """Cannot be traced as a whole; calls a part of ordinary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.part(super().forward(x)))


@torch.no_grad()
def test_parts_are_folded_where_an_example_shows_who_calls_them():
    model = settle(Parts())
    expected = model(IMAGES)
    assert fold_batch_norms(model).norms == ()
    folding = fold_batch_norms(model, IMAGES)
    assert folding.norms == ("part.1",)
    assert "the network (Parts) cannot be traced" in folding.notes[0]
    assert torch.allclose(model(IMAGES), expected, atol=1e-5)


class Remembers(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.conv(x)
        return self.norm(self.last)


def test_tracing_leaves_no_stand_ins_behind():
    model = settle(Remembers())
    fold_batch_norms(model)
    assert "last" not in vars(model)


def test_a_forward_that_was_replaced_on_the_class_is_respected(monkeypatch):
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: forward(self, x) + 1)
    assert fold_batch_norms(settle(Plain())).norms == ()


class Meanwhile(Plain):
    """Has another network called by another thread while its own forward is traced."""

    found: ClassVar[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            self.found.append(pool.submit(OTHER, IMAGES).result())
        return super().forward(x)


OTHER = nn.Sequential(settle(Plain()), nn.ReLU()).requires_grad_(False)


@pytest.mark.parametrize(
    "trace", [fold_batch_norms, lambda model: exported_program(model, IMAGES, dynamic=False)]
)
def test_networks_that_other_threads_call_while_one_is_traced_run_as_ever(trace):
    wanted = OTHER(IMAGES)
    Meanwhile.found.clear()
    trace(settle(Meanwhile()))
    assert Meanwhile.found
    assert all(torch.equal(one, wanted) for one in Meanwhile.found)
