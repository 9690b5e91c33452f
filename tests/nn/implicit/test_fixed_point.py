"""Fixed points: known ones by every method, residuals per sample, implicit gradients against exact ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from globalcnn import UserError
from globalcnn.nn.implicit import ConvergenceError
from globalcnn.nn.implicit.equilibrium import Equilibrium, Solver
from globalcnn.nn.implicit.fixed_point import METHODS, Anderson, Broyden, Picard, fixed_point

EVERY = [Picard(), Anderson(), Broyden(), Anderson(memory=2), Broyden(memory=3), Picard(0.7)]
every_method = pytest.mark.parametrize("method", EVERY, ids=repr)


def contraction(size=6, norm=0.7, seed=0):
    """A (size x size) with that largest singular value."""
    a = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a * norm / torch.linalg.matrix_norm(a, 2)


def offsets(n=4, size=6):
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def solution(a, b):
    """z = z A^T + b in closed form."""
    return torch.linalg.solve(torch.eye(len(a), dtype=a.dtype) - a, b.T).T


@every_method
def test_linear_maps_with_a_known_solution(method):
    a, b = contraction(), offsets()
    found = fixed_point(
        lambda z: z @ a.T + b, torch.zeros_like(b), method, tolerance=1e-10, max_evaluations=200
    )
    assert found.converged.all()
    torch.testing.assert_close(found.z, solution(a, b), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.fz, found.z @ a.T + b)


@every_method
def test_tanh_map(method):
    """z = tanh(z A^T + b): checked by the equation itself, tightly."""
    a, b = contraction(norm=0.9), offsets()
    f = lambda z: torch.tanh(z @ a.T + b)  # noqa: E731
    found = fixed_point(f, torch.zeros_like(b), method, tolerance=1e-11, max_evaluations=300)
    torch.testing.assert_close(f(found.z), found.z, rtol=1e-9, atol=1e-9)
    reference = torch.zeros_like(b)
    for _ in range(500):
        reference = f(reference)
    torch.testing.assert_close(found.z, reference, rtol=1e-8, atol=1e-8)


def test_acceleration_needs_fewer_evaluations():
    a, b = contraction(norm=0.95), offsets()
    needed = [
        fixed_point(
            lambda z: z @ a.T + b, torch.zeros_like(b), m, tolerance=1e-8, max_evaluations=500
        ).evaluations
        for m in (Picard(), Anderson(), Broyden())
    ]
    assert needed[1] < needed[0] / 2
    assert needed[2] < needed[0] / 2


@pytest.mark.parametrize("method", [Anderson(memory=10), Broyden()], ids=repr)
def test_maps_that_no_plain_iteration_solves(method):
    """z = -3 z + b grows from step to step; the quasi-Newton methods do not mind."""
    a, b = -3 * torch.eye(6, dtype=torch.float64) + 0.2 * contraction(), offsets()
    f = lambda z: z @ a.T + b  # noqa: E731
    found = fixed_point(f, torch.zeros_like(b), method, tolerance=1e-9, max_evaluations=60)
    torch.testing.assert_close(found.z, solution(a, b), rtol=1e-6, atol=1e-6)
    plain = fixed_point(f, torch.zeros_like(b), Picard(), tolerance=1e-9, max_evaluations=60)
    assert not plain.converged.any()
    assert plain.evaluations == 60


@every_method
def test_a_sample_does_not_depend_on_its_batch(method):
    a, b = contraction(), offsets()
    b[1] *= 1e-4

    def solve(b):
        f = lambda z: torch.tanh(z @ a.T + b)  # noqa: E731
        return fixed_point(f, torch.zeros_like(b), method, tolerance=1e-6, max_evaluations=100)

    together = solve(b)
    for i in range(len(b)):
        alone = solve(b[i : i + 1])
        torch.testing.assert_close(together.z[i : i + 1], alone.z, rtol=1e-12, atol=1e-12)
        assert together.residual[i].item() == pytest.approx(alone.residual.item(), rel=1e-9)
        assert alone.evaluations <= together.evaluations


@every_method
def test_a_sample_that_is_not_finite_does_not_stop_the_others(method):
    a, b = contraction(), offsets()
    b[2] = torch.nan
    found = fixed_point(
        lambda z: z @ a.T + b, torch.zeros_like(b), method, tolerance=1e-8, max_evaluations=80
    )
    assert found.converged.tolist() == [True, True, False, True]
    keep = [0, 1, 3]
    torch.testing.assert_close(found.z[keep], solution(a, b[keep]), rtol=1e-6, atol=1e-6)
    assert found.z.isfinite().all(), "the start, where nothing better was found"


@every_method
def test_evaluations_and_residuals_are_what_they_say(method):
    a, b, calls = contraction(), offsets(), []

    def f(z):
        calls.append(z.clone())
        return z @ a.T + b

    found = fixed_point(f, torch.zeros_like(b), method, tolerance=1e-8, max_evaluations=9)
    assert found.evaluations == len(calls) == len(found.trace) <= 9
    for z, residual in zip(calls, found.trace, strict=True):
        fz = z @ a.T + b
        torch.testing.assert_close((fz - z).norm(dim=1) / fz.norm(dim=1), residual)
    assert torch.equal(found.residual, torch.stack(found.trace).amin(0)), "the best state is kept"
    torch.testing.assert_close((found.fz - found.z).norm(dim=1) / found.fz.norm(dim=1), found.residual)


@every_method
def test_from_the_solution_it_ends_at_once(method):
    a, b = contraction(), offsets()
    found = fixed_point(lambda z: z @ a.T + b, solution(a, b), method, tolerance=1e-9)
    assert found.evaluations == 1
    zero = torch.zeros_like(b)
    assert fixed_point(lambda z: z * 0.5, zero, method, tolerance=1e-9).converged.all()


def test_without_a_tolerance_every_evaluation_is_made():
    found = fixed_point(lambda z: z * 0.5, torch.ones(2, 3), Picard(), tolerance=None, max_evaluations=7)
    assert found.evaluations == 7
    assert not found.converged.any()


def test_torchdeq_takes_the_same_steps():
    solvers = pytest.importorskip("torchdeq.solver")
    a, b = contraction(norm=0.9), offsets()
    f = lambda z: torch.tanh(z @ a.T + b)  # noqa: E731
    found = fixed_point(f, torch.zeros_like(b), Broyden(), tolerance=1e-9, max_evaluations=12)
    z, _, info = solvers.get_solver("broyden")(f, torch.zeros_like(b), max_iter=11, tol=1e-9, stop_mode="rel")
    ours = torch.stack(found.trace, 1)
    # theirs starts with a placeholder and does not measure the start
    torch.testing.assert_close(
        ours[:, 1:], info["rel_trace"][:, 1 : ours.shape[1]].double(), rtol=1e-3, atol=1e-7
    )
    torch.testing.assert_close(found.z, z, rtol=1e-5, atol=1e-5)


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"Anderson: memory=0 must be a whole number >= 1"):
        Anderson(memory=0)
    with pytest.raises(UserError, match=r"Broyden: memory=1.5 must be"):
        Broyden(memory=1.5)
    with pytest.raises(UserError, match=r"Picard: damping=0 must be a finite number > 0"):
        Picard(damping=0)
    with pytest.raises(UserError, match=r"max_evaluations=0 must be a whole number >= 1"):
        fixed_point(lambda z: z, torch.zeros(1, 1), Picard(), max_evaluations=0)
    with pytest.raises(UserError, match=r"tolerance=-1 must be a finite number > 0"):
        fixed_point(lambda z: z, torch.zeros(1, 1), Picard(), tolerance=-1)
    with pytest.raises(UserError, match=r"gradient='exact' must be one of 'implicit'"):
        Equilibrium(Cell(), gradient="exact")
    with pytest.raises(UserError, match=r"on_failure='ignore' must be one of 'accept', 'error'"):
        Equilibrium(Cell(), on_failure="ignore")
    assert set(METHODS) == {"picard", "anderson", "broyden"}


class Cell(nn.Module):
    """Two coupled states: z = tanh(W z + x)."""

    def __init__(self, norm=0.6, size=3):
        super().__init__()
        self.w = nn.Parameter(contraction(2 * size, norm))
        self.calls = 0

    def forward(self, states, x):
        self.calls += 1
        z = torch.cat([s.flatten(1) for s in states], 1)
        z = torch.tanh(z @ self.w.T + x)
        half = z.shape[1] // 2
        return tuple(p.reshape(s.shape) for p, s in zip((z[:, :half], z[:, half:]), states, strict=True))


def begin(x):
    half = x.shape[1] // 2
    return x.new_zeros(len(x), half), x.new_zeros(len(x), half, 1, 1)


def tight(method=None, evaluations=150):
    return Solver(Broyden() if method is None else method, tolerance=1e-12, max_evaluations=evaluations)


def gradients(layer, x):
    x = x.clone().requires_grad_()
    z = torch.cat([s.flatten(1) for s in layer(begin(x), x)], 1)
    weight = torch.arange(1.0, z.numel() + 1, dtype=z.dtype).reshape(z.shape)
    (z.sin() * weight).sum().backward()
    return z.detach(), x.grad, layer.f.w.grad


@every_method
def test_implicit_gradients_are_the_unrolled_ones(method):
    x = offsets(3)
    found = [gradients(Equilibrium(Cell(), tight(method), gradient=g), x) for g in ("implicit", "unrolled")]
    plain = Equilibrium(Cell(), tight())
    plain.unroll = 150
    found.append(gradients(plain, x))
    for ours, unrolled, iterated in zip(*found, strict=True):
        torch.testing.assert_close(ours, iterated, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(unrolled, iterated, rtol=1e-6, atol=1e-6)


def test_the_jacobian_free_gradient_is_another_but_descends():
    x = offsets(3)
    _, exact_x, exact_w = gradients(Equilibrium(Cell(), tight()), x)
    _, free_x, free_w = gradients(Equilibrium(Cell(), tight(), gradient="jacobian_free"), x)
    assert not torch.allclose(exact_x, free_x, rtol=1e-2)
    assert (exact_w * free_w).sum() > 0


def test_gradients_are_those_of_differences():
    layer = Equilibrium(Cell(), tight())
    x = offsets(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: torch.cat(layer(begin(x), x)[:1]), (x,))


def test_every_forward_keeps_its_own_backward():
    layer, x = Equilibrium(Cell(), tight()), offsets(2)
    first, second = (gradients(copy.deepcopy(layer), y)[1] for y in (x, 2 * x))
    a, b = x.clone().requires_grad_(), (2 * x).requires_grad_()
    outs = [torch.cat([s.flatten(1) for s in layer(begin(y), y)], 1) for y in (a, b)]
    weight = torch.arange(1.0, outs[0].numel() + 1, dtype=x.dtype).reshape(outs[0].shape)
    sum((z.sin() * weight).sum() for z in outs).backward()
    torch.testing.assert_close(a.grad, first)
    torch.testing.assert_close(b.grad, second)


def test_what_can_be_read_after_a_forward_and_a_backward():
    layer, x = Equilibrium(Cell(), Solver(tolerance=1e-6), backward=Solver(Anderson(), 1e-4, 40)), offsets(3)
    assert layer.evaluations == 0
    assert layer.residual is None
    out = layer(begin(x), x)
    assert layer.evaluations == layer.f.calls
    assert layer.residual.shape == layer.converged.shape == (3,)
    assert layer.converged.all()
    assert layer.unconverged == 0
    assert layer.residual.max() <= 1e-6
    assert layer.backward_residual is None
    out[0].sum().backward()
    assert layer.evaluations == layer.f.calls, "the backward evaluates no f"
    assert 1 < layer.backward_evaluations <= 40
    assert layer.backward_residual.max() <= 1e-4
    assert layer.backward_converged.all()
    with torch.no_grad():
        again = layer(begin(x), x)
    assert layer.backward_evaluations == 0, "of the last forward"
    torch.testing.assert_close(again, out)
    assert set(layer.state_dict()) == {"f.w"}
    copy.deepcopy(layer)


def test_a_solve_that_fails_is_accepted_or_an_error():
    x = offsets(3)
    few = Solver(Picard(), 1e-9, 4)
    layer = Equilibrium(Cell(), few)
    layer(begin(x), x)
    assert layer.unconverged == 3
    assert not layer.converged.any()
    words = (
        r"the forward iteration by picard left 3 of 3 samples above tolerance=1e-09 after max_evaluations=4 "
        r"\(worst residual .*\): raise max_evaluations or tolerance"
    )
    with pytest.raises(ConvergenceError, match=words):
        Equilibrium(Cell(), few, on_failure="error")(begin(x), x)
    layer = Equilibrium(Cell(), tight(), backward=few, on_failure="error")
    out = layer(begin(x), x)
    with pytest.raises(ConvergenceError, match="the backward iteration by picard left"):
        out[0].sum().backward()
    Equilibrium(Cell(), Solver(Picard(), None, 4), on_failure="error")(begin(x), x)


def test_shapes_must_stay():
    class Wrong(nn.Module):
        def forward(self, states):
            return (states[0][:, :2],)

    words = r"f returned shapes \[\(1, 2\)\]; it must keep those of the start, \[\(1, 3\)\]"
    with pytest.raises(UserError, match=words):
        Equilibrium(Wrong())((torch.zeros(1, 3),))
    with pytest.raises(UserError, match="start is empty"):
        Equilibrium(Wrong())(())


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        with torch.no_grad():
            self.conv.parametrizations.weight.original0.fill_(0.2)

    def forward(self, states, x):
        return (torch.tanh(self.conv(states[0]) + x),)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled", "jacobian_free"])
def test_parametrised_weights_get_gradients_whatever_is_cached(gradient):
    x = torch.randn(2, 4, 5, 5)
    grads = []
    for cached in (False, True):
        torch.manual_seed(0)
        layer = Equilibrium(Convolution(), Solver(tolerance=1e-5), gradient=gradient)
        if cached:
            with parametrize.cached():
                (z,) = layer((torch.zeros_like(x),), x)
        else:
            (z,) = layer((torch.zeros_like(x),), x)
        z.square().sum().backward()
        grads.append([p.grad for p in layer.parameters()])
    for outside, inside in zip(*grads, strict=True):
        assert outside.abs().max() > 0
        torch.testing.assert_close(outside, inside)


def test_precisions_and_empty_batches():
    layer, x = Equilibrium(Convolution(), Solver(tolerance=1e-4)), torch.randn(2, 4, 5, 5)
    (exact,) = layer((torch.zeros_like(x),), x)
    with torch.autocast("cpu", torch.bfloat16):
        (low,) = layer((torch.zeros_like(x),), x)
    low.float().sum().backward()
    torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.05)
    (half,) = copy.deepcopy(layer).bfloat16()((torch.zeros_like(x).bfloat16(),), x.bfloat16())
    assert half.dtype == torch.bfloat16
    (none,) = layer((torch.zeros_like(x[:0]),), x[:0])
    assert none.shape == (0, 4, 5, 5)


def test_fixed_iterations_compile_and_export():
    class Half(nn.Module):
        def forward(self, states, x):
            return (torch.tanh(states[0] / 2 + x),)

    x = torch.randn(2, 4)
    for layer in (
        Equilibrium(Half()),
        Equilibrium(Half(), Solver(Broyden(), None, 4)),
    ):
        layer.unroll = 5 if layer.solver.tolerance is not None else None
        torch._dynamo.reset()
        with torch.no_grad():
            expected = layer((torch.zeros_like(x),), x)[0]
            compiled = torch.compile(layer, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled((torch.zeros_like(x),), x)[0], expected)
            program = torch.export.export(layer, ((torch.zeros_like(x),), x))
            torch.testing.assert_close(program.module()((torch.zeros_like(x),), x)[0], expected)
