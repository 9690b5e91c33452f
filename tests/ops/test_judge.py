"""Every backend is held to the float64 definition by one rule, and the rule is seen to catch what is wrong.

The second half is the test of the test: backends with one thing wrong, each of which must be caught.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from globalcnn import PDE, Boundary
from globalcnn.ops import eager, reference
from globalcnn.ops.judge import NAMES, judge

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def as_is(A):
    return A


def every_other_column(A):
    """The same values as a view with gaps between them."""
    wide = torch.empty(*A.shape[:3], 2 * A.shape[3], dtype=A.dtype).fill_(torch.nan)
    wide[..., ::2] = A
    return wide[..., ::2]


def transposed_in_memory(A):
    return A.transpose(2, 3).contiguous().transpose(2, 3)


def channels_last(A):
    return A.contiguous(memory_format=torch.channels_last)


def one_value_for_all(A):
    """Stride 0: a single number seen as a field."""
    return A.flatten()[:1].reshape(1, 1, 1, 1).expand(A.shape) if A.numel() else A


LAYOUTS = [as_is, every_other_column, transposed_in_memory, channels_last, one_value_for_all]

shapes = st.one_of(
    st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([(1, 1, 1, 1), (2, 3, 1, 17), (2, 3, 17, 1), (1, 2, 5, 7), (0, 3, 4, 5), (3, 0, 4, 4)]),
)
pdes = st.builds(
    PDE,
    steps=st.integers(0, 20),
    dt=st.floats(0.01, 0.4),
    spacing=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    boundary=st.sampled_from(list(Boundary)),
)


@settings(max_examples=120)
@given(
    shape=shapes,
    pde=pdes,
    dtype=st.sampled_from(DTYPES),
    layouts=st.lists(st.sampled_from(LAYOUTS), min_size=7, max_size=7),
    numbers=st.booleans(),
    source=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example((1, 1, 1, 1), PDE(spacing=12, boundary="dirichlet"), torch.float32, [as_is] * 7, False, True, 0)
def test_eager_is_the_reference(draw, shape, pde, dtype, layouts, numbers, source, seed):
    fields = draw(shape, seed=seed, dtype=dtype)
    given = {n: layout(A) for (n, A), layout in zip(fields.items(), layouts, strict=True)}
    if numbers:
        given |= {"Dx": 0.3, "Dy": 1}
    if not source:
        given["f"] = None
    verdict = judge(eager.solve, given, pde)
    assert not verdict.failed, str(verdict)
    assert set(verdict.error) == {
        "output",
        *(f"grad {n}" for n in NAMES if isinstance(given[n], torch.Tensor)),
    }


def test_the_reference_passes_its_own_judgement(draw, boundary):
    for dtype in DTYPES:
        given = draw((2, 2, 5, 4), dtype=dtype)

        def rounded(h, *rest):
            return reference.solve(h, *rest).to(h.dtype)

        verdict = judge(rounded, given, PDE(steps=5, boundary=boundary))
        assert not verdict.failed, str(verdict)


def wrong(change):
    """A backend that is right but for `change(arguments) -> changed arguments`."""

    def run(*arguments):
        return eager.solve(**change(dict(zip((*NAMES, "pde"), arguments, strict=True))))

    return run


def other_boundary(c):
    others = [b for b in Boundary if b is not c["pde"].boundary]
    return {**c, "pde": replace(c["pde"], boundary=others[0])}


def neighbour_off_by_one(h, h_old, f, u, v, Dx, Dy, pde):
    """Reads H[i + dx + 1] where H[i + dx] is meant, everywhere but inside the velocity's own difference."""

    def at(A, axis, distance, odd):
        minus, plus = eager.neighbours(A, axis, distance, pde.boundary, odd)
        if not odd and axis == 2:
            plus = eager.neighbours(A, axis, distance + 1, pde.boundary, odd)[1]
        return minus, plus

    c = pde.scheme.coefficients(u, v, Dx, Dy, pde, at)
    for _ in range(pde.steps):
        h, h_old = pde.scheme.step(h, h_old, f, c, pde, at), h
    return h


def off_by_one_at_the_last_row(h, h_old, f, u, v, Dx, Dy, pde):
    out = eager.solve(h, h_old, f, u, v, Dx, Dy, pde)
    return torch.cat([out[:, :, :-1], out[:, :, -2:-1]], dim=2)


def mirror_without_the_sign(h, h_old, f, u, v, Dx, Dy, pde):
    """At a reflecting wall the normal velocity must change sign."""

    def at(A, axis, distance, odd):
        return eager.neighbours(A, axis, distance, pde.boundary, False)

    c = pde.scheme.coefficients(u, v, Dx, Dy, pde, at)
    for _ in range(pde.steps):
        h, h_old = pde.scheme.step(h, h_old, f, c, pde, at), h
    return h


def detached(name):
    return wrong(lambda c: {**c, name: c[name].detach()})


def with_one_nan(*arguments):
    out = eager.solve(*arguments)
    return out + torch.zeros_like(out).index_fill_(3, torch.tensor([1]), torch.nan)


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, A):
        return A.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.nan


WRONG = {
    "sign of u": wrong(lambda c: {**c, "u": -c["u"]}),
    "sign of v": wrong(lambda c: {**c, "v": -c["v"]}),
    "sign of f": wrong(lambda c: {**c, "f": -c["f"]}),
    "no source": wrong(lambda c: {**c, "f": None}),
    "half the source": wrong(lambda c: {**c, "f": c["f"] / 2}),
    "levels swapped": wrong(lambda c: {**c, "h": c["h_old"], "h_old": c["h"]}),
    "axes of the diffusion swapped": wrong(lambda c: {**c, "Dx": c["Dy"], "Dy": c["Dx"]}),
    "another boundary": wrong(other_boundary),
    "spacing off by one": wrong(lambda c: {**c, "pde": replace(c["pde"], spacing=(2, 1))}),
    "neighbour off by one": neighbour_off_by_one,
    "last row off by one": off_by_one_at_the_last_row,
    "a step too many": wrong(lambda c: {**c, "pde": replace(c["pde"], steps=c["pde"].steps + 1)}),
    "a step too few": wrong(lambda c: {**c, "pde": replace(c["pde"], steps=c["pde"].steps - 1)}),
    "one NaN": with_one_nan,
    "one part in 10 000": lambda *c: eager.solve(*c) * (1 + 1e-4),
    "one part in 10 000 of D": wrong(lambda c: {**c, "Dx": c["Dx"] * (1 + 1e-4)}),
    "nothing has a gradient": lambda *c: eager.solve(*c).detach(),
    "gradient is NaN": lambda *c: _NaNGradient.apply(eager.solve(*c)),
    "bfloat16 inside": lambda *c: eager.solve(
        *(A.bfloat16() if isinstance(A, torch.Tensor) else A for A in c)
    ).float(),
    "another shape": lambda *c: eager.solve(*c)[:, :1],
    "another shape that broadcasts": lambda *c: eager.solve(*c).mean(dim=0, keepdim=True),
    "another dtype": lambda *c: eager.solve(*c).double(),
    **{f"no gradient for {n}": detached(n) for n in NAMES},
}


@pytest.mark.parametrize("about", WRONG)
def test_the_judge_catches(draw, boundary, about):
    given = draw((2, 2, 6, 5), dtype=torch.float32)
    pde = PDE(steps=2, boundary=boundary)
    assert not judge(eager.solve, given, pde).failed
    verdict = judge(WRONG[about], given, pde)
    assert verdict.failed, str(verdict)
    if about.startswith("no gradient for "):
        assert verdict.failed == [f"grad {about.split()[-1]}"]


def test_the_judge_catches_a_mirror_without_the_sign(draw):
    given = draw((2, 2, 6, 5), dtype=torch.float32)
    assert judge(mirror_without_the_sign, given, PDE(boundary="neumann")).failed
    assert not judge(mirror_without_the_sign, given, PDE(boundary="periodic")).failed


def test_eager_itself_is_judged(draw, monkeypatch):
    """The bound set by rounding does not rest on eager: were eager wrong, it would be caught too."""
    right = eager.solve

    def scaled(*arguments):
        return right(*arguments) * (1 + 1e-4)

    monkeypatch.setattr(eager, "solve", scaled)
    verdict = judge(scaled, draw((2, 2, 6, 5), dtype=torch.float32), PDE(steps=2))
    assert verdict.failed


def test_a_verdict_says_what_was_measured(draw):
    verdict = judge(WRONG["sign of u"], draw((1, 1, 4, 4), dtype=torch.float32), PDE())
    assert "output: error " in str(verdict)
    assert ", allowed " in str(verdict)
    assert "output" in verdict.failed
