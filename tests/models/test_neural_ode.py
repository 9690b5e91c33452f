"""The neural ODE on MNIST: published counts, the conventions of torchdiffeq's example, solvers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchdiffeq

from globalcnn import UserError, create_model
from globalcnn.nn.implicit import ConvergenceError, implicit_counts
from globalcnn.reproduce import load_authors_state_dict
from globalcnn.reproduce.authors import authors_names
from globalcnn.reproduce.counting import paper_counts
from globalcnn.reproduce.rows import published_rows


def images(n=2, dtype=torch.float32):
    return torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_published_counts():
    (row,) = [r for r in published_rows() if r.model == "neural_ode_mnist"]
    torch.manual_seed(0)
    model = create_model("neural_ode_mnist")
    counts = paper_counts(model, row.input)
    solve, paper = implicit_counts(model, counts.products), implicit_counts(model, counts.paper)
    assert counts.params == row.expected["params"] == 208_266
    assert (solve.outside, solve.per_evaluation, solve.evaluations) == (13_824_896, 2_695_680, 32)
    assert solve.macs() == row.expected["macs_conv_fc"]
    assert paper.macs() == row.expected["macs_paper_counting"]
    assert solve.measured == model.body[0].evaluations
    assert counts.macs_products == solve.macs(solve.measured)
    assert counts.macs_paper == paper.macs(paper.measured)


def written_out(w, x):
    """The network by the names of the example: one sequential, 0..6, 7.odefunc, 8, 12."""

    def norm(x, name):
        return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"])

    def with_time(t, x, name):
        x = torch.cat([torch.ones_like(x[:, :1]) * t, x], 1)
        return F.conv2d(x, w[f"{name}._layer.weight"], w[f"{name}._layer.bias"], padding=1)

    def f(t, x):
        x = with_time(t, F.relu(norm(x, "7.odefunc.norm1")), "7.odefunc.conv1")
        x = with_time(t, F.relu(norm(x, "7.odefunc.norm2")), "7.odefunc.conv2")
        return norm(x, "7.odefunc.norm3")

    x = F.relu(norm(F.conv2d(x, w["0.weight"], w["0.bias"]), "1"))
    x = F.relu(norm(F.conv2d(x, w["3.weight"], w["3.bias"], stride=2, padding=1), "4"))
    x = F.conv2d(x, w["6.weight"], w["6.bias"], stride=2, padding=1)
    t = torch.tensor([0, 1]).type_as(x)
    x = torchdiffeq.odeint(f, x, t, rtol=1e-3, atol=1e-3)[1]
    return F.linear(F.relu(norm(x, "8")).mean((2, 3)), w["12.weight"], w["12.bias"])


def test_logits_are_those_of_the_network_written_out():
    model = create_model("neural_ode_mnist").double()
    state = {
        name: 0.3 * torch.randn(model.state_dict()[ours].shape, dtype=torch.float64)
        for ours, name in authors_names(model).items()
    }
    load_authors_state_dict(model, state)
    x = images(dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), written_out(state, x), rtol=1e-10, atol=1e-10)
        state["7.odefunc.conv1._layer.weight"] = state["7.odefunc.conv1._layer.weight"].roll(1, 1)
        assert not torch.allclose(model(x), written_out(state, x), rtol=1e-3), "time is the first channel"


def test_names_of_the_example():
    model = create_model("neural_ode_mnist")
    names = set(authors_names(model).values())
    assert len(names) == len(model.state_dict())
    assert {"7.odefunc.norm1.weight", "7.odefunc.conv2._layer.bias", "7.odefunc.norm3.bias"} <= names
    assert {n.split(".")[0] for n in names} == {"0", "1", "3", "4", "6", "7", "8", "12"}


def test_solvers_agree():
    torch.manual_seed(0)
    model, x = create_model("neural_ode_mnist", rtol=1e-6, atol=1e-6).eval(), images()
    with torch.no_grad():
        expected = model(x)
        for settings in (
            {},
            {"method": "rk4", "steps": 8},
            {"method": "midpoint", "steps": 32},
            {"method": "euler", "steps": 200},
            {"adjoint": True},
        ):
            other = create_model("neural_ode_mnist", **settings).eval()
            other.load_state_dict(model.state_dict())
            torch.testing.assert_close(other(x), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("adjoint", [False, True])
def test_evaluations_are_told(adjoint):
    model = create_model("neural_ode_mnist", method="rk4", steps=2, adjoint=adjoint)
    model(images()).sum().backward()
    assert model.body[0].evaluations == 8
    assert (model.body[0].backward_evaluations > 0) == adjoint


def test_the_limit_on_evaluations_reaches_the_user():
    with pytest.raises(ConvergenceError, match="needs more than max_evaluations=5 evaluations"):
        create_model("neural_ode_mnist", max_evaluations=5)(images())
    with pytest.raises(UserError, match="unknown ODE method 'rk5'"):
        create_model("neural_ode_mnist", method="rk5")


@torch.no_grad()
def test_fixed_steps_can_be_exported():
    model, x = create_model("neural_ode_mnist", method="rk4", steps=1).eval(), images()
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
