"""What Global layers do to one image: maps, coefficient fields, the evolution, effective receptive fields."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_write, write_text
from ..graph import eval_mode
from ..nn import Evolution, GlobalLayer
from ..nn.global_layer import takes_logits
from ..ops.schemes import AxisScheme
from .figure import DPI, new_figure, save
from .maps import POSITIVE, SIGNED, strongest_channels

ARROWS = 12  # along the longer side of a map
FRAME_MS = 600


@dataclass(frozen=True)
class Shown:
    """One Global layer at one image: its name, the layer, and the evolution."""

    name: str
    layer: GlobalLayer
    evolution: Evolution

    @property
    def channel(self) -> int:
        """The one that the PDE changes most."""
        return strongest_channels(self.evolution, 1)[0]

    @property
    def of_gates(self) -> bool:
        """Whether the fields are logits of gates, not velocities and diffusion."""
        return takes_logits(self.layer.pde)

    def direction(self) -> tuple[Tensor, Tensor]:
        """Where features of the channel move: (along rows, along columns), (H, W) each."""
        sign = 1.0 if isinstance(self.layer.pde.scheme, AxisScheme) else -1.0
        c = self.evolution.fields
        return sign * c.u[0, self.channel], sign * c.v[0, self.channel]


def evolutions(model: nn.Module, image: Tensor) -> list[Shown]:
    """Each call of a Global layer of `model` for the batch `image` (1, C, H, W), in the order of the calls.

    Raises `UserError` where the network has no Global layers, or calls none of them.
    """
    names = {m: name for name, m in model.named_modules() if isinstance(m, GlobalLayer)}
    if not names:
        raise UserError(f"the network {type(model).__name__} has no GlobalLayer to show")
    found: list[Shown] = []

    def record(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, GlobalLayer)
        times = sum(shown.layer is layer for shown in found)
        name = names[layer] if not times else f"{names[layer]}, call {times + 1}"
        found.append(Shown(name, layer, layer.evolution(*inputs)))

    handles = [layer.register_forward_pre_hook(record) for layer in names]
    try:
        with eval_mode(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UserError("the network calls none of its Global layers for this image")
    return found


def plot_layers(shown: Sequence[Shown], picture: Any, path: Path, *, title: str = "") -> None:
    """One row per layer, at the channel that the PDE changes most: the map before and after the layer, the
    direction in which features move (arrows over the map before), Dx, Dy.

    picture: of the image, as `imshow` takes it.
    """
    heads = ("image", "before", "direction of transport", "Dx", "Dy", "after")
    figure, axes = new_figure(
        len(shown), len(heads), width=2.1 * len(heads), height=0.5 + 2.1 * len(shown), squeeze=False
    )
    for cells, one in zip(axes, shown, strict=True):
        e, c = one.evolution, one.channel
        cells[0].imshow(picture, cmap="gray")
        _map(figure, cells[1], e.source[0, c], f"before, channel {c}")
        if one.of_gates:
            largest = max(e.fields.u[0, c].abs().max().item(), e.fields.v[0, c].abs().max().item(), 1e-12)
            limits = {"vmin": -largest, "vmax": largest}
            _map(figure, cells[2], e.fields.u[0, c], "gate along rows (logit)", cmap=SIGNED, **limits)
        else:
            _arrows(cells[2], e.source[0, c], *one.direction())
        for cell, name, D in ((cells[3], "Dx", e.fields.Dx), (cells[4], "Dy", e.fields.Dy)):
            if isinstance(D, Tensor):
                values = D[0, c]
                if one.of_gates:
                    _map(figure, cell, values, f"{name} (logit)")
                else:
                    _map(figure, cell, values, name, vmin=0, vmax=max(values.max().item(), 1e-6))
            else:
                cell.text(0.5, 0.5, f"{name} = {D:g}", ha="center", va="center", transform=cell.transAxes)
        _map(figure, cells[5], e.output[0, c], "after")
        cells[0].set_ylabel(one.name, fontsize=8)
        for cell in cells:
            cell.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def animate(shown: Sequence[Shown], path: Path) -> None:
    """A GIF of the state H of every layer over the steps 0..K, one panel per layer, on one scale each."""
    most = max(len(one.evolution.levels) for one in shown)
    frames = []
    for k in range(most):
        figure, axes = new_figure(1, len(shown), width=2.4 * len(shown), height=2.8, squeeze=False)
        for cell, one in zip(axes[0], shown, strict=True):
            levels = [level[0, one.channel] for level in one.evolution.levels]
            low, high = (float(f(torch.stack(levels))) for f in (torch.min, torch.max))
            step = min(k, len(levels) - 1)
            cell.imshow(levels[step].cpu().float().numpy(), cmap=POSITIVE, vmin=low, vmax=high)
            cell.set_title(f"{one.name}\nH after step {step} of {len(levels) - 1}", fontsize=8)
            cell.set(xticks=[], yticks=[])
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=DPI, format="png")
        frames.append(Image.open(buffer).convert("RGB"))
    with atomic_write(path) as part:
        frames[0].save(part, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)


def plot_fields(fields: Mapping[str, Tensor], path: Path) -> None:
    """Effective receptive fields (H, W) side by side, largest value 1, on a scale of square roots."""
    figure, axes = new_figure(1, len(fields), width=3.2 * len(fields), height=3.4, squeeze=False)
    for cell, (name, field) in zip(axes[0], fields.items(), strict=True):
        drawn = cell.imshow(field.sqrt().numpy(), cmap="magma", vmin=0, vmax=1)
        cell.set_title(f"{name}\n{share_within(field):.0%} of the image hold 95 % of it", fontsize=8)
        cell.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes[0].tolist(), shrink=0.8, label="square root of the gradient's size")
    save(figure, path)


def share_within(field: Tensor, part: float = 0.95) -> float:
    """The smallest share of the pixels that holds `part` of the field's sum.

    >>> share_within(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    0.25
    """
    values = field.flatten().double().sort(descending=True).values
    return (int((values.cumsum(0) < part * values.sum()).sum()) + 1) / values.numel()


def write_page(
    path: Path, *, title: str, pictures: Mapping[str, Path], facts: Sequence[tuple[str, str]], notes: str
) -> None:
    """One HTML page with the pictures inside: it needs no network and no other file."""
    rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in facts)
    blocks = "".join(
        f"<figure><img alt='{html.escape(caption)}' src='data:image/{file.suffix[1:]};base64,"
        f"{base64.b64encode(file.read_bytes()).decode()}'><figcaption>{html.escape(caption)}</figcaption>"
        "</figure>"
        for caption, file in pictures.items()
    )
    style = (
        "body{font:16px/1.5 sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        "img{max-width:100%}figure{margin:2rem 0}figcaption{color:#555}th{text-align:left;padding-right:1rem}"
    )
    write_text(
        path,
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{style}</style></head><body><h1>{html.escape(title)}</h1><table>{rows}</table>"
        f"<p>{html.escape(notes)}</p>{blocks}</body></html>\n",
    )


def _map(
    figure: Any, cell: Any, values: Tensor, title: str, *, cmap: str = POSITIVE, **limits: float
) -> None:
    drawn = cell.imshow(values.detach().cpu().float().numpy(), cmap=cmap, **limits)
    figure.colorbar(drawn, ax=cell, shrink=0.75)
    cell.set_title(title, fontsize=8)


def _arrows(cell: Any, base: Tensor, along_rows: Tensor, along_columns: Tensor) -> None:
    """Arrows over a map; x of the tensors (dim 2) points down in the picture."""
    cell.imshow(base.cpu().float().numpy(), cmap="gray", alpha=0.5)
    speed = torch.hypot(along_rows, along_columns)
    title = f"transport, at most {speed.max():.2g} pixels per time"
    cell.set_title(title if speed.max() > 0 else "no transport", fontsize=8)
    if not speed.max() > 0:
        return
    height, width = base.shape
    step = max(1, round(max(height, width) / ARROWS))
    rows, columns = torch.meshgrid(
        torch.arange(step // 2, height, step), torch.arange(step // 2, width, step), indexing="ij"
    )
    down, right = along_rows[rows, columns].cpu().float(), along_columns[rows, columns].cpu().float()
    cell.quiver(columns, rows, right, down, color="C3", angles="xy", width=0.006)
