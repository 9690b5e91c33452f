"""Does the Global layer earn its place? Train a network with other blocks where its Global layers are.

    python -m benchmarks.ablation --data-dir DIR --runs RUNS
    python -m benchmarks.ablation --runs RUNS --collect

Each training keeps its state in RUNS after every epoch: the same command continues where the last one
stopped, however it ended, and several processes with the same RUNS share the work. `--minutes` ends after the
first epoch past that time. `--collect` writes what is done into results/ablation/. `--list` shows the arms.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from globalcnn.errors import UserError

from .arms import ARMS, find_arm
from .collect import write_results
from .latency import measure
from .runs import RECIPES, Plan, work


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", default="resnet_global_tiny_cifar", help="default %(default)s")
    parser.add_argument("--data", default="cifar100", help="default %(default)s")
    parser.add_argument("--data-dir", type=Path, help="the folder of the data")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="default %(default)s")
    parser.add_argument("--epochs", type=int, default=12, help="default %(default)s")
    parser.add_argument(
        "--optimizer", choices=sorted(RECIPES), default="sgd", help="of the recipe; default %(default)s"
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM", help="default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; default never"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--collect", action="store_true", help="write the results of the trainings that ended"
    )
    parser.add_argument(
        "--latency", action="store_true", help="time the arms side by side, on an otherwise idle machine"
    )
    parser.add_argument("--rounds", type=int, default=30, help="of --latency; default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of --latency, per batch size; default %(default)s"
    )
    parser.add_argument("--list", action="store_true", help="show the arms")
    return parser.parse_args()


def main() -> int:
    """Returns the exit status."""
    args = _arguments()
    try:
        if args.list:
            for arm in ARMS.values():
                print(f"{arm.name:28}{arm.question}")
            return 0
        if args.collect:
            for path in write_results(args.runs):
                print(f"wrote {path}")
            return 0
        for name in args.arms:
            find_arm(name)
        if args.latency:
            path = measure(
                args.network,
                arms=args.arms,
                num_classes=100,
                size=(3, 32, 32),
                rounds=args.rounds,
                seconds=args.seconds,
                say=lambda line: print(line, flush=True),
            )
            print(f"wrote {path}")
            return 0
        if args.epochs < 1 or not args.minutes > 0:
            raise UserError("--epochs must be 1 or more, and --minutes above 0")
        plan = Plan(
            network=args.network,
            data=args.data,
            epochs=args.epochs,
            arms=tuple(args.arms),
            seeds=tuple(args.seeds),
            runs=args.runs,
            data_dir=args.data_dir,
            device=args.device,
            optimizer=args.optimizer,
        )
        ended = work(
            plan, until=time.monotonic() + 60 * args.minutes, say=lambda line: print(line, flush=True)
        )
        print(f"{ended} training(s) ended")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
