"""The learning rate of each step, and what the published ImageNet recipes make of optimiser and network."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from timm.optim import RMSpropTF

from globalcnn.models.darts_cells import DropPath as DartsDropPath
from globalcnn.reproduce import find_recipe
from globalcnn.train import CrossEntropy, Recipe, build_for
from globalcnn.train.loop import Trainer
from globalcnn.train.schedule import LARGEST_NOISE, Schedule, noise
from globalcnn.train.setting_up import make_accelerator

STEPS = 5


def rates(recipe: Recipe, *, seed: int = 0) -> list[float]:
    """The learning rate of every step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = Schedule(optimizer, recipe, steps=STEPS, seed=seed)
    found = []
    for update in range(recipe.epochs * STEPS):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_published_decay():
    found = rates(find_recipe("published", "efficientnet_b0_global").replace(epochs=30))
    assert found[0] == pytest.approx(0.192 / 20)
    assert found[: 3 * STEPS] == sorted(found[: 3 * STEPS])
    for update, rate in enumerate(found[3 * STEPS :], start=3 * STEPS):
        assert rate == pytest.approx(0.192 * 0.97 ** (update // (2.4 * STEPS)))


def test_noise_is_one_draw_per_epoch_within_its_range_and_follows_from_the_seed():
    quiet = Recipe(epochs=20, schedule="constant", warmup_epochs=0.0, lr=0.1)
    noisy = quiet.replace(lr_noise=(0.42, 0.9))
    found = rates(noisy)
    assert found == rates(noisy) != rates(noisy, seed=1)
    factors = [a / b - 1 for a, b in zip(found, rates(quiet), strict=True)]
    by_epoch = [factors[e * STEPS : (e + 1) * STEPS] for e in range(20)]
    for epoch, inside in enumerate(by_epoch):
        expected = noise(0, epoch) if 8.4 <= epoch < 18 else 0.0
        assert inside == pytest.approx([expected] * STEPS)
    drawn = [noise(0, epoch) for epoch in range(300)]
    assert max(map(abs, drawn)) < LARGEST_NOISE
    assert abs(sum(drawn) / 300) < 0.1


def test_steps_in_any_order_have_the_same_rate():
    """What a resumed training needs."""
    noisy = Recipe(epochs=10, lr_noise=(0.0, 1.0))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=noisy.lr)
    schedule = Schedule(optimizer, noisy, steps=STEPS, seed=0)
    whole = rates(noisy)
    for update in (33, 12, 33, 0):
        schedule.step_update(update)
        assert optimizer.param_groups[0]["lr"] == whole[update]


def trainer_of(network, data, recipe):
    accelerator = make_accelerator("cpu", "no")
    classes = len(data.classes)
    return Trainer(
        network, data, recipe, objective=CrossEntropy(), accelerator=accelerator, seed=0, num_classes=classes
    )


@pytest.mark.parametrize("model", ["efficientnet_b0_global", "mobilenetv3_global", "mobilenetv2_global"])
def test_dropout_drop_path_and_optimiser_arrive(stripes, model):
    recipe = find_recipe("published", model).replace(epochs=1, batch_size=8)
    network = build_for(model, stripes, recipe)
    assert network.drop_rate == 0.2
    paths = [m.drop_prob for m in network.modules() if isinstance(m, DropPath)]
    assert paths
    assert paths == sorted(paths)
    assert 0.1 < paths[-1] <= 0.2
    trainer = trainer_of(network, stripes, recipe)
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, RMSpropTF)
    decayed = {group["weight_decay"]: group for group in optimizer.param_groups}
    assert set(decayed) == {0.0, 1e-5}
    assert all(p.ndim > 1 for p in decayed[1e-5]["params"])
    assert any(p.ndim == 1 for p in decayed[0.0]["params"])
    for group in optimizer.param_groups:
        assert (group["alpha"], group["momentum"], group["eps"]) == (0.9, 0.9, 1e-3)
        assert group["lr_in_momentum"]


def test_drop_path_of_darts_rises_over_the_epochs(stripes):
    """From 0, linearly, and from the epoch alone, so a resumed training continues in the same way."""
    recipe = find_recipe("published", "darts_global_tiny_cifar").replace(epochs=4, batch_size=24, cutout=0)
    assert recipe.drop_path_rate == 0.2
    network = build_for("darts_global_tiny_cifar", stripes, recipe)
    trainer = trainer_of(network, stripes, recipe)
    seen, paths = [], [m for m in network.modules() if isinstance(m, DartsDropPath)]

    def look(progress):
        seen.append({(m.active, round(1 - m.keep.item(), 6)) for m in paths})

    trainer.run_epoch(look)
    trainer.run_epoch(look)
    trainer.epoch = 3
    trainer.run_epoch(look)
    assert len(paths) == 9
    steps = len(seen) // 3
    assert seen[::steps] == [{(False, 0.0)}, {(True, 0.05)}, {(True, 0.15)}]
