"""DARTS networks: the genotype, the places of Global layers, the auxiliary head, drop path."""

import pytest
import torch
import torch.nn.functional as F

from globalcnn import PDE, create_model
from globalcnn.errors import UserError
from globalcnn.models.darts import DARTS
from globalcnn.models.darts_cells import Cell, DropPath, FactorizedReduce
from globalcnn.nn import GlobalLayer
from globalcnn.reproduce.authors import authors_names


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return create_model("darts_global_tiny_cifar")


def kinds(model):
    """One letter per entry of `cells`: Global layer, reduction or normal cell."""
    letters = ""
    for cell in model.cells:
        if isinstance(cell, GlobalLayer):
            letters += "G"
        else:
            letters += "r" if any(isinstance(op, torch.nn.MaxPool2d) for op in cell._ops) else "n"
    return letters


@pytest.mark.parametrize(
    ("name", "cells", "width"),
    [
        ("darts_cifar", "n" * 6 + "r" + "n" * 6 + "r" + "n" * 6, 576),
        ("darts_tiny_cifar", "n" * 6 + "r" + "n" * 6 + "r" + "n" * 6, 48),
        ("darts_global_cifar", "nnGrnGrn", 576),
        ("darts_global_large_cifar", "nnnGrnnGrnn", 768),
        ("darts_global_tiny_cifar", "nnGrnGrnn", 80),
    ],
)
def test_a_global_layer_stands_before_each_reduction_cell(name, cells, width):
    model = create_model(name)
    assert kinds(model) == cells
    assert model.num_features == width
    assert kinds(model)[model.last_reduction] == "r"


@pytest.mark.parametrize(
    ("name", "steps", "diffusivity"),
    [
        ("darts_global_cifar", 5, (1.0, 1.0)),
        ("darts_global_large_cifar", 1, None),
        ("darts_global_tiny_cifar", 1, (1.0, 1.0)),
    ],
)
def test_published_global_layers(name, steps, diffusivity):
    for layer in (m for m in create_model(name).cells if isinstance(m, GlobalLayer)):
        assert (layer.pde, layer.diffusivity) == (PDE(steps=steps), diffusivity)
        assert isinstance(layer.init, Cell)
        assert layer.velocity_x.net.bias is not None
        assert layer.velocity_x.norm.eps == layer.channels


def test_nodes_of_a_normal_cell(tiny):
    cell = tiny.cells[0].eval()
    s0, s1 = torch.randn(2, 2, 15, 6, 6)
    ops, a, b = cell._ops, cell.preprocess0(s0), cell.preprocess1(s1)
    n0 = ops[0](a) + ops[1](b)
    n1 = ops[2](a) + ops[3](b)
    n2 = ops[4](b) + a
    n3 = a + ops[7](n0)
    torch.testing.assert_close(cell(s0, s1), torch.cat([n0, n1, n2, n3], dim=1))
    assert ops[7].op[1].dilation == (2, 2)


def test_nodes_of_a_reduction_cell(tiny):
    cell = tiny.cells[3].eval()
    s0, s1 = torch.randn(2, 2, 20, 6, 6)
    a, b = (F.max_pool2d(s, 3, 2, 1) for s in (cell.preprocess0(s0), cell.preprocess1(s1)))
    n0 = a + b
    n1 = n0 + b
    n2 = a + n0
    n3 = n0 + b
    torch.testing.assert_close(cell(s0, s1), torch.cat([n0, n1, n2, n3], dim=1))


def test_cells_read_the_two_outputs_before_them(tiny):
    tiny.eval()
    x = torch.randn(1, 3, 16, 16)
    outputs = [tiny.stem(x)] * 2
    for cell in tiny.cells:
        s0, s1 = outputs[-2:]
        outputs.append(cell(s1, before=s0) if isinstance(cell, GlobalLayer) else cell(s0, s1))
    torch.testing.assert_close(tiny.forward_features(x), outputs[-1])


def test_factorised_reduce_takes_even_and_odd_pixels():
    reduce = FactorizedReduce(2, 4).eval()
    x = torch.randn(1, 2, 6, 8)
    even, odd = reduce.conv_1(F.relu(x)), reduce.conv_2(F.relu(x)[:, :, 1:, 1:])
    torch.testing.assert_close(reduce(x), reduce.bn(torch.cat([even, odd], dim=1)))
    for size in ((5, 6), (1, 1), (2, 7)):
        assert reduce(torch.randn(1, 2, *size)).shape[-2:] == tuple(-(-n // 2) for n in size)


def test_auxiliary_head_runs_only_when_asked(tiny):
    called = []
    tiny.auxiliary_head.register_forward_hook(lambda *_: called.append(1))
    x = torch.randn(2, 3, 32, 32)
    for mode in (True, False):
        assert isinstance(tiny.train(mode)(x), torch.Tensor)
    assert not called
    tiny.train()
    logits, auxiliary = tiny.forward_with_auxiliary(x)
    assert logits.shape == auxiliary.shape == (2, 10)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(p.grad is not None for p in tiny.parameters())
    tiny.eval()
    torch.testing.assert_close(tiny.forward_with_auxiliary(x)[0], tiny(x))


@pytest.mark.parametrize("size", [(8, 8), (33, 20), (64, 64)])
def test_auxiliary_head_fits_other_images(tiny, size):
    assert tiny.forward_with_auxiliary(torch.randn(2, 3, *size))[1].shape == (2, 10)


def test_auxiliary_head_is_the_published_one_at_32(tiny):
    head = tiny.auxiliary_head.eval()
    x = torch.randn(2, 80, 8, 8)
    y = F.avg_pool2d(F.relu(x), 5, stride=3)
    torch.testing.assert_close(head(x), head.classifier(head.features[2:](y).flatten(1)))


def test_reset_classifier_includes_the_auxiliary_head(tiny):
    tiny.double().reset_classifier(7)
    assert all(y.shape == (2, 7) for y in tiny.forward_with_auxiliary(torch.randn(2, 3, 32, 32).double()))


def test_drop_path_spares_identities_and_evaluation(tiny):
    x = torch.randn(2, 3, 8, 8)
    tiny.set_drop_path(0.5)
    tiny.eval()
    torch.testing.assert_close(tiny(x), tiny(x), rtol=0, atol=0)
    cell = tiny.cells[3].train()
    dropped = []
    cell.drop_path.register_forward_hook(lambda _m, _i, out: dropped.append(out))
    cell(*torch.randn(2, 2, 20, 6, 6))
    assert len(dropped) == sum(isinstance(op, torch.nn.MaxPool2d) for op in cell._ops) == 5


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath()
    drop.set_rate(0.2)
    y = drop(torch.ones(4000, 1, 2, 2))
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert (y.flatten(1).amax(1) == y.flatten(1).amin(1)).all()
    assert torch.equal(drop.eval()(y), y)
    drop.set_rate(0.0)
    assert drop.train()(y) is y


def test_a_schedule_of_drop_path_compiles_once(tiny):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    cell = torch.compile(tiny.cells[3].train(), backend=backend, fullgraph=True)
    s0, s1 = torch.randn(2, 2, 20, 6, 6)
    for rate in (0.1, 0.2):
        tiny.set_drop_path(rate)
        cell(s0, s1)
    assert len(graphs) == 1


def test_drop_path_rate_of_the_constructor():
    model = create_model("darts_global_tiny_cifar", drop_path_rate=0.2)
    rates = [1 - m.keep.item() for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.2] * 9)  # seven cells and two in the Global layers


def test_settings_that_do_not_fit(tiny):
    for rate in (1.0, -0.1, "half", True):
        with pytest.raises(UserError, match="must be a number >= 0 and < 1"):
            tiny.set_drop_path(rate)
    with pytest.raises(UserError, match="layers=2 must be a whole number >= 3"):
        DARTS(2, 4)
    with pytest.raises(UserError, match="only for the Global variants"):
        create_model("darts_cifar", pde=PDE())


def test_names_of_the_authors(tiny):
    names = set(authors_names(tiny).values())
    assert names >= {
        "stem.0.weight",
        "stem.1.weight",
        "cells.0.preprocess0.op.1.weight",
        "cells.0._ops.0.op.6.weight",
        "cells.0._ops.7.op.3.weight",
        "cells.2.init_h.preprocess1.op.2.bias",
        "cells.2.init_h._ops.4.op.5.weight",
        "cells.2.convg1.bias",
        "cells.4.preprocess0.conv_1.weight",
        "cells.4.preprocess0.conv_2.weight",
        "cells.4.preprocess0.bn.weight",
        "cells.5.bn_out.weight",
        "auxiliary_head.features.5.weight",
        "auxiliary_head.classifier.weight",
        "classifier.weight",
    }
    assert not any("drop_path" in name for name in names)
