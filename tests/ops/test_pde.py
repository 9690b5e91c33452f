"""The settings of the equation: defaults, what is taken, what is refused and with which words."""

from __future__ import annotations

import copy
import math
import pickle
import re
from dataclasses import FrozenInstanceError, replace

import pytest

from globalcnn import PDE, Boundary, DuFortFrankel, UserError


def test_defaults_are_the_published_ones():
    pde = PDE()
    assert (pde.steps, pde.dt, pde.spacing) == (1, 0.2, (1, 1))
    assert pde.boundary is Boundary.PERIODIC
    assert pde.scheme == DuFortFrankel()


def test_one_number_of_pixels_stands_for_both_axes():
    assert PDE(spacing=2).spacing == (2, 2)
    assert PDE(spacing=[2, 3]).spacing == (2, 3)


@pytest.mark.parametrize("boundary", list(Boundary))
def test_a_boundary_may_be_given_by_its_value(boundary):
    assert PDE(boundary=boundary.value).boundary is boundary
    assert PDE(boundary=boundary) == PDE(boundary=boundary.value)


def test_it_is_data():
    pde = PDE(steps=3, dt=0.1, spacing=(1, 2), boundary="dirichlet")
    assert pickle.loads(pickle.dumps(pde)) == copy.deepcopy(pde) == pde
    assert hash(replace(pde)) == hash(pde)
    assert replace(pde, steps=4) != pde
    assert eval(repr(pde)) == pde
    with pytest.raises(FrozenInstanceError):
        pde.steps = 2


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ({"steps": -1}, ValueError, "steps=-1 must be a whole number from 0 to 10000"),
        ({"steps": 1.5}, ValueError, "steps=1.5 must be a whole number from 0 to 10000"),
        ({"steps": True}, ValueError, "steps=True must be a whole number from 0 to 10000"),
        ({"steps": None}, ValueError, "steps=None must be a whole number from 0 to 10000"),
        ({"dt": 0}, ValueError, "dt=0 must be finite and > 0 (0.2 as published)"),
        ({"dt": -0.2}, ValueError, "dt=-0.2 must be finite and > 0"),
        ({"dt": math.nan}, ValueError, "dt=nan must be finite and > 0"),
        ({"dt": math.inf}, ValueError, "dt=inf must be finite and > 0"),
        ({"dt": "0.2"}, TypeError, "dt='0.2' must be a number > 0 (0.2 as published)"),
        ({"dt": True}, TypeError, "dt=True must be a number > 0"),
        (
            {"spacing": 0},
            ValueError,
            "spacing=0 must be a whole number of pixels from 1 to 256, or a pair (dx, dy)",
        ),
        ({"spacing": (1, 0)}, ValueError, "spacing=(1, 0) must be a whole number of pixels from 1 to 256"),
        (
            {"spacing": (1, 2, 3)},
            ValueError,
            "spacing=(1, 2, 3) must be a whole number of pixels from 1 to 256",
        ),
        ({"spacing": 1.0}, ValueError, "spacing=1.0 must be a whole number of pixels from 1 to 256"),
        (
            {"spacing": (1, True)},
            ValueError,
            "spacing=(1, True) must be a whole number of pixels from 1 to 256",
        ),
        ({"spacing": None}, ValueError, "spacing=None must be a whole number of pixels from 1 to 256"),
        (
            {"boundary": "perodic"},
            ValueError,
            "unknown boundary 'perodic'; did you mean 'periodic'? Known: dirichlet, neumann, periodic",
        ),
        ({"boundary": 3}, ValueError, "unknown boundary '3'; Known: dirichlet, neumann, periodic"),
        (
            {"scheme": "leapfrog"},
            TypeError,
            "scheme='leapfrog' must be a Scheme object, such as globalcnn.DuFort",
        ),
        ({"scheme": DuFortFrankel}, TypeError, "must be a Scheme object, such as globalcnn.DuFortFrankel()"),
    ],
)
def test_what_does_not_fit_is_named(setting, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        PDE(**setting)
    assert isinstance(caught.value, UserError)


def test_the_scheme_states_what_it_is():
    scheme = DuFortFrankel()
    assert (scheme.name, scheme.order_in_time, scheme.order_in_space) == ("du-fort-frankel", 2, 2)
    assert "1953" in scheme.citation
    assert repr(scheme) == "DuFortFrankel()"
    assert scheme != "du-fort-frankel"
