"""Draws the pictures of how-it-works/: `python docs/drawings.py` writes docs/images/*.png."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

IMAGES = Path(__file__).parent / "images"
INK, HALO, INSIDE, NOTE = "#22313f", "#f3d9b1", "#cfe3f5", "#5d6d7e"


def box(ax: Axes, x: float, y: float, w: float, h: float, text: str, color: str = INSIDE) -> None:
    """A labelled box; (x, y) is its lower left corner."""
    ax.add_patch(Rectangle((x, y), w, h, facecolor=color, edgecolor=INK, linewidth=1))
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=9, color=INK)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow from start to end."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=INK, linewidth=1))


def save(fig: plt.Figure, ax: Axes, name: str) -> None:
    """Write the picture without axes."""
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.autoscale_view()
    fig.savefig(IMAGES / f"{name}.png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(fig)


def layout() -> None:
    """The channel-blocked layout of one channel block, with its halo."""
    fig, ax = plt.subplots(figsize=(9, 4.6))
    rows, columns, lanes = 3, 5, 8
    for i in range(rows + 2):
        for j in range(columns + 2):
            inside = 1 <= i <= rows and 1 <= j <= columns
            ax.add_patch(
                Rectangle((j, -i), 1, 1, facecolor=INSIDE if inside else HALO, edgecolor=INK, linewidth=0.8)
            )
            if inside:
                ax.text(j + 0.5, -i + 0.5, f"{i - 1},{j - 1}", ha="center", va="center", fontsize=8)
    ax.text(3.5, 1.35, "one channel block of one image: H x W pixels and a halo", ha="center", fontsize=10)
    ax.text(3.5, -5.0, "halo (boundary values, filled before a step)", ha="center", fontsize=9, color=NOTE)
    for lane in range(lanes):
        x = 9.2 + 0.8 * lane
        ax.add_patch(Rectangle((x, -1.6), 0.8, 1, facecolor=INSIDE, edgecolor=INK, linewidth=0.8))
        ax.text(x + 0.4, -1.1, f"c{lane}", ha="center", va="center", fontsize=8)
    ax.text(12.4, -0.25, "one pixel: 8 channels = one AVX2 register", ha="center", fontsize=10)
    ax.text(12.4, -2.3, "nChw8c (16 channels, nChw16c, with AVX-512)", ha="center", fontsize=9, color=NOTE)
    arrow(ax, (5.95, -1.5), (9.1, -1.1))
    ax.text(
        12.4,
        -3.6,
        "A neighbour along either axis is another whole register:\n"
        "no lane is moved, and no row ends within a register.",
        ha="center",
        fontsize=9,
        color=INK,
    )
    save(fig, ax, "channel_blocked_layout")


def inference() -> None:
    """The data flow of a whole layer at inference."""
    fig, ax = plt.subplots(figsize=(12, 3.5))
    steps = [
        ("read a block:\ntranspose into\nnChw8c", INSIDE),
        ("4 depthwise\nconvolutions,\nnorms folded in", INSIDE),
        ("activation:\nu, v, Dx, Dy", INSIDE),
        ("fill halos", HALO),
        ("K steps of the\nscheme", INSIDE),
        ("output norm,\nactivation,\nresidual", INSIDE),
        ("write the\nblock back", INSIDE),
    ]
    for n, (text, color) in enumerate(steps):
        box(ax, 3.4 * n, 0, 2.8, 1.7, text, color)
        if n:
            arrow(ax, (3.4 * n - 0.6, 0.85), (3.4 * n, 0.85))
    ax.add_patch(Rectangle((-0.4, -0.5), 24, 2.9, fill=False, edgecolor=NOTE, linestyle="--"))
    ax.text(
        11.6,
        2.6,
        "one channel block of one image at a time; it stays in the L1/L2 cache",
        ha="center",
        fontsize=10,
    )
    ax.text(11.6, -1.0, "threads share out the blocks: N x C/8 of them", ha="center", fontsize=9, color=NOTE)
    save(fig, ax, "inference_data_flow")


def training() -> None:
    """The passes over the batch in training."""
    fig, ax = plt.subplots(figsize=(9, 4))
    rows = [
        (
            "forward",
            [
                "pass 1 over the images:\nconvolutions, their mean\nand variance",
                "pass 2: convolutions again,\nbatch norm, activation,\nK steps; write H",
            ],
        ),
        (
            "backward",
            [
                "pass 1: levels again, adjoint\nsteps; gradients at the norms\nkept, their sums taken",
                "pass 2: batch norm backward,\nconvolution backward; write\ngradients of h and weights",
            ],
        ),
    ]
    for i, (name, passes) in enumerate(rows):
        y = -2.4 * i
        ax.text(-0.4, y + 0.8, name, ha="right", va="center", fontsize=10)
        for j, text in enumerate(passes):
            box(ax, 6.4 * j, y, 5.4, 1.6, text, HALO if j == 0 else INSIDE)
        arrow(ax, (5.4, y + 0.8), (6.4, y + 0.8))
    ax.text(
        5.9,
        2.6,
        "one channel block of all images at a time: batch statistics need the whole batch",
        ha="center",
        fontsize=10,
    )
    ax.text(
        5.9,
        -2.8,
        "kept from forward to backward: h, f, and mean and variance of each coefficient;\n"
        "the levels are computed again, so memory does not grow with K",
        ha="center",
        va="top",
        fontsize=9,
        color=NOTE,
    )
    save(fig, ax, "training_data_flow")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    layout()
    inference()
    training()
