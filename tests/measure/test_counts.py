"""Counts against hand arithmetic and the published baselines; and that the model is left alone."""

from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from globalcnn import PDE, GlobalLayer
from globalcnn.errors import UserError, UserTypeError
from globalcnn.measure import count


class Solve(nn.Module):
    """Imitates a layer with a PDE: costs outside any convolution."""

    def forward(self, x):
        return x.roll(1, 2) - x

    def pde_multiplies(self, height, width):
        return 7 * height * width


@dataclass(frozen=True)
class Layer:
    """A layer, the image it is given, and what one call costs by hand."""

    module: nn.Module
    size: tuple[int, int, int]
    macs: int = 0
    elementwise: int = 0


LAYERS = {
    "convolution": Layer(nn.Conv2d(3, 8, 3, bias=False), (3, 6, 5), macs=12 * 8 * 27),
    "convolution with bias": Layer(nn.Conv2d(3, 8, 3), (3, 6, 5), macs=12 * 8 * 27),
    "depthwise, strided": Layer(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (4, 6, 6), macs=9 * 8 * 9),
    "transposed": Layer(nn.ConvTranspose2d(4, 8, 2, stride=2, bias=False), (4, 3, 3), macs=9 * 4 * 8 * 4),
    "linear": Layer(nn.Linear(5, 7), (3, 2, 5), macs=3 * 2 * 5 * 7),
    "batch norm": Layer(nn.BatchNorm2d(3), (3, 4, 4), elementwise=48),
    "group norm": Layer(nn.GroupNorm(1, 3), (3, 4, 4), elementwise=48),
    "relu": Layer(nn.ReLU(), (3, 4, 4)),
    "max pooling": Layer(nn.MaxPool2d(2), (3, 4, 4)),
    "average pooling": Layer(nn.AvgPool2d(2), (3, 4, 4), elementwise=48),
    "average of all": Layer(nn.AdaptiveAvgPool2d(1), (3, 6, 5), elementwise=90),
    "Global layer": Layer(GlobalLayer(2), (2, 5, 4), macs=(4 * 9 + 28) * 40, elementwise=5 * 40),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_costs_what_the_arithmetic_says(name):
    layer = LAYERS[name]
    c = count(layer.module, layer.size)
    assert (c.macs, c.elementwise) == (layer.macs, layer.elementwise)


# params, multiply-adds; 1000 classes, 224 x 224
BASELINES = {
    "mobilenetv2_100": (3504872, 300774272),
    "mobilenetv3_large_100": (5483032, 216589760),
    "efficientnet_b0": (5288548, 385814752),
    "resnet152": (60192808, 11513626624),
    "densenet169": (14149480, 3359843328),
}


@pytest.mark.parametrize("name", BASELINES)
def test_the_published_baselines_count_exactly(name):
    c = count(timm.create_model(name), (3, 224, 224))
    assert (c.params, c.macs) == BASELINES[name]
    assert c.macs_pde == 0


def test_the_pde_is_in_the_cost_and_has_a_column_of_its_own():
    c = count(nn.Sequential(nn.Conv2d(1, 2, 3), Solve(), nn.MaxPool2d(2), Solve()), (1, 10, 8))
    assert c.macs_pde == 7 * (8 * 6 + 4 * 3)
    assert c.macs == 8 * 6 * 2 * 9 + c.macs_pde
    assert [(layer.kind, layer.macs_pde) for layer in c.layers] == [
        ("Conv2d", 0),
        ("Solve", 7 * 48),
        ("Solve", 7 * 12),
    ]


@pytest.mark.parametrize(
    ("steps", "diffusivity", "each"),
    [(1, None, 28), (3, None, 28 + 2 * 17), (1, 1.0, 14), (3, 1.0, 14 + 2 * 9)],
)
def test_the_pde_of_a_layer_costs_what_its_scheme_states(steps, diffusivity, each):
    layer = GlobalLayer(2, PDE(steps=steps), diffusivity=diffusivity)
    assert count(layer, (2, 5, 4)).macs_pde == each * 40


def test_columns_are_the_sums_of_the_layers():
    c = count(timm.create_model("test_efficientnet"), (3, 32, 32))
    for column in ("params", "macs", "macs_pde", "elementwise"):
        assert sum(getattr(layer, column) for layer in c.layers) == getattr(c, column)
    assert len({layer.name for layer in c.layers}) == len(c.layers)


def test_a_module_called_twice_costs_twice_and_holds_its_parameters_once():
    conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    c = count(nn.Sequential(conv, nn.ReLU(), conv), (2, 4, 4))
    assert (c.params, c.macs) == (36, 2 * 32 * 18)
    assert len(c.layers) == 1


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count(model, (1, 1, 4)).params == 16 + 4 + 4


def test_a_parametrised_layer_counts_the_parameters_behind_its_weight():
    conv = weight_norm(nn.Conv2d(3, 8, 3))
    c = count(conv, (3, 6, 5))
    assert c.params == sum(p.numel() for p in conv.parameters()) == 8 * 27 + 8 + 8
    assert c.macs == 12 * 8 * 27
    assert [(layer.kind, layer.output_shape) for layer in c.layers] == [("Conv2d", (1, 8, 4, 3))]


class WithAuxiliary(nn.Module):
    uncounted_modules = ("auxiliary_head",)

    def __init__(self, auxiliary=True):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 1)
        self.auxiliary_head = nn.Sequential(nn.Conv2d(4, 9, 1)) if auxiliary else None

    def forward(self, x):
        x = self.body(x)
        return (x, self.auxiliary_head(x)) if self.training else x


@pytest.mark.parametrize("auxiliary", [True, False])
def test_an_auxiliary_head_is_left_out(auxiliary):
    c = count(nn.Sequential(WithAuxiliary(auxiliary)), (3, 2, 2))
    assert (c.params, c.macs) == (16, 4 * 12)


def test_functions_are_not_seen():
    class Functional(nn.Module):
        def forward(self, x):
            return F.avg_pool2d(x, 2)

    assert count(Functional(), (3, 4, 4)).elementwise == 0


class Restless(nn.Module):
    """Changes its buffers even in eval mode, and fails if told to."""

    def __init__(self, *, fail):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.full((), torch.nan))
        self.fail = fail

    def forward(self, x):
        assert not self.norm.training
        self.calls += 1
        self.last = x.mean()
        if self.fail:
            raise RuntimeError("told to fail")
        return self.frozen(self.norm(x))


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(fail):
    model = Restless(fail=fail)
    model.norm.weight.grad = torch.ones(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if fail:
        with pytest.raises(UserError, match="told to fail"):
            count(model, (3, 4, 4))
    else:
        count(model, (3, 4, 4))
    assert [m.training for m in model.modules()] == [True, True, False]
    assert not any(m._forward_hooks for m in model.modules())
    after = model.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(model.norm.weight.grad, torch.ones(3))
    assert model.frozen.weight.grad is None


def test_the_model_keeps_its_dtype():
    model = nn.Conv2d(3, 8, 3).to(torch.bfloat16)
    assert count(model, (3, 6, 5)).macs == 12 * 8 * 27
    assert model.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(3, 32), (3, 0, 32), (3, 32.0, 32), (3, 32, True), 32, "abc"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(UserError, match="three positive integers"):
        count(nn.ReLU(), size)


def test_a_size_that_does_not_fit_names_itself():
    with pytest.raises(UserError, match=r"input_size=\(4, 8, 8\).*channels"):
        count(nn.Conv2d(3, 8, 3), (4, 8, 8))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_cannot_be_watched_is_refused():
    with pytest.raises(UserTypeError, match="function"):
        count(lambda x: x, (3, 8, 8))
    with pytest.raises(UserError, match="lazy"):
        count(nn.LazyConv2d(8, 3), (3, 8, 8))
    with pytest.raises(UserError, match="TorchScript"):
        count(torch.jit.trace(nn.ReLU(), torch.zeros(1)), (3, 8, 8))


def test_a_compiled_model_counts_as_the_model():
    model = nn.Conv2d(3, 8, 3)
    assert count(torch.compile(model), (3, 6, 5)) == count(model, (3, 6, 5))
