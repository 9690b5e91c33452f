"""Why is digits_global less accurate here than in print? One change at a time to the published recipe, on held-out images.

    python -m benchmarks.backbones --data-dir DIR --runs RUNS
    python -m benchmarks.backbones --runs RUNS --collect

The three MNIST-10 backbones have 524 parameters (`globalcnn.models.digits`). Accuracy is that on 10 % of the training
images, held out, after the last epoch; the best epoch's stands beside it, since the printed figures are the best of all
epochs. Each training keeps its state in RUNS: the same command continues where the last one stopped. `--collect`
writes results/mnist10-why/ and the table in docs/reproduction.md. `--list` shows the arms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn

from globalcnn.ops import PDE, Boundary
from globalcnn.reproduce import find_recipe

from .pages import ROOT, hardware, put, read
from .study import Arm, Study, as_table, collect, parser, run, work

NETWORK, DATA = "digits_global", "mnist"
BASE = find_recipe("mnist_backbones").replace(validation=0.1)
COSINE = {"lr": 0.1, "schedule": "cosine"}
ADAMW = {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine"}
PAGE = ROOT / "docs" / "reproduction.md"
START, END = "<!-- backbones: written by python -m benchmarks.backbones -->", "<!-- end of backbones -->"


def _velocity(model: nn.Module) -> nn.Conv2d:
    found = model.get_submodule("body.g.2")
    assert isinstance(found, nn.Conv2d)
    return found


def _scaled(factor: float) -> Callable[[nn.Module], None]:
    """The convolution that predicts the velocity starts so many times as large."""

    def prepare(model: nn.Module) -> None:
        with torch.no_grad():
            _velocity(model).weight.mul_(factor)

    return prepare


def _learning(factor: float) -> Callable[[nn.Module], None]:
    """It learns so many times as fast, by a factor on its gradient (exact for SGD; the norm that is clipped has it)."""

    def prepare(model: nn.Module) -> None:
        _velocity(model).weight.register_hook(lambda grad: grad * factor)  # type: ignore[no-untyped-call]

    return prepare


_ALL = (
    Arm("published", "the published recipe"),
    Arm("lr-0.05", "five times the learning rate", {"lr": 0.05}),
    Arm("cosine-0.1", "learning rate 0.1, cosine schedule", COSINE),
    Arm("no-clip", "gradients not clipped", {"grad_clip": 0.0}),
    Arm("no-decay", "no weight decay", {"weight_decay": 0.0}),
    Arm("velocity-lr-10", "the velocity's convolution learns ten times as fast", prepare=_learning(10)),
    Arm("velocity-0", "the velocity starts at 0", prepare=_scaled(0)),
    Arm("velocity-3", "the velocity starts three times as large", prepare=_scaled(3)),
    Arm(
        "neumann",
        "walls instead of a periodic map",
        settings={"pde": PDE(steps=5, boundary=Boundary.NEUMANN)},
    ),
    Arm("dt-0.1", "half the time step", settings={"pde": PDE(steps=5, dt=0.1)}),
    Arm("dt-0.4", "twice the time step", settings={"pde": PDE(steps=5, dt=0.4)}),
    Arm("steps-10", "ten steps", settings={"pde": PDE(steps=10)}),
    Arm(
        "steps-10-cosine-0.1",
        "ten steps, learning rate 0.1, cosine schedule",
        COSINE,
        settings={"pde": PDE(steps=10)},
    ),
    Arm("adamw", "AdamW, learning rate 0.01, cosine schedule", ADAMW),
    Arm("residual", "the residual backbone, published recipe", network="digits_residual"),
    Arm(
        "residual-cosine-0.1",
        "the residual backbone, learning rate 0.1, cosine schedule",
        COSINE,
        network="digits_residual",
    ),
)
STUDY = Study("mnist10-why", BASE, {arm.name: arm for arm in _ALL})


def section() -> str:
    """The tables of the page, between its markers."""
    parts = [START]
    for path in sorted(STUDY.folder.glob("*.json")):
        content = read(f"{STUDY.name}/{path.name}")
        r = content["runs"][0]["recipe"]
        seeds = ", ".join(map(str, content["seeds"]))
        parts += [
            f"`{NETWORK}` on MNIST, {r['epochs']} epochs, {r['optimizer']} with lr {r['lr']:g} and {r['schedule']} schedule where "
            f"nothing else is said; 10 % of the training images held out; seed(s) {seeds}. {hardware(content)}; "
            f"results/{STUDY.name}/.",
            as_table(STUDY, path),
        ]
    return "\n\n".join([*parts, END])


def main() -> int:
    """Returns the exit status."""
    args = parser(STUDY, "backbones", __doc__, epochs=BASE.epochs, seed=1).parse_args()

    def command(until: float) -> None:
        if args.collect:
            for path in collect(STUDY, args.runs):
                print(f"wrote {path}")
            put(PAGE, section())
            return
        ended = work(
            STUDY, NETWORK, DATA, data_dir=args.data_dir, runs=args.runs, seeds=args.seeds, until=until,
            epochs=dict.fromkeys(args.arms, args.epochs), group=f"{DATA}-{args.epochs}",
        )  # fmt: skip
        print(f"{ended} training(s) ended")

    return run(STUDY, args, command)


if __name__ == "__main__":
    sys.exit(main())
