"""Receptive fields against the arithmetic of kernels, strides and dilations, whatever the weights."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from globalcnn import create_model
from globalcnn.errors import UserError
from globalcnn.measure import ReceptiveField, receptive_field
from globalcnn.measure.receptive_field import _no_fast_convolutions
from globalcnn.nn.implicit.equilibrium import Equilibrium, Solver


def chain(*layers):
    """Convolutions given as (kernel, stride, dilation), each with its BatchNorm and ReLU."""
    parts = [
        nn.Sequential(nn.Conv2d(2, 2, k, s, d * (k // 2), d), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
        for k, s, d in layers
    ]
    return nn.Sequential(*parts)


def extent(*layers):
    """The field of a chain, from the last layer back: each kernel adds (k - 1) d at its own stride."""
    size, jump = 1, 1
    for k, s, d in layers:
        size += (k - 1) * d * jump
        jump *= s
    return size


@pytest.mark.parametrize(
    "layers",
    [
        [(3, 1, 1)],
        [(3, 1, 1)] * 5,
        [(1, 1, 1), (5, 1, 1)],
        [(3, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 1)],
        [(7, 2, 1), (3, 1, 1), (3, 1, 1)],
        [(3, 1, 1), (3, 1, 2), (3, 1, 4)],
    ],
)
def test_kernels_strides_and_dilations_add_up(layers):
    expected = extent(*layers)
    assert receptive_field(chain(*layers), (2, 64, 48)) == ReceptiveField(expected, expected, whole=False)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-30])
def test_the_weights_do_not_matter(value):
    """Weights of zero or below switch every ReLU off and no gradient passes: the forward search finds all."""
    model = chain(*[(3, 1, 1)] * 4)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    assert receptive_field(model, (2, 40, 40)) == ReceptiveField(9, 9, whole=False)


class NoGradient(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        with torch.no_grad():
            return self.body(x)


@pytest.mark.parametrize("size", [(2, 40, 40), (2, 13, 9)])
def test_no_gradient_is_needed(size):
    """The gradient only spares work: without it the forward search alone gives the same answer."""
    model = nn.Sequential(
        chain((3, 1, 1), (3, 2, 1)), nn.MaxPool2d(2), chain((3, 1, 2)), nn.Upsample(scale_factor=2)
    )
    assert receptive_field(NoGradient(model), size) == receptive_field(model, size)
    assert receptive_field(NoGradient(model[0]), size) == ReceptiveField(5, 5, whole=False)


def test_rows_and_columns_are_apart():
    model = nn.Sequential(nn.Conv2d(1, 1, (3, 7)), nn.MaxPool2d((2, 1)), nn.Conv2d(1, 1, (1, 3)))
    assert receptive_field(model, (1, 20, 30)) == ReceptiveField(4, 9, whole=False)


def test_rows_that_a_stride_or_dilation_jumps_over_are_not_counted():
    assert receptive_field(nn.Conv2d(1, 1, 3, dilation=4), (1, 20, 20)) == ReceptiveField(3, 3, whole=False)


def test_a_field_is_cut_by_the_border_and_may_wrap_round_it():
    zero = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(3)])
    assert receptive_field(zero, (1, 5, 9)) == ReceptiveField(5, 7, whole=False)

    class Shifted(nn.Module):
        def forward(self, x):
            return x + x.roll(2, 2) + x.roll(-5, 2)

    assert receptive_field(Shifted(), (1, 9, 4)) == ReceptiveField(3, 1, whole=False)
    periodic = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular") for _ in range(3)])
    assert receptive_field(periodic, (1, 5, 7)) == ReceptiveField(5, 7, whole=True)


@pytest.mark.parametrize(
    "act", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.Hardtanh]
)
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_no_activation_or_pooling_stops_the_probe(act, pool):
    first, second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
    model = nn.Sequential(first, act(), pool(3, 2, 1), second, act())
    for layer in (first, second):
        nn.init.constant_(layer.bias, -100.0)  # far into the flat part: the gradient is nought
    assert receptive_field(model, (3, 40, 40)) == ReceptiveField(9, 9, whole=False)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Hardsigmoid())

    def forward(self, x):
        return x * self.gate(x)


def test_squeeze_and_excitation_sees_everything():
    plain = nn.Conv2d(3, 3, 3)
    assert not receptive_field(plain, (3, 30, 20)).whole
    assert receptive_field(nn.Sequential(plain, SqueezeExcite()), (3, 30, 20)) == ReceptiveField(
        30, 20, whole=True
    )


def test_a_residual_network_of_the_size_of_resnet32():
    """Three stages of five basic blocks, the skips shorter than the branches."""
    blocks = [(3, 1, 1)] * 10 + [(3, 2, 1)] + [(3, 1, 1)] * 9 + [(3, 2, 1)] + [(3, 1, 1)] * 9

    class Residual(nn.Module):
        def __init__(self, *pair):
            super().__init__()
            self.branch = chain(*pair)
            stride = pair[0][1]
            self.skip = nn.Identity() if stride == 1 else nn.Conv2d(2, 2, 1, stride)

        def forward(self, x):
            return torch.relu(self.branch(x) + self.skip(x))

    model = nn.Sequential(
        chain((3, 1, 1)), *[Residual(*blocks[i : i + 2]) for i in range(0, len(blocks), 2)], nn.AvgPool2d(1)
    )
    expected = extent((3, 1, 1), *blocks)
    assert expected == 137
    assert receptive_field(model, (2, 160, 150)) == ReceptiveField(expected, expected, whole=False)
    assert receptive_field(model, (2, 32, 32)) == ReceptiveField(32, 32, whole=True)


def test_known_networks():
    resnet18 = timm.create_model("resnet18")
    assert receptive_field(resnet18, (3, 448, 224)) == ReceptiveField(435, 224, whole=False)
    assert receptive_field(timm.create_model("mobilenetv2_100"), (3, 224, 224)).whole
    assert resnet18.training


def test_features_may_be_given():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2))
    with pytest.raises(UserError, match=r"got \(1, 2\): give features="):
        receptive_field(model, (1, 12, 12))
    assert receptive_field(model, (1, 12, 12), features=model[:2]) == ReceptiveField(3, 3, whole=False)


def test_weights_that_are_nan_are_refused():
    model = nn.Conv2d(1, 1, 3)
    nn.init.constant_(model.weight, torch.nan)
    with pytest.raises(UserError, match="finite weights"):
        receptive_field(model, (1, 12, 12))


def test_a_model_that_checks_for_nan_is_refused_in_words():
    class Wary(nn.Module):
        def forward(self, x):
            assert not x.isnan().any(), "NaN came in"
            return x[:, :, 3:]

    with pytest.raises(UserError, match="NaN came in"):
        receptive_field(Wary(), (1, 12, 12))


def test_nothing_is_left_behind():
    model = chain((3, 1, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    receptive_field(model, (2, 12, 12))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert torch.backends.cudnn.enabled


class Pull(nn.Module):
    """z = conv(z) / 2 + x: contracts, and every evaluation lets z see `reach` pixels further."""

    def __init__(self, kernel):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, kernel, padding=kernel // 2, bias=False)
        nn.init.constant_(self.conv.weight, 0.25 / kernel**2)

    def forward(self, states, x):
        return (self.conv(states[0]) + x,)


class Settled(nn.Module):
    """A convolution, then the equilibrium."""

    def __init__(self, kernel, most):
        super().__init__()
        self.stem = nn.Conv2d(2, 2, 3, padding=1)
        self.equilibrium = Equilibrium(Pull(kernel), Solver(max_evaluations=most))

    def forward(self, x):
        x = self.stem(x)
        return self.equilibrium((torch.zeros_like(x),), x)[0]


@pytest.mark.parametrize(("kernel", "most", "expected"), [(1, 30, 3), (3, 4, 9), (3, 30, 33), (5, 3, 11)])
def test_an_equilibrium_sees_as_far_as_its_evaluations_reach(kernel, most, expected):
    """From z = 0 the first evaluation sees x alone, each further one half a kernel more on both sides."""
    model = Settled(kernel, most)
    field = receptive_field(model, (2, 33, 41) if expected == 33 else (2, 33, 33))
    width = 41 if expected == 33 else expected
    assert field == ReceptiveField(expected, width, whole=expected == 33)
    assert model.equilibrium.unroll is None


def test_an_equilibrium_of_many_branches_sees_everything_and_is_left_as_it_was():
    torch.manual_seed(0)
    model = create_model("mdeq_cifar")
    model.equilibrium.unroll = 3
    assert receptive_field(model, (3, 32, 32)) == ReceptiveField(32, 32, whole=True)
    assert model.equilibrium.unroll == 3


@settings(max_examples=25, deadline=None)
@given(
    batch=st.sampled_from([1, 2, 16, 17]),
    channels=st.sampled_from([1, 3, 16, 24]),
    side=st.integers(7, 20),
    k=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    depthwise=st.booleans(),
    last=st.booleans(),
)
def test_a_convolution_spreads_nan_over_its_kernel_and_no_further(
    batch, channels, side, k, stride, depthwise, last
):
    """What the search rests on: implementations that mix neighbours would overstate the field."""
    layer = nn.Conv2d(channels, channels, k, stride, k // 2, groups=channels if depthwise else 1)
    x = torch.zeros(batch, channels, side, side)
    row = side // 2
    x[0, :, row, row] = torch.nan
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), _no_fast_convolutions():
        hit = layer(x).isnan()
    reached = [i for i in range(hit.shape[2]) if abs(i * stride - row) <= k // 2]
    expected = torch.zeros_like(hit)
    for i in reached:
        expected[0, :, i, reached] = True
    assert torch.equal(hit, expected)
