"""Derivatives of the solve with respect to every input against finite differences; function transforms."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from globalcnn import PDE, solve

SHAPE = (1, 1, 3, 2)


def leaves(fields):
    return {n: A.requires_grad_() if isinstance(A, torch.Tensor) else A for n, A in fields.items()}


def variants(fields):
    """The ways of giving diffusion and source."""
    yield "all tensors", fields
    yield "Dx, Dy numbers", {**fields, "Dx": 0.4, "Dy": 1.2}
    yield "Dx a number", {**fields, "Dx": 0.4}
    yield "no diffusion, no source", {**fields, "f": None, "Dx": 0.0, "Dy": 0}


@pytest.mark.parametrize(
    ("backend", "check"), [("eager", gradcheck), ("eager", gradgradcheck), ("reference", gradcheck)]
)
@pytest.mark.parametrize("spacing", [(1, 1), (2, 5)])
def test_derivatives_with_respect_to_every_input(draw, boundary, backend, check, spacing):
    pde = PDE(steps=2, spacing=spacing, boundary=boundary)
    for about, fields in variants(draw(SHAPE)):
        given = leaves(fields)
        names = [n for n, A in given.items() if isinstance(A, torch.Tensor)]

        def run(*tensors, given=given, names=names):
            return solve(**{**given, **dict(zip(names, tensors, strict=True))}, pde=pde, backend=backend)

        assert check(run, tuple(given[n] for n in names)), about


def test_only_what_asks_for_a_gradient_gets_one(draw, boundary):
    c = draw(SHAPE)
    c["u"].requires_grad_()
    solve(**c, pde=PDE(steps=2, boundary=boundary)).sum().backward()
    assert c["u"].grad is not None
    assert all(A.grad is None for n, A in c.items() if n != "u")
    assert not solve(**{n: A.detach() for n, A in c.items()}, pde=PDE(boundary=boundary)).requires_grad


def test_the_adjoint_of_a_linear_step(draw, boundary, backend):
    """<w, S h> = <S* w, h> with S* from autograd: the solve is linear in h once h_old = 0 and f = 0."""
    c = draw((2, 2, 5, 4))
    c["h_old"] = torch.zeros_like(c["h"])
    w = torch.randn(c["h"].shape, dtype=torch.float64)
    h = c["h"].requires_grad_()
    output = solve(**{**c, "f": None}, pde=PDE(steps=5, boundary=boundary), backend=backend)
    (adjoint,) = torch.autograd.grad(output, h, w)
    torch.testing.assert_close((w * output).sum(), (adjoint * h).sum())


def test_vmap_over_stacks_of_inputs(draw, boundary):
    """A stack of five problems, of which only h and u differ, solved one by one and all at once."""
    c = draw((2, 1, 4, 3))
    h, u = torch.randn(2, 5, *c["h"].shape, dtype=torch.float64)
    rest = {n: A for n, A in c.items() if n not in ("h", "u")}
    pde = PDE(steps=2, boundary=boundary)
    together = torch.func.vmap(lambda h, u: solve(h=h, u=u, **rest, pde=pde))(h, u)
    one_by_one = torch.stack([solve(h=a, u=b, **rest, pde=pde) for a, b in zip(h, u, strict=True)])
    torch.testing.assert_close(together, one_by_one)


def test_torch_func_derivatives_agree_with_autograd(draw, boundary):
    c = draw((1, 1, 4, 3))
    rest = {n: A for n, A in c.items() if n != "v"}
    pde = PDE(steps=2, boundary=boundary)

    def energy(v):
        return solve(v=v, **rest, pde=pde).square().sum()

    v = c["v"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(energy(v), v)
    torch.testing.assert_close(torch.func.grad(energy)(c["v"]), expected)
    direction = torch.randn_like(c["v"])
    _, slope = torch.func.jvp(energy, (c["v"],), (direction,))
    torch.testing.assert_close(slope, (expected * direction).sum())
