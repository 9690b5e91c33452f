"""NeuPDE: what the reconstructions fit, exact derivatives, any size."""

from __future__ import annotations

import shutil

import pytest
import torch

from globalcnn import UserError, create_model
from globalcnn.models import model_info
from globalcnn.models.neupde import NeuPDE, PDEFunction
from globalcnn.nn.implicit import implicit_counts
from globalcnn.reproduce.authors import authors_names
from globalcnn.reproduce.counting import paper_counts
from globalcnn.reproduce.rows import published_rows

ROWS = [r for r in published_rows() if r.model.startswith("neupde")]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.model}-{r.num_classes}")
def test_they_fit_the_printed_figures(row):
    model = create_model(row.model, num_classes=row.num_classes)
    counts = paper_counts(model, row.input)
    assert counts.params == pytest.approx(row.published["params"], rel=0.02)
    assert counts.macs_paper == pytest.approx(row.published["macs"], rel=0.02)
    solve = implicit_counts(model, counts.products)
    assert counts.macs_products == solve.macs()
    assert counts.macs_paper == implicit_counts(model, counts.paper).macs()
    assert solve.evaluations == solve.measured == {"neupde_mnist": 22, "neupde_cifar": 4}[row.model]
    assert model_info(row.model).reconstruction
    assert row.reconstruction


def test_there_are_three_rows():
    assert len(ROWS) == 3


def test_derivatives_at_first_are_exact_for_quadratics():
    """u = a + b x + c y + d x^2 + e y^2 + g x y, x along dim 2: differences of second order are exact."""
    x = torch.arange(9.0, dtype=torch.float64)[:, None]
    y = torch.arange(7.0, dtype=torch.float64)[None, :]
    b, c, d, e, g = 1.0, -2.0, 0.5, 3.0, -1.5
    u = 4 + b * x + c * y + d * x**2 + e * y**2 + g * x * y
    expected = [b + 2 * d * x + g * y, c + 2 * e * y + g * x, 2 * d, 2 * e, g]
    f = PDEFunction(32, 8).double()
    found = f.derivatives(torch.stack([u, -u] * 16)[None])[0].unflatten(0, (32, 5))
    for k, exact in enumerate(expected):
        exact = torch.as_tensor(exact, dtype=torch.float64).expand(9, 7)[1:-1, 1:-1]
        torch.testing.assert_close(found[0, k, 1:-1, 1:-1], exact)
        torch.testing.assert_close(found[1, k, 1:-1, 1:-1], -exact)


def test_a_constant_has_no_derivatives_anywhere():
    f = PDEFunction(32, 8)
    assert f.derivatives(torch.full((1, 32, 4, 5), 3.0)).abs().max() == 0
    assert f.derivatives(torch.full((1, 32, 1, 1), 3.0)).abs().max() == 0


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_compiled_it_has_the_same_gradients(memory_format):
    torch.manual_seed(0)
    f = PDEFunction(32, 48).double()
    start = torch.randn(2, 32, 6, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    found = []
    for function in (f, torch.compile(f)):
        u = start.clone().requires_grad_()
        f.zero_grad()
        out = function(0.0, u)
        out.square().sum().backward()
        found.append([out.detach(), u.grad, *(p.grad.clone() for p in f.parameters())])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-9)


def small(**settings):
    torch.manual_seed(0)
    return NeuPDE(width=16, num_classes=4, **settings)


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (1, 5)])
def test_any_height_and_width(size):
    model = small().eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *size)).shape == (2, 4)


def test_settings_that_do_not_fit():
    with pytest.raises(
        UserError, match="method='dopri5': NeuPDE networks take fixed steps, by euler, midpoint"
    ):
        create_model("neupde_mnist", method="dopri5")
    with pytest.raises(UserError, match="reconstruction: the authors' code has no names for it"):
        authors_names(create_model("neupde_mnist"))
