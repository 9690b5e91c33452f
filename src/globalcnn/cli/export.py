"""`globalcnn export`: a network as a file for an inference engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from ..data import DataSource
from ..errors import UserError
from ..export import TARGETS, Int8, export
from ..export.arguments import checked_seconds, checked_target
from ..models import Card, NamedSource, load_with_card, shown_name
from .condense_args import is_checkpoint
from .console import say, say_notes, table
from .evaluate import run_of
from .networks import ImageSize, build_named, height_and_width
from .options import DataOfRun


@dataclass(frozen=True)
class Images(DataOfRun):
    """Which images."""

    data: str | None = None
    """Test images for the accuracy, as in `globalcnn train`. Default: the accuracy is not measured."""
    image_size: ImageSize = None
    """Side of the images that the file takes, or their height and width. Default: as in training, or the
    network's own."""


@dataclass(frozen=True)
class Args:
    """Write a network to a file for an inference engine.

    The file is loaded in its engine and compared with the network in PyTorch before it gets its name; where
    it gives other outputs nothing is written. It takes batches of one shape; --dynamic makes one for any
    batch and image size. Classes and the mean and standard deviation of the training are written into it.
    """

    network: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL_OR_CHECKPOINT")]
    """A run folder or weights file, or the name of weights that come with the library, such as
    resnet32_cifar-cifar10; or a network with the weights it is built with (of a name as in
    `globalcnn list` or of timm's: of seed 0), my_net.py:build, package.module:function."""
    out: Path
    """The file. An .onnx, .pt2 or .pte holds everything; an .xml has its weights in a .bin beside it, and an
    .onnx for onnxruntime its kernels in an .so."""
    images: Annotated[Images, tyro.conf.arg(name="")] = field(default_factory=Images)
    to: str | None = None
    """onnx, openvino, pt2 (torch.export) or executorch. Default: what the suffix of --out says. Or
    onnxruntime: an .onnx whose Global layers are one operator each, which is faster, with a library of
    kernels for this system and kind of processor, which a C++ compiler makes once."""
    int8: tyro.conf.FlagCreatePairsOff[bool] = False
    """8-bit convolutions and linear layers, calibrated with training images of --data; Global layers stay in
    float32. For onnx and openvino."""
    calibration_images: int = 512
    """Training images that --int8 takes the ranges of activations from."""
    max_drop: float = 0.5
    """Points of accuracy on the test images of --data, in percent, that --int8 may lose; more is an error,
    and nothing is written."""
    dynamic: tyro.conf.FlagCreatePairsOff[bool] = False
    """Any batch and image size (not for executorch). Default: --batch-size and one image size, which engines
    run fastest."""
    batch_size: int = 1
    """Images of a batch, without --dynamic."""
    seconds: float = 1.0
    """About how long the latency is measured in the engine and in PyTorch; 0: not at all."""
    num_classes: int | None = None
    """Size of the output, of a network by name. Default: the network's own."""
    in_chans: int | None = None
    """Input channels, of a network by name. Default: the network's own."""
    model: str | None = None
    """The network of a checkpoint that does not say how it is built or is not to be believed."""
    trust_source: tyro.conf.FlagCreatePairsOff[bool] = False
    """Build whatever the checkpoint names: only for files of your own."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace --out if it is there."""


def run(args: Args) -> None:
    """Load, export, print what was written and found."""
    target = checked_target(args.out, args.to, overwrite=args.overwrite, int8=args.int8, dynamic=args.dynamic)
    int8 = Int8(images=args.calibration_images, max_drop=args.max_drop) if args.int8 else None
    if args.int8 and args.images.data is None:
        raise UserError(
            "--int8 needs --data: training images to calibrate with, test images for the accuracy"
        )
    checked_seconds(args.seconds)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size} must be at least 1")
    given = _network(args)
    height, width = height_and_width(args.images.image_size) or given.input_size[1:]
    noise = torch.Generator().manual_seed(0)
    report = export(
        given.model,
        args.out,
        example=torch.randn(args.batch_size, given.input_size[0], height, width, generator=noise),
        to=target.name,
        dynamic=args.dynamic,
        card=given.card,
        data=_data(args, given, (height, width)),
        int8=int8,
        seconds=args.seconds,
        overwrite=args.overwrite,
    )
    table(f"{given.shown} as {TARGETS[report.target].about}", ("what", "value"), report.rows())
    for note in (*given.notes, *report.notes):
        say(f"note: {note}")


@dataclass(frozen=True)
class _Given:
    """The network in eval mode, its name in the title, (C, H, W) of its images; the card of a checkpoint."""

    model: nn.Module
    shown: str
    input_size: tuple[int, int, int]
    card: Card | None = None
    notes: tuple[str, ...] = ()


def _network(args: Args) -> _Given:
    if is_checkpoint(args.network):
        model, card = load_with_card(args.network, model=args.model, trust_source=args.trust_source)
        return _Given(model, shown_name(card.label), (card.in_chans, *card.image_size), card)
    named = build_named(
        args.network,
        num_classes=args.num_classes,
        in_chans=args.in_chans,
        image_size=args.images.image_size,
    )
    notes = ("its weights are not trained, of seed 0",) if isinstance(named.source, NamedSource) else ()
    return _Given(named.model.eval(), named.shown, named.input_size, notes=notes)


def _data(args: Args, given: _Given, size: tuple[int, int]) -> DataSource | None:
    """The images of --data, at the size of the file; None without."""
    if args.images.data is None:
        return None
    card = given.card
    told = None if card is None else run_of(Path(args.network))
    classes = None if card is None else len(card.classes) or card.num_classes
    data = args.images.of(told, size).load(validation=0.0, num_classes=classes)
    say_notes(data)
    return data
