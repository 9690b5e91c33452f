"""Generated data: always the same, balanced, and with nothing local that tells the class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from globalcnn.data import load_data
from globalcnn.data.reach import GENERATED, SIDE, generate
from globalcnn.errors import UserError, UserTypeError

NAMES = tuple(GENERATED)
BRIGHT = 128


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: generate(name, 1500, seed=7) for name in NAMES}


def centres(image: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Where the whole of `shape` is bright: the upper left corners, (marks, 2)."""
    windows = np.lib.stride_tricks.sliding_window_view(image > BRIGHT, shape.shape)
    return np.argwhere((windows | ~shape).all((2, 3)))


PLUS = np.zeros((5, 5), bool)
PLUS[2], PLUS[:, 2] = True, True


def test_load_data_gives_the_splits(name: str) -> None:
    source = load_data(name, validation=0.1)
    assert (source.classes, source.in_chans, source.image_size) == (("same", "different"), 1, (SIDE, SIDE))
    assert [source.size(split) for split in ("train", "val", "test")] == [9000, 1000, 2000]
    images, labels = next(iter(source.loader("test", 2000)))
    assert images.shape == (2000, 1, 48, 48)
    assert int(labels.sum()) == 1000


def test_the_seed_decides(name: str) -> None:
    images, labels = generate(name, 40, seed=3)
    again, labels_again = generate(name, 40, seed=3)
    other, _ = generate(name, 40, seed=4)
    assert (images == again).all()
    assert (labels == labels_again).all()
    assert not (images == other).all()


def test_the_splits_share_no_image(name: str) -> None:
    pools = load_data(name).pools  # type: ignore[attr-defined]
    images = torch.cat([pools["train"].images, pools["test"].images]).flatten(1).numpy()
    assert len({image.tobytes() for image in images}) == 12_000


def test_reach_is_whether_the_marks_lie_on_one_line(drawn: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    along_rows = 0
    for image, label in zip(*drawn["reach"], strict=True):
        first, second = centres(image, PLUS)
        apart = np.abs(first - second)
        assert apart.max() >= 31
        assert apart.min() == 0 if label == 0 else apart.min() >= 5
        along_rows += int(apart[1] > apart[0])
    assert 600 < along_rows < 900


def test_reach_curve_is_whether_a_curve_joins_the_marks(
    drawn: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    for image, label in zip(*(part[:300] for part in drawn["reach-curve"]), strict=True):
        first, second = centres(image, np.ones((4, 4), bool))
        reached, bright = np.zeros((SIDE, SIDE), bool), image > BRIGHT
        reached[tuple(first)] = True
        while True:  # flood along the strokes
            grown = reached.copy()
            for axis in (0, 1):
                for step in (-1, 1):
                    grown |= np.roll(reached, step, axis) & bright
            if (grown == reached).all():
                break
            reached = grown
        assert np.abs(first - second).max() >= 31
        assert reached[tuple(second)] == (label == 0)


@pytest.mark.parametrize(
    ("data", "shape"), [("reach", PLUS), ("reach-curve", np.ones((4, 4), bool))], ids=NAMES
)
def test_the_place_of_one_mark_does_not_tell_the_class(data: str, shape: np.ndarray) -> None:
    images, labels = generate(data, 4000, seed=8)
    places = np.array([centres(image, shape) for image in images])  # (N, 2 marks, 2)
    values = places.reshape(len(images), -1)
    for label in (0, 1):
        assert np.isin(np.unique(values[labels == 1 - label]), np.unique(values[labels == label])).all()
    same, different = (places[labels == label].reshape(-1) for label in (0, 1))
    bins = np.arange(0, SIDE + 1, 6)
    counts = np.stack([np.histogram(part, bins)[0] for part in (same, different)])
    scale = np.sqrt(np.maximum(counts.sum(0), 1))
    assert (np.abs(counts[0] - counts[1]) / scale).max() < 5  # marks come in pairs, hence more than 3


def test_the_sum_of_what_windows_see_does_not_tell_the_class(
    drawn: dict[str, tuple[np.ndarray, np.ndarray]], name: str
) -> None:
    """A linear rule on 16 random features of 11 x 11 windows, averaged, on images it was not fitted to."""
    images, labels = drawn[name]
    torch.manual_seed(0)
    with torch.no_grad():
        x = torch.nn.functional.conv2d(
            torch.from_numpy(images[:, None]).float() / 255, torch.randn(16, 1, 11, 11) / 11
        )
        features = torch.cat([x.relu().mean((2, 3)), torch.ones(len(x), 1)], dim=1).double()
    target = torch.from_numpy(2.0 * labels - 1)
    rule = torch.linalg.lstsq(features[:1000], target[:1000, None]).solution
    right = ((features[1000:] @ rule)[:, 0].sign() == target[1000:]).double().mean()
    assert 0.4 < float(right) < 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "reech"}, "unknown generated data 'reech'; did you mean 'reach'"),
        ({"count": 0}, "count=0 is too small"),
        ({"seed": -1}, "seed=-1 is too small"),
        ({"seed": ()}, "seed=() must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        generate(**{"name": "reach", "count": 2, **settings})  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_count_that_is_no_number() -> None:
    with pytest.raises(UserTypeError):
        generate("reach", "5")  # type: ignore[arg-type]
