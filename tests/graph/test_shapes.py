"""Tracing of shapes: what every call of every module took and gave, and a network left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from globalcnn import create_model
from globalcnn.errors import UserError, UserTypeError
from globalcnn.graph import eval_mode, trace_shapes


class Branching(nn.Module):
    """Branches on shapes and values, asserts, shares a module, takes two inputs, never calls `idle`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 1)
        self.alias = self.shared
        self.norm = nn.BatchNorm2d(4)
        self.idle = nn.ReLU()
        self.mixed = Mix()

    def forward(self, x: Tensor, y: Tensor | None = None, *, times: int = 1) -> dict[str, Tensor]:
        assert x.ndim == 4
        x = self.conv(x)
        if x.shape[-1] > 4 and x.sum() == x.sum():
            x = self.norm(x)
        for _ in range(times):
            x = self.alias(x)
        return {"out": x, "mixed": self.mixed(x, other=x if y is None else y)}


class Mix(nn.Module):
    """Two inputs, one by keyword."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x.mean((1, 2, 3)) + other.mean()


def test_calls_come_in_order_with_their_shapes_and_parents():
    trace = trace_shapes(Branching(), (torch.zeros(2, 3, 8, 8), torch.zeros(5)), kwargs={"times": 2})
    assert [call.name for call in trace.calls] == ["", "conv", "norm", "shared", "shared", "mixed"]
    assert [call.parent for call in trace.calls] == [None, 0, 0, 0, 0, 0]
    root, conv, *_, mixed = trace.calls
    assert [t.shape for t in root.inputs] == [(2, 3, 8, 8), (5,)]
    assert [t.shape for t in root.outputs] == [(2, 4, 8, 8), (2,)]
    assert (conv.input_shape, conv.output_shape) == ((2, 3, 8, 8), (2, 4, 8, 8))
    assert [t.shape for t in mixed.inputs] == [(2, 4, 8, 8), (5,)]
    assert conv.outputs[0].bytes == 2 * 4 * 8 * 8 * 4
    with pytest.raises(UserError, match=r"mixed \(Mix\) takes 2 tensors"):
        _ = mixed.input_shape


def test_a_module_is_found_under_every_name_and_how_often_it_was_called():
    trace = trace_shapes(Branching(), torch.zeros(1, 3, 2, 2), kwargs={"times": 3})
    assert len(trace.of("alias")) == len(trace.of("shared")) == 3
    assert trace.of("idle") == trace.of("norm") == ()
    with pytest.raises(UserError, match="unknown module 'idel'; did you mean 'idle'"):
        trace.of("idel")


def test_calls_inside_of_calls():
    trace = trace_shapes(create_model("resnet_global_tiny_cifar"), torch.zeros(1, 3, 8, 8))
    (layer,) = trace.of("global1")
    assert [c.name for c in trace.children(layer)][:2] == ["global1.velocity_x", "global1.velocity_y"]
    (conv,) = trace.of("global1.velocity_x.net")
    assert trace.inside(conv, "global1")
    assert not trace.inside(conv, "global2")
    assert conv.output_shape == (1, 10, 8, 8)


class Catching(nn.Module):
    """Catches what its child raises, as networks do that fall back to another way."""

    def __init__(self) -> None:
        super().__init__()
        self.fails, self.works = nn.Linear(3, 3), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.fails(x)
        except RuntimeError:
            return self.works(x)


def test_a_call_that_raises_inside_a_network_has_no_output():
    trace = trace_shapes(Catching(), torch.zeros(1, 2))
    assert [(c.name, len(c.outputs), c.parent) for c in trace.calls] == [
        ("", 1, None),
        ("fails", 0, 0),
        ("works", 1, 0),
    ]


class Restless(nn.Module):
    """Draws numbers, counts its calls in a buffer, registers another one, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.register_buffer("late", x.mean())
        return self.frozen(self.norm(x)) + torch.rand_like(x) * self.weight


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    net = Restless().train()
    net.frozen.eval()
    seen = []
    net.norm.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    objects = {name: id(value) for name, value in net.named_buffers()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(ValueError, match="expected 4D input"):
            trace_shapes(net, torch.zeros(3, 3))
    else:
        trace_shapes(net, torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
        assert seen == [False]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert [m.training for m in net.modules()] == [True, True, False]
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == hooks
    assert {name: id(value) for name, value in net.named_buffers()} == objects
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_cannot_be_traced_is_refused_by_name():
    with pytest.raises(UserTypeError, match=r"model must be a torch\.nn.Module, got builtin"):
        trace_shapes(torch.relu, torch.zeros(1))
    with pytest.raises(UserError, match="TorchScript"):
        trace_shapes(torch.jit.script(nn.ReLU()), torch.zeros(1))


def test_eval_mode_of_several_networks_that_share_a_part():
    norm = nn.BatchNorm2d(3)
    a, b = nn.Sequential(norm), nn.Sequential(norm, nn.Dropout()).eval()
    norm.train()
    with eval_mode(a, b):
        assert not any(m.training for net in (a, b) for m in net.modules())
        a.train()
        a(torch.randn(4, 3, 2, 2))
    assert (a.training, norm.training, b.training, b[1].training) == (True, True, False, False)
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))
