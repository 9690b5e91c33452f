"""What becomes of image files of every kind, and of files that only look like images."""

from __future__ import annotations

import os
import pickle
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from globalcnn.data import load_data
from globalcnn.data.pictures import BadImage, decoded, opened_image
from globalcnn.errors import UserError

Write = Callable[..., Path]
RED, BLUE = (200, 30, 10), (10, 30, 200)


def constant(mode: str, value: Any, *, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new(mode, size, value)


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    if transparent:
        image.info["transparency"] = b"\x00\x80"
    return image


class Mode(NamedTuple):
    image: Image.Image
    suffix: str
    mode: str
    pixel: int | tuple[int, int, int]


MODES = {
    "grey": Mode(constant("L", 77), ".png", "L", 77),
    "1 bit": Mode(constant("1", 1), ".png", "L", 255),
    "grey with transparency": Mode(constant("LA", (77, 0)), ".png", "L", 77),
    "colour": Mode(constant("RGB", RED), ".png", "RGB", RED),
    "colour with transparency": Mode(constant("RGBA", (*RED, 0)), ".png", "RGB", RED),
    "palette": Mode(palette(False), ".png", "RGB", RED),
    "palette with transparency": Mode(palette(True), ".png", "RGB", RED),
    "palette in GIF": Mode(palette(False), ".gif", "RGB", RED),
    "CMYK": Mode(constant("CMYK", (0, 255, 255, 0)), ".tif", "RGB", (255, 0, 0)),
    "16 bits": Mode(Image.fromarray(np.full((4, 6), 257 * 77, np.uint16)), ".png", "L", 77),
    "16 bits, white": Mode(Image.fromarray(np.full((4, 6), 65535, np.uint16)), ".tif", "L", 255),
    "32 bits": Mode(Image.fromarray(np.full((4, 6), 257 * 77, np.int32)), ".tif", "L", 77),
    "float": Mode(Image.fromarray(np.full((4, 6), 0.5, np.float32)), ".tif", "L", 128),
}


@pytest.mark.parametrize("case", MODES.values(), ids=MODES)
def test_every_mode_follows_the_rule(case: Mode, tmp_path: Path) -> None:
    path = tmp_path / f"a{case.suffix}"
    case.image.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = decoded(str(path))
    assert (got.mode, got.size, got.getpixel((2, 3))) == (case.mode, (6, 4), case.pixel)


@pytest.mark.parametrize("values", [[-0.1, 0.5], [0.5, 1.1], [0.5, np.nan], [0, np.inf]], ids=str)
def test_floats_out_of_scale_are_refused_with_a_way_out(values: list[float], tmp_path: Path) -> None:
    path = str(tmp_path / "a.tif")
    Image.fromarray(np.array([values], np.float32)).save(path)
    with pytest.raises(
        UserError, match=r"a.tif' has pixels from .*: floats must be in \[0, 1\].*; scale them"
    ):
        decoded(path)


def test_whole_numbers_out_of_scale_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tif")
    Image.fromarray(np.array([[0, 65536]], np.int32)).save(path)
    with pytest.raises(UserError, match=r"whole numbers must be from 0 to 65535"):
        decoded(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_picture_is_turned_upright(number: int, suffix: str, tmp_path: Path) -> None:
    """The corner that is red when shown; Pillow's own transposition is the judge for where it is stored."""
    image = constant("RGB", BLUE, size=(32, 16))
    image.paste(RED, (0, 0, 16, 8))
    stored = {1: image, 2: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 3: image.rotate(180)}
    stored |= {
        4: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: image.transpose(Image.Transpose.TRANSPOSE),
    }
    stored |= {6: image.rotate(90, expand=True), 7: image.transpose(Image.Transpose.TRANSVERSE)}
    stored |= {8: image.rotate(270, expand=True)}
    exif = Image.Exif()
    exif[0x0112] = number
    path = tmp_path / f"a{suffix}"
    stored[number].save(path, exif=exif)
    got = decoded(str(path))
    assert got.size == (32, 16)
    pixels = np.asarray(got).astype(int)
    assert pixels[4, 8, 0] > 150 > pixels[12, 24, 0]


def test_orientation_counts_for_the_size_of_small_images(picture_folder: Write) -> None:
    root = picture_folder({"": 3}, size=(8, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    constant("RGB", RED, size=(6, 8)).save(root / "cat" / "turned.png", exif=exif)
    source = load_data(f"folder:{root}", validation=0)
    assert source.image_size == (6, 8)
    assert "images rotated as their EXIF orientation says: 1" in source.notes


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [constant("RGB", RED), constant("RGB", BLUE)]
    for suffix in (".gif", ".tif", ".webp"):
        path = tmp_path / f"a{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert decoded(str(path)).getpixel((2, 2)) == RED


def test_what_happens_to_small_images_is_said(picture_folder: Write) -> None:
    root = picture_folder({"": 4})
    constant("RGBA", (*RED, 0), size=(8, 8)).save(root / "cat" / "clear.png")
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(root / "dog" / "deep.png")
    frames = [constant("RGB", RED, size=(8, 8)), constant("RGB", BLUE, size=(8, 8))]
    frames[0].save(root / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    notes = load_data(f"folder:{root}", validation=0).notes
    assert "images with transparency, which is dropped: 1" in notes
    assert "images of more than 8 bits a channel, scaled to 8: 1" in notes
    assert "images of several frames, of which the first is taken: 1" in notes


def test_postscript_called_png_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(
        UserError, match=r"it is none of PNG, JPEG, BMP, GIF, PPM, TIFF, WEBP, or of a rare variant"
    ):
        decoded(str(path))


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    server.bind(path.name)
    os.chdir(here)
    server.close()


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_broken_link(path: Path) -> None:
    path.symlink_to("/no/such/file.png")


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [a_pipe, a_socket, a_device, a_broken_link, a_folder])
def test_only_plain_files_are_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(UserError, match=r"the image '.*a.png' is damaged, cut short or unreadable \(.+\)"):
        decoded(str(path))


def test_too_many_pixels_are_one_clear_message(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(UserError, match=r"more pixels than PIL.Image.MAX_IMAGE_PIXELS allows"):
        decoded(str(path))
    Image.new("1", (10_000, 10_000)).save(path)
    with opened_image(str(path)) as image:  # above the limit of warnings, below that of errors
        assert image.size == (10_000, 10_000)
    assert not recwarn.list


def test_bad_images_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BadImage("a.png", "cut short")))
    assert (error.path, error.reason, str(error)) == (
        "a.png",
        "cut short",
        str(BadImage("a.png", "cut short")),
    )


class Sizes(NamedTuple):
    odd: dict[str, tuple[int, int]]
    message: str


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes({"odd.png": (9, 8)}, "10 are 8 x 8 (height x width), 1 8 x 9, such as '{0}/odd.png'; fix"),
        Sizes({"a.png": (9, 8), "b.png": (8, 9)}, "1 8 x 9, such as '{0}/a.png', and 1 have other sizes"),
        Sizes({"huge.png": (300, 200)}, "1 200 x 300, such as '{0}/huge.png'; fix or remove the odd ones"),
        Sizes({f"{n}.png": (20 + n, 30) for n in range(20)}, "give --image-size 8 (image_size=8)"),
    ],
    ids=lambda sizes: f"{len(sizes.odd)} odd",
)
def test_small_images_of_several_sizes_ask_for_one(
    sizes: Sizes, picture_folder: Write, picture: Write
) -> None:
    root = picture_folder({"": 5})
    for name, size in sizes.odd.items():
        picture(root / "cat" / name, size=size)
    with pytest.raises(UserError) as caught:
        load_data(f"folder:{root}", validation=0)
    assert sizes.message.format(root / "cat") in str(caught.value)
    resized = load_data(f"folder:{root}", validation=0, image_size=8)
    assert type(resized).__name__ == "TensorSource"
    assert resized.image_size == (8, 8)
