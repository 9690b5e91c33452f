"""Recipes are data: validated, replaced field by field, and the published ones say what was published."""

from __future__ import annotations

import json

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from globalcnn import UserError, list_models
from globalcnn.reproduce import PUBLISHED_FOR, RECIPES, find_recipe
from globalcnn.train import Recipe, suited_to
from globalcnn.train.setting_up import make_optimizer


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", -3, "at least 1"),
        ("lr", 0.0, "above 0"),
        ("lr", float("nan"), "finite"),
        ("lr", "0.1", "type float"),
        ("lr", 1e300, "at most 1e+30"),
        ("optimizer_eps", -1e-8, "above 0"),
        ("optimizer_eps", 0.0, "above 0"),
        ("fallback_lr_scale", 0.0, "above 0"),
        ("epochs", 2.5, "type int"),
        ("flip", 1, "type bool"),
        ("momentum", 1.0, "below 1"),
        ("validation", 1.0, "below 1"),
        ("precision", "fp8", "one of no, bf16, fp16"),
        ("schedule", "cosin", "did you mean 'cosine'"),
        ("schedule", "step", "milestones"),
        ("milestones", (5, 3), "rising"),
        ("weight_decay", -1e-4, "at least 0"),
        ("rand_augment", "randm9", "such as 'rand-m9-mstd0.5'"),
        ("rand_augment", 9, "type str"),
        ("random_erasing", 1.2, "from 0 to 1"),
        ("lr_noise", (0.9, 0.4), "two rising shares"),
        ("lr_noise", (0.5,), "two rising shares"),
        ("lr_noise", (0.4, 1.5), "two rising shares"),
        ("lr_noise", 0.4, "type tuple[float, ...]"),
        ("milestones", (1, 2.5), "type tuple[int, ...]"),
    ],
)
def test_a_value_that_does_not_fit_is_named(field, value, word):
    with pytest.raises(UserError) as caught:
        Recipe().replace(**{field: value})
    assert word in str(caught.value)
    assert field.split("_")[0] in str(caught.value)


def test_the_weights_that_muon_leaves_to_adamw_have_a_rate_of_their_own():
    def moved(recipe):
        layer = nn.Linear(8, 8)
        before = [p.detach().clone() for p in layer.parameters()]
        optimizer = make_optimizer([layer], recipe)
        for p in layer.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return [(p - b).abs().max().item() for p, b in zip(layer.parameters(), before, strict=True)]

    recipe = Recipe(lr=0.01, weight_decay=0.0)
    (weight, bias), (same, less) = moved(recipe), moved(recipe.replace(fallback_lr_scale=0.1))
    assert same == pytest.approx(weight, rel=1e-3)
    assert less == pytest.approx(0.1 * bias, rel=1e-3)


def test_other_optimisers_have_one_rate():
    with pytest.raises(UserError, match=r"fallback_lr_scale=0.1 is for muon .* take optimizer='muon'"):
        Recipe(optimizer="sgd", fallback_lr_scale=0.1)
    recipe = Recipe(fallback_lr_scale=0.1)
    assert recipe.replace(optimizer="adamw").fallback_lr_scale == 1
    assert recipe.replace(optimizer="nmuon").fallback_lr_scale == 0.1


def test_rates_follow_the_optimiser_unless_they_are_given():
    sgd, muon = (0.1, 5e-4), (0.03, 0.05)

    def rates(recipe):
        return recipe.lr, recipe.weight_decay

    assert Recipe().optimizer == "muon"
    assert rates(Recipe()) == rates(Recipe().replace(epochs=3)) == muon
    assert rates(Recipe(optimizer="sgd")) == rates(Recipe().replace(optimizer="sgd")) == sgd
    assert rates(Recipe(optimizer="sgd").replace(optimizer="nmuon")) == muon
    assert rates(Recipe(optimizer="Lookahead_Muon")) == muon  # names as timm reads them
    assert rates(Recipe(optimizer="AdamW")) == (1e-3, 0.05)
    assert all(0 < Recipe(optimizer=name).lr <= 1 for name in list_optimizers())
    assert rates(Recipe(lr=0.2).replace(optimizer="sgd")) == (0.2, 5e-4)
    assert rates(Recipe().replace(optimizer="sgd", weight_decay=0.05)) == (0.1, 0.05)
    assert rates(Recipe.from_dict({"optimizer": "sgd", "lr": 0.4})) == (0.4, 5e-4)
    assert rates(Recipe(optimizer="rmsproptf")) == (0.01, 5e-4)  # its constructor's rate: SGD's diverges


def test_an_unknown_field_is_named_with_a_near_one():
    with pytest.raises(UserError, match=r"'batchsize'.*'batch_size'"):
        Recipe().replace(batchsize=3)


def test_mixup_needs_pairs():
    with pytest.raises(UserError, match="batch_size=33 is odd"):
        Recipe(batch_size=33, mixup=0.2)


def test_a_recipe_survives_json():
    for name in ("resnet_global_cifar", "mobilenetv3_global_imagenet"):
        recipe = RECIPES[name]
        assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(
    ("model", "batch", "decay"),
    [
        ("resnet32_cifar", 128, 5e-5),
        ("resnet_global_cifar", 32, 6e-5),
        ("wide_resnet_cifar", 32, 1e-4),
        ("wide_resnet_global_cifar", 32, 5e-5),
        ("resnet_tiny_cifar", 32, 1e-4),
        ("resnet_global_tiny_cifar", 32, 3e-5),
        ("densenet_global_cifar", 64, 1e-4),
        ("darts_cifar", 96, 3e-4),
        ("darts_global_cifar", 96, 8e-4),
    ],
)
def test_published_cifar_recipes(model, batch, decay):
    recipe = find_recipe("published", model)
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (300, batch, decay)
    if "darts" in model:
        assert (recipe.lr, recipe.schedule, recipe.cutout, recipe.grad_clip) == (0.025, "cosine", 16, 5.0)
        assert (recipe.drop_path_rate, recipe.auxiliary_weight) == (0.2, 0.4)
    else:
        assert (recipe.lr, recipe.milestones, recipe.decay_rate) == (0.1, (150, 225), 0.1)
    assert recipe.ema_decay == recipe.label_smoothing == recipe.validation == 0


def test_published_mnist_recipes():
    assert find_recipe("published", "global_mnist").milestones == (60, 100, 140)
    backbones = find_recipe("published", "digits_global")
    assert (backbones.epochs, backbones.batch_size, backbones.lr) == (30, 128, 0.01)
    assert (backbones.weight_decay, backbones.grad_clip, backbones.schedule) == (5e-4, 5.0, "constant")
    assert not backbones.flip
    assert backbones.crop_padding == 0


@pytest.mark.parametrize(
    ("model", "epochs", "batch", "lr", "decay", "erasing", "noise"),
    [
        ("efficientnet_b0_global", 450, 256, 0.192, 0.97, 0.2, ()),
        ("mobilenetv3_global", 600, 256, 0.192, 0.973, 0.2, (0.42, 0.9)),
        ("mobilenetv2_global", 200, 128, 0.4, 0.97, 0.05, ()),
    ],
)
def test_published_imagenet_recipes(model, epochs, batch, lr, decay, erasing, noise):
    recipe = find_recipe("published", model)
    assert recipe.name == f"{model}_imagenet"
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.decay_rate) == (epochs, batch, lr, decay)
    assert (recipe.random_erasing, recipe.lr_noise, recipe.rand_augment) == (
        erasing,
        noise,
        "rand-m9-mstd0.5",
    )
    assert (recipe.optimizer, recipe.momentum, recipe.optimizer_eps) == ("rmsproptf", 0.9, 1e-3)
    assert (recipe.weight_decay, recipe.decay_norms_and_biases) == (1e-5, False)
    assert (recipe.schedule, recipe.decay_epochs, recipe.warmup_epochs) == ("exponential", 2.4, 3)
    assert (recipe.drop_rate, recipe.drop_path_rate) == (0.2, 0.2)
    assert (recipe.label_smoothing, recipe.ema_decay) == (0.1, 0.9999)


def test_every_recipe_is_for_a_model_that_exists():
    known = set(list_models(include_timm=True))
    assert set(PUBLISHED_FOR.values()) <= set(RECIPES)
    assert [m for m in PUBLISHED_FOR if m not in known] == []


def test_unknown_recipes_say_what_there_is():
    with pytest.raises(UserError, match="did you mean 'modern'"):
        find_recipe("moderne")
    with pytest.raises(UserError, match="no recipe was published for model 'vgg11'"):
        find_recipe("published", "vgg11")


def test_digits_are_not_flipped_by_default():
    assert not suited_to(find_recipe("modern"), "digits").flip
    assert suited_to(find_recipe("modern"), "cifar10").flip
    assert suited_to(find_recipe("modern"), "reach-curve").crop_padding == 2
    assert suited_to(find_recipe("resnet_cifar"), "digits").flip


@pytest.mark.parametrize("nested", [False, True])
def test_a_recipe_from_a_file(nested, tmp_path):
    path = tmp_path / "mine.json"
    values = {"epochs": 3, "milestones": [1, 2], "schedule": "step"}
    path.write_text(json.dumps({"seed": 1, "recipe": values} if nested else values))
    found = find_recipe(str(path))
    assert found == Recipe(name="mine", epochs=3, milestones=(1, 2), schedule="step")
    path.write_text(json.dumps({"recipe": RECIPES["mnist"].as_dict()}))
    assert find_recipe(str(path)) == RECIPES["mnist"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "holds no recipe"),
        ('{"recipe": 3}', "holds no recipe"),
        ('{"epocs": 3}', "unknown recipe field 'epocs'; did you mean 'epochs'"),
        ('{"epochs": "3"}', "epochs='3'"),
        ("{", "not a JSON file"),
        (None, "cannot read"),
    ],
)
def test_files_that_hold_no_recipe(text, words, tmp_path):
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        find_recipe(str(path))
