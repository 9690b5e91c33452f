"""Folders of images: layouts, small ones in memory, and what is wrong with others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from globalcnn.data import load_data
from globalcnn.data.folder import list_folder
from globalcnn.data.memory import TensorSource
from globalcnn.data.streamed import StreamedSource
from globalcnn.errors import UserError

Write = Callable[..., Path]


def sizes(root: Path, **settings: object) -> tuple[int, int, int]:
    source = load_data(f"folder:{root}", **settings)  # type: ignore[arg-type]
    return source.size("train"), source.size("val"), source.size("test")


def test_train_and_val(picture_folder: Write) -> None:
    assert sizes(picture_folder({"train": 10, "val": 4}), validation=0.2) == (16, 4, 8)


def test_train_val_and_test(picture_folder: Write) -> None:
    assert sizes(picture_folder({"train": 10, "val": 4, "test": 3}), validation=0.2) == (20, 8, 6)


def test_train_and_test(picture_folder: Write) -> None:
    assert sizes(picture_folder({"train": 10, "test": 3}), validation=0) == (20, 0, 6)


def test_a_flat_folder_is_split_alike_for_every_seed(picture_folder: Write) -> None:
    root = picture_folder({"": 10})
    assert sizes(root, validation=0.25) == (12, 4, 4)
    one, two = (load_data(f"folder:{root}", seed=seed) for seed in (0, 1))
    for (images, labels), (x, y) in zip(one.loader("test", 4), two.loader("test", 4), strict=True):
        assert torch.equal(images, x)
        assert torch.equal(labels, y)


def test_small_images_are_held_in_memory_as_they_are(picture_folder: Write) -> None:
    root = picture_folder({"train": 3, "val": 2}, classes=("b", "a", "c"), size=(7, 5))
    source = load_data(f"folder:{root}", validation=0)
    assert isinstance(source, TensorSource)
    assert (source.classes, source.in_chans, source.image_size) == (("a", "b", "c"), 3, (5, 7))
    images, labels = next(iter(source.loader("test", 6)))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    pixels = np.asarray(Image.open(root / "val" / "b" / "001.png")) / 255
    expected = (pixels - source.mean) / source.std
    np.testing.assert_allclose(images[3].permute(1, 2, 0), expected, atol=1e-5)


def test_grey_images_have_one_channel_unless_mixed_with_others(picture_folder: Write, picture: Write) -> None:
    root = picture_folder({"train": 3, "val": 2}, mode="L")
    assert load_data(f"folder:{root}", validation=0).in_chans == 1
    picture(root / "val" / "cat" / "colour.png", mode="RGBA")
    assert load_data(f"folder:{root}", validation=0).in_chans == 3


def test_small_images_are_resized_at_load(picture_folder: Write) -> None:
    root = picture_folder({"": 5})
    source = load_data(f"folder:{root}", validation=0, image_size=12)
    assert isinstance(source, TensorSource)
    assert next(iter(source.loader("train", 4)))[0].shape == (4, 3, 12, 12)


def test_large_or_uneven_images_or_sizes_are_streamed(
    picture_folder: Write, picture: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = picture_folder({"": 5})
    name = f"folder:{root}"
    large = load_data(name, validation=0, image_size=97)
    assert isinstance(large, StreamedSource)
    assert large.image_size == (97, 97)
    with monkeypatch.context() as patch:
        patch.setattr("globalcnn.data.small.MOST_SMALL_IMAGES", 9)
        assert isinstance(load_data(name, validation=0), StreamedSource)
    with monkeypatch.context() as patch:
        patch.setattr("globalcnn.data.small.MOST_SMALL_BYTES", 10 * 8 * 8 * 3 - 1)
        assert isinstance(load_data(name, validation=0), StreamedSource)
    assert isinstance(load_data(name, validation=0), TensorSource)
    for number in range(3):
        picture(root / "cat" / f"large{number}.png", size=(97, 8))
    uneven = load_data(name, validation=0)
    assert isinstance(uneven, StreamedSource)
    assert uneven.image_size == (224, 224)
    assert any("resized and cropped to 224 x 224: --image-size" in note for note in uneven.notes)


def test_deeper_folders_links_and_other_files(picture_folder: Write, picture: Write) -> None:
    root = picture_folder({"train": 3, "val": 2})
    picture(root / "train" / "cat" / "images" / "deep.JPEG")
    (root / "train" / "cat" / "boxes.txt").write_text("0 0 1 1")
    (root / "train" / ".cache").mkdir()
    (root / "words.txt").write_text("cat")
    (root / "train" / "dog" / "loop").symlink_to(root / "train" / "dog")
    folder = list_folder(root)
    sizes = {split: len(listing) for split, listing in folder.splits.items()}
    assert (sizes, folder.classes) == ({"train": 7, "test": 4}, ("cat", "dog"))
    assert folder.notes == (
        "val/ is used as the test split, as there is no other",
        "skipped files that are not images of a known kind: .txt 1",
        "skipped links to folders in class folders: 1",
        "images in nested folders, counted to their class folder: 1",
    )


def test_a_linked_class_folder_counts(picture_folder: Write) -> None:
    root = picture_folder({"train": 3, "val": 2})
    elsewhere = (root / "train" / "dog").rename(root.parent / "elsewhere")
    (root / "train" / "dog").symlink_to(elsewhere)
    assert list_folder(root).classes == ("cat", "dog")


def test_one_folder_under_two_names_is_refused(picture_folder: Write) -> None:
    root = picture_folder({"": 3})
    (root / "puppy").symlink_to(root / "dog")
    with pytest.raises(
        UserError, match=r"the class folders 'dog' and 'puppy' in '.*' share images by a link"
    ):
        list_folder(root)


def test_a_class_inside_another_is_refused(picture_folder: Write, picture: Write) -> None:
    root = picture_folder({"": 3})
    picture(root / "dog" / "young" / "a.png")
    (root / "puppy").symlink_to(root / "dog" / "young")
    with pytest.raises(
        UserError, match=r"the class folders 'dog' and 'puppy' in '.*' share images by a link"
    ):
        list_folder(root)


def test_a_link_to_nothing_is_refused(picture_folder: Write) -> None:
    root = picture_folder({"": 3})
    (root / "puppy").symlink_to(root / "none")
    with pytest.raises(UserError, match=r"puppy' is a broken link: fix or remove it"):
        list_folder(root)


def test_images_beside_the_class_folders_are_counted(picture_folder: Write, picture: Write) -> None:
    root = picture_folder({"train": 3, "test": 2})
    picture(root / "train" / "loose.png")
    assert list_folder(root).notes == ("skipped images next to the class folders: 1",)


def test_a_link_to_the_whole_is_refused(picture_folder: Write) -> None:
    root = picture_folder({"": 3})
    (root / "again").symlink_to(root)
    with pytest.raises(UserError, match=r"again' is a link to a folder that holds it: remove the link"):
        list_folder(root)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"there is no folder '.*none': give one with a folder of images per class"
    ):
        load_data(f"folder:{tmp_path}/none")


def test_a_file_instead_of_a_folder(picture: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a file: give a folder with a folder of images per class"):
        load_data(f"folder:{picture(tmp_path / 'a.png')}")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no folders in it: it must have a folder of images per class, or train/"
    ):
        load_data(f"folder:{tmp_path}")


def test_images_without_class_folders(picture: Write, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"has no folders in it"):
        load_data(f"folder:{tmp_path}")
    picture(tmp_path / "train" / "a.png")
    picture(tmp_path / "val" / "a.png")
    with pytest.raises(
        UserError, match=r"train' has no folders in it: it must have a folder of images per class"
    ):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 2}, "has train/ but neither val/ nor test/: add one, or give"),
        ({"": 1}, "cat' has a single image: a folder without train/ and val/ is split"),
    ],
)
def test_layouts_that_lack_something(splits: dict[str, int], message: str, picture_folder: Write) -> None:
    with pytest.raises(UserError) as caught:
        load_data(f"folder:{picture_folder(splits)}")
    assert message in str(caught.value)


def test_one_class_is_not_enough(picture_folder: Write) -> None:
    root = picture_folder({"": 4}, classes=("images",))
    with pytest.raises(UserError, match=r"has one class folder, 'images': classification needs at least 2"):
        load_data(f"folder:{root}")


def test_a_class_folder_without_images(picture_folder: Write) -> None:
    root = picture_folder({"train": 2, "val": 2})
    for path in (root / "val" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(
        UserError, match=r"the class folder '.*val/dog' has no images \(.jpg, .jpeg, .jfif, .png"
    ):
        load_data(f"folder:{root}")


def test_class_folders_that_differ(picture_folder: Write) -> None:
    root = picture_folder({"train": 2, "val": 2}, classes=("cat", "dog", "fox"))
    spare = (root / "val" / "fox").rename(root.parent / "spare")
    text = f"'{root}': train and val must have the same class folders, but val lacks 'fox'"
    with pytest.raises(UserError) as caught:
        load_data(f"folder:{root}")
    assert str(caught.value) == text
    spare.rename(root / "val" / "wolf")
    with pytest.raises(UserError) as caught:
        load_data(f"folder:{root}")
    assert str(caught.value) == f"{text} and alone has 'wolf'"


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_folder_that_may_not_be_read(picture_folder: Write) -> None:
    root = picture_folder({"": 2})
    (root / "cat").chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot read the folder '.*cat': Permission denied"):
            load_data(f"folder:{root}")
    finally:
        (root / "cat").chmod(0o755)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("keep", [0, 10, 0.5], ids=["empty", "10 bytes", "half"])
def test_an_image_cut_short_is_named(suffix: str, keep: float, picture_folder: Write) -> None:
    root = picture_folder({"train": 2, "val": 2}, suffix=suffix, size=(32, 32))
    path = root / "val" / "cat" / f"001{suffix}"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(UserError) as caught:
        load_data(f"folder:{root}", validation=0)
    assert f"the image '{path}' is damaged, cut short or unreadable (" in str(caught.value)
    assert str(caught.value).endswith("): replace or remove it")


def test_damage_anywhere_in_an_image_is_a_clear_error_or_none(picture_folder: Write) -> None:
    rng = np.random.default_rng(0)
    for suffix in (".png", ".jpg"):
        root = picture_folder({"train": 1, "val": 1}, suffix=suffix)
        path = root / "train" / "cat" / f"000{suffix}"
        whole = path.read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                load_data(f"folder:{root}", validation=0)
            except UserError as error:
                assert str(path) in str(error)  # noqa: PT017
        path.unlink()
        for other in root.rglob(f"*{suffix}"):
            other.unlink()
