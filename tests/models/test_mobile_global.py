"""The ImageNet networks: their blocks against timm's own, and the settings of the Global layers."""

import pytest
import timm
import torch
from torch import nn

from globalcnn import PDE, create_model
from globalcnn.nn import GlobalLayer
from globalcnn.reproduce.authors import authors_names

BASELINES = {
    "mobilenetv2_global": "mobilenetv2_100",
    "mobilenetv3_global": "mobilenetv3_large_100",
    "efficientnet_b0_global": "efficientnet_b0",
}


def layers(name):
    return [m for m in create_model(name).modules() if isinstance(m, GlobalLayer)]


@pytest.mark.parametrize("name", BASELINES)
def test_the_block_that_a_stage_keeps_is_that_of_the_baseline(name):
    model, baseline = create_model(name), timm.create_model(BASELINES[name])
    assert len(model.blocks) == len(baseline.blocks)
    for ours, theirs in zip(model.blocks, baseline.blocks, strict=True):
        assert repr(getattr(ours[0], "init", ours[0])) == repr(theirs[0])
    for part in ("conv_stem", "bn1", "conv_head", "classifier"):
        assert repr(model.get_submodule(part)) == repr(baseline.get_submodule(part))
    final = "act2" if name == "mobilenetv3_global" else "bn2"
    assert repr(model.get_submodule(final)) == repr(baseline.get_submodule(final)).replace(
        ", inplace=True", ""
    )


@pytest.mark.parametrize("name", BASELINES)
def test_every_global_layer_has_the_settings_of_the_imagenet_networks(name):
    found = layers(name)
    assert len(found) == 5
    for layer in found:
        assert layer.pde.steps == 1
        assert layer.velocity_x.net.bias is None
        assert layer.velocity_x.net.kernel_size == layer.init.conv_dw.kernel_size
        assert layer.velocity_x.norm.eps == layer.velocity_y.norm.eps == layer.norm.eps == 1e-5
        assert type(layer.act) is type(layer.coefficient_act) is type(layer.init.bn2.act)


def test_mobilenetv2_global():
    found = layers("mobilenetv2_global")
    assert [layer.channels for layer in found] == [24, 32, 64, 96, 160]
    assert [type(layer.act) for layer in found] == [nn.ReLU] * 3 + [nn.ReLU6] * 2
    assert not any(layer.shared_product for layer in found)
    assert {layer.diffusivity for layer in found} == {(1.0, 1.0)}
    # the kept blocks have the network's own activation
    assert isinstance(create_model("mobilenetv2_global").blocks[1][0].bn2.act, nn.ReLU6)


def test_mobilenetv3_global():
    found = layers("mobilenetv3_global")
    assert [layer.channels for layer in found] == [24, 40, 80, 112, 160]
    assert [layer.shared_product for layer in found] == [False, True, True, True, True]
    assert [type(layer.act) for layer in found] == [nn.ReLU] * 2 + [nn.Hardswish] * 3
    assert [layer.init.conv_pw.out_channels for layer in found] == [72, 120, 480, 672, 672]
    squeezes = [getattr(layer.init.se, "conv_reduce", None) for layer in found]
    assert [c and c.out_channels for c in squeezes] == [None, 32, None, 168, 168]
    # 112 to 160 channels with stride 2 inside the last one
    x = torch.randn(1, 112, 7, 5)
    assert found[-1].eval()(x).shape == (1, 160, 4, 3)


def test_efficientnet_b0_global():
    found = layers("efficientnet_b0_global")
    assert [layer.channels for layer in found] == [24, 40, 80, 112, 192]
    assert all(layer.shared_product for layer in found)
    assert [layer.pde for layer in found] == [PDE(dt=0.1), PDE(dt=0.1, spacing=2), PDE(), PDE(), PDE()]
    assert [layer.diffusivity[0] for layer in found] == [2.0, 2.0, 1.0, 1.0, 1.0]
    assert [layer.init.se.conv_reduce.out_channels for layer in found] == [6, 10, 20, 28, 48]
    assert {type(layer.act) for layer in found} == {nn.SiLU}


def test_one_equation_for_all_global_layers():
    model = create_model("efficientnet_b0_global", pde=PDE(steps=2))
    assert {m.pde for m in model.modules() if isinstance(m, GlobalLayer)} == {PDE(steps=2)}


def test_drop_path_rises_over_the_blocks():
    model = create_model("mobilenetv2_global", drop_path_rate=0.24)
    rates = [
        getattr(getattr(block, "init", block).drop_path, "drop_prob", 0.0)
        for stage in model.blocks
        for block in stage
    ]
    assert rates == pytest.approx([0.24 * i / 12 for i in range(12)])


def test_convolutions_start_as_timm_does_and_coefficients_near_zero():
    torch.manual_seed(0)
    model = create_model("mobilenetv2_global")
    layer = model.blocks[5][1]
    assert layer.init.conv_dw.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert layer.velocity_x.net.weight.std().item() == pytest.approx((2 / (160 * 9)) ** 0.5, rel=0.1)
    assert model.classifier.weight.abs().max().item() == pytest.approx(1000**-0.5, rel=0.01)


def test_mobilenetv3_pools_before_its_last_convolution():
    model = create_model("mobilenetv3_global", num_classes=10).eval()
    assert (model.num_features, model.head_hidden_size) == (960, 1280)
    f = model.forward_features(torch.randn(1, 3, 64, 64))
    assert f.shape == (1, 960, 2, 2)
    hidden = nn.functional.hardswish(model.conv_head(f.mean((2, 3), keepdim=True))).flatten(1)
    torch.testing.assert_close(model.forward_head(f, pre_logits=True), hidden)
    torch.testing.assert_close(model.forward_head(f), model.classifier(hidden))


def test_names_of_the_authors():
    names = set(authors_names(create_model("mobilenetv3_global")).values())
    assert names >= {
        "conv_stem.weight",
        "bn1.running_mean",
        "blocks.0.0.conv_dw.weight",
        "blocks.1.1.init_h.conv_pwl.weight",
        "blocks.1.1.convg.weight",
        "blocks.2.1.init_h.se.conv_reduce.bias",
        "blocks.5.0.init_h.bn3.weight",
        "blocks.5.0.bng1.weight",
        "blocks.6.0.conv.weight",
        "conv_head.bias",
        "classifier.bias",
    }
    assert {"bn2.weight", "conv_head.weight"} <= set(
        authors_names(create_model("mobilenetv2_global")).values()
    )
