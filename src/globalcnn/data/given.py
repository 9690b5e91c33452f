"""`from_arrays` and `from_dataset`: sources made from arrays, tensors and torch data sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import UserError, UserTypeError
from .arrays import Part, Parts, check_same_shape, checked_classes, checked_part
from .checks import checked_image_size, machine_memory, whole_number
from .memory import TensorSource, tensor_source
from .pictures import eight_bits
from .split import checked_fraction, every_fifth

LAYOUTS = ("NHWC", "NCHW")
USUAL_CHANNELS = (1, 3, 4)


def from_arrays(
    x_train: Any,
    y_train: Any,
    *,
    x_test: Any = None,
    y_test: Any = None,
    x_val: Any = None,
    y_val: Any = None,
    classes: Sequence[str] | None = None,
    layout: str | None = None,
    name: str = "arrays",
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | Sequence[int] | None = None,
) -> TensorSource:
    """A source of images and labels given as numpy arrays, tensors on any device, or lists.

    x_train, x_test, x_val: images (N, H, W), (N, H, W, C) or (N, C, H, W), uint8, or floats in [0, 1], which
        are rounded to 8 bits.  Do not normalise them: the source does.
    y_train, y_test, y_val: whole-number labels 0, 1, ... of shape (N,) or (N, 1).
    x_train None: the source is for evaluation only, and x_test is needed.
    x_test left out: every fifth training image of each class becomes a test image, as for folders.
    classes: a name for each label; default: "0", "1", ... up to the largest.
    layout: "NHWC" or "NCHW"; needed only where the number of channels (1, 3 or 4) leaves it ambiguous.
    validation, seed, image_size: as in `load_data`.

    Raises `UserError` naming the array that does not fit, and what to do about it.

    >>> images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    >>> source = from_arrays(images, [0, 1] * 10, classes=("cat", "dog"), validation=0)
    >>> source.size("train"), source.size("test"), source.classes
    (16, 4, ('cat', 'dog'))
    """
    if not isinstance(name, str):
        raise UserTypeError(f"name={name!r} must be a text")
    if layout is not None and layout not in LAYOUTS:
        raise UserError(
            f"layout={layout!r} must be 'NHWC' or 'NCHW', or None to infer it from the number of channels"
        )
    pairs = {"train": (x_train, y_train), "val": (x_val, y_val), "test": (x_test, y_test)}
    parts: dict[str, Part] = {}
    notes: list[str] = []
    for split, (images, labels) in pairs.items():
        if (images is None) != (labels is None):
            raise UserError(f"x_{split} and y_{split} must be given together: every image needs one label")
        if images is not None:
            parts[split] = _part(split, images, labels, layout, notes)
    if "train" not in parts and "test" not in parts:
        raise UserError(
            "there are no images: give x_train and y_train, or x_test and y_test for evaluation only"
        )
    check_same_shape(parts, where="the arrays")
    names = _checked_names(classes)
    whole = checked_classes(list(parts.values()), names, where="the arrays")
    if "test" not in parts:
        parts["train"], parts["test"] = _split(parts["train"])
        notes.append("no x_test: every fifth training image of each class is a test image")
    whole_number("seed", seed)
    return tensor_source(
        name,
        Parts(train=parts.get("train"), test=parts["test"], val=parts.get("val"), classes=whole),
        validation=checked_fraction(validation),
        seed=seed,
        image_size=checked_image_size(image_size),
        notes=tuple(notes),
    )


def from_dataset(
    train: Any,
    *,
    test: Any = None,
    val: Any = None,
    classes: Sequence[str] | None = None,
    name: str = "dataset",
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | Sequence[int] | None = None,
) -> TensorSource:
    """A source of all the samples of a torch `Dataset` (or any sequence), read once into memory.

    train, test, val: their samples are pairs (image, label): the image a PIL picture, a tensor (C, H, W) or
        an array (H, W, C) of uint8 or of floats in [0, 1] as torchvision's `ToTensor` gives them, all of one
        size; the label a whole number.  Leave augmentation and normalisation out: the source does both.
    classes: default: the `classes` of the data set if it has them, as torchvision's do.
    test left out, and the other arguments: as in `from_arrays`.

    Raises `UserError` for samples that do not fit, by their number.

    >>> samples = [(torch.rand(3, 8, 8), label) for label in (0, 1, 2) * 10]
    >>> from_dataset(samples, validation=0.25)
    <TensorSource 'dataset': 3 classes, 3 x 8 x 8, train 18, val 6, test 6>
    """
    arrays: dict[str, Any] = {}
    for split, samples in (("train", train), ("val", val), ("test", test)):
        if samples is not None:
            arrays[f"x_{split}"], arrays[f"y_{split}"] = _collected(samples, split)
    known = getattr(train, "classes", None)
    if classes is None and isinstance(known, (list, tuple)):
        classes = [str(entry) for entry in known]
    return from_arrays(
        arrays.pop("x_train"),
        arrays.pop("y_train"),
        **arrays,
        classes=classes,
        layout="NCHW",
        name=name,
        validation=validation,
        seed=seed,
        image_size=image_size,
    )


def _part(split: str, images: Any, labels: Any, layout: str | None, notes: list[str]) -> Part:
    pixels = _channels_last(_array(images, f"x_{split}"), f"x_{split}", layout)
    if pixels.dtype.kind == "f" and pixels.size:
        pixels, rounded = _from_floats(pixels, f"x_{split}")
        if rounded:
            notes.append(f"x_{split} was rounded to 8 bits")
    return checked_part(
        pixels,
        _array(labels, f"y_{split}"),
        where="the arrays",
        images_name=f"x_{split}",
        labels_name=f"y_{split}",
        channels_last=True,
    )


def _array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        if values.layout is not torch.strided or values.is_quantized or values.is_complex():
            raise UserTypeError(f"{name} is a sparse, quantised or complex tensor: give a plain one")
        values = values.detach().cpu()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        array: np.ndarray = values.numpy()
        return array
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} is not an array: {error}; give numbers of one shape") from error
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise UserTypeError(
            f"{name} is of {type(values).__name__} with {array.dtype} entries: give an array or tensor of "
            "numbers of one shape"
        )
    return array


def _channels_last(images: np.ndarray, name: str, layout: str | None) -> np.ndarray:
    if images.ndim != 4:
        return images  # grey, or refused by `checked_part`
    if layout is None:
        first, last = (images.shape[axis] in USUAL_CHANNELS for axis in (1, 3))
        if first == last:
            raise UserError(
                f"{name} has shape {images.shape}, in which the channel axis is ambiguous: give "
                "layout='NHWC' or layout='NCHW'"
            )
        layout = "NCHW" if first else "NHWC"
    return images.transpose(0, 2, 3, 1) if layout == "NCHW" else images


def _from_floats(images: np.ndarray, name: str) -> tuple[np.ndarray, bool]:
    """uint8 from floats in [0, 1], and whether rounding changed any value."""
    least, most = float(images.min()), float(images.max())
    if not (np.isfinite(least) and np.isfinite(most)):
        bad = int((~np.isfinite(images)).sum())
        raise UserError(f"{name} has {bad} values that are NaN or infinite: fix or leave out these images")
    if least < 0 or most > 1:
        way_out = (
            "for values in [0, 255] give x.round().astype('uint8')"
            if least >= 0 and most <= 255
            else "give raw images; the source subtracts the mean and divides by the deviation itself"
        )
        raise UserError(
            f"{name} has values from {least:g} to {most:g}: floats must be in [0, 1], where 1 is "
            f"white; {way_out}"
        )
    pixels = np.empty(images.shape, np.uint8)
    rounded = False
    for start in range(0, len(images), 1024):
        scaled = images[start : start + 1024].astype(np.float64) * 255
        pixels[start : start + 1024] = np.rint(scaled)
        rounded |= bool(np.abs(scaled - np.rint(scaled)).max() > 1e-3)
    return pixels, rounded


def _checked_names(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise UserTypeError(f"classes={classes!r} must be a list of names, one for each label")
    return tuple(str(entry) for entry in classes)


def _split(whole: Part) -> tuple[Part, Part]:
    train, test = every_fifth(whole.labels)
    counts = torch.bincount(whole.labels)
    if int(counts[counts > 0].min()) < 2:
        raise UserError(
            "a class in y_train has a single image: without x_test the images are split, which needs at "
            "least 2 of each class; give x_test and y_test"
        )
    return Part(whole.images[train], whole.labels[train]), Part(whole.images[test], whole.labels[test])


def _collected(samples: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, H, W) and labels (N,)."""
    if not hasattr(samples, "__getitem__") or not hasattr(samples, "__len__"):
        raise UserTypeError(
            f"{split} is a {type(samples).__name__}: it must be a data set with len() and samples by number; "
            "make a list of one that can only be iterated"
        )
    images: list[np.ndarray] = []
    labels: list[int] = []
    for number in range(len(samples)):
        where = f"sample {number} of {split}"
        sample = samples[number]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise UserTypeError(f"{where} is a {type(sample).__name__}: it must be a pair (image, label)")
        image = _channels_first(sample[0], where)
        if number == 0 and image.nbytes * len(samples) > machine_memory():
            raise UserError(
                f"{split} has {len(samples)} samples, more than the memory of this machine holds: store them "
                "as files and use load_data('folder:PATH'), which reads images when they are needed"
            )
        if images and image.shape != images[0].shape:
            raise UserError(
                f"{where} has the shape {image.shape} (channels, height, width), and the first one "
                f"{images[0].shape}: all must have one; resize them in the data set's transform"
            )
        images.append(image)
        label = sample[1].item() if isinstance(sample[1], torch.Tensor) else sample[1]
        labels.append(whole_number(f"label of {where}", label))
    if not images:
        raise UserError(f"{split} has no samples: give a data set with images")
    return np.stack(images), np.asarray(labels)


def _channels_first(image: Any, where: str) -> np.ndarray:
    if isinstance(image, Image.Image):
        pixels = np.asarray(eight_bits(image, name=where))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    array = _array(image, f"the image of {where}")
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise UserError(
            f"the image of {where} has shape {array.shape}: it must be (channels, height, width) as a "
            "tensor, or (height, width, channels) as an array"
        )
    return array if isinstance(image, torch.Tensor) else array.transpose(2, 0, 1)
