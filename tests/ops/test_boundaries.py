"""Values beyond the edge: both implementations of `neighbours` against an array written out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from globalcnn import Boundary
from globalcnn.ops.eager import neighbours
from globalcnn.ops.reference import shifted

ROW = [1.0, 2.0, 3.0]
BEYOND = {  # positions -7 .. 9 around 0, 1, 2
    ("periodic", False): [3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1],
    ("periodic", True): [3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1],
    ("neumann", False): [1, 1, 2, 3, 3, 2, 1, 1, 2, 3, 3, 2, 1, 1, 2, 3, 3],
    ("neumann", True): [-1, 1, 2, 3, -3, -2, -1, 1, 2, 3, -3, -2, -1, 1, 2, 3, -3],
    ("dirichlet", False): [0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0],
    ("dirichlet", True): [0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0],
}


@pytest.mark.parametrize(("name", "odd"), BEYOND)
@pytest.mark.parametrize("distance", range(1, 8))
@pytest.mark.parametrize("axis", [2, 3])
def test_neighbours_read_what_the_boundary_says(name, odd, distance, axis):
    far = torch.tensor(BEYOND[name, odd], dtype=torch.float64)
    minus, plus = (far[7 + offset : 10 + offset] for offset in (-distance, +distance))
    A = torch.tensor(ROW, dtype=torch.float64).reshape((1, 1, 3, 1) if axis == 2 else (1, 1, 1, 3))
    boundary = Boundary(name)
    eager_minus, eager_plus = neighbours(A, axis, distance, boundary, odd)
    assert eager_minus.flatten().tolist() == minus.tolist()
    assert eager_plus.flatten().tolist() == plus.tolist()
    assert shifted(A, axis, -distance, boundary, odd=odd).flatten().tolist() == minus.tolist()
    assert shifted(A, axis, +distance, boundary, odd=odd).flatten().tolist() == plus.tolist()


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    axis=st.sampled_from([2, 3]),
    distance=st.integers(1, 20),
    boundary=st.sampled_from(list(Boundary)),
    odd=st.booleans(),
)
@example(size=(1, 1), axis=2, distance=1, boundary=Boundary.NEUMANN, odd=True)
def test_the_two_implementations_agree_however_far_they_reach(size, axis, distance, boundary, odd):
    A = torch.arange(1.0, 1 + size[0] * size[1]).reshape(1, 1, *size)
    minus, plus = neighbours(A, axis, distance, boundary, odd)
    assert torch.equal(minus, shifted(A, axis, -distance, boundary, odd=odd))
    assert torch.equal(plus, shifted(A, axis, +distance, boundary, odd=odd))


@pytest.mark.parametrize("boundary", [Boundary.PERIODIC, Boundary.NEUMANN], ids=lambda b: b.value)
def test_the_two_neighbours_together_hold_every_pixel_twice(boundary):
    """That is why nothing is lost at these edges."""
    A = torch.arange(1.0, 8.0).reshape(1, 1, 7, 1)
    for distance in (1, 2, 5, 7, 12):
        minus, plus = neighbours(A, 2, distance, boundary, False)
        assert sorted(torch.cat([minus, plus]).flatten().tolist()) == sorted(2 * A.flatten().tolist())
