"""DenseNet-BC: the places of its parts, and the effect of its settings."""

import pytest
import torch
from timm.models.densenet import DenseBlock, DenseLayer

from globalcnn import PDE, create_model
from globalcnn.errors import UserError
from globalcnn.nn import GlobalLayer
from globalcnn.reproduce.authors import authors_names


def test_a_global_layer_follows_each_transition():
    parts = [name for name, _ in create_model("densenet_global_cifar").features.named_children()]
    assert parts == [
        "conv0",
        *("denseblock1", "transition1", "global1"),
        *("denseblock2", "transition2", "global2"),
        "denseblock3",
        "norm_final",
    ]
    assert not any(isinstance(m, GlobalLayer) for m in create_model("densenet_cifar").modules())


@pytest.mark.parametrize(
    ("name", "depth", "bias"),
    [
        ("densenet_cifar", 16, None),
        ("densenet_global_cifar", 8, False),
        ("densenet_global_large_cifar", 12, True),
    ],
)
def test_published_depths_and_layers(name, depth, bias):
    model = create_model(name)
    assert [len(m) for m in model.modules() if isinstance(m, DenseBlock)] == [depth] * 3
    for layer in (m for m in model.modules() if isinstance(m, GlobalLayer)):
        assert layer.pde == PDE(steps=3)
        assert layer.diffusivity is None
        assert layer.velocity_x.norm.eps == layer.channels
        assert (layer.velocity_x.net.bias is not None) is bias


def test_init_of_a_global_layer_is_a_dense_layer_without_skip():
    layer = create_model("densenet_global_cifar").features.global1.eval()
    C = layer.channels
    assert isinstance(layer.init, DenseLayer)
    assert (layer.init.conv1.in_channels, layer.init.conv1.out_channels) == (C, 2 * C)
    assert (layer.init.conv2.in_channels, layer.init.conv2.out_channels) == (2 * C, C)
    torch.nn.init.zeros_(layer.init.conv2.weight)
    assert layer.init(torch.randn(1, C, 4, 4)).abs().max() == 0


def test_convolutions_start_by_fan_out_and_the_linear_bias_at_zero():
    torch.manual_seed(0)
    model = create_model("densenet_global_cifar")
    # 120 x 9 coefficients of N(0, 2 / (C k k)): near zero, not divided by the groups
    velocity = model.features.global2.velocity_x.net.weight
    assert velocity.std().item() == pytest.approx((2 / (78 * 9)) ** 0.5, rel=0.1)
    assert model.features.conv0.weight.std().item() == pytest.approx((2 / (24 * 9)) ** 0.5, rel=0.1)
    assert model.classifier.bias.abs().max() == 0


def test_dense_drop_rate_acts_in_training_only():
    model = create_model("densenet_cifar", dense_drop_rate=0.5)
    block, x = model.features.denseblock1, torch.randn(2, 24, 4, 4)
    block.eval()
    assert torch.equal(block(x), block(x))
    block.train()
    assert (block(x)[:, 24:] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_settings_and_images_that_do_not_fit():
    with pytest.raises(UserError, match="only for the Global variants"):
        create_model("densenet_cifar", pde=PDE())
    with pytest.raises(UserError, match=r"3 x 9; .* at least 4 x 4"):
        create_model("densenet_cifar")(torch.zeros(1, 3, 3, 9))
    model = create_model("densenet_global_cifar", pde=PDE(steps=1))
    assert model.features.global1.pde == PDE(steps=1)


def test_names_of_the_authors():
    names = set(authors_names(create_model("densenet_global_large_cifar")).values())
    assert names >= {
        "features.conv0.weight",
        "features.denseblock1.denselayer12.norm1.running_mean",
        "features.denseblock3.denselayer1.conv2.weight",
        "features.transition1.norm.weight",
        "features.transition2.conv.weight",
        "features.global1.init_h.norm1.weight",
        "features.global1.init_h.conv2.weight",
        "features.global2.bnDy.running_var",
        "features.global2.convg1.bias",
        "features.global2.bn_out.bias",
        "features.norm_final.weight",
        "classifier.bias",
    }
