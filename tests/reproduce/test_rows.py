"""Every network of the published tables has the printed counts, or fits them where it is a reconstruction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from globalcnn import create_model
from globalcnn.measure import count
from globalcnn.models import model_info
from globalcnn.nn.implicit import ImplicitLayer, implicit_counts
from globalcnn.nn.implicit.equilibrium import Equilibrium
from globalcnn.reproduce.counting import paper_counts
from globalcnn.reproduce.rows import published_rows
from globalcnn.reproduce.table import ROUNDING

ROWS = {(r.model, r.num_classes): r for r in published_rows()}
# how far a reconstruction may be from the printed figures, which say two digits
RECONSTRUCTED = 0.05
# rows of equilibrium networks tell multiply-adds to 0.1 million
TOLD_TO = -5


def test_rows_of_the_same_network_say_the_same():
    for row in published_rows():
        assert row.expected == ROWS[row.model, row.num_classes].expected


def built(name, num_classes):
    """The network; an equilibrium is evaluated just twice."""
    torch.manual_seed(0)  # how many evaluations an adaptive solver takes depends on the weights
    net = create_model(name, num_classes=num_classes)
    for module in net.modules():
        if isinstance(module, Equilibrium):
            module.solver = replace(module.solver, max_evaluations=2)
    return net


@pytest.mark.parametrize(("name", "num_classes"), ROWS)
def test_counts_are_those_of_the_published_architecture(name, num_classes):
    row = ROWS[name, num_classes]
    net = built(name, num_classes)
    counts = paper_counts(net, row.input)
    products, paper = implicit_counts(net, counts.products), implicit_counts(net, counts.paper)
    macs_products = counts.macs_products if products is None else products.macs()
    macs_paper = counts.macs_paper if paper is None else paper.macs()
    if row.expected is None:
        assert row.reconstruction
        assert counts.params == pytest.approx(row.published["params"], rel=RECONSTRUCTED)
        assert macs_paper == pytest.approx(row.published["macs"], rel=RECONSTRUCTED)
    elif "macs_per_evaluation" in row.expected:
        # such a row is that of the default number of classes
        classes = num_classes - model_info(name).num_classes
        weights = classes * net.head_hidden_size
        assert row.expected == {
            "params": counts.params - weights - classes,
            "macs_outside_the_solve": round(products.outside - weights, TOLD_TO),
            "macs_per_evaluation": round(products.per_evaluation, TOLD_TO),
        }
        assert macs_products == pytest.approx(row.published["macs"], rel=ROUNDING)
    else:
        assert row.expected == {
            "params": counts.params,
            "macs_conv_fc": macs_products,
            "macs_paper_counting": macs_paper,
            "pde_multiplies": counts.pde,
        }


@pytest.mark.parametrize("name", ["resnet_global_cifar", "digits_global", "resnet_mnist"])
def test_the_one_cost_of_everywhere_else_is_products_and_pde(name):
    row = ROWS[name, 10]
    counts = count(create_model(name, num_classes=10), row.input)
    assert counts.macs == row.expected["macs_conv_fc"] + row.expected["pde_multiplies"]
    assert counts.macs_pde == row.expected["pde_multiplies"]


def test_a_wrong_count_would_be_seen():
    row = ROWS["resnet_global_cifar", 10]
    counts = paper_counts(create_model("resnet_global_cifar", num_classes=10, bias=False), row.input)
    assert counts.params != row.expected["params"]


@pytest.mark.parametrize("name", ["neural_ode_mnist", "mdeq_small"])
def test_a_wrong_number_of_evaluations_would_be_seen(name):
    row = ROWS[name, model_info(name).num_classes]
    net = built(name, row.num_classes)
    implicit = implicit_counts(net, paper_counts(net, row.input).products)
    block = next(m for m in net.modules() if isinstance(m, ImplicitLayer))
    for off in (-1, 1):
        macs = implicit.macs(block.nominal_evaluations + off)
        assert macs != row.expected.get("macs_conv_fc")
        assert macs != pytest.approx(row.published["macs"], rel=ROUNDING)
