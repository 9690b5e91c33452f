"""Names and numbers that `load_data` refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from globalcnn.data import data_names, load_data
from globalcnn.errors import UserError, UserTypeError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar-10",
            "unknown data 'cifar-10'; did you mean 'cifar10' or 'cifar100'? Known: cifar10, cifar100",
        ),
        (
            "imagenet",
            "unknown data 'imagenet'; Known: cifar10, cifar100, digits, folder:PATH, mnist, npz:PATH, reach",
        ),
        ("", "unknown data ''; Known:"),
        ("nzp:data.npz", "unknown data 'nzp:data.npz'"),
        ("npz:", "name='npz:' lacks its path: write npz:PATH, such as npz:my/data"),
        ("npz", "name='npz' lacks its path"),
        ("folder:", "name='folder:' lacks its path: write folder:PATH"),
        ("npz:~nobody-of-that-name/data.npz", "there is no file '~nobody-of-that-name/data.npz'"),
        ("npz:a\0b", "is not a .npz file"),
        ("folder:" + "x" * 5000, "there is no folder 'xxx"),
        ("x" * 5000, "unknown data 'xxx"),
    ],
)
def test_names(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_data(name)
    assert message in str(caught.value)


def test_a_path_without_its_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"it is a folder: write 'folder:{tmp_path}'"):
        load_data(str(tmp_path))
    path = tmp_path / "a.npz"
    path.touch()
    with pytest.raises(UserError, match=f"it is a file: write 'npz:{path}' if it is a .npz file"):
        load_data(str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"validation": 1.0},
            "validation=1.0 is a fraction of the training images: it must be at least 0 and below",
        ),
        ({"validation": "a"}, "validation='a' must be a number"),
        ({"seed": 1.5}, "seed=1.5 is a float: it must be a whole number"),
        ({"image_size": 0}, "image_size=0 is too small: it must be a whole number of at least 1"),
        ({"image_size": (32,)}, "image_size=(32,) must be one number or a pair (height, width)"),
        ({"image_size": (32, -1)}, "image_size=-1 is too small"),
        ({"image_size": "32"}, "image_size='32' is a str"),
    ],
)
def test_numbers_are_checked_before_anything_is_read(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_data("npz:none.npz", **settings)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_name_that_is_no_string() -> None:
    with pytest.raises(UserTypeError, match="name=5 must be a string such as 'digits'"):
        load_data(5)  # type: ignore[arg-type]


def test_names_have_meanings_of_one_line() -> None:
    assert all(meaning and "\n" not in meaning for meaning in data_names().values())


def test_a_home_folder_is_expanded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arrays: Callable[..., dict], npz: Callable[..., str]
) -> None:
    npz(**arrays())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data("npz:~/data.npz").size("test") == 10
