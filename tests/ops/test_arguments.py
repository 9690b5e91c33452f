"""What `solve` refuses, and the words: the argument, the value, what is allowed."""

from __future__ import annotations

import math
import re

import pytest
import torch

from globalcnn import PDE, UserError, solve
from globalcnn.ops import BACKENDS, Backend, find_backend

A = torch.zeros(2, 3, 4, 5)
FINE = {"h": A, "h_old": A, "f": A, "u": A, "v": A, "Dx": A, "Dy": A, "pde": PDE()}
SMALL = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"pde": None}, TypeError, "solve: pde=None must be a globalcnn.PDE"),
        ({"pde": {"steps": 2}}, TypeError, "solve: pde={'steps': 2} must be a globalcnn.PDE"),
        ({"h": [1.0]}, TypeError, "solve: h is a list, not a tensor"),
        ({"h": A[0]}, ValueError, "solve: h has shape (3, 4, 5); it must be (N, C, H, W) with H, W >= 1"),
        ({"h": A[:, :, :0]}, ValueError, "solve: h has shape (2, 3, 0, 5); it must be (N, C, H, W)"),
        ({"h": A.long()}, TypeError, "h has dtype torch.int64; it must be a floating dtype (try h.float())"),
        ({"h": A.cfloat()}, TypeError, "solve: h has dtype torch.complex64; it must be a floating dtype"),
        ({"h_old": None}, TypeError, "solve: h_old is a NoneType, not a tensor"),
        ({"u": 1.0}, TypeError, "solve: u is a float, not a tensor"),
        ({"f": 0}, TypeError, "solve: f is a int, not a tensor"),
        ({"v": SMALL}, ValueError, "v has shape (2, 3, 4, 4) but h has (2, 3, 4, 5); they must be the same"),
        (
            {"Dx": A[:1]},
            ValueError,
            "Dx has shape (1, 3, 4, 5) but h has (2, 3, 4, 5); they must be the same",
        ),
        (
            {"f": A.double()},
            ValueError,
            "f is torch.float64 on cpu but h is torch.float32 on cpu; convert it",
        ),
        ({"u": A.to("meta")}, ValueError, "u is torch.float32 on meta but h is torch.float32 on cpu"),
        ({"u": A.half()}, ValueError, "convert it with u.to(h)"),
        ({"Dx": "1"}, TypeError, "solve: Dx='1' must be a tensor of h's shape or a number >= 0"),
        ({"Dy": None}, TypeError, "solve: Dy=None must be a tensor of h's shape or a number >= 0"),
        ({"Dy": True}, TypeError, "solve: Dy=True must be a tensor of h's shape or a number >= 0"),
        (
            {"Dx": -1.0},
            ValueError,
            "solve: Dx=-1.0 must be finite and >= 0 (negative diffusion is ill-posed)",
        ),
        ({"Dy": math.nan}, ValueError, "solve: Dy=nan must be finite and >= 0"),
        ({"Dy": math.inf}, ValueError, "solve: Dy=inf must be finite and >= 0"),
        ({"backend": "eagre"}, ValueError, "unknown backend 'eagre'; did you mean 'eager'? Known: "),
    ],
)
def test_what_does_not_fit_is_named(change, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        solve(**{**FINE, **change})
    assert isinstance(caught.value, UserError)


def test_what_fits_is_taken():
    for change in ({}, {"f": None}, {"Dx": 1}, {"Dx": 0.0, "Dy": 2.5}, {"backend": "reference"}):
        assert solve(**{**FINE, **change}).shape == A.shape


@pytest.mark.parametrize("backend", [None, "eager", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (1, 1, 1, 1)])
def test_shape_and_dtype_of_the_state_come_back(draw, backend, dtype, shape):
    H = solve(**draw(shape, dtype=dtype), pde=PDE(steps=2), backend=backend)
    assert (H.shape, H.dtype) == (torch.Size(shape), dtype)


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setitem(
        BACKENDS, "abacus", Backend("abacus", "beads", lambda *a: a[0], lambda: "no beads here")
    )
    with pytest.raises(UserError, match="backend 'abacus' cannot run here: no beads here"):
        solve(**FINE, backend="abacus")


def test_backends_are_listed_by_their_names():
    assert "eager" in BACKENDS
    assert all(name == backend.name and backend.about for name, backend in BACKENDS.items())
    assert find_backend("eager") is BACKENDS["eager"]
