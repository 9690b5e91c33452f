"""Writes the results section of README.md from the files under results/: python -m benchmarks.results_section"""

from __future__ import annotations

import statistics

from .pages import ROOT, hardware, put, read, table

START, END = "<!-- results: written by python -m benchmarks.results_section -->", "<!-- end of results -->"
PUBLISHED = {"digits_conv": (92.01, 27), "digits_residual": (92.53, 30), "digits_global": (95.03, 9)}


def backbones() -> str:
    """The three MNIST-10 backbones beside what was published."""
    content = read("mnist10/compare.json")
    rows = []
    for r in content["results"]:
        accuracy, confused = PUBLISHED[r["model"]]
        each = r["confusions"]
        rows.append(
            (
                r["model"],
                r["params"],
                f"{100 * r['accuracy_mean']:.2f} ± {100 * r['accuracy_spread']:.2f}",
                accuracy,
                f"{statistics.fmean(each):.1f} ({', '.join(map(str, each))})",
                confused,
            )
        )
    columns = ("network", "parameters", "test accuracy, %", "published")
    return "\n\n".join(
        (
            f"**The three MNIST-10 backbones** on all of MNIST, the published recipe "
            f"({content['recipe']['epochs']} epochs), seeds {', '.join(map(str, content['seeds']))}; "
            f"{content['judged_by']}. {hardware(content)}; results/mnist10/.",
            table((*columns, "confusions 3/5, mean (each seed)", "published"), rows),
        )
    )


def cifar() -> str:
    """ResNet-Global on CIFAR-10."""
    content = read("cifar10/resnet_global_cifar.json")
    hours = content["training_seconds"] / 3600
    return (
        f"**ResNet-Global on CIFAR-10**: {100 * content['test_accuracy']:.2f} % after {content['epochs']} "
        f"epochs (published: 91.93 %, the best test accuracy of 300 epochs; here the last epoch's, no "
        f"held-out images), seed {content['seed']}, {hours:.1f} hours. {hardware(content)}; results/cifar10/."
    )


def speed() -> str:
    """How much faster the condensed networks are at inference, each side at its fastest variant."""
    content = read("bench/networks/bench.json")
    ratios: dict[str, dict[int, str]] = {}
    macs: dict[str, float] = {}
    for cell in content["tables"]["networks"]["cells"]:
        pair = f"{cell['ours']['name']} / {cell['theirs']['name']}"
        timed = [v for k in ("ours", "theirs") for v in cell[k]["variants"] if v["seconds"] is not None]
        rounds = min(v["rounds"] for v in timed)
        ratios.setdefault(pair, {})[cell["facts"]["batch"]] = f"{1 / cell['ratio']:.2f} ({rounds})"
        macs[pair] = 1 / cell["facts"]["macs_ratio"]
    batches = sorted(next(iter(ratios.values())))
    rows = [(pair, *(found[b] for b in batches), f"{macs[pair]:.2f}") for pair, found in ratios.items()]
    return "\n\n".join(
        (
            f"**Inference, times as fast**, each side at its fastest of eager, channels-last, compiled and "
            f"`optimize_for_inference`; in brackets the rounds timed; untrained weights, seed "
            f"{content['seed']}. {hardware(content)}; {content['binding']}; results/bench/networks/; more in "
            f"docs/performance.md.",
            table(("networks", *(f"batch {b}" for b in batches), "times fewer multiply-adds"), rows),
        )
    )


def demo() -> str:
    """The demo's comparison of ResNet-32 and ResNet-Global."""
    content = read("demo/summary.json")
    rows = []
    for epochs, group in zip(content["epochs"], ("backbones", "networks"), strict=True):
        for r in content[group]:
            one, many = (1e3 * r["latency"][b]["median"] for b in ("1", "64"))
            accuracy = f"{100 * r['accuracy_mean']:.1f}"
            size = f"{r['params']:,}", f"{r['macs']:,}"
            rows.append((r["model"], epochs, accuracy, *size, f"{one:.2f}", f"{many:.1f}"))
    columns = ("network", "epochs", "test accuracy, %", "parameters", "multiply-adds")
    return "\n\n".join(
        (
            f"**The demo** on 5,000 digits (4,000 to train), seed {content['seed']}, took "
            f"{content['seconds']:.0f} s. {hardware(content)}; results/demo/.",
            table((*columns, "ms at batch 1", "at batch 64"), rows),
        )
    )


def section() -> str:
    """The whole section, markers included."""
    return "\n\n".join((START, "## Results", backbones(), cifar(), speed(), demo(), END))


def main() -> None:
    """Put the section into README.md, between its markers."""
    put(ROOT / "README.md", section())


if __name__ == "__main__":
    main()
