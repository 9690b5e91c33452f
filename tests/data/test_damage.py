"""Damaged images: found ahead, skipped in evaluation, and no hindrance to going on with a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from globalcnn.data import DataSource, load_data
from globalcnn.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def root(picture_folder: Write) -> Path:
    return picture_folder({"train": 4, "test": 3}, size=(120, 100), suffix=".jpg")


def loaded(root: Path) -> DataSource:
    return load_data(f"folder:{root}", validation=0, image_size=97)


class Harm(NamedTuple):
    suffix: str
    keep: float


@pytest.mark.parametrize(
    "harm",
    [
        Harm(suffix=".jpg", keep=0),
        Harm(suffix=".jpg", keep=0.1),
        Harm(suffix=".jpg", keep=0.99),
        Harm(suffix=".png", keep=0.5),
        Harm(suffix=".gif", keep=0.5),
        Harm(suffix=".webp", keep=0.5),
        Harm(suffix=".bmp", keep=0.5),
        Harm(suffix=".tif", keep=0.5),
    ],
    ids=str,
)
def test_files_cut_short_are_found_ahead(harm: Harm, picture_folder: Write) -> None:
    root = picture_folder({"train": 3, "test": 3}, size=(120, 100), suffix=harm.suffix)
    source = loaded(root)
    source.check_images()
    path = root / "test" / "dog" / f"001{harm.suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * harm.keep)])
    (message,) = source.damaged("test")
    assert f"the image '{path}' is damaged, cut short or unreadable (" in message
    assert source.damaged("train") == ()
    with pytest.raises(UserError) as caught:
        source.check_images()
    assert str(caught.value) == message


def test_a_file_that_lacks_the_mark_at_its_end_alone_is_whole(root: Path) -> None:
    path = root / "test" / "cat" / "001.jpg"
    path.write_bytes(path.read_bytes() + bytes(200))  # as cameras and editors append their own
    assert loaded(root).damaged("test") == ()


def test_many_damaged_images_are_counted_and_the_first_named(root: Path) -> None:
    for path in sorted((root / "train").rglob("*.jpg"))[:7]:
        path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        loaded(root).check_images(("train",))
    assert str(caught.value).startswith("7 images cannot be read: the image ")
    assert str(caught.value).endswith("; and 2 more")


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_goes_on_with_what_is_left(root: Path, workers: int) -> None:
    path = root / "test" / "dog" / "001.jpg"
    whole = list(loaded(root).loader("test", 2, workers=0))
    path.write_bytes(path.read_bytes()[:900])
    loader = loaded(root).loader("test", 2, workers=workers, skip_damaged=True)
    left = list(loader)
    assert [labels.tolist() for _, labels in left] == [[0, 0], [0, 1], [1]]
    assert torch.equal(left[2][0][0], whole[2][0][1])
    assert torch.equal(left[1][0], whole[1][0])
    list(loader)
    (message,) = loader.damaged
    assert str(path) in message


def test_a_batch_of_damaged_images_alone_is_left_out(root: Path) -> None:
    for path in (root / "test" / "cat").iterdir():
        path.write_bytes(b"")
    loader = loaded(root).loader("test", 3, workers=0, skip_damaged=True)
    assert [labels.tolist() for _, labels in loader] == [[1, 1, 1]]
    assert len(loader.damaged) == 3


def test_a_run_goes_on_whatever_becomes_of_the_test_images(root: Path) -> None:
    before = loaded(root).identity()
    (root / "test" / "dog" / "001.jpg").unlink()
    assert loaded(root).identity() == before
    (root / "train" / "dog" / "001.jpg").unlink()
    assert loaded(root).identity() != before


def test_small_images_name_all_that_are_damaged(picture_folder: Write) -> None:
    root = picture_folder({"": 6})
    for name in ("001.png", "002.png"):
        path = root / "cat" / name
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(
        UserError, match=r"2 images are damaged, .*001.png' \(.*002.png' \(.*replace or remove"
    ):
        load_data(f"folder:{root}", validation=0)
