"""Distillation: the losses by hand, kept logits that are the teacher's, exact resuming, refusals by name."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from globalcnn import UserError, create_model
from globalcnn.data import Augmentation, DataSource, from_arrays
from globalcnn.models import make_card
from globalcnn.models.weights import read_weights
from globalcnn.train import (
    CrossEntropy,
    Distillation,
    FeatureError,
    Recipe,
    Silent,
    Teacher,
    build_for,
    teacher_for,
    train,
)
from globalcnn.train.objectives import Place, Training
from globalcnn.train.objectives_distill import dist_loss, kd_loss, loss_for
from globalcnn.train.teacher import kept_logits

from .conftest import striped

NET = "resnet_tiny_cifar"
QUICK = Recipe(epochs=3, batch_size=16, lr=0.05, crop_padding=2, ema_decay=0.9, label_smoothing=0.0)
OURS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [0.0, 1.0, 0.0]])
THEIRS = torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.5, 2.0], [1.0, 1.5, 0.0]])


def test_kd_by_hand() -> None:
    p, q = ((x / 4).softmax(dim=1) for x in (THEIRS, OURS))
    expected = 16 * (p * (p / q).log()).sum(dim=1).mean()
    assert torch.allclose(kd_loss(OURS, THEIRS, 4.0), expected)


def test_dist_by_hand() -> None:
    p, q = ((x / 2).softmax(dim=1).numpy().astype("float64") for x in (THEIRS, OURS))
    between = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    within = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert dist_loss(OURS, THEIRS, 2.0).item() == pytest.approx(4 * (2 - between - within), rel=1e-4)


def test_dist_has_finite_gradients_where_all_images_agree() -> None:
    logits = torch.zeros(3, 4, requires_grad=True)
    dist_loss(logits, torch.zeros(3, 4), 4.0).backward()
    assert torch.isfinite(logits.grad).all()


def test_many_classes_are_distilled_by_relations() -> None:
    assert [loss_for(n) for n in (2, 19, 20, 1000)] == ["kd", "kd", "dist", "dist"]


@pytest.mark.parametrize(("loss", "share"), [("kd", 1 - 0.9), ("dist", 1.0)])
def test_the_loss_is_the_labels_and_the_teacher(loss: str, share: float) -> None:
    images, labels = torch.randn(3, 3), torch.tensor([0, 1, 2])
    teacher, student = nn.Linear(3, 3), nn.Linear(3, 3)
    outcome = Distillation(Teacher(teacher), loss=loss, views=0)(student, images, labels)
    taught = {"kd": kd_loss, "dist": dist_loss}[loss](student(images), teacher(images), 4.0)
    weight = {"kd": 0.9, "dist": 2.0}[loss]
    expected = share * CrossEntropy()(student, images, labels).loss + weight * taught
    assert torch.allclose(outcome.loss, expected)
    assert torch.equal(outcome.logits, student(images))
    outcome.loss.backward()
    assert teacher.weight.grad is None
    assert student.weight.grad is not None


def test_of_several_teachers_the_mean_of_the_logits_counts() -> None:
    images, labels = torch.randn(3, 3, 1, 1), torch.tensor([0, 1, 2])
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(3, 3)) for _ in range(3)]
    columns, scale = torch.tensor([2, 0, 1]), torch.tensor([2.0, 3.0, 4.0]).view(-1, 1, 1)
    shift = torch.ones(3, 1, 1)
    teachers = [Teacher(nets[0]), Teacher(nets[1], scale=scale, shift=shift, columns=columns)]
    mean = (nets[0](images) + nets[1](images * scale + shift)[:, columns]) / 2
    goal = Distillation(teachers, loss="kd", weight=1.0, views=0)
    outcome = goal(nets[2], images, labels)
    assert torch.allclose(outcome.loss, kd_loss(nets[2](images), mean, 4.0), atol=1e-6)
    outcome.loss.backward()
    assert nets[0][1].weight.grad is None
    alone = Distillation(teachers[:1], views=0)
    assert alone.describe() == Distillation(teachers[0], views=0).describe()
    others = ([teachers[0], Teacher(nets[1])], [Teacher(nets[1]), teachers[0]], teachers[:1])
    told = {Distillation(given, views=0).describe()["teacher"] for given in (teachers, *others)}
    assert len(told) == 4, "the checksum covers each teacher, its images and its classes"


def training_of(data: DataSource, folder: Path | None = None, **changed: Any) -> Training:
    augmentation = Augmentation(crop_padding=2, fixed_views=3)
    values = {"seed": 1, "device": torch.device("cpu"), "writes": True, **changed}
    return Training(data=data, augmentation=augmentation, folder=folder, **values)


@pytest.fixture(scope="module")
def teacher(stripes: DataSource) -> Teacher:
    model = build_for(NET, stripes, QUICK, seed=5)
    train(model, stripes, QUICK.replace(epochs=2), seed=5, device="cpu")
    return Teacher(model)


def test_kept_logits_are_those_of_the_images_that_the_loader_shows(stripes, teacher, tmp_path) -> None:
    training = training_of(stripes)
    path = tmp_path / "kept.safetensors"
    kept = kept_logits(teacher, training, path)
    assert torch.equal(kept_logits(teacher, training, path), kept), "read again"
    loader = stripes.loader("train", 10, augmentation=training.augmentation, seed=1)
    for epoch in (0, 4):
        loader.set_epoch(epoch)
        for images, _ in loader:
            torch.testing.assert_close(kept[loader.rows].float(), teacher(images), atol=2e-2, rtol=1e-2)
    assert (teacher(images) - teacher(images.flip(0))).abs().max() > 0.1, "logits differ between images"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("teacher", "of another teacher than"),
        ("images", "of other images than"),
        ("seed", "of another seed than"),
        ("augmentation", "of other augmentation than"),
        ("damaged", "damaged"),
        ("cut", "cannot be read"),
    ],
)
def test_stale_and_damaged_logits_are_refused(stripes, teacher, tmp_path, case, words) -> None:
    path, training, now = tmp_path / "kept.safetensors", training_of(stripes), teacher
    kept_logits(teacher, training, path)
    content = bytearray(path.read_bytes())
    if case == "teacher":
        changed = copy.deepcopy(teacher.model)
        with torch.no_grad():
            next(changed.parameters()).view(-1)[0] += 1e-3
        now = Teacher(changed)
    elif case == "images":
        training = replace(training, data=stripes.with_constants([0.5], [0.5]))
    elif case == "seed":
        training = replace(training, seed=2)
    elif case == "augmentation":
        training = replace(training, augmentation=replace(training.augmentation, flip=True))
    elif case == "damaged":
        content[-3] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=words):
        kept_logits(now, training, path)


class Killed(Exception):
    """Simulates a kill at a step."""


class KilledAt(Silent):
    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def stepped(self, progress) -> None:
        if (progress.epoch, progress.step) == self.at:
            raise Killed


def test_the_logits_are_told_of_while_they_are_computed_and_not_when_they_are_read(
    teacher: Teacher, stripes: DataSource, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    training = training_of(stripes, tell=lambda *progress: told.append(progress))
    kept_logits(teacher, training, tmp_path / "teacher.safetensors")
    total = 3 * stripes.size("train")
    assert told[-1] == ("the teacher's logits", total, total)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    told.clear()
    kept_logits(teacher, training, tmp_path / "teacher.safetensors")
    assert told == []


def weights(folder: Path) -> dict[str, Tensor]:
    return read_weights(folder / "last.safetensors")[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def distilled(stripes, teacher, out, *, objective: dict[str, Any] | None = None, **how: Any) -> None:
    goal = Distillation(teacher, views=2, **(objective or {}))
    recipe = how.pop("recipe", QUICK)
    model = build_for(NET, stripes, recipe, seed=3)
    train(model, stripes, recipe, objective=goal, out=out, seed=3, device="cpu", **how)


@pytest.mark.parametrize("case", ["logits", "features too"])
def test_a_killed_distillation_resumes_bit_for_bit(stripes, teacher, tmp_path, case) -> None:
    objective = {} if case == "logits" else {"features": FeatureError("layer3", epochs=2)}
    distilled(stripes, teacher, tmp_path / "whole", objective=objective)
    for epoch, step in ((1, 2), (3, 1)):
        folder = tmp_path / f"killed{epoch}"
        with pytest.raises(Killed):
            distilled(stripes, teacher, folder, objective=objective, reporter=KilledAt(epoch, step))
        if epoch == 1:
            (folder / "teacher.safetensors").unlink()  # as if it had been killed before
        distilled(stripes, teacher, folder, objective=objective, resume=True)
        assert same(weights(folder), weights(tmp_path / "whole"))
    figures = [json.loads(line)["figures"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all({"labels", "kd"} <= f.keys() for f in figures)
    assert ["features" in f for f in figures] == ([False] * 3 if case == "logits" else [True, True, False])


def test_a_run_is_resumed_with_the_same_teacher_alone(stripes, teacher, tmp_path) -> None:
    distilled(stripes, teacher, tmp_path, recipe=QUICK.replace(epochs=1))
    other = Teacher(build_for(NET, stripes, QUICK, seed=9))
    with pytest.raises(UserError, match=r"cannot be resumed.*teacher was '[0-9a-f]{64}'"):
        distilled(stripes, other, tmp_path, recipe=QUICK.replace(epochs=1), resume=True)
    told = json.loads((tmp_path / "run.json").read_text())["objective"]
    assert (told["name"], told["views"], told["teacher"]) == ("distillation", 2, teacher.checksum())


def test_mixed_images_need_a_live_teacher(stripes, teacher) -> None:
    with pytest.raises(UserError, match="mixes them in pairs"):
        distilled(stripes, teacher, None, recipe=QUICK.replace(mixup=0.2))
    model = build_for(NET, stripes, QUICK, seed=3)
    recipe = QUICK.replace(mixup=0.2, epochs=1)
    train(model, stripes, recipe, objective=Distillation(teacher, views=0), device="cpu")


def test_features_alone_leave_the_classifier(stripes, teacher) -> None:
    model = build_for(NET, stripes, QUICK, seed=3)
    before = {k: v.clone() for k, v in model.get_classifier().state_dict().items()}
    goal = Distillation(teacher, features=FeatureError("layer3"), only_features=True)
    outcome = goal(model, torch.randn(4, 1, 12, 12), torch.zeros(4, dtype=torch.long))
    assert list(outcome.figures) == ["features"]
    outcome.loss.backward()
    assert all(p.grad is None for p in model.get_classifier().parameters())
    train(model, stripes, QUICK.replace(epochs=1, ema_decay=0.0), objective=goal, device="cpu")
    assert same(before, model.get_classifier().state_dict())


def test_a_feature_error_fades() -> None:
    fading = FeatureError("0", weight=2.0, epochs=2)
    assert [fading.weight_at(e) for e in (0, 0.5, 2, 3)] == [2.0, 1.5, 0.0, 0.0]
    teacher, student = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)) for _ in range(2))
    goal = Distillation(Teacher(teacher), features=fading, views=0)
    images, labels, losses = torch.randn(5, 3), torch.zeros(5, dtype=torch.long), []
    for epochs in (0.0, 1.0, 2.0):
        goal.begin_step(Place(epochs, None))
        losses.append(goal(student, images, labels))
    error = losses[0].figures["features"]
    assert torch.allclose(losses[0].loss - losses[2].loss, 2 * error)
    assert torch.allclose(losses[1].loss - losses[2].loss, error)


def card_of(classes: tuple[str, ...], **changed: Any) -> Any:
    model = create_model(NET, num_classes=len(classes), in_chans=1).eval()
    values = {"image_size": (12, 12), "mean": (0.2,), "std": (0.4,), **changed}
    return model, make_card(model, classes=classes, in_chans=1, **values)


def named(classes: tuple[str, ...]) -> DataSource:
    x, y = striped(30, seed=0)
    return from_arrays(x_train=x, y_train=y, x_test=x, y_test=y, classes=classes)


def test_classes_in_another_order_and_other_constants_are_taken_into_account() -> None:
    data = named(("flat", "tall", "check"))
    model, card = card_of(("tall", "check", "flat"))
    teacher = teacher_for(model, card, data)
    raw = torch.rand(4, 1, 12, 12)
    ours, theirs = (raw - data.mean[0]) / data.std[0], (raw - 0.2) / 0.4
    with torch.no_grad():
        torch.testing.assert_close(teacher(ours), model(theirs)[:, [2, 0, 1]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("classes", "changed", "words"),
    [
        (("flat", "tall", "round"), {}, r"has 'check', which .* was not trained on"),
        (("flat", "tall", "check", "dots"), {}, "has other classes than the data .* also knows 'dots'"),
        (("flat", "tall", "check"), {"image_size": (28, 28)}, "was trained on images of 28 x 28"),
        ((), {}, "10 classes, without names, and the data 3"),
    ],
)
def test_a_teacher_of_other_classes_or_images_is_refused(classes, changed, words) -> None:
    data = named(("flat", "tall", "check"))
    if classes:
        model, card = card_of(classes, **changed)
    else:
        model = create_model(NET, in_chans=1)
        card = make_card(model, image_size=(12, 12), in_chans=1)
    with pytest.raises(UserError, match=words):
        teacher_for(model, card, data)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "kdd"}, "unknown distillation 'kdd'; did you mean 'kd'"),
        ({"temperature": 0}, "temperature=0 must be a finite number above 0"),
        ({"temperature": "4"}, "temperature='4' must be a number"),
        ({"weight": 1.5}, "must be at most 1"),
        ({"views": -1}, "views=-1"),
        ({"only_features": True}, "needs features"),
        ({"only_features": True, "features": FeatureError("0", epochs=1)}, "must not fade"),
    ],
)
def test_settings_are_checked(settings, words) -> None:
    with pytest.raises(UserError, match=words):
        Distillation(Teacher(nn.Linear(2, 2)), **settings)
    for given in (nn.Linear(2, 2), [Teacher(nn.Linear(2, 2)), nn.Linear(2, 2)]):
        with pytest.raises(UserError, match=r"teacher must be a Teacher, .* or a list of them, not Linear"):
            Distillation(given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds no teacher"):
        Distillation([])
    goal = Distillation([Teacher(nn.Linear(2, 2)), Teacher(nn.Linear(2, 3))], views=0)
    with pytest.raises(UserError, match="the teachers give 2, 3 logits"):
        goal(nn.Linear(2, 2), torch.zeros(1, 2), torch.tensor([0]))
