"""`globalcnn show`: pictures of what the Global layers of a network do to an image."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from ..errors import UserError
from ..graph import replace_module
from ..measure.effective_field import effective_field
from ..models import Card, load_with_card, shown_name
from ..nn import GlobalLayer
from ..train.objectives_features import before_pooling, captured
from ..train.prediction import class_names, prepared
from ..viz.show import (
    Shown,
    animate,
    evolutions,
    plot_fields,
    plot_layers,
    share_within,
    write_page,
)
from .console import percent, say, table

LAYERS, EVOLUTION, FIELDS, PAGE = "layers.png", "evolution.gif", "receptive_field.png", "index.html"


@dataclass(frozen=True)
class Args:
    """Show what each Global layer of a trained network does to an image.

    Into --out go layers.png (per layer the map before and after, where features move, the diffusion),
    evolution.gif (the state over the steps), receptive_field.png (how strongly the central feature depends on
    each pixel, beside another network), and index.html with all of them, which needs no other file.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder (its best weights, else its last), a .safetensors file of `globalcnn train`, or the name
    of weights that come with the library, such as resnet32_cifar-cifar10."""
    image: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")]
    """An image file: PNG, JPEG, BMP, GIF, PPM, TIFF or WebP. It is prepared as in training."""
    out: Path = Path("show")
    """Folder of the pictures."""
    beside: Path | None = None
    """Another run folder or weights file whose receptive field is shown too. Default: the same network with
    its Global layers taken out."""
    model: str | None = None
    """The network, where the checkpoint does not say how it is built or is not to be believed: a name,
    my_net.py:build or package.module:function."""
    trust_source: tyro.conf.FlagCreatePairsOff[bool] = False
    """Build whatever the checkpoint names: only for files of your own."""
    ema: bool | None = None
    """Of a file that holds weights and their moving average, whether to take the average."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace pictures that are in --out."""


def run(args: Args) -> None:
    """Load, run, draw, write."""
    if os.path.lexists(args.out) and not args.out.is_dir():
        raise UserError(f"--out {str(args.out)!r} is a file: name a folder for the pictures")
    there = [name for name in (LAYERS, EVOLUTION, FIELDS, PAGE) if os.path.lexists(args.out / name)]
    if there and not args.overwrite:
        raise UserError(
            f"{str(args.out / there[0])!r} is there already: choose another --out, or give --overwrite"
        )
    model, card = load_with_card(
        args.checkpoint, model=args.model, trust_source=args.trust_source, ema=args.ema
    )
    if card.in_chans not in (1, 3):
        raise UserError(f"the network reads {card.in_chans} channels, and image files have 1 (grey) or 3")
    image, name = prepared(str(args.image), card)[None], shown_name(card.label)
    shown = evolutions(model.eval(), image)
    fields = _fields(model, card, args.beside)
    files = {key: args.out / key for key in (LAYERS, EVOLUTION, FIELDS, PAGE)}
    title = f"{name} and {args.image.name}"
    plot_layers(shown, _picture(image, card), files[LAYERS], title=title)
    animate(shown, files[EVOLUTION])
    plot_fields(fields, files[FIELDS])
    facts = _facts(model, card, image, shown, fields)
    write_page(
        files[PAGE],
        title=title,
        pictures={
            "Each Global layer at the channel that its PDE changes most": files[LAYERS],
            "The state H of each layer over the steps of the PDE": files[EVOLUTION],
            "Effective receptive field of the centre of the last feature map": files[FIELDS],
        },
        facts=facts,
        notes="Arrows point where features move. The pictures show one channel of each layer.",
    )
    table(title, ("what", "value"), facts)
    for file in files.values():
        say(f"wrote {file}")


def _fields(model: nn.Module, card: Card, beside: Path | None) -> dict[str, Tensor]:
    """Effective receptive fields by the name of the network."""
    size = (card.in_chans, *card.image_size)
    name = shown_name(card.label)
    found = {name: effective_field(model, size, features=_features(model, size))}
    if beside is not None:
        other, told = load_with_card(beside)
        label = shown_name(told.label)
        own = (told.in_chans, *told.image_size)
        field = effective_field(other.eval(), own, features=_features(other, own))
        found[label if label != name else f"{label} ({beside})"] = field
        return found
    plain = copy.deepcopy(model)
    for place, layer in [(n, m) for n, m in plain.named_modules() if isinstance(m, GlobalLayer)]:
        if layer.init is not None:  # it may change the shape of the map: the network needs it
            return found
        plain = replace_module(plain, place, new=nn.Identity())
    field = effective_field(plain, size, features=_features(plain, size))
    found[f"{name} without its Global layers"] = field
    return found


def _features(model: nn.Module, size: tuple[int, int, int]) -> Callable[[Tensor], Tensor] | None:
    """The last feature map of a network that has no `forward_features`; None where it has."""
    if hasattr(model, "forward_features"):
        return None
    name = before_pooling(model, model, torch.zeros(1, *size))

    def features(images: Tensor) -> Tensor:
        with captured(model, outputs={name}, copied=False) as (_, maps):
            model(images)
        return maps[name]

    return features


def _facts(
    model: nn.Module, card: Card, image: Tensor, shown: list[Shown], fields: dict[str, Tensor]
) -> list[tuple[str, str]]:
    facts = []
    with torch.no_grad():
        logits = model(image)
    if isinstance(logits, Tensor) and logits.shape == (1, card.num_classes) and logits.isfinite().all():
        share, number = logits.softmax(1)[0].max(0)
        facts.append(("class", f"{class_names(card)[int(number)]}, {percent(share.item())}"))
    for one in shown:
        change = (one.evolution.levels[-1] - one.evolution.levels[0]).norm()
        words = [f"H changes by {percent((change / one.evolution.levels[0].norm().clamp_min(1e-12)).item())}"]
        if not one.of_gates:
            c = one.evolution.fields
            words.append(f"speed at most {torch.hypot(c.u, c.v).max():.2g}")
        facts.append((f"{one.name}, {one.layer.pde.steps} step(s)", ", ".join(words)))
    facts += [
        (f"effective receptive field, {n}", f"{percent(share_within(f))} of the image")
        for n, f in fields.items()
    ]
    return facts


def _picture(image: Tensor, card: Card) -> object:
    """The prepared image in colours that can be shown."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (card.mean or (0.0,), card.std or (1.0,)))
    pixels = (image[0] * std + mean).clamp(0, 1)
    return pixels[0].numpy() if card.in_chans == 1 else pixels.permute(1, 2, 0).numpy()
