"""Files with the arrays of Keras or MedMNIST, whole and damaged."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from globalcnn.data import load_data
from globalcnn.errors import UserError


def test_the_names_of_medmnist(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    raw = arrays()
    name = npz(
        train_images=raw["x_train"],
        train_labels=raw["y_train"][:, None].astype("uint8"),
        val_images=raw["x_test"][:4],
        val_labels=raw["y_test"][:4, None],
        test_images=raw["x_test"],
        test_labels=raw["y_test"][:, None],
    )
    source = load_data(name, validation=0.5)
    assert (source.size("train"), source.size("val"), source.size("test")) == (30, 4, 10)  # its own val
    labels = [label for _, batch in source.loader("train", 30, shuffle=False) for label in batch.tolist()]
    assert labels == raw["y_train"].tolist()


def test_own_validation_images_of_keras(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    raw = arrays()
    source = load_data(npz(**raw, x_val=raw["x_test"][:5], y_val=raw["y_test"][:5]), validation=0)
    assert (source.size("train"), source.size("val")) == (30, 5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(channels: int, arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    source = load_data(npz(**arrays(channels=channels)))
    assert source.in_chans == len(source.mean) == len(source.std) == channels


def test_grey_images_need_no_axis_for_it(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    raw = arrays(channels=1)
    flat = {name: array[..., 0] if name.startswith("x") else array for name, array in raw.items()}
    source = load_data(npz(**flat))
    assert (source.in_chans, source.image_size) == (1, (8, 6))


@pytest.mark.parametrize(
    "names", [np.array(["a", "b", "c", "unseen"]), np.array([b"a", b"b", b"c", b"unseen"])]
)
def test_class_names(names: np.ndarray, arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    assert load_data(npz(**arrays(), classes=names)).classes == ("a", "b", "c", "unseen")
    assert load_data(npz(**arrays())).classes == ("0", "1", "2")


def test_a_class_only_in_the_test_images_counts(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    raw = arrays()
    raw["y_test"][-1] = 3
    assert load_data(npz(**raw)).classes == ("0", "1", "2", "3")


Change = Callable[[dict], object]


def put(name: str, make: Callable[[np.ndarray], object]) -> Change:
    return lambda raw: raw.update({name: make(raw[name])})


def objects(array: np.ndarray) -> np.ndarray:
    return array.astype(object)


def labelled(label: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda y: np.where(np.arange(len(y)) == 0, label, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("x_train", lambda x: x / 255.0),
            "is float64: images must be uint8, 0 to 255; for values in [0, 1] store (x * 255).round()",
        ),
        (
            put("x_train", lambda x: x.astype("float32")),
            "is float32: images must be uint8, 0 to 255; for values in [0, 255] store x.round().astype(",
        ),
        (put("x_test", lambda x: x.astype("int32")), "'x_test' in "),
        (
            put("x_test", lambda x: x.astype("int32")),
            "is int32: images must be uint8, 0 to 255; store x.astype",
        ),
        (
            put("x_test", lambda x: x > 9),
            "is bool: images must be uint8, 0 to 255; store x.astype('uint8') * 255",
        ),
        (put("x_test", lambda x: x[0, 0]), "must be (images, height, width[, channels])"),
        (put("x_train", lambda x: x[:0]), "has shape (0, 8, 6, 3): it holds no pixels"),
        (
            put("x_train", lambda x: x.transpose(0, 3, 1, 2)),
            "looks like channels first: store it as (images, ",
        ),
        (put("x_train", lambda x: np.repeat(x, 9, 3)), "the last axis must be the channels, 16 at most"),
        (
            put("x_test", lambda x: x[:, :7]),
            "different shapes (channels x height x width): train 3 x 8 x 6, ",
        ),
        (
            put("y_train", lambda y: y[:-1]),
            "has 30 images in 'x_train' but 29 labels in 'y_train': every image ",
        ),
        (
            put("y_train", lambda y: y.astype(float)),
            "is float64: labels must be whole numbers; store y.astype",
        ),
        (put("y_train", lambda y: y.astype(str)), "labels must be whole numbers"),
        (put("y_train", lambda y: np.eye(3, dtype=int)[y]), "one-hot rows become that with y.argmax(1)"),
        (put("y_train", labelled(-1)), "has the label -1: labels must be 0, 1, ..., classes - 1"),
        (
            put("y_train", labelled(2**40)),
            "has the label 1099511627776: labels must be 0, 1, ..., classes - 1",
        ),
        (
            put("y_train", labelled(9)),
            "has labels up to 9 but none is 3: renumber them 0, 1, ..., or name all",
        ),
        (
            lambda raw: raw.update(y_train=raw["y_train"] + 1, y_test=raw["y_test"] + 1),
            "has labels up to 3 but none is 0: renumber them",
        ),
        (
            lambda raw: raw.update(classes=np.array(["a", "b"])),
            "has the label 2 but 2 classes: labels must be 0 to 1",
        ),
        (lambda raw: raw.update(classes=np.zeros((2, 2))), "'classes' in "),
        (
            lambda raw: raw.update(classes=np.zeros((2, 2))),
            "has shape (2, 2) and type float64: it must be a list",
        ),
        (
            lambda raw: raw.update(y_train=raw["y_train"] * 0, y_test=raw["y_test"] * 0),
            "has 1 class: classification needs at least 2",
        ),
        (
            lambda raw: raw.pop("y_test"),
            "lacks 'y_test': it must hold x_train, y_train, x_test, y_test (and x_val",
        ),
        (lambda raw: raw.pop("y_test"), "it holds x_test, x_train, y_train"),
        (lambda raw: raw.update(x_val=raw["x_test"]), "lacks 'y_val'"),
        (
            lambda raw: raw.update(train_images=raw["x_test"]),
            "lacks 'train_labels', 'test_images', 'test_labels'",
        ),
        (lambda raw: raw.clear(), "it holds nothing"),
        (put("x_train", objects), "'x_train' in "),
        (
            put("x_train", objects),
            "is an array of Python objects, which is not read because it could run code",
        ),
        (put("y_train", objects), "is an array of Python objects"),
        (
            lambda raw: raw.update(classes=np.array(["a", 2, None], dtype=object)),
            "is an array of Python objects",
        ),
    ],
)
def test_errors(
    change: Change, message: str, arrays: Callable[..., dict], npz: Callable[..., str], tmp_path: Path
) -> None:
    raw = arrays()
    change(raw)
    name = npz(**raw)
    with pytest.raises(UserError) as caught:
        load_data(name)
    assert message in str(caught.value)
    assert name.removeprefix("npz:") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_data(f"npz:{tmp_path}/none.npz")
    assert str(caught.value) == (
        f"there is no file '{tmp_path}/none.npz': give the path of a .npz file as numpy.savez_compressed "
        "writes it"
    )


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder: give the path of .* or use folder:PATH"):
        load_data(f"npz:{tmp_path}")


@pytest.mark.parametrize("content", [b"", b"x_train,y_train\n", b"PK\x03\x04", b"\x80\x04\x95"])
def test_files_of_another_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"is not a .npz file as numpy.savez_compressed writes it, or it is damaged"
    ):
        load_data(f"npz:{path}")


def test_a_single_array_instead_of_an_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(
        UserError, match=r"holds a single array: give a .npz file with the arrays x_train, y_train,"
    ):
        load_data(f"npz:{tmp_path}/data.npy")


def test_damage_anywhere_is_one_clear_error(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    name = npz(**arrays(train=6, test=6))
    path = Path(name.removeprefix("npz:"))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        if rng.random() < 0.3:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            load_data(name, validation=0)  # a flipped time stamp does no harm
        except UserError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
    assert refused > 200


def test_test_images_alone(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    raw = arrays()
    alone = {"x_test": raw["x_test"], "y_test": raw["y_test"] * 0}
    source = load_data(npz(**alone), num_classes=3)
    assert (source.splits, source.mean, source.std, source.in_chans) == (("test",), None, None, 3)
    assert source.classes == ("0", "1", "2")
    assert source.notes == ("no training images: for evaluation only",)
    with pytest.raises(UserError, match=r"has no 'train' split, only test: give data that has such images"):
        source.loader("train", 4)
    with pytest.raises(UserError, match=r"take those of the training, with with_constants\(mean, std\)"):
        source.loader("test", 4)
    given = source.with_constants((0.25, 0.5, 0.75), (0.5, 0.5, 0.5))
    images, _ = next(iter(given.loader("test", 10)))
    pixels = raw["x_test"] / 255
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), (pixels - [0.25, 0.5, 0.75]) / 0.5, atol=1e-6)
    assert load_data(npz(**alone, classes=["a", "b"])).classes == ("a", "b")


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5,), "mean=(0.5,) has 1 numbers, and the images of"),
        ((0.5,) * 3, (0.5, 0.0, 0.5), "std=(0.5, 0.0, 0.5) must be numbers above 0"),
        ((0.5,) * 3, (0.5, float("nan"), 0.5), "must be numbers above 0"),
    ],
)
def test_constants_that_do_not_fit(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    message: str,
    arrays: Callable[..., dict],
    npz: Callable[..., str],
) -> None:
    with pytest.raises(UserError) as caught:
        load_data(npz(**arrays())).with_constants(mean, std)
    assert message in str(caught.value)


def test_arrays_that_are_not_used_are_said(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    assert load_data(npz(**arrays(), X_train=np.zeros(3))).notes == ("skipped arrays: 'X_train'",)


def test_two_classes_of_one_name(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"has the class name 'a' twice"):
        load_data(npz(**arrays(), classes=["a", "b", "a"]))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(UserError, match=r"is not a .npz file"):
        load_data(f"npz:{tmp_path}/data.npz")


def test_an_array_said_to_be_larger_than_the_memory(arrays: Callable[..., dict], tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays())
    with zipfile.ZipFile(path, "a") as archive:
        next(entry for entry in archive.filelist if entry.filename == "x_train.npy").file_size = 2**50
        archive.writestr("other", b"")  # makes it write the table of contents anew
    with pytest.raises(UserError, match=r"'x_train' in .* takes 1048576 GiB unpacked, more than the memory"):
        load_data(f"npz:{path}")
