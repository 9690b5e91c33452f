"""Images that grow: their size in every epoch, and a training that resumes among them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from globalcnn import UserError
from globalcnn.data import from_arrays
from globalcnn.train import Recipe, train
from globalcnn.train.growing import resized, size_in
from globalcnn.train.progress import Silent


def source(height=12, width=16, count=24):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, height, width), generator=g, dtype=torch.uint8)
    return from_arrays(images, [i % 3 for i in range(count)], layout="NCHW", validation=0.2)


class Sizes(nn.Module):
    """Remembers the sizes that it sees in training."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.seen = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), []

    def forward(self, x):
        if self.training:
            self.seen.append(tuple(x.shape[2:]))
        return self.fc(self.conv(x).mean((2, 3)))


def recipe(**changes):
    return Recipe(epochs=8, batch_size=32, crop_padding=2, ema_decay=0.0).replace(**changes)


@pytest.mark.parametrize("first", [0, 4, 5, 11, 12, 31, 32])
@pytest.mark.parametrize("epochs", [1, 2, 7, 300])
def test_sizes_rise_to_the_full_one(first, epochs):
    given = Recipe(epochs=epochs, first_image_size=first)
    found = [size_in(epoch, given, (32, 48)) for epoch in range(epochs)]
    assert found == sorted(found)
    assert found[0] == ((first, round(48 * first / 32)) if first else (32, 48))
    assert all(size == (32, 48) for epoch, size in enumerate(found) if epoch >= 0.75 * epochs)
    assert all(height <= 32 for height, _ in found)


def test_training_shows_the_network_those_sizes_and_judges_at_full_size():
    model = Sizes()
    train(model, source(), recipe(first_image_size=6), device="cpu")
    assert model.seen == [size_in(epoch, recipe(first_image_size=6), (12, 16)) for epoch in range(8)]
    assert model.seen[0] == (6, 8)
    assert model.seen[-1] == (12, 16)


def test_without_it_nothing_changes():
    images = torch.randn(2, 3, 12, 16)
    assert resized(images, (12, 16)) is images


def test_a_resumed_training_is_the_same(tmp_path):
    def trained(**options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        return train(model, source(), recipe(first_image_size=6), device="cpu", **options).model

    class Stop(Exception):
        pass

    class After(Silent):
        def finished_epoch(self, result):
            if result.epoch == 3:
                raise Stop

    with pytest.raises(Stop):
        trained(out=tmp_path / "run", reporter=After())
    resumed, whole = trained(out=tmp_path / "run", resume=True), trained()
    for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_number_of_epochs_cannot_grow_with_it(tmp_path):
    given = recipe(first_image_size=6, schedule="constant", epochs=1)
    train(Sizes(), source(), given, out=tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="epochs was 1 and is now 2, and what happens"):
        train(Sizes(), source(), given.replace(epochs=2), out=tmp_path / "run", resume=True, device="cpu")


@pytest.mark.parametrize(
    ("first", "model", "words"),
    [
        (13, Sizes(), "first_image_size=13 is larger than the images, 12 x 16"),
        (-1, None, "first_image_size=-1 must be at least 0"),
        (2, Sizes(), r"does not run on input_size=\(3, 2, 3\)"),
        (
            6,
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 16, 3)),
            r"does not run on input_size=\(3, 6, 8\)",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_named(first, model, words):
    with pytest.raises(UserError, match=words):
        train(model, source(), recipe(first_image_size=first), device="cpu")
