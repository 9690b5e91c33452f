"""`ODEBlock`: exact solutions, orders of convergence, agreement with torchdiffeq, counts and errors."""

from __future__ import annotations

import copy
import math
import pickle
import re
import sys
from itertools import pairwise

import pytest
import torch
import torchdiffeq
from torch import nn

from globalcnn import UserError
from globalcnn.errors import MissingExtra
from globalcnn.nn.implicit import ConvergenceError, implicit_counts
from globalcnn.nn.implicit.ode import ADAPTIVE, FIXED_STEP, ODEBlock


class Linear(nn.Module):
    """dy/dt = a y + cos t, and how often it was asked."""

    def __init__(self, a=-1.0):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        time = torch.as_tensor(t, dtype=y.dtype)
        return (self.a * y).to(y.dtype) + torch.cos(time)

    @staticmethod
    def exact(y0, t):
        """For a = -1."""
        return (y0 - 0.5) * math.exp(-t) + 0.5 * (math.cos(t) + math.sin(t))


class Wild(nn.Module):
    """dy/dt = a sin(400 t): needs many steps."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(400.0))

    def forward(self, t, y):
        return self.a * torch.sin(400 * t) * torch.ones_like(y)


def start(n=3):
    return torch.linspace(-1, 2, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("method", FIXED_STEP)
def test_error_falls_with_the_order_of_the_method(method):
    y = start()
    errors = [
        (ODEBlock(Linear(), method, steps=n, end_time=2.0)(y) - Linear.exact(y, 2.0)).abs().max().item()
        for n in (8, 16, 32)
    ]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(FIXED_STEP[method].order, abs=0.25)


@pytest.mark.parametrize("method", FIXED_STEP)
def test_tableaus_are_consistent(method):
    tableau = FIXED_STEP[method]
    assert sum(tableau.b) == pytest.approx(1)
    assert [sum(row) for row in tableau.a] == pytest.approx(list(tableau.c))
    assert tableau.stages == len(tableau.c)


@pytest.mark.parametrize("method", FIXED_STEP)
def test_fixed_steps_are_those_of_torchdiffeq(method):
    y, t = start(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = torchdiffeq.odeint(Linear(), y, t, method=method, options={"step_size": 0.2})[1]
    torch.testing.assert_close(ODEBlock(Linear(), method, steps=5)(y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_keep_their_tolerance(method):
    y = start()
    block = ODEBlock(Linear(), method, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(block(y), Linear.exact(y, 1.0), rtol=1e-3, atol=1e-3)
    assert block.evaluations == block.f.calls


def test_dopri5_is_that_of_torchdiffeq():
    y = start().float()
    t = torch.tensor([0.0, 1.0])
    expected = torchdiffeq.odeint(Linear(), y, t, rtol=1e-3, atol=1e-3, method="dopri5")[1]
    assert torch.equal(ODEBlock(Linear())(y), expected)


def test_evaluations_are_those_of_the_last_forward():
    block = ODEBlock(Linear(), rtol=1e-6, atol=1e-6)
    assert (block.evaluations, block.backward_evaluations) == (0, 0)
    y = start()
    block(y)
    first = block.evaluations
    assert first == block.f.calls
    assert first % 6 == 2, "two for the first step, then six a step"
    block(y)
    assert block.evaluations == first
    assert block.f.calls == 2 * first
    assert ODEBlock(Linear(), "rk4", steps=3).nominal_evaluations == 12


def test_backward_evaluates_only_for_the_adjoint():
    y = start()
    grads, evaluations = {}, {}
    for adjoint in (False, True):
        block = ODEBlock(Linear(), rtol=1e-8, atol=1e-8, adjoint=adjoint)
        x = y.clone().requires_grad_()
        block(x).sum().backward()
        grads[adjoint] = x.grad, block.f.a.grad
        evaluations[adjoint] = block.backward_evaluations
        assert block.f.calls == block.evaluations + block.backward_evaluations
    assert evaluations[False] == 0 < evaluations[True]
    for direct, solved in zip(*grads.values(), strict=True):
        torch.testing.assert_close(direct, solved, rtol=1e-5, atol=1e-6)
    assert grads[False][0][0].item() == pytest.approx(math.exp(-1), rel=1e-6)


@pytest.mark.parametrize("method", FIXED_STEP)
def test_adjoint_with_fixed_steps(method):
    y = start()
    direct, adjoint = (ODEBlock(Linear(), method, steps=64, adjoint=a) for a in (False, True))
    torch.testing.assert_close(direct(y), adjoint(y), rtol=1e-12, atol=1e-12)
    adjoint(y).sum().backward()
    direct(y).sum().backward()
    assert adjoint.evaluations == direct.evaluations == 64 * FIXED_STEP[method].stages
    assert adjoint.backward_evaluations > 0
    assert adjoint.f.a.grad.item() == pytest.approx(direct.f.a.grad.item(), rel=0.05)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_gradients_are_those_of_differences(method):
    settings = {"steps": 4} if method == "rk4" else {"rtol": 1e-9, "atol": 1e-9}
    block = ODEBlock(nn.Module(), method, **settings)
    w = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def run(y, w):
        block.f.forward = lambda t, y: torch.tanh(y @ w) * (1 + t)
        return block(y)

    assert torch.autograd.gradcheck(run, (torch.randn(2, 3, dtype=torch.float64, requires_grad=True), w))


@pytest.mark.parametrize("adjoint", [False, True])
def test_too_many_evaluations_are_an_error_that_says_what_to_do(adjoint):
    words = (
        r"dopri5 needs more than max_evaluations=50 evaluations at rtol=0.001, atol=0.001: "
        r"raise rtol and atol, raise max_evaluations, or use fixed steps \(euler, midpoint, rk4\)"
    )
    with pytest.raises(ConvergenceError, match=words):
        ODEBlock(Wild(), max_evaluations=50, adjoint=adjoint)(torch.ones(1, 2))


def test_the_adjoint_is_limited_too():
    block = ODEBlock(Linear(), adjoint=True, rtol=1e-9, atol=1e-9, max_evaluations=10_000)
    out = block(start()).sum()
    block.max_evaluations = block.evaluations // 2
    with pytest.raises(ConvergenceError, match="max_evaluations"):
        out.backward()


def test_a_solution_that_is_not_finite_is_an_error():
    with pytest.raises(ConvergenceError, match=r"dopri5 broke down .*not finite"):
        ODEBlock(Linear())(torch.tensor([[float("nan")]]))
    assert issubclass(ConvergenceError, (UserError, RuntimeError))


def test_settings_that_do_not_fit():
    f = Linear()
    with pytest.raises(UserError, match=r"unknown ODE method 'dopri'; did you mean .*'dopri5'"):
        ODEBlock(f, "dopri")
    for name, value in (("rtol", 0), ("atol", -1.0), ("end_time", float("nan"))):
        with pytest.raises(UserError, match=f"{name}={value!r} must be a finite number > 0"):
            ODEBlock(f, **{name: value})
    for name, value in (("steps", 0), ("steps", 2.5), ("max_evaluations", True)):
        with pytest.raises(UserError, match=f"{name}={value!r} must be a whole number >= 1"):
            ODEBlock(f, "euler", **{name: value})
    with pytest.raises(UserError, match="steps=4 is for euler, midpoint, rk4; dopri5 chooses its own"):
        ODEBlock(f, steps=4)
    words = "steps=5 of rk4 take 20 evaluations, more than max_evaluations=19: lower steps or raise"
    with pytest.raises(UserError, match=words):
        ODEBlock(f, "rk4", steps=5, max_evaluations=19)


def test_without_torchdiffeq(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    words = re.escape("ODEBlock with method='dopri5', adjoint=False needs the package 'torchdiffeq'")
    with pytest.raises(MissingExtra, match=words + r'.*pip install "globalcnn\[solvers\]"'):
        ODEBlock(Linear())(start())
    assert ODEBlock(Linear(), "rk4")(start()).isfinite().all()


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_precisions_and_empty_batches(method):
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, t, y):
            return self.conv(y)

    block, y = ODEBlock(Convolution(), method), torch.randn(2, 4, 5, 5)
    exact = block(y)
    with torch.autocast("cpu", torch.bfloat16):
        low = block(y)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0.05)
    out = copy.deepcopy(block).bfloat16()(y.bfloat16())
    assert out.dtype == torch.float32, "the state is kept in single precision"
    torch.testing.assert_close(out, exact, rtol=0.05, atol=0.05)
    assert block(y[:0]).shape == (0, 4, 5, 5)
    assert block.evaluations == 0


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_fixed_steps_compile_and_export(method):
    class Tanh(nn.Module):
        def forward(self, t, y):
            return torch.tanh(y) * (1 + t)

    torch._dynamo.reset()
    block, y = ODEBlock(Tanh(), method, steps=3), torch.randn(2, 4)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(y), block(y))
    assert block.evaluations == 3 * FIXED_STEP[method].stages
    torch.testing.assert_close(torch.export.export(block, (y,)).module()(y), block(y))


def test_copies_and_pickles_after_a_forward():
    block, y = ODEBlock(Linear()), start()
    out = block(y)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(y), out)
    assert set(block.state_dict()) == {"f.a"}


def test_nothing_to_split_where_nothing_is_solved():
    assert implicit_counts(nn.Linear(2, 2), []) is None
    with pytest.raises(UserError, match="has not run yet; count it first"):
        implicit_counts(ODEBlock(Linear()), [])
