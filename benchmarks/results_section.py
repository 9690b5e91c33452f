"""Writes the results section of README.md from the files under results/: python -m benchmarks.results_section"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results: written by python -m benchmarks.results_section -->", "<!-- end of results -->"
PUBLISHED = {"digits_conv": (92.01, 27), "digits_residual": (92.53, 30), "digits_global": (95.03, 9)}


def read(name: str) -> dict[str, Any]:
    """One result, parsed."""
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def hardware(environment: dict[str, Any]) -> str:
    """The versions and class of hardware, in words."""
    bound = f"{environment['openmp']}, " if environment.get("openmp") else ""
    return (
        f"{environment['cpu']}, {environment['simd']}, {environment['threads']} thread(s), {bound}"
        f"torch {environment['torch']}"
    )


def backbones() -> str:
    """The three MNIST-10 backbones beside what was published."""
    content = read("mnist10/compare.json")
    lines = [
        f"**The three MNIST-10 backbones** on all of MNIST, the published recipe ({content['recipe']['epochs']} "
        f"epochs), seeds {', '.join(map(str, content['seeds']))}; {content['judged_by']}. "
        f"{hardware(content['environment'])}; results/mnist10/.",
        "",
        "| network | parameters | test accuracy, % | published | confusions 3/5, mean (each seed) | published |",
        "|---|---|---|---|---|---|",
    ]
    for r in content["results"]:
        accuracy, confused = PUBLISHED[r["model"]]
        each = r["confusions"]
        lines.append(
            f"| {r['model']} | {r['params']} | {100 * r['accuracy_mean']:.2f} ± {100 * r['accuracy_spread']:.2f} "
            f"| {accuracy} | {statistics.fmean(each):.1f} ({', '.join(map(str, each))}) | {confused} |"
        )
    return "\n".join(lines)


def cifar() -> str:
    """ResNet-Global on CIFAR-10."""
    content = read("cifar10/resnet_global_cifar.json")
    hours = content["training_seconds"] / 3600
    return (
        f"**ResNet-Global on CIFAR-10**: {100 * content['test_accuracy']:.2f} % after {content['epochs']} epochs "
        f"(published: 91.93 %, the best test accuracy of 300 epochs; here the last epoch's, no held-out images), "
        f"seed {content['seed']}, {hours:.1f} hours. {hardware(content['environment'])}; results/cifar10/."
    )


def speed() -> str:
    """How much faster the condensed networks are at inference, each side at its own best."""
    content = read("bench/networks/bench.json")
    ratios: dict[str, dict[int, str]] = {}
    macs: dict[str, float] = {}
    for cell in content["tables"]["networks"]["cells"]:
        pair = f"{cell['ours']['name']} / {cell['theirs']['name']}"
        runs = [f["runs"] for k in ("ours", "theirs") for f in cell[k]["forms"] if f["seconds"] is not None]
        ratios.setdefault(pair, {})[cell["facts"]["batch"]] = f"{1 / cell['ratio']:.2f} ({min(runs)})"
        macs[pair] = 1 / cell["facts"]["macs_ratio"]
    batches = sorted(next(iter(ratios.values())))
    lines = [
        f"**Inference, times as fast**, each side at its own best of eager, channels-last, compiled and "
        f"`optimize_for_inference`; in brackets the rounds timed; untrained weights, seed {content['seed']}. {hardware(content['environment'])}; "
        "results/bench/networks/; more in docs/performance.md.",
        "",
        "| networks | " + " | ".join(f"batch {b}" for b in batches) + " | times fewer multiply-adds |",
        "|---|" + "---|" * (len(batches) + 1),
    ]
    for pair, found in ratios.items():
        figures = " | ".join(found[b] for b in batches)
        lines.append(f"| {pair} | {figures} | {macs[pair]:.2f} |")
    return "\n".join(lines)


def demo() -> str:
    """The demo's comparison of ResNet-32 and ResNet-Global."""
    content = read("demo/summary.json")
    lines = [
        f"**The demo** on 5,000 digits (4,000 to train), seed {content['seed']}, took {content['seconds']:.0f} s. "
        f"{hardware(content['environment'])}; results/demo/.",
        "",
        "| network | epochs | test accuracy, % | parameters | multiply-adds | ms at batch 1 | at batch 64 |",
        "|---|---|---|---|---|---|---|",
    ]
    for epochs, group in zip(content["epochs"], ("backbones", "networks"), strict=True):
        for r in content[group]:
            one, many = (1e3 * r["latency"][b]["median"] for b in ("1", "64"))
            lines.append(
                f"| {r['model']} | {epochs} | {100 * r['accuracy_mean']:.1f} | {r['params']:,} "
                f"| {r['macs']:,} | {one:.2f} | {many:.1f} |"
            )
    return "\n".join(lines)


def section() -> str:
    """The whole section, markers included."""
    return "\n\n".join((START, "## Results", backbones(), cifar(), speed(), demo(), END))


def main() -> None:
    """Put the section into README.md, between its markers."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    readme.write_text(before + section() + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
