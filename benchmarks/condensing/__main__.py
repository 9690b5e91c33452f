"""Does condensing pay? Make a trained network faster in several ways, at equal measured latency and training.

    python -m benchmarks.condensing --original RUN_OR_FILE --latency
    python -m benchmarks.condensing --original RUN_OR_FILE --data-dir DIR --runs RUNS
    python -m benchmarks.condensing --runs RUNS --collect

`--latency`, on an otherwise idle machine, times the candidates of each arm beside the original: ONNX Runtime at
batch 1 and PyTorch (eval mode, not compiled) at batch 64. The speed-up is the geometric mean of the two. For a
target, each arm takes its candidate of most multiply-adds whose speed-up reaches it less 5 %. Those are timed once
more at the end, all arms in the same rounds, for the tables.

The trainings read the choices from that file. Each keeps its state in RUNS after every epoch: the same command
continues where the last one stopped, however it ended, and several processes with the same RUNS share the work.
Condensed networks are repaired and then trained end to end, `--epochs` in all; pruned ones are trained end to
end for `--epochs`, with the same recipe and objective; those from scratch without teacher, for as many epochs
as fit into the wall time that `condensed-depthwise` took for the same target and seed. `--minutes` ends after
the first epoch past that time. `--collect` writes what is done into the results. `--list` shows the arms.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from globalcnn.errors import UserError
from globalcnn.train.recipe import PRECISIONS

from .arms import ARMS, find_arm
from .collect import FOLDER, write_results
from .latency import measure
from .original import Original
from .runs import Settings, work


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.condensing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--original", type=Path, help="run folder or weights file of the trained network")
    add("--data", default="cifar10", help="what it was trained on; default %(default)s")
    add("--data-dir", type=Path, help="the folder of the data")
    add("--runs", type=Path, default=Path("runs/condensing"), help="default %(default)s")
    add(
        "--results", type=Path, default=FOLDER, help="folder of times and results; default results/condensing"
    )
    add("--epochs", type=int, default=10, help="of a recovery, the repair included; default %(default)s")
    add("--repair-epochs", type=int, default=2, help="of them; default %(default)s")
    add("--targets", nargs="+", type=float, default=[2.0, 3.0], help="speed-ups; default 2 3")
    add("--arms", nargs="+", default=list(ARMS), metavar="ARM", help="default all")
    add("--seeds", nargs="+", type=int, default=[0, 1], help="default 0 1")
    add("--minutes", type=float, default=float("inf"), help="stop after so long; default never")
    add("--precision", default="no", choices=PRECISIONS, help="of all trainings; default %(default)s")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--train-images", type=int, help="a trial with the first so many training images; not collected")
    add("--latency", action="store_true", help="time the candidates, on an otherwise idle machine")
    add("--rounds", type=int, default=15, help="of --latency; default %(default)s")
    add("--seconds", type=float, default=60.0, help="of --latency, per arm and engine; default %(default)s")
    add("--collect", action="store_true", help="write the results of the trainings that ended")
    add("--list", action="store_true", help="show the arms")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """Returns the exit status."""
    args = _arguments()
    try:
        if args.list:
            for arm in ARMS.values():
                print(f"{arm.name:22}{arm.question}")
        elif args.collect:
            for path in write_results(args.runs, args.results, epochs=args.epochs):
                print(f"wrote {path}")
        else:
            _run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(args: argparse.Namespace) -> None:
    """Measure or train."""
    arms = [find_arm(name) for name in args.arms]
    if args.original is None:
        raise UserError("--original is needed: the run folder or weights file of the trained network")
    if not args.minutes > 0:
        raise UserError("--minutes must be above 0")
    original = Original.load(args.original)
    if args.latency:
        path = measure(
            original,
            arms,
            args.results,
            rounds=args.rounds,
            seconds=args.seconds,
            targets=args.targets,
            say=_say,
        )
        print(f"wrote {path}")
        return
    settings = Settings(
        original=original,
        data=args.data,
        runs=args.runs,
        results=args.results,
        arms=tuple(args.arms),
        epochs=args.epochs,
        repair_epochs=args.repair_epochs,
        targets=tuple(args.targets),
        seeds=tuple(args.seeds),
        data_dir=args.data_dir,
        device=args.device,
        train_images=args.train_images,
        precision=args.precision,
    )
    ended = work(settings, until=time.monotonic() + 60 * args.minutes, say=_say)
    print(f"{ended} training(s) ended")


if __name__ == "__main__":
    sys.exit(main())
