"""What every registered network promises, one test per promise and network: timm's contract.

Images are small, and equilibria are approached by two plain iterations: the solvers have tests of their own.
A capability that a network does not have is declared in `model_info(name).cannot` with its reason, and only
then left out here.
"""

from __future__ import annotations

import copy
import math
import re
from functools import cache

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from globalcnn import UserError, create_model, list_models
from globalcnn.models import model_info
from globalcnn.models.shipped import shipped_weights
from globalcnn.nn.implicit.equilibrium import Equilibrium
from globalcnn.nn.implicit.layer import ImplicitLayer

NAMES = list_models()
DEAR = ("neupde_cifar", "mdeq_large_cifar", "wide_resnet_cifar", "wide_resnet_global_cifar")


def cheap(net):
    for module in net.modules():
        if isinstance(module, Equilibrium):
            module.unroll = 2
    return net


@cache
def model(name):
    """A network in eval mode that no test changes."""
    torch.manual_seed(0)
    return cheap(create_model(name).eval())


def size(name):
    """(C, H, W) of the images used here."""
    info = model_info(name)
    side = 16 if name in DEAR else min(64, info.input_size[1])
    return info.input_size[0], side, side


def images(name, batch=2, shape=None):
    g = torch.Generator().manual_seed(1)
    return torch.randn(batch, *(shape or size(name)), generator=g)


def can(name, capability):
    """Leave the test where the network declares that it cannot."""
    reason = dict(model_info(name).cannot).get(capability)
    if reason is not None:
        assert len(reason) > 10, "a reason that says something"
        pytest.skip(f"{name} cannot {capability}: {reason}")


def relative_error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


every_model = pytest.mark.parametrize("name", NAMES)


def test_there_are_models():
    assert len(NAMES) >= 26
    assert len(set(NAMES)) == len(NAMES)


@every_model
@torch.no_grad()
def test_features_then_head_are_the_logits(name):
    net, x, info = model(name), images(name), model_info(name)
    features = net.forward_features(x)
    assert features.shape[:2] == (2, net.num_features)
    assert features.ndim == 4
    hidden = net.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, net.head_hidden_size)
    logits = net(x)
    assert logits.shape == (2, info.num_classes) == (2, net.num_classes)
    assert torch.equal(net.forward_head(features), logits)
    torch.testing.assert_close(net.get_classifier()(hidden), logits)
    assert logits.isfinite().all()


@every_model
@torch.no_grad()
def test_the_classifier_can_be_replaced_and_removed(name):
    net, x = copy.deepcopy(model(name)), images(name)
    hidden = net.forward_head(net.forward_features(x), pre_logits=True)
    net.reset_classifier(7)
    assert net.num_classes == 7
    assert net.get_classifier().out_features == 7
    assert net(x).shape == (2, 7)
    net.reset_classifier(0)
    assert net.num_classes == 0
    assert isinstance(net.get_classifier(), nn.Identity)
    assert torch.equal(net(x), hidden)
    net.reset_classifier(3)
    assert net(x).shape == (2, 3)


@every_model
def test_classes_and_channels_are_chosen_when_it_is_made(name):
    """Also that the config names the first convolution and the classifier, as timm's tools need."""
    in_chans = {1: 3, 3: 2}[model_info(name).input_size[0]]
    net = cheap(create_model(name, num_classes=5, in_chans=in_chans).eval())
    shape = (in_chans, *size(name)[1:])
    with torch.no_grad():
        assert net(images(name, 1, shape)).shape == (1, 5)
    cfg = net.default_cfg
    assert net.get_submodule(cfg["first_conv"]).in_channels == in_chans
    assert net.get_submodule(cfg["classifier"]) is net.get_classifier()
    assert create_model(name, num_classes=0).num_classes == 0
    for setting in ({"num_classes": -1}, {"in_chans": 0}):
        with pytest.raises(
            UserError, match=re.escape(f"{next(iter(setting))}={next(iter(setting.values()))} must")
        ):
            create_model(name, **setting)


@every_model
def test_what_is_known_of_it_is_true(name):
    info, net = model_info(name), model(name)
    assert info.name == name
    assert info.about
    assert net.default_cfg["input_size"] == info.input_size
    assert net.default_cfg["num_classes"] == info.num_classes == net.num_classes
    assert len(net.default_cfg["mean"]) == len(net.default_cfg["std"]) == info.input_size[0]
    assert net.in_chans == info.input_size[0]


@every_model
@torch.no_grad()
def test_feature_maps(name):
    can(name, "features_only")
    x = images(name)
    told = model(name).feature_info
    told = told if isinstance(told, list) else told.info
    net = cheap(create_model(name, features_only=True).eval())
    maps = net(x)
    assert len(maps) == len(told)
    assert [m.shape[1] for m in maps] == [t["num_chs"] for t in told] == net.feature_info.channels()
    assert [t["reduction"] for t in told] == net.feature_info.reduction()
    slack = 2 if model_info(name).family in ("mnist", "neural_ode", "neupde") else 0  # unpadded convolutions
    for m, t in zip(maps, told, strict=True):
        for axis in (2, 3):
            assert abs(m.shape[axis] - math.ceil(x.shape[axis] / t["reduction"])) <= slack
    last = cheap(create_model(name, features_only=True, out_indices=(len(told) - 1,)).eval())(x)
    assert len(last) == 1
    assert last[0].shape == maps[-1].shape


@every_model
def test_every_parameter_gets_a_finite_gradient(name):
    net = copy.deepcopy(model(name)).train()
    net(images(name)).square().mean().backward()
    left_out = tuple(f"{n}." for n in getattr(net, "uncounted_modules", ()))
    for parameter, p in net.named_parameters():
        if parameter.startswith(left_out) and left_out:
            continue
        assert p.grad is not None, parameter
        assert p.grad.isfinite().all(), parameter
    assert any(p.grad.abs().max() > 0 for p in net.parameters() if p.grad is not None)


@every_model
@torch.no_grad()
def test_memory_formats_precisions_and_sizes(name):
    net, x = model(name), images(name, 1)
    logits = net(x)
    assert torch.equal(net(x), logits)
    channels_last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    found = channels_last(x.to(memory_format=torch.channels_last))
    assert relative_error(found, logits) < 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x)
    assert low.isfinite().all()
    assert relative_error(low, logits) < 0.1
    _, h, w = size(name)
    odd = images(name, 1, (x.shape[1], h + 1, w + 3))
    assert net(odd).shape == (1, net.num_classes)


@every_model
@torch.no_grad()
def test_states_names_and_copies(name):
    """The same network under timm's `create_model`, from the same seed, from a state dict, from a copy."""
    net, x = model(name), images(name, 1)
    logits = net(x)
    torch.manual_seed(0)
    again = cheap(timm.create_model(name).eval())
    assert type(again) is type(net)
    assert again.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(again(x), logits)
    with torch.no_grad():
        for p in again.parameters():
            p.mul_(0.9)
    assert not torch.equal(again(x), logits)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), logits)
    assert torch.equal(copy.deepcopy(net)(x), logits)


@every_model
@torch.no_grad()
def test_intermediates(name):
    """timm's `forward_intermediates`: the same maps as `features_only`, from one forward."""
    net, x = model(name), images(name)
    last, maps = net.forward_intermediates(x)
    assert torch.equal(last, net.forward_features(x))
    told = net.feature_info if isinstance(net.feature_info, list) else net.feature_info.info
    assert [m.shape[1] for m in maps] == [t["num_chs"] for t in told]
    early = net.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert len(early) == 1
    assert torch.equal(early[0], maps[0])
    assert torch.equal(net.forward_intermediates(x, 1, intermediates_only=True)[0], maps[-1])
    assert torch.equal(net.forward_intermediates(x, [-1])[1][0], maps[-1])
    for wrong in ({"indices": len(maps) + 1}, {"indices": [len(maps)]}, {"output_fmt": "NLC"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            net.forward_intermediates(x, **wrong)


# one network per family is enough for what a family writes once
FAMILIES = {model_info(n).family: n for n in reversed(NAMES) if n not in DEAR}
every_family = pytest.mark.parametrize("name", FAMILIES.values())


@every_model
def test_groups_of_layers(name):
    """Stem first, head last, every parameter in one group; timm's layer decay builds on them."""
    net = model(name)
    groups = group_parameters(net, net.group_matcher(), reverse=True)
    assert groups.keys() == dict(net.named_parameters()).keys()
    assert groups[net.default_cfg["first_conv"] + ".weight"] == 0
    head = groups[net.default_cfg["classifier"] + ".weight"]
    assert head == max(groups.values()) >= 2
    body = [n for n in groups if groups[n] == head]
    assert all(n.startswith((net.default_cfg["classifier"], "auxiliary_head")) for n in body), body
    coarse = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    assert max(coarse.values()) <= head
    assert net.no_weight_decay() == set()


@every_family
def test_layer_decay_builds_an_optimizer(name):
    groups = create_optimizer_v2(model(name), "sgd", lr=0.1, weight_decay=0.1, layer_decay=0.5).param_groups
    scales = [g["lr_scale"] for g in groups]
    assert max(scales) == 1.0
    assert min(scales) < 0.5
    assert sum(len(g["params"]) for g in groups) == len(list(model(name).parameters()))


@every_family
def test_gradient_checkpointing_changes_nothing(name):
    """Neither outputs nor gradients nor BatchNorm's statistics; timm's own checkpoint moves those twice."""
    nets = [copy.deepcopy(model(name)).train() for _ in range(2)]
    if any(isinstance(m, ImplicitLayer) for m in nets[0].modules()):
        with pytest.raises(UserError, match="implicit layer, which is not checkpointed"):
            nets[0].set_grad_checkpointing()
        nets[0].set_grad_checkpointing(False)
        return
    nets[1].set_grad_checkpointing()
    x = images(name)
    found = []
    for net in nets:
        torch.manual_seed(2)
        y = net(x)
        y.square().mean().backward()
        found.append([y, *(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()])
    assert len(found[0]) == len(found[1])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)
    for module in nets[1].modules():
        assert getattr(module, "momentum", 0.1) == 0.1


def test_checkpointed_blocks_keep_less():
    """What a forward saves for its backward, in numbers."""
    kept = []
    for enable in (False, True):
        net = create_model("resnet32_cifar").train()
        net.set_grad_checkpointing(enable)
        saved = []

        def pack(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            net(torch.randn(1, 3, 16, 16))
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize("name", ["resnet_global_tiny_cifar", "densenet_global_cifar", "mobilenetv2_global"])
@pytest.mark.parametrize(
    ("settings", "layer"),
    [
        ({"act_layer": "silu"}, "SiLU"),
        ({"act_layer": nn.GELU}, "GELU"),
        ({"norm_layer": "groupnorm1"}, "GroupNorm1"),
    ],
    ids=["silu", "GELU", "groupnorm1"],
)
def test_layers_are_chosen(name, settings, layer):
    net = create_model(name, **settings).eval()
    kinds = {type(m).__name__ for m in net.modules()}
    assert any(layer in k for k in kinds)
    if "act_layer" in settings:
        assert not kinds & {"ReLU", "ReLU6"}
    with torch.no_grad():
        assert net(images(name)).isfinite().all()


def test_stochastic_depth_rises_over_the_blocks():
    net = create_model("resnet_global_cifar", drop_path_rate=0.3).train()
    rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in net.modules() if hasattr(m, "drop_path")]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    for rate in (1.0, -0.1, "much", True):
        with pytest.raises(UserError, match=r"drop_path_rate=.* must be a number >= 0 and < 1"):
            create_model("resnet_global_cifar", drop_path_rate=rate)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("densenet_cifar", {"drop_path_rate": 0.1}, "does not take the setting 'drop_path_rate'"),
        ("darts_cifar", {"norm_layer": "groupnorm1"}, "does not take the setting 'norm_layer'"),
        ("digits_conv", {"act_layer": nn.GELU}, "does not take the setting 'act_layer'; it takes drop_rate"),
        ("resnet_global_cifar", {"act_layer": "sliu"}, "act_layer='sliu' is no activation"),
        ("resnet_global_cifar", {"act_layer": 3}, "act_layer=3 must be a class"),
        ("resnet_global_cifar", {"norm_layer": "no_norm"}, "norm_layer='no_norm' is no norm"),
        ("densenet_cifar", {"norm_layer": "frozenbatchnorm3d"}, "is no norm"),
        ("resnet_global_cifar", {"drop_rate": 2}, "drop_rate=2 must be a number"),
    ],
)
def test_layers_that_a_network_does_not_take(name, settings, words):
    with pytest.raises(UserError, match=words):
        create_model(name, **settings)


@pytest.mark.parametrize("name", ["digits_global", "resnet_global_tiny_cifar"])
def test_watching_an_evolution_changes_nothing(name):
    net = copy.deepcopy(model(name)).train()
    body = next(m for m in net.modules() if hasattr(m, "evolution"))
    before = copy.deepcopy(net.state_dict())
    f = torch.randn(2, getattr(body, "channels", 1), 8, 8) + 1
    seen = body.evolution(f)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(A, before[n]) for n, A in net.state_dict().items())
    assert torch.equal(body.eval()(f), seen.output)


@every_model
def test_there_are_no_weights_to_download(name):
    if shipped_weights(name):
        assert create_model(name, pretrained=True).num_classes > 0
        return
    with pytest.raises(UserError, match=f"there are no trained weights of '{name}' yet"):
        create_model(name, pretrained=True)


# tracing takes seconds per network and sees nothing of widths and depths: the smallest of each kind
TRACED = (
    "darts_global_tiny_cifar",
    "densenet_global_cifar",
    "digits_conv",
    "digits_global",
    "digits_residual",
    "efficientnet_b0_global",
    "global_mnist",
    "mdeq_cifar",
    "mobilenetv2_global",
    "mobilenetv3_global",
    "neupde_cifar",
    "neupde_mnist",
    "neural_ode_mnist",
    "resnet_global_tiny_cifar",
    "resnet_mnist",
    "resnet_tiny_cifar",
)
every_kind = pytest.mark.parametrize("name", TRACED)


def test_every_family_is_traced():
    assert {model_info(n).family for n in TRACED} == {model_info(n).family for n in NAMES}


@pytest.mark.slow
@every_kind
@torch.no_grad()
def test_exported(name):
    can(name, "export")
    net, x = model(name), images(name)
    program = torch.export.export(net, (x,))
    assert relative_error(program.module()(x), net(x)) < 1e-4
    assert not [n for n in program.graph.nodes if "roll" in str(n.target)]


@every_kind
@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced(name):
    """By torch.fx and by torch.jit, as feature extractors, TensorBoard and converters do."""
    can(name, "export")
    net, x = model(name), images(name)
    if not any(isinstance(m, ImplicitLayer) for m in net.modules()):  # they look at the state while they step
        assert relative_error(torch.fx.symbolic_trace(net)(x), net(x)) < 1e-4
    assert relative_error(torch.jit.trace(net, x, check_trace=False)(x), net(x)) < 1e-4


@pytest.mark.slow
@every_kind
@torch.no_grad()
def test_compiled_in_one_graph(name):
    can(name, "compile")
    torch._dynamo.reset()
    net, x = model(name), images(name)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert relative_error(compiled(x), net(x)) < 1e-4


def test_models_are_found_by_pattern_and_family():
    assert list_models("digits_*") == ["digits_conv", "digits_global", "digits_residual"]
    assert list_models("digits") == list_models("digits_*")
    assert list_models("xyzzy") == []
    assert list_models(family="digits") == list_models("digits_*")
    assert set(NAMES) < set(list_models(include_timm=True))
    assert "resnet18" in list_models("resnet1?", include_timm=True)
    with pytest.raises(UserError, match="unknown family 'digit'; did you mean 'digits'"):
        list_models(family="digit")


def test_names_and_settings_that_do_not_fit():
    words = "unknown model 'resnet_globl_cifar'; did you mean 'resnet_global_cifar'"
    for ask in (create_model, model_info):
        with pytest.raises(UserError, match=words):
            ask("resnet_globl_cifar")
    with pytest.raises(
        UserError, match=r"'resnet_global_cifar' does not take the setting 'depht'.*; it takes act_layer, "
    ):
        create_model("resnet_global_cifar", depht=3)
    with pytest.raises(UserError, match="'densenet_cifar' does not take the setting 'depths'"):
        create_model("densenet_cifar", depths=(1, 1, 1))
    with pytest.raises(UserError, match="unknown model 'None'"):
        create_model(None)


def test_models_of_timm_are_made_by_the_same_function():
    net = create_model("resnet18", num_classes=3, in_chans=1).eval()
    assert net(torch.randn(1, 1, 32, 32)).shape == (1, 3)
