"""Feature maps and the evolution under the PDE as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn import Evolution
from .figure import new_figure, save

SIGNED, POSITIVE = "RdBu_r", "viridis"


def plot_feature_maps(image: Tensor, maps: Mapping[str, Tensor], path: Path, *, title: str = "") -> None:
    """An image (H, W) and the feature map (h, w) that each network makes of it, as a PNG at `path`."""
    figure, axes = new_figure(1, 1 + len(maps), width=2.9 * (1 + len(maps)), height=3.2, squeeze=False)
    _show(axes[0][0], image, "the image", cmap="gray")
    for cell, (name, values) in zip(axes[0][1:], maps.items(), strict=True):
        drawn = _show(cell, values, name, cmap=POSITIVE)
        figure.colorbar(drawn, ax=cell, shrink=0.75)
    figure.suptitle(title)
    save(figure, path)


def strongest_channels(evolution: Evolution, most: int) -> list[int]:
    """The channels of the first image that the PDE changes most, strongest first."""
    change = (evolution.levels[-1][0] - evolution.levels[0][0]).abs().mean(dim=(1, 2))
    return [int(c) for c in change.argsort(descending=True)[:most]]


def plot_evolution(
    evolution: Evolution, path: Path, *, image: Tensor, channels: Sequence[int] | None = None, title: str = ""
) -> None:
    """The evolution of the first image under the PDE: the state at every step, and the coefficient fields.

    One row per channel: the image, H at steps 0..K on one scale, the change over all steps, the fields that
    are not constant (u and Dx drive along x, the rows; v and Dy along y, the columns), and the layer's
    output.
    """
    shown = strongest_channels(evolution, 3) if channels is None else list(channels)
    fields = _varying_fields(evolution)
    steps = len(evolution.levels)
    columns = 1 + steps + 1 + len(fields) + 1
    figure, axes = new_figure(
        len(shown), columns, width=1.7 * columns, height=0.6 + 1.55 * len(shown), squeeze=False
    )
    for cells, channel in zip(axes, shown, strict=True):
        levels = torch.stack([level[0, channel] for level in evolution.levels])
        low, high = levels.min().item(), levels.max().item()
        _show(cells[0], image, f"image (channel {channel})", cmap="gray")
        for k in range(steps):
            drawn = _show(cells[1 + k], levels[k], f"H, step {k}", vmin=low, vmax=high)
        figure.colorbar(drawn, ax=cells[steps], shrink=0.8)
        change = levels[-1] - levels[0]
        largest = max(change.abs().max().item(), 1e-12)
        drawn = _show(cells[1 + steps], change, "change of H", cmap=SIGNED, vmin=-largest, vmax=largest)
        figure.colorbar(drawn, ax=cells[1 + steps], shrink=0.8)
        for cell, (name, values) in zip(cells[2 + steps :], fields.items(), strict=False):
            figure.colorbar(_show(cell, values[0, channel], name), ax=cell, shrink=0.8)
        _show(cells[-1], evolution.output[0, channel], "output")
    figure.suptitle(title)
    save(figure, path)


def _varying_fields(evolution: Evolution) -> dict[str, Tensor]:
    c = evolution.fields
    if c.u is c.v:
        named: dict[str, Any] = {"u = v": c.u, "Dx": c.Dx, "Dy": c.Dy}
    else:
        named = {"u (along x, dim 2)": c.u, "v (along y, dim 3)": c.v, "Dx": c.Dx, "Dy": c.Dy}
    return {name: values for name, values in named.items() if isinstance(values, Tensor)}


def _show(axes: Any, values: Tensor, title: str, *, cmap: str = POSITIVE, **limits: float) -> Any:
    drawn = axes.imshow(values.detach().cpu().float().numpy(), cmap=cmap, **limits)
    axes.set_title(title, fontsize=8)
    axes.set(xticks=[], yticks=[])
    return drawn
