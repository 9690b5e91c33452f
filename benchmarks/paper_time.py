"""Inference time as in the paper: the 10,000 test images of CIFAR-10, a batch of 512, best engine of each network.

    python -m benchmarks.paper_time --data-dir DIR

`optimize_for_inference` chooses each network's engine and variant for batches of 512. The images wait in memory,
normalised; the last batch is filled up with images that were there already. Networks alternate in rounds; the implicit
network (MDEQ) goes through as many batches as fit into `--seconds`, and its time is scaled to all of them. Weights
are untrained: of the times, only MDEQ's depends on them, by the steps of its solver, which are told.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from globalcnn import create_model, optimize_for_inference
from globalcnn.data import load_data
from globalcnn.engines import RUNTIMES
from globalcnn.errors import UserError
from globalcnn.files import write_json
from globalcnn.measure import count
from globalcnn.optimize import OptimizedModel, Variant
from globalcnn.reproduce import published_rows

from . import machine
from .pages import RESULTS, ROOT, hardware, put, read, table

BATCH = 512
FILE = "paper-time/time.json"
PAGE = ROOT / "docs" / "reproduction.md"
START, END = "<!-- time: written by python -m benchmarks.paper_time -->", "<!-- end of time -->"
NETWORKS = ("resnet32_cifar", "mdeq_cifar", "resnet_global_cifar")
PRINTED = {  # seconds
    row.model: row.published["infer_s"]
    for row in published_rows()
    if row.model in NETWORKS and "infer_s" in row.published
}
IMPLICIT = "mdeq_cifar"
SOLVED = Variant(memory_format="channels_last", piece=32)  # what fits the caches
Run = Callable[[Tensor], Any]


def batches_of(images: Tensor, size: int = BATCH) -> tuple[Tensor, ...]:
    """The images in batches of one size; what lacks in the last one is taken from the first.

    >>> [len(b) for b in batches_of(torch.zeros(5, 1), 2)]
    [2, 2, 2]
    """
    lacking = -len(images) % size
    return torch.split(torch.cat([images, images[:lacking]]), size)


def prepared(name: str, example: Tensor, seconds: float) -> tuple[Run, dict[str, Any]]:
    """The network in its fastest engine and variant, and what is told of it."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    counted = count(model, tuple(example.shape[1:]))
    found: dict[str, Any] = {"parameters": counted.params, "macs": counted.macs}
    if name == IMPLICIT:  # no engine takes a solver, and a search takes hours
        model = model.to(memory_format=torch.channels_last)
        return OptimizedModel(model, SOLVED, example), {**found, "how": f"PyTorch, {SOLVED}"}
    fast = optimize_for_inference(model, example, seconds=seconds)
    return fast, {**found, "how": fast.report.chosen if fast.report is not None else ""}


@torch.inference_mode()
def measured(run: Run, batches: tuple[Tensor, ...], *, seconds: float | None = None) -> tuple[float, int]:
    """Seconds for all batches, and over how many they were measured: with `seconds`, as many as begin before."""
    began, done = time.perf_counter(), 0
    for batch in batches:
        run(batch)
        done += 1
        if seconds is not None and time.perf_counter() - began > seconds:
            break
    return (time.perf_counter() - began) * len(batches) / done, done


def evaluations_of(run: Run) -> int:
    """How often the solver called its cell, last time."""
    network: Any = run
    return int(network.model.equilibrium.evaluations)


def section(content: dict[str, Any]) -> str:
    """The text between the markers."""
    implicit = content["networks"][IMPLICIT]
    first = content["networks"]["resnet32_cifar"]["seconds"]
    rows = []
    for name, found in content["networks"].items():
        rows.append(
            (
                f"`{name}`",
                f"{PRINTED[name]}",
                f"{PRINTED['resnet32_cifar'] / PRINTED[name]:.2f}",
                f"{found['seconds']:.2f} ({min(found['each']):.2f}-{max(found['each']):.2f})",
                f"{first / found['seconds']:.3g}",
                found["how"],
            )
        )
    heads = (
        "network", "printed, s", "times as fast as ResNet-32", "here, s: median (range)",
        "times as fast as ResNet-32", "run as",
    )  # fmt: skip
    about = (
        f"{content['images']:,} images at a batch of {BATCH}, medians of {content['rounds']} rounds; MDEQ is a "
        f"reconstruction, its time that of {implicit['batches_timed']} batch(es) scaled to all, with {implicit['evaluations']} "
        f"evaluations of its cell. Untrained weights. {content['engines']}. {hardware(content)}; results/paper-time/. Printed seconds "
        "are the paper's, on its hardware."
    )
    return "\n".join([START, "", about, "", table(heads, rows), "", END])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper_time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, help="folder with cifar10.npz or torchvision's files")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of each search, and of MDEQ's time; default %(default)s"
    )
    return parser.parse_args()


def main() -> int:
    """Measure, write the file and the page. Returns the exit status."""
    args = _arguments()
    try:
        if args.rounds < 1 or not args.seconds > 0:
            raise UserError("--rounds must be 1 or more, and --seconds above 0")
        images = load_data("cifar10", data_dir=args.data_dir).loader("test", 10_000, shuffle=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    facts = machine.facts(seed=0)
    batches = batches_of(torch.cat([x for x, _ in images]))
    networks: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for name in NETWORKS:
        print(f"{name}: looking for its fastest engine", flush=True)
        runs[name], networks[name] = prepared(name, batches[0], args.seconds)
    each: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for number in range(args.rounds):
        for name in NETWORKS:
            if name == IMPLICIT and number > 0:
                continue
            seconds, done = measured(runs[name], batches, seconds=args.seconds if name == IMPLICIT else None)
            each[name].append(seconds)
            networks[name]["batches_timed"] = done
            if name == IMPLICIT:
                networks[name]["evaluations"] = evaluations_of(runs[name])
            print(f"round {number + 1}, {name}: {seconds:.2f} s", flush=True)
    for name, found in networks.items():
        found.update(seconds=median(each[name]), each=each[name])
    versions = ", ".join(r.version for r in RUNTIMES.values() if r.installed)
    content = {
        **facts, "batch": BATCH, "images": 10_000, "rounds": args.rounds, "engines": versions, "networks": networks,
    }  # fmt: skip
    write_json(RESULTS / FILE, content)
    put(PAGE, section(read(FILE)))
    print(f"wrote {RESULTS / FILE} and {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
