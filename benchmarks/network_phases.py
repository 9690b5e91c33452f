"""Where a network's time goes at inference: inside the convolutions, inside the Global layers, between the calls.

    python -m benchmarks.network_phases [--out results/bench/network_phases.json]

ResNet-32 and ResNet-Global in the same variant (norms folded, Global layers fused, channels-last, compiled), each in
processes of its own (three, the least of their medians counts): the time of a call, then once more with oneDNN telling
the time of every primitive (ONEDNN_VERBOSE), and the Global layers' operators alone on inputs of the shapes that they
get. What is left of the call is spent between them. For comparison, a matrix product of as many multiply-adds.
Threads are not bound to cores. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("resnet32_cifar", "resnet_global_cifar")
BATCHES = (1, 64)
ROUNDS = 3  # processes; the least of their medians counts
CALLS = 300  # at most, and for ten seconds
MARK = "call"  # printed before each call when oneDNN tells what it does


def main() -> None:
    """Measure every network at every batch, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / Path("results/bench/network_phases.json"))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--worker", nargs=2, default=None, help=argparse.SUPPRESS)  # of the processes
    args = parser.parse_args()
    if min(args.batches) < 1:
        parser.error(f"--batches {min(args.batches)} must be 1 or more")
    if args.worker:
        worker(args.worker[0], int(args.worker[1]))
        return
    if args.out.exists():
        print(f"{args.out} will be replaced")
    rows = []
    for batch in args.batches:
        for network in NETWORKS:
            rounds = range(ROUNDS)
            plain = [json.loads(in_a_process(network, batch, {}).splitlines()[-1]) for _ in rounds]
            told = [in_a_process(network, batch, {"ONEDNN_VERBOSE": "profile_exec"}) for _ in rounds]
            least = {key: min(found[key] for found in plain) for key in plain[0]}
            primitives = min(map(sum_of_primitives, told))
            rest = least["call"] - primitives - least["layers"]
            row = {"network": network, "batch": batch, "primitives": primitives, "rest": rest, **least}
            rows.append(row)
            print(
                f"{network}, batch {batch}: a call {1e3 * row['call']:.2f} ms = convolutions "
                f"{1e3 * primitives:.2f} + Global layers {1e3 * row['layers']:.2f} + the rest {1e3 * rest:.2f}; "
                f"as a matrix product {1e3 * row['arithmetic']:.2f} ms"
            )
    # only now: where OMP_PROC_BIND is set, OpenMP binds the thread that loads it to a core, and processes started
    # from there to the same one
    from globalcnn.files import write_json

    from .machine import facts

    write_json(
        args.out,
        {
            "what": "seconds of a call of the compiled network, the least of the medians of three processes; "
            "primitives: of what oneDNN runs in it; layers: of the Global layers' operators; rest: what is left",
            **facts(seed=0),
            "rows": rows,
        },
    )
    print(f"wrote {args.out}")


def in_a_process(network: str, batch: int, extra: dict[str, str]) -> str:
    """What a worker printed."""
    words = [sys.executable, "-m", "benchmarks.network_phases", "--worker", network, str(batch)]
    done = subprocess.run(
        words, env={**os.environ, **extra}, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def sum_of_primitives(told: str) -> float:
    """Median over the calls of the seconds that oneDNN spent in primitives."""
    calls: list[float] = []
    for line in told.splitlines():
        if line == MARK:
            calls.append(0.0)
        elif calls and line.startswith("onednn_verbose") and ",primitive,exec," in line:
            calls[-1] += 1e-3 * float(line.rsplit(",", 1)[1])
    return statistics.median(calls)


def worker(network: str, batch: int) -> None:
    """Time one network, and its layers' operators alone."""
    import torch

    from benchmarks.machine import keep_memory
    from globalcnn import create_model
    from globalcnn.measure import count
    from globalcnn.nn.fused import FusedGlobalLayer
    from globalcnn.optimize import OptimizedModel, Variant
    from globalcnn.optimize.variant import prepare

    keep_memory()
    torch.manual_seed(0)
    model = create_model(network).eval()
    counts = count(model, (3, 32, 32))
    variant = Variant(folded=True, fused="global" in network, memory_format="channels_last", compiled=True)
    x = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    module = prepare(model, variant)[0]
    inputs: list[tuple[FusedGlobalLayer, torch.Tensor]] = []
    for layer in module.modules():
        if isinstance(layer, FusedGlobalLayer):
            layer.register_forward_pre_hook(lambda m, given: inputs.append((m, given[0].clone())))
    with torch.no_grad():
        module(x)
        for layer, _ in inputs:
            layer._forward_pre_hooks.clear()
        run = OptimizedModel(module, variant, x)
        telling = bool(os.environ.get("ONEDNN_VERBOSE"))
        call = median(lambda: run(x), MARK if telling else None)
        if telling:
            return
        layers = sum(median(operator(layer, given)) for layer, given in inputs)
        rows = max(1, round(batch * counts.macs / 512**2))
        left, right, to = torch.randn(rows, 512), torch.randn(512, 512), torch.empty(rows, 512)
        arithmetic = median(lambda: torch.mm(left, right, out=to))
    facts = {"call": call, "layers": layers, "arithmetic": arithmetic}
    print(json.dumps({**facts, "macs": counts.macs}))


def operator(layer: Any, x: Any) -> Callable[[], Any]:
    """The layer's operator alone, without the module's Python."""
    import torch

    arguments = (x, x, layer.weight, layer.bias, layer.scale, layer.shift, *layer.arguments)
    return lambda: torch.ops.globalcnn.layer(*arguments)


def median(run: Callable[[], Any], mark: str | None = None) -> float:
    """Seconds of a call, after some that do not count."""
    for _ in range(10):
        run()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < CALLS and time.perf_counter() - began < 10:
        if mark:
            print(mark, flush=True)
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
