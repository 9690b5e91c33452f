"""Stages learn from the original's features alone, all in one pass of it, each by itself."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from globalcnn import UserError
from globalcnn.train import Recipe, StagePair, StagewiseMatching, Teacher, train
from globalcnn.train.objectives_features import before_pooling, normalised_error


def block(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def original() -> nn.Module:
    """Two stages of three blocks; each block changes its input in place at the end."""
    stages = [nn.Sequential(*(block(4) for _ in range(3))) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(1, 4, 1), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


STAGES = (StagePair("1.1", "1.1", ("1.2",)), StagePair("2.1", "2.1", ("2.2",)))


def condensed(model: nn.Module) -> nn.Module:
    """One new block in the place of the last two of each stage."""
    student = copy.deepcopy(model)
    for stage in (1, 2):
        student[stage] = nn.Sequential(student[stage][0], block(4))
    return student


def test_normalised_error_is_one_for_a_constant_and_does_not_depend_on_scale() -> None:
    wanted = torch.randn(3, 4, 5, 5) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None] + 7
    constant = wanted.mean(dim=(0, 2, 3), keepdim=True).expand_as(wanted)
    assert normalised_error(constant, wanted).item() == pytest.approx(1, rel=1e-5)
    found = wanted + torch.randn_like(wanted)
    assert normalised_error(9 * found, 9 * wanted).item() == pytest.approx(
        normalised_error(found, wanted).item(), rel=1e-4
    )
    assert torch.isfinite(normalised_error(torch.ones(2, 3), torch.zeros(2, 3)))


def test_each_stage_sees_the_original_input_and_its_own_error_alone() -> None:
    model = original().eval()
    student = condensed(model).train()
    images = torch.randn(6, 1, 8, 8)
    together = StagewiseMatching(Teacher(model), STAGES)
    outcome = together(student, images, torch.zeros(6))
    outcome.loss.backward()
    with torch.no_grad():
        entering = model[1][0](model[0](images))
        leaving = model[1][2](model[1][1](entering))
    torch.testing.assert_close(
        outcome.figures["1.1"],
        normalised_error(student[1][1](entering), leaving).detach(),
        check_stride=False,
    )
    gradients = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert gradients.keys() == {n for n, _ in student.named_parameters() if n.startswith(("1.1.", "2.1."))}
    student.zero_grad()
    for stage in STAGES:
        StagewiseMatching(Teacher(model), [stage])(student, images, torch.zeros(6)).loss.backward()
    for name, parameter in student.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name])
    assert all(p.grad is None for p in model.parameters())


def test_stages_learn_in_a_training_and_nothing_else_changes(stripes, tmp_path) -> None:
    model = original().eval()
    student = condensed(model)
    before = copy.deepcopy(student.state_dict())
    goal = StagewiseMatching(Teacher(model), STAGES)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith(("1.1.", "2.1.")))
    recipe = Recipe(epochs=4, batch_size=16, optimizer="adamw", lr=0.01, ema_decay=0.0)
    result = train(student, stripes, recipe, objective=goal, device="cpu", out=tmp_path)
    errors = [epoch["figures"] for epoch in result.epochs]
    assert all(errors[-1][name] < 0.7 * errors[0][name] for name in ("1.1", "2.1"))
    assert result.epochs[0]["train_accuracy"] is None
    after = student.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n for n in before if n.startswith(("1.1.", "2.1."))}


class Adds(nn.Module):
    """The network adds what its blocks return to their inputs."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(4) for _ in range(blocks))

    def forward(self, x):
        for one in self.blocks:
            x = x + one(x)
        return x.mean(dim=(2, 3))


def test_blocks_that_the_network_adds_are_matched_by_their_sum() -> None:
    model, student = Adds(3).eval(), Adds(2).eval()
    goal = StagewiseMatching(Teacher(model), [StagePair("blocks.1", "blocks.1", ("blocks.1", "blocks.2"))])
    images = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        x = images + model.blocks[0](images)
        y = x + model.blocks[1](x)
        wanted = y + model.blocks[2](y) - x
        expected = normalised_error(student.blocks[1](x), wanted)
    torch.testing.assert_close(goal.errors(student, images)["blocks.1"].detach(), expected)


def test_wrong_stages_are_refused() -> None:
    model = original()
    with pytest.raises(UserError, match=r"unknown module of the original '1.9'"):
        StagewiseMatching(Teacher(model), [StagePair("1.1", "1.9", ("1.2",))])
    goal = StagewiseMatching(Teacher(model), [StagePair("1.5", "1.1", ("1.2",))])
    with pytest.raises(UserError, match=r"unknown module of the condensed network '1.5'"):
        goal.setup(condensed(model), device=torch.device("cpu"))
    with pytest.raises(UserError, match="stages is empty"):
        StagewiseMatching(Teacher(model), [])


class ByHand(nn.Module):
    """Pools by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = (
            nn.Conv2d(3, 4, 1),
            nn.Sequential(block(4), block(4)),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: timm.create_model("resnet18"), "layer4"),
        (lambda: timm.create_model("mobilenetv3_small_050"), "blocks"),
        (ByHand, "body"),
    ],
)
def test_features_before_pooling_are_found(build, name) -> None:
    model = build().eval()
    image = torch.randn(1, 3, 64, 64)
    assert before_pooling(model, copy.deepcopy(model), image) == name
    with pytest.raises(UserError, match="no module of the same name"):
        before_pooling(model, nn.Flatten(), image)
