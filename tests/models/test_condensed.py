"""What all DenseNet, DARTS and mobile networks share: printed counts, timm's contract, the authors' names."""

from functools import partial

import pytest
import timm
import torch

from globalcnn import create_model
from globalcnn.models import list_models, model_info
from globalcnn.models.darts import DARTS
from globalcnn.models.densenet import DenseNet
from globalcnn.reproduce import load_authors_state_dict
from globalcnn.reproduce.authors import authors_names
from globalcnn.reproduce.rows import published_rows

NAMES = [n for family in ("densenet", "darts", "mobile_global") for n in list_models(family=family)]
SMALL = ["densenet_global_cifar", "darts_global_tiny_cifar", "mobilenetv3_global"]
ROWS = {(row.model, row.num_classes): row for row in published_rows() if row.model in NAMES}


def test_every_network_is_in_a_table():
    assert {model for model, _ in ROWS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_authors_round_trip(name):
    source, target = create_model(name, num_classes=3), create_model(name, num_classes=3)
    names, weights = authors_names(source), source.state_dict()
    assert len(set(names.values())) == len(names) == len(weights)
    load_authors_state_dict(target, {names[k]: v for k, v in weights.items()})
    loaded = target.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in weights.items())


@pytest.mark.parametrize("name", NAMES)
def test_odd_sizes_and_the_parts_of_the_head(name):
    model = create_model(name, num_classes=5, in_chans=1).eval()
    x = torch.randn(2, 1, 13, 21)
    with torch.no_grad():
        f = model.forward_features(x)
        hidden = model.forward_head(f, pre_logits=True)
        assert f.shape[:2] == (2, model.num_features)
        assert hidden.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.get_classifier()(hidden), model(x))
        model.reset_classifier(4, "max")
        assert model(x).shape == (2, 4)
        model.reset_classifier(0)
        assert model(x).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("name", NAMES)
def test_feature_maps(name):
    model = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, *model_info(name).input_size[:1], 32, 32))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [m.shape[-1] for m in maps] == [32 // r for r in model.feature_info.reduction()]


@pytest.mark.parametrize(
    "build",
    [
        partial(DenseNet, (1, 2, 1), with_global=True),
        partial(DARTS, 3, 2, with_global=True),
        partial(create_model, "mobilenetv3_global"),
    ],
)
def test_compiles_whole_and_exports(build):
    model = build(num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n")}})
    torch.testing.assert_close(exported.module()(x[:1].repeat(3, 1, 1, 1))[0], expected[0])


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_of_the_main_path_learns(name):
    model = create_model(name, drop_rate=0.1).train()
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    without = {k for k, p in model.named_parameters() if p.grad is None}
    assert all(k.startswith("auxiliary_head.") for k in without)
