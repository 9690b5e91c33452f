"""Draw docs/images/moving_blob.png: which way a velocity moves features. Run: python docs/moving_blob.py"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from globalcnn import PDE, GlobalLayer
from globalcnn.viz.figure import new_figure, save

SIDE, STEPS = 33, 15
HERE = Path(__file__).resolve().parent


def levels(u: float, v: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A blob before and after the evolution under a constant velocity, without diffusion and source."""
    layer = GlobalLayer(1, PDE(steps=STEPS), diffusivity=0.0, source=False).double()
    with torch.no_grad():
        for coefficient, speed in ((layer.velocity_x, u), (layer.velocity_y, v)):
            coefficient.net.weight.zero_()
            coefficient.norm.bias.fill_(speed)
    at = torch.arange(SIDE, dtype=torch.float64) - SIDE // 2
    bump = torch.exp(-(at**2) / 18)
    seen = layer.evolution((bump[:, None] * bump[None, :])[None, None]).levels
    return seen[0][0, 0], seen[-1][0, 0]


def draw(path: Path) -> None:
    """The picture."""
    figure, axes = new_figure(1, 3, width=9.0, height=3.4)
    row = list(axes.flat)
    before, after_u = levels(2.0, 0.0)
    _, after_v = levels(0.0, 2.0)
    way = 2 * 0.2 * 2.0 * ((STEPS + 1) // 2)
    middle = SIDE // 2
    for axis, image, title, move in (
        (row[0], before, "before", None),
        (row[1], after_u, "u = 2, v = 0: rows decrease (up)", (0.0, -way)),
        (row[2], after_v, "u = 0, v = 2: columns decrease (left)", (-way, 0.0)),
    ):
        axis.imshow(image, cmap="viridis", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("y: column, dim 3 (v, dy, Dy)", fontsize=8)
        axis.set_ylabel("x: row, dim 2 (u, dx, Dx)", fontsize=8)
        axis.plot(middle, middle, "+", color="white", markersize=10)
        if move is not None:
            axis.annotate(
                "",
                xy=(middle + move[0], middle + move[1]),
                xytext=(middle, middle),
                arrowprops={"arrowstyle": "->", "color": "red", "lw": 2},
            )
    figure.suptitle(
        f"dH/dt = div((u, v) H) after {STEPS} steps of dt = 0.2: features move towards -(u, v)", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "images" / "moving_blob.png")
