"""Sources from arrays and data sets of a program's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from globalcnn.data import from_arrays, from_dataset
from globalcnn.errors import UserError, UserTypeError

LABELS = np.arange(20) % 2


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


NHWC = pixels(20, 6, 5, 3)

SAME: dict[str, Callable[[], Any]] = {
    "NHWC": lambda: NHWC,
    "NCHW": lambda: NHWC.transpose(0, 3, 1, 2),
    "tensor": lambda: torch.from_numpy(NHWC.transpose(0, 3, 1, 2).copy()),
    "floats": lambda: torch.from_numpy(NHWC.transpose(0, 3, 1, 2) / np.float32(255)),
    "double": lambda: NHWC / 255,
    "needs gradient": lambda: torch.from_numpy(NHWC / 255).requires_grad_(),
    "list": lambda: NHWC.tolist() and list(NHWC),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_the_same_images_in_every_shape_and_type(make: Callable[[], Any]) -> None:
    source = from_arrays(make(), LABELS, x_test=make(), y_test=LABELS, validation=0)
    assert (source.in_chans, source.image_size, source.classes, source.notes) == (3, (6, 5), ("0", "1"), ())
    images, labels = next(iter(source.loader("test", 20)))
    expected = (NHWC / 255 - source.mean) / source.std
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert labels.tolist() == LABELS.tolist()


def test_grey_images_and_columns_of_labels() -> None:
    source = from_arrays(pixels(20, 6, 5), torch.tensor(LABELS)[:, None], classes=["a", "b"], validation=0.25)
    assert (source.in_chans, source.classes) == (1, ("a", "b"))
    assert [source.size(split) for split in ("train", "val", "test")] == [12, 4, 4]
    assert source.notes == ("no x_test: every fifth training image of each class is a test image",)


def test_images_for_validation_of_their_own_and_another_size() -> None:
    source = from_arrays(NHWC, LABELS, x_val=NHWC[:4], y_val=LABELS[:4], image_size=12)
    assert (source.size("train"), source.size("val"), source.image_size) == (16, 4, (12, 12))


def test_arrays_for_evaluation_only() -> None:
    source = from_arrays(None, None, x_test=NHWC, y_test=LABELS, classes=("a", "b", "c"))
    assert (source.splits, source.mean, source.classes) == (("test",), None, ("a", "b", "c"))


def test_a_layout_that_is_given_is_believed() -> None:
    assert from_arrays(pixels(20, 3, 8, 2), LABELS, layout="NHWC").image_size == (3, 8)
    assert from_arrays(pixels(20, 3, 8, 2), LABELS, layout="NCHW").image_size == (8, 2)


class Endless(Dataset[Any]):
    """A data set of more images than any machine holds."""

    def __len__(self) -> int:
        return 2**45

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        return NHWC[0], number % 2


def test_more_samples_than_the_memory_holds_are_refused_at_once() -> None:
    with pytest.raises(
        UserError, match=r"35184372088832 samples, more than the memory of this machine holds"
    ):
        from_dataset(Endless())


def test_what_rounding_loses_is_said() -> None:
    source = from_arrays(np.random.default_rng(0).random((20, 6, 5, 3)), LABELS)
    assert "x_train was rounded to 8 bits" in source.notes


class Wrong(NamedTuple):
    arguments: dict[str, Any]
    message: str


def nan() -> np.ndarray:
    images = NHWC / 255
    images[3, 2, 1, 0] = np.nan
    return images


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong({"x_train": nan()}, "x_train has 1 values that are NaN or infinite"),
        Wrong({"x_train": NHWC / 255 - 0.5}, "floats must be in [0, 1], where 1 is white; give raw images"),
        Wrong({"x_train": NHWC.astype(float)}, "for values in [0, 255] give x.round().astype('uint8')"),
        Wrong({"x_train": NHWC.astype(np.uint16)}, "'x_train' in the arrays is uint16: images must be uint8"),
        Wrong({"x_train": NHWC > 9}, "is bool: images must be uint8"),
        Wrong(
            {"x_train": pixels(20, 3, 5, 3)}, "shape (20, 3, 5, 3), in which the channel axis is ambiguous"
        ),
        Wrong({"x_train": pixels(20, 6, 5, 2)}, "give layout='NHWC' or layout='NCHW'"),
        Wrong({"x_train": pixels(20, 30)}, "'x_train' in the arrays has shape (20, 30): it must be"),
        Wrong({"x_train": NHWC[:0], "y_train": []}, "holds no pixels"),
        Wrong({"x_train": NHWC[:19]}, "19 images in 'x_train' but 20 labels in 'y_train'"),
        Wrong({"x_train": [[1], [2, 3]]}, "x_train is not an array"),
        Wrong({"x_train": torch.eye(3).to_sparse()}, "x_train is a sparse, quantised or complex tensor"),
        Wrong({"x_train": "images"}, "x_train is of str"),
        Wrong({"y_train": LABELS - 1}, "'y_train' in the arrays has the label -1"),
        Wrong({"y_train": LABELS / 2}, "'y_train' in the arrays is float64: labels must be whole numbers"),
        Wrong({"y_train": LABELS * 2}, "has labels up to 2 but none is 1: renumber them"),
        Wrong({"y_train": LABELS * 0}, "has 1 class: classification needs at least 2"),
        Wrong({"y_train": np.eye(2)[LABELS]}, "one-hot rows become that with y.argmax(1)"),
        Wrong({"y_train": None}, "x_train and y_train must be given together"),
        Wrong({"y_train": [0] * 19 + [1]}, "a class in y_train has a single image"),
        Wrong({"x_train": None, "y_train": None}, "there are no images: give x_train and y_train"),
        Wrong({"x_test": NHWC}, "x_test and y_test must be given together"),
        Wrong({"x_test": pixels(2, 6, 6, 3), "y_test": [0, 1]}, "images of different shapes"),
        Wrong({"classes": ["a"]}, "has the label 1 but 1 classes"),
        Wrong({"classes": ["a", "a"]}, "has the class name 'a' twice"),
        Wrong({"classes": "ab"}, "classes='ab' must be a list of names"),
        Wrong({"layout": "CHWN"}, "layout='CHWN' must be 'NHWC' or 'NCHW'"),
        Wrong({"validation": 1}, "validation=1 is a fraction"),
        Wrong({"image_size": 0}, "image_size=0 is too small"),
        Wrong({"seed": 0.5}, "seed=0.5 is a float"),
        Wrong({"name": 3}, "name=3 must be a text"),
    ],
    ids=lambda wrong: wrong.message[:40],
)
def test_arrays_that_do_not_fit(wrong: Wrong) -> None:
    with pytest.raises((UserError, UserTypeError)) as caught:
        from_arrays(**{"x_train": NHWC, "y_train": LABELS} | wrong.arguments)
    assert wrong.message in str(caught.value)


class Pictures(Dataset[Any]):
    """Samples as torchvision's data sets give them."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        return Image.fromarray(NHWC[number]), int(LABELS[number])


class Samples(NamedTuple):
    train: Any
    classes: tuple[str, ...]


@pytest.mark.parametrize(
    "samples",
    [
        Samples(Pictures(), ("cat", "dog")),
        Samples(TensorDataset(torch.from_numpy(NHWC).permute(0, 3, 1, 2), torch.tensor(LABELS)), ("0", "1")),
        Samples(
            [(torch.from_numpy(x).permute(2, 0, 1) / 255, y) for x, y in zip(NHWC, LABELS, strict=True)],
            ("0", "1"),
        ),
        Samples(list(zip(NHWC, LABELS.tolist(), strict=True)), ("0", "1")),
    ],
    ids=["PIL pictures", "TensorDataset", "ToTensor", "arrays"],
)
def test_data_sets(samples: Samples) -> None:
    source = from_dataset(samples.train, test=samples.train, validation=0)
    expected = from_arrays(NHWC, LABELS, x_test=NHWC, y_test=LABELS, validation=0)
    assert (source.classes, source.mean, source.std) == (samples.classes, expected.mean, expected.std)
    for (images, labels), (x, y) in zip(source.loader("test", 7), expected.loader("test", 7), strict=True):
        assert torch.equal(images, x)
        assert torch.equal(labels, y)


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong({"train": iter([])}, "it must be a data set with len() and samples by number"),
        Wrong({"train": []}, "train has no samples"),
        Wrong({"train": [NHWC[0]]}, "sample 0 of train is a ndarray: it must be a pair (image, label)"),
        Wrong({"train": [(NHWC[0], 0), (NHWC[1, 1:], 1)]}, "sample 1 of train has the shape (3, 5, 5)"),
        Wrong({"train": [(NHWC[0], 0.5)]}, "label of sample 0 of train=0.5 is a float"),
        Wrong({"train": [(NHWC, 0)]}, "the image of sample 0 of train has shape (20, 6, 5, 3)"),
    ],
    ids=lambda wrong: wrong.message[:40],
)
def test_data_sets_that_do_not_fit(wrong: Wrong) -> None:
    with pytest.raises((UserError, UserTypeError)) as caught:
        from_dataset(**wrong.arguments)
    assert wrong.message in str(caught.value)
