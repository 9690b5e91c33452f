"""MDEQ: published counts, the cell against one written out plainly, gradients, dropout, sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from globalcnn import UserError, create_model
from globalcnn.measure import count
from globalcnn.models import model_info
from globalcnn.models.mdeq import MDEQ
from globalcnn.nn.implicit import ConvergenceError, implicit_counts
from globalcnn.nn.implicit.equilibrium import Solver
from globalcnn.nn.implicit.fixed_point import Anderson, Broyden
from globalcnn.reproduce import load_authors_state_dict
from globalcnn.reproduce.authors import authors_names


def small(**settings):
    """Three branches of 8, 16, 24 channels."""
    torch.manual_seed(0)
    return MDEQ((8, 16, 24), (4, 8, 12), 32, num_classes=4, **{"nominal_evaluations": 8, **settings})


def images(n=2, side=16, dtype=torch.float32):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


def calmed(model):
    """The same network with a cell that contracts: offsets of its norms outweigh what varies with z."""
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.equilibrium.f.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.fill_(0.3)
                module.bias.copy_(torch.randn(module.bias.shape, generator=g))
    return model


PUBLISHED = {
    # name: (num_classes, side, params, outside, per evaluation, evaluations)
    "mdeq_large_cifar": (10, 32, 11_098_398, 86_393_248, 411_631_616, 20),
    "mdeq_small": (1000, 224, 16_808_936, 654_336_000, 1_260_621_824, 16),
    "mdeq_cifar": (10, 32, 1_093_654, 55_283_920, 75_431_936, 20),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    classes, side, params, outside, per_evaluation, evaluations = PUBLISHED[name]
    torch.manual_seed(0)
    model = create_model(name, num_classes=classes)
    model.equilibrium.solver = Solver(max_evaluations=2)
    counts = count(model, (3, side, side))
    solve = implicit_counts(model, counts.layers)
    assert counts.params == params
    assert (solve.outside, solve.per_evaluation, solve.evaluations) == (outside, per_evaluation, evaluations)
    assert solve.measured == 2
    assert counts.macs == solve.macs(2)
    assert solve.macs() == outside + evaluations * per_evaluation


def test_a_hundred_classes_have_as_many_more_weights():
    ten, hundred = (create_model("mdeq_large_cifar", num_classes=n) for n in (10, 100))
    params = [sum(p.numel() for p in m.parameters()) for m in (ten, hundred)]
    assert params == [11_098_398, 11_098_398 + 90 * (1680 + 1)]


def test_the_reconstruction_says_that_it_is_one():
    assert model_info("mdeq_cifar").reconstruction
    assert not model_info("mdeq_large_cifar").reconstruction
    torch.manual_seed(0)
    model = create_model("mdeq_cifar")
    solve = implicit_counts(model, count(model, (3, 32, 32)).layers)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == 1.094
    assert round(solve.macs() / 1e9, 2) == 1.56


def plain_cell(w, z, injection):
    """f by the names of the code of Bai et al., every operation written out."""

    def conv(x, name, stride=1):
        if f"{name}.weight_g" in w:
            g, v = w[f"{name}.weight_g"], w[f"{name}.weight_v"]
            weight = g * v / v.flatten(1).norm(dim=1)[:, None, None, None]
        else:
            weight = w[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x, name, groups=8):
        return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"])

    r = []
    for i, x in enumerate(z):
        block = f"branches.{i}.blocks.0"
        y = F.relu(norm(conv(x, f"{block}.conv1"), f"{block}.gn1"))
        y = conv(y, f"{block}.conv2") + (injection if i == 0 else 0)
        r.append(norm(F.relu(norm(y, f"{block}.gn2") + x), f"{block}.gn3"))
    out = []
    for i in range(len(z)):
        total = 0
        for j, y in enumerate(r):
            path = f"fuse_layers.{i}.{j}.net"
            if j > i:
                y = norm(conv(y, f"{path}.conv"), f"{path}.gnorm")
                y = y.repeat_interleave(2 ** (j - i), 2).repeat_interleave(2 ** (j - i), 3)
            for k in range(i - j):
                y = norm(conv(y, f"{path}.{k}.conv", stride=2), f"{path}.{k}.gnorm")
                y = F.relu(y) if k < i - j - 1 else y
            total = total + y
        y = conv(F.relu(total), f"post_fuse_layers.{i}.conv")
        out.append(norm(y, f"post_fuse_layers.{i}.gnorm", groups=4))
    return out


def randomised(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def test_the_cell_is_the_one_written_out():
    model = randomised(small()).double()
    names = authors_names(model)
    weights = {names[k].removeprefix("fullstage."): v for k, v in model.state_dict().items()}
    g = torch.Generator().manual_seed(3)
    z = tuple(
        torch.randn(2, c, 16 // 2**i, 16 // 2**i, generator=g, dtype=torch.float64)
        for i, c in enumerate(model.widths)
    )
    injection = torch.randn(z[0].shape, generator=g, dtype=torch.float64)
    with torch.no_grad():
        found = model.equilibrium.f(z, injection, (None,) * 3)
        for ours, plain in zip(found, plain_cell(weights, z, injection), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
        del weights["branches.0.blocks.0.conv1.weight_g"]
        with pytest.raises(KeyError):
            plain_cell(weights, z, injection)


def test_weights_go_through_the_names_of_their_authors():
    source, target = randomised(small()).eval(), small().eval()
    names = authors_names(source)
    assert len(set(names.values())) == len(names)
    assert not [n for n in names.values() if "parametrizations" in n or "equilibrium" in n]
    x = images()
    with torch.no_grad():
        assert not torch.equal(source(x), target(x))
        load_authors_state_dict(target, {names[k]: v for k, v in source.state_dict().items()})
        assert torch.equal(source(x), target(x))


@pytest.mark.parametrize("method", [Broyden(), Anderson()], ids=repr)
def test_implicit_gradients_are_the_unrolled_ones(method):
    grads = {}
    for gradient in ("implicit", "unrolled", "jacobian_free"):
        model = calmed(small(solver=Solver(method, 1e-10, 60), gradient=gradient)).double()
        model(images(dtype=torch.float64)).square().sum().backward()
        assert model.equilibrium.converged.all()
        grads[gradient] = [p.grad for p in model.parameters()]
    exact = grads.pop("unrolled")
    errors = {
        gradient: max(((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True))
        for gradient, found in grads.items()
    }
    assert errors["implicit"] < 1e-4
    assert errors["jacobian_free"] > 1e-2, "the comparison would see a wrong gradient"


def test_a_network_that_converges_says_so_and_so_does_one_that_does_not():
    model, x = calmed(small(solver=Solver(max_evaluations=30))).eval(), images()
    with torch.no_grad():
        model(x)
        solve = model.equilibrium
        assert solve.unconverged == 0
        assert solve.residual.max() <= 1e-3
        assert 1 < solve.evaluations < 30
        few = small(solver=Solver(max_evaluations=3)).eval()
        few(x)
        assert few.equilibrium.evaluations == 3
        assert few.equilibrium.unconverged == 2
        with pytest.raises(
            ConvergenceError,
            match=r"the forward iteration by broyden left 2 of 2 samples above tolerance=0.001",
        ):
            small(solver=Solver(max_evaluations=3), on_failure="error").eval()(x)


def test_with_and_without_gradient_the_logits_are_the_same():
    model, x = small().eval(), images()
    with torch.no_grad():
        without = model(x)
    torch.testing.assert_close(model(x), without, rtol=1e-5, atol=1e-6)


def test_dropout_is_held_over_the_evaluations_and_off_in_eval():
    model, x = small(dropout=0.5).train(), images()
    seen = []
    model.equilibrium.f.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    model(x)
    assert len(seen) == model.equilibrium.evaluations > 2
    for masks in seen:
        assert all(a is b for a, b in zip(masks, seen[0], strict=True))
    assert [tuple(m.shape) for m in seen[0]] == [(2, 8, 1, 1), (2, 16, 1, 1), (2, 24, 1, 1)]
    values = torch.cat([m.flatten() for m in seen[0]])
    assert set(values.tolist()) == {0.0, 2.0}
    first, seen[:] = seen[0], []
    model(x)
    assert any(not torch.equal(a, b) for a, b in zip(first, seen[0], strict=True)), "drawn anew"
    seen.clear()
    model.eval()(x)
    assert seen[0] == (None, None, None)


def test_dropout_is_the_same_from_the_same_seed():
    model, x, found = small(dropout=0.5), images(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(x).detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("size", [(16, 16), (13, 10), (7, 1), (5, 18)])
def test_any_height_and_width(size):
    model = small().eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        features = model.forward_features(x)
        assert model(x).shape == (1, 4)
    quarter = [((n + 1) // 2 + 1) // 2 for n in size]
    assert features.shape == (1, 32, *quarter)


def test_plain_iterations_and_then_a_solve():
    model, x = small(), images(8, 12)
    model.equilibrium.unroll = 4
    model(x)
    assert model.equilibrium.evaluations == 4
    assert model.equilibrium.residual is None
    model.equilibrium.unroll = None
    model(x)
    assert model.equilibrium.residual.shape == (8,)


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"widths=\(12,\) must be divisible by 8"):
        MDEQ((12,), (4,), 16)
    with pytest.raises(
        UserError, match=r"widths=\(8, 16\) and head_widths=\(4,\) must name as many branches"
    ):
        MDEQ((8, 16), (4,), 16)
    with pytest.raises(UserError, match=r"dropout=1.0 must be a share"):
        MDEQ((8,), (4,), 16, dropout=1.0)


def test_one_branch_and_a_head_without_projection():
    model = MDEQ((16,), (4,), 8, num_classes=2, nominal_evaluations=3).eval()
    assert model.expand[0].shortcut is None
    with torch.no_grad():
        assert model(images()).shape == (2, 2)
    assert isinstance(model.get_classifier(), nn.Linear)


@pytest.mark.parametrize("fixed", ["unroll", "tolerance"])
@torch.no_grad()
def test_fixed_iterations_can_be_exported(fixed):
    model = small(solver=Solver(tolerance=None, max_evaluations=3)).eval()
    model.equilibrium.unroll = 2 if fixed == "unroll" else None
    x = images(2, 8)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
