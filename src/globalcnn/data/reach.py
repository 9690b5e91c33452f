"""Generated images whose class no local feature tells: "reach" and "reach-curve", 48 x 48, grey, two classes.

They ask whether a network carries information over its feature map.

**reach.** Two equal marks (+, 5 pixels wide) near opposite edges, at least 31 pixels apart. Class "same":
they lie on one line, along a row, or along a column in half of the images; "different": their lines are at
least 5 pixels apart.

**reach-curve.** Two curves that wind from edge to edge, one 16 to 19 pixels beside the other, and a square
mark at one end of one of them on each side. Class "same": the marked ends belong to one curve; "different":
to two. The curves are shifted at 0 to 4 places by 4 to 10 pixels, with two right angles each.

Why local features and average pooling do not solve them: in both, the class is a relation of two marks at
least 31 pixels apart, and each of them has the same distribution in both classes (its place; in reach-curve
also the curves around it). No window of less than 27 pixels holds a part of both. The pooled feature of a
network with such windows is a sum in which each mark adds its own term, so after a linear head no logit is
correlated with the class. In reach the marks are equal, and windows that do not see the edge are the same
multiset in both classes, whatever is computed from them. In reach-curve a window of 16 pixels or more can see
that its marked end is the upper of two; to count such ends, without a linear head, would tell the class, so
there the argument needs the linear head. On a periodic map opposite edges are neighbours, which brings the
marks near each other.

The images are grey 48 with a standard deviation of 3, strokes are 160 above it. They are drawn in memory in
seconds, always the same ones: 10,000 for training and 2,000 for testing, from separate streams of random
numbers. Mirroring an image, or moving it by a pixel or two, keeps its class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from ..errors import UserError, unknown_name
from .arrays import Part, Parts
from .checks import whole_number

SIDE = 48
TRAIN_IMAGES, TEST_IMAGES = 10_000, 2_000
CLASSES = ("same", "different")

_GREY, _NOISE, _STROKE = 48.0, 3.0, 160.0
_STREAMS = {"train": 1, "test": 2}

_PLUS = np.array([(i, 0) for i in range(-2, 3)] + [(0, i) for i in (-2, -1, 1, 2)])
_NEAREST, _FARTHEST = 4, 8  # pixels from a mark's centre to the edge next to it
_APART = 5  # rows between marks on different lines

_INSET = 3  # pixels from the edge of the image to a curve
_BETWEEN = (16, 19)  # rows from the upper curve to the lower one
_BENDS = (12, 20, 26, 34)  # columns where a curve may bend
_JUMPS = (4, 10)  # pixels between bends; up to half the room, so that one of the two ways fits

_Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Generated:
    """A generated data set: a line on it, and `draw(count, rng)` -> strokes (N, 48, 48), labels."""

    meaning: str
    draw: _Draw


def generate(name: str, count: int, *, seed: int | tuple[int, ...] = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of "reach" or "reach-curve", as many as wanted.

    seed: a whole number, or several; the same seed and count give the same images. Returns uint8 (count, 48,
    48) and int64 (count,), 0 for "same" and 1 for "different"; the classes differ by one image at most.

    Raises `UserError` for an unknown name, or a count or seed that does not fit.

    >>> images, labels = generate("reach", 6)
    >>> images.shape, images.dtype, labels.sum()
    ((6, 48, 48), dtype('uint8'), np.int64(3))
    """
    if name not in GENERATED:
        raise unknown_name("generated data", name, GENERATED)
    count = whole_number("count", count, least=1)
    words = seed if isinstance(seed, tuple) else (seed,)
    if not words:
        raise UserError("seed=() must be a whole number, or several")
    for word in words:
        whole_number("seed", word, least=0)
    rng = np.random.Generator(np.random.PCG64([list(GENERATED).index(name), *words]))
    strokes, labels = GENERATED[name].draw(count, rng)
    noise = rng.standard_normal(strokes.shape, dtype=np.float32)
    images = np.clip(np.rint(_GREY + _NOISE * noise + _STROKE * strokes), 0, 255).astype(np.uint8)
    return images, labels


@functools.lru_cache(maxsize=2)
def read_generated(name: str) -> Parts:
    """The fixed training and test images of a generated data set."""
    parts = {}
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        images, labels = generate(name, count, seed=_STREAMS[split])
        parts[split] = Part(torch.from_numpy(images[:, None]), torch.from_numpy(labels))
    return Parts(train=parts["train"], test=parts["test"], val=None, classes=CLASSES)


def _balanced_labels(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.arange(count, dtype=np.int64) % 2)


def _draw_marks(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = _balanced_labels(count, rng)
    across = rng.integers(_NEAREST, _FARTHEST + 1, size=(count, 2))  # from the edge next to each mark
    across[:, 1] = SIDE - 1 - across[:, 1]
    # each is uniform over the places of its own, whatever the class; they are compared on a circle
    places = SIDE - 2 * _NEAREST
    along = rng.integers(places, size=count)
    apart = rng.integers(_APART, places - _APART + 1, size=count) * labels
    along = _NEAREST + np.stack([along, (along + apart) % places], axis=1)
    n = np.arange(count)[:, None, None]
    strokes = np.zeros((count, SIDE, SIDE), np.float32)
    strokes[n, along[..., None] + _PLUS[:, 0], across[..., None] + _PLUS[:, 1]] = 1
    turned = rng.integers(2, size=count).astype(bool)
    strokes[turned] = strokes[turned].transpose(0, 2, 1)
    return strokes, labels


def _draw_curves(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = _balanced_labels(count, rng)
    marked = rng.integers(2, size=(count, 2))  # the curve (0: upper) whose left, whose right end is marked
    marked[:, 1] = marked[:, 0] ^ labels
    strokes = np.zeros((count, SIDE, SIDE), np.float32)
    for image, ends in zip(strokes, marked, strict=True):
        _draw_two_curves(image, ends, rng)
    turned = rng.integers(2, size=count).astype(bool)
    strokes[turned] = strokes[turned].transpose(0, 2, 1)
    return strokes, labels


def _draw_two_curves(image: np.ndarray, marked: np.ndarray, rng: np.random.Generator) -> None:
    """Two curves from left to right that bend at the same columns, one `between` rows below the other."""
    between = int(rng.integers(_BETWEEN[0], _BETWEEN[1] + 1))
    bends = rng.choice(_BENDS, size=rng.integers(len(_BENDS) + 1), replace=False)
    room = SIDE - 2 - 2 * _INSET - between
    heights = [0]
    for jump in rng.integers(*_JUMPS, size=len(bends), endpoint=True) * rng.choice((-1, 1), size=len(bends)):
        fits = max(*heights, heights[-1] + jump) - min(*heights, heights[-1] + jump) <= room
        heights.append(heights[-1] + (jump if fits else -jump))
    top = np.array(heights) + _INSET - min(heights)
    top += rng.integers(room - (max(heights) - min(heights)) + 1)
    columns = [_INSET, *np.sort(bends), SIDE - 2 - _INSET]
    for curve in (0, 1):
        rows = top + curve * between
        for k, row in enumerate(rows):
            image[row : row + 2, columns[k] : columns[k + 1] + 2] = 1
            if k:
                above, below = sorted((rows[k - 1], row))
                image[above : below + 2, columns[k] : columns[k] + 2] = 1
        for end, (row, column) in enumerate(((rows[0], columns[0]), (rows[-1], columns[-1]))):
            if marked[end] == curve:
                image[row - 1 : row + 3, column - 1 : column + 3] = 1


GENERATED = MappingProxyType(
    {
        "reach": Generated("generated: two marks far apart, same or different, 48 x 48 grey", _draw_marks),
        "reach-curve": Generated(
            "generated: two winding curves with two marked ends, on one curve or two, 48 x 48 grey",
            _draw_curves,
        ),
    }
)
