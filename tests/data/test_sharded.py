"""Images in WebDataset shards: what is there, in which order it comes, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import random
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from globalcnn.data import Augmentation, DataSource, Loader, load_data
from globalcnn.data.sharded import ShardedSource
from globalcnn.data.streamed import IMAGENET_MEAN, IMAGENET_STD
from globalcnn.errors import MissingExtra, UserError, UserTypeError

pytest.importorskip("webdataset", reason="the optional package webdataset is not installed")

ALL = Augmentation(crop_padding=4, flip=True, cutout=6, rand_augment="rand-m9-mstd0.5", random_erasing=0.5)
LENGTHS = {"train": (5, 4, 6, 5), "val": (4, 3)}


def encoded(number: int) -> bytes:
    """A picture of one grey, which is its number."""
    with io.BytesIO() as out:
        Image.new("RGB", (40, 36), (number,) * 3).save(out, "PNG")
        return out.getvalue()


def write_shard(path: Path, numbers: list[int], *, label: str | None = None) -> None:
    """A shard of pictures, whose labels are their numbers modulo 2."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            text = str(number % 2) if label is None else label
            for suffix, content in (("png", encoded(number)), ("cls", text.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """20 training images 0 to 19 in four shards, 7 others 20 to 26 in two, and timm's _info.json."""
    folder, number = tmp_path / "shards", 0
    folder.mkdir()
    splits = {}
    for split, lengths in LENGTHS.items():
        names = [f"some-{split}-{i:03d}.tar" for i in range(len(lengths))]
        for name, length in zip(names, lengths, strict=True):
            write_shard(folder / name, list(range(number, number + length)))
            number += length
        splits[split] = {
            "name": split,
            "filenames": names,
            "shard_lengths": list(lengths),
            "num_samples": sum(lengths),
        }
    info = {"name": "some", "splits": splits, "classes": ["even", "odd"]}
    (folder / "_info.json").write_text(json.dumps(info))
    return folder


def change_info(root: Path, **changes: object) -> None:
    info = json.loads((root / "_info.json").read_text()) | changes
    (root / "_info.json").write_text(json.dumps({k: v for k, v in info.items() if v is not None}))


@pytest.fixture
def source(root: Path) -> DataSource:
    return load_data(f"wds:{root}", validation=0, image_size=32)


def numbers(loader: Loader, epoch: int = 0) -> list[list[int]]:
    """Which pictures are in each batch; their labels are checked on the way."""
    loader.set_epoch(epoch)
    found = []
    for images, labels in loader:
        grey = images[:, 0, 16, 16] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
        found.append((grey * 255).round().long().tolist())
        assert labels.tolist() == [number % 2 for number in found[-1]]
    return found


def tensors(loader: Loader, epoch: int) -> list[torch.Tensor]:
    loader.set_epoch(epoch)
    return [part for batch in loader for part in batch]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_facts(source: DataSource) -> None:
    assert isinstance(source, ShardedSource)
    assert (source.classes, source.in_chans, source.image_size) == (("even", "odd"), 3, (32, 32))
    assert (source.size("train"), source.size("val"), source.size("test")) == (20, 0, 7)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_reads_every_image_once(source: DataSource, processes: int, workers: int) -> None:
    loaders = [
        source.loader("test", 3, rank=rank, world_size=processes, workers=workers)
        for rank in range(processes)
    ]
    read = [numbers(loader) for loader in loaders]
    assert [len(batches) for batches in read] == [len(loader) for loader in loaders]
    assert [sum(map(len, batches)) for batches in read] == [loader.images for loader in loaders]
    assert sorted(n for batches in read for batch in batches for n in batch) == list(range(20, 27))


def test_training_reads_disjoint_shards_and_whole_batches(source: DataSource) -> None:
    loaders = [source.loader("train", 3, rank=rank, world_size=2, workers=0) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [4, 4]
    read = [numbers(loader) for loader in loaders]
    assert [[len(batch) for batch in batches] for batches in read] == [[3] * 4, [3] * 4]
    first, second = (Counter(n for batch in batches for n in batch) for batches in read)
    assert not set(first) & set(second)
    assert max(first.values()) <= 2
    one = Counter(n for batch in numbers(source.loader("train", 5, workers=0)) for n in batch)
    assert one == Counter(range(20))


def test_the_order_follows_from_seed_epoch_and_workers(source: DataSource) -> None:
    def read(epoch: int, *, seed: int = 3, workers: int = 0) -> list[list[int]]:
        return numbers(source.loader("train", 4, seed=seed, workers=workers), epoch)

    assert read(0) == read(0)
    assert read(0, workers=2) == read(0, workers=2)
    assert len({str(read(epoch, seed=seed)) for epoch in (0, 1) for seed in (3, 4)}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_hang_on_what_was_before(source: DataSource, workers: int) -> None:
    loader = source.loader("train", 4, augmentation=ALL, seed=3, workers=workers)
    epochs = [tensors(loader, epoch) for epoch in range(2)]
    torch.manual_seed(5)
    random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    again = source.loader("train", 4, augmentation=ALL, seed=3, workers=workers)
    assert same(tensors(again, 1), epochs[1])
    assert same(tensors(again, 0), epochs[0])
    assert not same(epochs[0], epochs[1])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_drop_last_leaves_full_batches(source: DataSource) -> None:
    loader = source.loader("test", 3, drop_last=True, workers=0)
    assert [len(batch) for batch in numbers(loader)] == [3, 3]
    assert (len(loader), loader.images) == (2, 6)


def test_whole_shards_are_held_out(root: Path) -> None:
    source = load_data(f"wds:{root}", validation=0.25, seed=1, image_size=32)
    assert source.size("train") + source.size("val") == 20
    assert source.size("val") in (4, 5, 6)
    held, kept = (
        {n for batch in numbers(source.loader(split, 1, workers=0)) for n in batch}
        for split in ("val", "train")
    )
    assert held | kept == set(range(20))
    assert not held & kept


def test_own_validation_shards_stay(root: Path) -> None:
    write_shard(root / "x.tar", [30, 31])
    splits = json.loads((root / "_info.json").read_text())["splits"]
    splits["test"] = {"filenames": ["x.tar"], "shard_lengths": [2]}
    splits["validation"] = splits.pop("val")
    change_info(root, splits=splits)
    source = load_data(f"wds:{root}", validation=0.5)
    assert (source.size("train"), source.size("val"), source.size("test")) == (20, 7, 2)


@pytest.mark.parametrize("pattern", ["some-*.tar", "some-{train-{000..003},val-{000..001}}.tar", ""])
def test_sizes_that_are_given(root: Path, pattern: str) -> None:
    (root / "_info.json").unlink()
    name = f"wds:{root / pattern}"
    with pytest.raises(UserError, match=r"how many images .*train-000.tar' holds is not known: .*_info.json"):
        load_data(name, num_classes=2)
    source = load_data(name, shard_images=(20, 7), num_classes=2, validation=0, image_size=32)
    assert source.classes == ("0", "1")
    assert (source.size("train"), source.size("test")) == (20, 7)
    loader = source.loader("test", 4, workers=0)
    assert sorted(n for batch in numbers(loader) for n in batch) == list(range(20, 27))


def test_a_pattern_takes_sizes_from_the_info_beside_it(root: Path) -> None:
    source = load_data(f"wds:{root}/some-{{train-00[01],val-*}}.tar", validation=0)
    assert (source.size("train"), source.size("test")) == (9, 7)


def test_labels_in_json(root: Path) -> None:
    with tarfile.open(root / "some-val-000.tar", "w") as tar:
        for suffix, content in (("png", encoded(21)), ("json", b'{"kind": 1}')):
            member = tarfile.TarInfo(f"a.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    splits = json.loads((root / "_info.json").read_text())["splits"]
    splits["val"] = {"filenames": ["some-val-000.tar"], "shard_lengths": [1], "alt_label": "kind"}
    change_info(root, splits=splits)
    source = load_data(f"wds:{root}", validation=0, image_size=32)
    assert numbers(source.loader("test", 1, workers=0)) == [[21]]


def test_without_the_package(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(
        MissingExtra, match=r"'webdataset', which is not installed: .*globalcnn\[webdataset\]"
    ):
        load_data(f"wds:{root}")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("{0}/none/train-*.tar", {}, "no shard fits"),
        ("{0}/none", {}, "there is no shard or folder"),
        ("{0}/none/train-{{000..002}}.tar", {}, "train-000.tar' and 2 more"),
        ("{0}/train-{{000..", {}, "do not match"),
        ("{0}/some-train-*.tar", {}, "has no shards of test"),
        ("{0}", {"validation": 0.2, "shard_images": (20,)}, "one number for each of the splits train, test"),
        ("{0}", {"shard_images": (0, 7)}, "shard_images=0 is too small"),
        ("{0}", {"shard_images": (3, 7)}, "less than one image for each of 4 shards"),
    ],
)
def test_names_and_sizes_that_do_not_fit(
    root: Path, name: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_data("wds:" + name.format(root), num_classes=2, **settings)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_sizes_of_a_wrong_type_or_for_other_data(root: Path) -> None:
    with pytest.raises(UserTypeError, match="shard_images=5 must be numbers"):
        load_data(f"wds:{root}", shard_images=5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"is for data in shards, wds:PATH, and not for 'digits'"):
        load_data("digits", shard_images=(1, 2))
    with pytest.raises(UserError, match="name='wds:' lacks its path"):
        load_data("wds:")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": None}, "how many classes"),
        ({"classes": ["one"]}, "must list the names of at least 2 classes"),
        ({"splits": {"train": {"filenames": ["a.tar"]}}}, "needs 'filenames' and 'shard_lengths'"),
        ({"splits": {"train": {"filenames": ["a.tar"], "shard_lengths": [1, 2]}}}, "1 filenames and 2"),
        (
            {"splits": {"train": {"filenames": ["a.tar"], "shard_lengths": [3]}}},
            "there is no shard or folder",
        ),
    ],
)
def test_an_info_that_lacks_something(root: Path, changes: dict[str, object], message: str) -> None:
    change_info(root, **changes)
    with pytest.raises(UserError) as caught:
        load_data(f"wds:{root}")
    assert message in str(caught.value)


def test_an_info_that_is_no_json(root: Path) -> None:
    (root / "_info.json").write_text("{")
    with pytest.raises(UserError, match=r"_info.json' cannot be read as JSON"):
        load_data(f"wds:{root}")


def test_a_shard_whose_name_says_no_split(root: Path) -> None:
    (root / "_info.json").unlink()
    write_shard(root / "other.tar", [1])
    with pytest.raises(UserError, match=r"other.tar' must say its split"):
        load_data(f"wds:{root}", num_classes=2, shard_images=(20, 7))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_shard_is_named(root: Path, split: str, workers: int) -> None:
    for path in root.glob("*-000.tar"):
        path.write_bytes(path.read_bytes()[:2000])
    loader = load_data(f"wds:{root}", validation=0, image_size=32).loader(split, 2, workers=workers)
    with pytest.raises(UserError, match=r"\Athe shard '[^']*-000.tar' is damaged, cut short .*replace it\Z"):
        numbers(loader)


def test_images_labels_and_numbers_that_are_wrong(root: Path) -> None:
    def refusal(split: str = "test") -> str:
        with pytest.raises(UserError) as caught:
            list(load_data(f"wds:{root}", validation=0, image_size=32).loader(split, 2, workers=0))
        return str(caught.value)

    shard = root / "some-val-000.tar"
    write_shard(shard, [1, 3])
    assert "7 images were promised" in refusal()
    assert "5 are there" in refusal()
    write_shard(shard, [1, 3, 5, 7], label="2")
    assert "a label in the shards of test is 2, and the classes are 0 to 1" in refusal()
    write_shard(shard, [1, 3, 5, 7], label="cat")
    assert f"the image 00001 in {shard} has no label, which must be a whole number in a .cls" in refusal()
    shard.write_bytes(b"")
    assert str(shard) in refusal()
    with tarfile.open(shard, "w") as tar:
        for suffix, content in (("png", b"not a picture"), ("cls", b"0")):
            member = tarfile.TarInfo(f"a.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert f"the image 'a in {shard}' is damaged" in refusal()


def test_more_processes_than_shards(source: DataSource) -> None:
    with pytest.raises(UserError, match=r"4 shards of train for 5 processes, and each needs one"):
        source.loader("train", 2, world_size=5)


def test_one_shard_cannot_be_held_out_of(root: Path) -> None:
    with pytest.raises(UserError, match="there is one training shard"):
        load_data(f"wds:{root}/some-{{train-000,val-*}}.tar", validation=0.1)


def write_samples(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    """A shard of samples by name, each with the content of its files by suffix."""
    with tarfile.open(path, "w") as tar:
        for name, files in samples.items():
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_pixels_follow_the_rules_of_folders(root: Path) -> None:
    """16 bits are scaled and a picture is turned upright: the number of `encoded` is left in the middle."""
    with io.BytesIO() as deep, io.BytesIO() as turned:
        Image.fromarray(np.full((36, 40), 257 * 20, np.uint16)).save(deep, "PNG")
        exif = Image.Exif()
        exif[0x0112] = 6
        left_dark = Image.new("L", (40, 40), 22)
        left_dark.paste(200, (0, 30, 40, 40))  # the bottom row as stored is on the left when shown
        left_dark.save(turned, "PNG", exif=exif)
        samples = {"a": {"png": deep.getvalue(), "cls": b"0"}, "b": {"png": turned.getvalue(), "cls": b"0"}}
    samples |= {str(n): {"png": encoded(n), "cls": b"0"} for n in (24, 26)}
    write_samples(root / "some-val-000.tar", samples)
    source = load_data(f"wds:{root}", validation=0, image_size=32)
    images, _ = next(iter(source.loader("test", 2, workers=0)))
    grey = ((images[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255).round()
    assert grey[0, 16, 16] == 20
    assert (grey[1, 16, 2], grey[1, 16, 30]) == (200, 22)


def test_what_could_run_code_is_not_looked_at(root: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[int]]:
            return sys.exit, (7,)

    code = pickle.dumps(Bomb())
    extra = {"pyd": code, "pickle": code, "pth": code, "npy": code}
    names = ("../../outside", "/tmp/outside", "20", "22")
    write_samples(
        root / "some-val-000.tar", {name: {"png": encoded(20), "cls": b"0"} | extra for name in names}
    )
    source = load_data(f"wds:{root}", validation=0, image_size=32)
    assert [number for batch in numbers(source.loader("test", 4, workers=0)) for number in batch][:4] == [
        20
    ] * 4
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    write_samples(root / "some-val-000.tar", {"a": {"png": postscript, "cls": b"0"}})
    with pytest.raises(UserError, match="it is none of PNG, JPEG"):
        numbers(source.loader("test", 4, workers=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_goes_on_with_what_is_left(root: Path, workers: int) -> None:
    samples = {str(n): {"png": encoded(n), "cls": b"%d" % (n % 2)} for n in (20, 21, 22, 23)}
    samples["21"]["png"] = samples["21"]["png"][:60]
    write_samples(root / "some-val-000.tar", samples)
    source = load_data(f"wds:{root}", validation=0, image_size=32)
    loader = source.loader("test", 4, workers=workers, skip_damaged=True)
    assert sorted(n for batch in numbers(loader) for n in batch) == [20, 22, 23, 24, 25, 26]
    (message,) = loader.damaged
    assert "the image '21 in " in message


def test_shards_cut_short_are_found_ahead_and_skipped(root: Path) -> None:
    source = load_data(f"wds:{root}", validation=0, image_size=32)
    source.check_images()
    path = root / "some-val-000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        UserError, match=r"some-val-000.tar' is damaged, cut short or unreadable \(.+\): replace"
    ):
        source.check_images(("test",))
    loader = source.loader("test", 4, workers=0, skip_damaged=True)
    seen = [n for batch in numbers(loader) for n in batch]
    assert set(seen) >= {24, 25, 26}
    assert str(path) in loader.damaged[0]


def test_shards_for_evaluation_alone(root: Path) -> None:
    (root / "_info.json").unlink()
    source = load_data(f"wds:{root}/some-val-*.tar", num_classes=2, shard_images=(7,), image_size=32)
    assert (source.splits, source.size("test"), source.notes) == (("test",), 7, ())
    assert sum(len(batch) for batch in numbers(source.loader("test", 4, workers=0))) == 7
