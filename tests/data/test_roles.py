"""Layouts of folders of images: parts of a split under their usual names, classes, and what is in doubt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from globalcnn.data import load_data
from globalcnn.data.folder import list_folder
from globalcnn.data.roles import role_of
from globalcnn.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path, picture: Write) -> Callable[[Mapping[str, int]], Path]:
    """Write so many images into each of the folders, named relative to the root."""

    def write(folders: Mapping[str, int]) -> Path:
        root = tmp_path / "tree"
        for place, (folder, count) in enumerate(folders.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture(root / folder / f"{number}.png", seed=100 * place + number)
        return root

    return write


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN", "train"),
        ("training_set", "train"),
        ("TrainImages", "train"),
        ("train2017", "train"),
        ("trainset", "train"),
        ("val", "val"),
        ("Valid", "val"),
        ("validation-data", "val"),
        ("dev", "val"),
        ("Test", "test"),
        ("testing", "test"),
        ("test images", "test"),
        ("eval", "test"),
        ("cat", None),
        ("train station", None),
        ("testis", None),
        ("images", None),
        ("0", None),
        ("", None),
    ],
)
def test_usual_names(name: str, role: str | None) -> None:
    assert role_of(name) == role


class Layout(NamedTuple):
    train: str
    test: str


@pytest.mark.parametrize(
    "layout",
    [Layout("training", "testing"), Layout("Train", "TEST"), Layout("training_set", "test_set")],
    ids=str,
)
def test_parts_under_other_names(layout: Layout, tree: Write) -> None:
    folders = {
        f"{part}/{name}": count for part, count in zip(layout, (4, 2), strict=True) for name in ("cat", "dog")
    }
    folder = list_folder(tree(folders))
    assert folder.classes == ("cat", "dog")
    assert {split: len(listing) for split, listing in folder.splits.items()} == {"train": 8, "test": 4}


def test_three_parts(tree: Write) -> None:
    folders = {f"{part}/{name}": 2 for part in ("Training", "Dev", "Eval") for name in ("cat", "dog")}
    folder = list_folder(tree(folders))
    assert set(folder.splits) == {"train", "val", "test"}
    assert all("/Dev/" in path for path in folder.splits["val"].paths)


def test_a_class_called_train_beside_others(tree: Write) -> None:
    folder = list_folder(tree({"bus": 5, "car": 5, "train": 5}))
    assert folder.classes == ("bus", "car", "train")
    assert "'train' is a class like the others, with images and no folders" in folder.notes


def test_images_for_evaluation_alone(tree: Write) -> None:
    source = load_data(f"folder:{tree({'test/cat': 3, 'test/dog': 2})}")
    assert (source.splits, source.mean, source.size("test")) == (("test",), None, 5)
    assert "no training images: for evaluation only" in source.notes
    with pytest.raises(UserError, match=r"has no 'train' split, only test: give data that has such images"):
        source.loader("train", 2)
    with pytest.raises(UserError, match=r"no training images to compute mean and deviation from"):
        source.loader("test", 2)
    images, _ = next(iter(source.with_constants((0.5,) * 3, (0.25,) * 3).loader("test", 5)))
    assert images.min() >= -2
    assert images.max() <= 2


def test_one_class_is_enough_for_evaluation(tree: Write) -> None:
    assert list_folder(tree({"test/cat": 3})).classes == ("cat",)


class Doubt(NamedTuple):
    folders: dict[str, int]
    message: str


@pytest.mark.parametrize(
    "doubt",
    [
        Doubt(
            {"train/a": 2, "train/b": 2, "tuning/a": 2, "tuning/b": 2},
            "has split folders (train) and next to them 'tuning' with images, whose role is not known",
        ),
        Doubt(
            {"a": 2, "b": 2, "test/a": 2, "test/b": 2},
            "has split folders (test) and next to them 'a' with images",
        ),
        Doubt(
            {"fold1/a": 2, "fold1/b": 2, "fold2/a": 2, "fold2/b": 2},
            "fold2' hold the same folders ('a', 'b'), so it is not clear which are the classes",
        ),
        Doubt(
            {f"{part}/{part}/{name}": 2 for part in ("seg_train", "seg_test") for name in ("a", "b")},
            "seg_test' holds folders and no images and is named like a split",
        ),
        Doubt(
            {f"{part}/deeper/{name}": 2 for part in ("one", "two") for name in ("a", "b")},
            "two' hold the same folders ('a', 'b')",
        ),
        Doubt(
            {"a/train": 2, "a/test": 2, "b/train": 2, "b/test": 2},
            "b' hold the same folders ('test', 'train'), so it is not clear which are the classes",
        ),
        Doubt(
            {"val/a": 1, "val/b": 1, "valid/a": 1, "valid/b": 1, "train/a": 1, "train/b": 1},
            "has 'val' and 'valid', which both mean val",
        ),
        Doubt({"train/a": 2, "train/b": 2, "test": 2}, "test' has no folders in it"),
        Doubt({"cat": 2, "Cat": 2, "dog": 2}, "'Cat' and 'cat', which differ only by case or accents"),
        Doubt({"train/a": 2, "train/b": 2, "test/A": 2, "test/b": 2}, "differ only by case: rename them"),
        Doubt({"data/train/a": 2, "data/train/b": 2, "data/test/a": 2}, "if its folders are meant"),
    ],
    ids=lambda doubt: "-".join(doubt.folders)[:60],
)
def test_what_is_in_doubt_is_refused(doubt: Doubt, tree: Write) -> None:
    with pytest.raises(UserError) as caught:
        list_folder(tree(doubt.folders))
    assert doubt.message in str(caught.value)


def test_hidden_files_and_those_of_systems_are_no_data(tree: Write, picture: Write) -> None:
    root = tree({"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1, "docs": 0})
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/b.png", "._0.png", ".deep/deeper/c.png"):
        picture(root / "train" / "cat" / name)
    picture(root / "__MACOSX" / "train" / "cat" / "d.png")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "photo.heic"):
        (root / "train" / "dog" / name).write_bytes(b"")
    folder = list_folder(root)
    assert folder.classes == ("cat", "dog")
    assert len(folder.splits["train"]) == 4
    assert folder.notes == (
        "skipped folders without images: docs",
        "skipped files that are not images of a known kind: .heic 1, .txt 1",
        "skipped hidden or system files in class folders: 7",
    )


def test_test_images_that_are_training_images_are_said(tree: Write) -> None:
    root = tree({"train/cat": 2, "train/dog": 2})
    (root / "test").symlink_to(root / "train")
    assert any("test images are also training images" in note for note in list_folder(root).notes)
