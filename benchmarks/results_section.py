"""Writes the results in README.md and docs/measurements.md from results/: python -m benchmarks.results_section"""

from __future__ import annotations

import statistics

from globalcnn.reproduce.rows import published_rows
from globalcnn.reproduce.table import measured_accuracies

from .pages import RESULTS, ROOT, hardware, milliseconds, put, read, table
from .row_accuracies import accuracies, reached

START, END = "<!-- results: written by python -m benchmarks.results_section -->", "<!-- end of results -->"
SHOWN = {
    "globalcnn": "globalcnn",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime, own kernels": "ONNX Runtime with our kernels",
    "openvino": "OpenVINO",
}
PLAIN = (  # a Global layer, and a residual depthwise block in its place
    ("resnet_global_cifar", "resnet_depthwise_cifar"),
    ("resnet_global_tiny_cifar", "resnet_depthwise_tiny_cifar"),
)
PUBLISHED = {"digits_conv": (92.01, 27), "digits_residual": (92.53, 30), "digits_global": (95.03, 9)}


def backbones() -> str:
    """The three MNIST-10 backbones next to the published figures."""
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
    """ResNet-Global on CIFAR-10 by SGD, as the recipe `modern` was before."""
    content = read("cifar10/resnet_global_cifar.json")
    hours = content["training_seconds"] / 3600
    return (
        f"**ResNet-Global on CIFAR-10 by {content['recipe']['optimizer'].upper()}**: "
        f"{100 * content['test_accuracy']:.2f} % after {content['epochs']} "
        f"epochs (published: 91.93 %, the best test accuracy of 300 epochs; here the last epoch's, no "
        f"held-out images), seed {content['seed']}, {hours:.1f} hours. {hardware(content)}; results/cifar10/."
    )


def beside_print() -> str:
    """Every published network whose accuracy was measured here, beside the printed one."""
    measured = measured_accuracies(RESULTS)
    rows, shown = [], set()
    for row in published_rows():
        ours = measured.get((row.model, row.dataset))
        if ours is None or "acc" not in row.published or (row.model, row.dataset) in shown:
            continue
        shown.add((row.model, row.dataset))  # some are printed in two tables, rounded in the later one
        printed = row.published["acc"]
        difference = f"{ours.accuracy - printed:+.2f}"
        where = ours.where.removeprefix("Ours: ").removesuffix(".")
        rows.append((row.model, row.dataset, printed, f"{ours.accuracy:.2f}", difference, where))
    return "\n\n".join(
        (
            "**Accuracy beside the printed one**, the last epoch's, the longest training here of each network; recipe, seeds "
            "and hardware are in the files, below results/. Print has the best test accuracy of its epochs (300 for "
            "CIFAR).",
            table(("network", "data", "printed, %", "here, %", "points", "here"), rows),
        )
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
            f"{content['seed']}. {hardware(content)}; results/bench/networks/; more in "
            f"docs/performance.md.",
            table(("networks", *(f"batch {b}" for b in batches), "times fewer multiply-adds"), rows),
        )
    )


def pairs() -> str:
    """A row per pair: size, accuracy under one recipe, milliseconds in the fastest engine."""
    content = read("bench/engines/bench.json")
    found = content["tables"]["engines"]
    rows: dict[tuple[str, str], list[str]] = {}
    times: dict[tuple[str, str], dict[int, str]] = {}
    for cell in found["cells"]:
        sides, facts = (cell["ours"], cell["theirs"]), cell["facts"]
        pair = (sides[0]["name"], sides[1]["name"])
        rows.setdefault(
            pair,
            [
                " / ".join(f"`{name}`" for name in pair),
                f"{facts['ours_params'] / 1e3:,.0f} / {facts['theirs_params'] / 1e3:,.0f}",
                f"{facts['ours_macs'] / 1e6:.1f} / {facts['theirs_macs'] / 1e6:.1f}",
                accuracies(*pair),
            ],
        )
        fastest = [
            next(v["seconds"] for v in side["variants"] if v["variant"] == side["fastest"]) for side in sides
        ]
        times.setdefault(pair, {})[facts["batch"]] = (
            f"{' / '.join(map(milliseconds, fastest))} (**{fastest[1] / fastest[0]:.2f}**)"
        )
    batches = (1, 64)
    columns = (
        "network / what it replaces", "thousand parameters", "M multiply-adds", "test accuracy, %",
        *(f"ms at batch {b} (times as fast)" for b in batches),
    )  # fmt: skip
    return "\n\n".join(
        (
            f"Each in its fastest engine of globalcnn's own variants, ONNX Runtime (also with our kernels for the Global "
            f"layers) and OpenVINO, float32; accuracy where both "
            f"were trained by one recipe ([weights/](weights/README.md)). {hardware(content)}; "
            f"[all engines and batches](docs/measurements.md).",
            table(
                columns, [(*row, *(times[pair].get(b, "-") for b in batches)) for pair, row in rows.items()]
            ),
        )
    )


def evidence() -> str:
    """What the networks reached, and the Global layer beside a plain block in its place."""
    beside = [
        f"`{ours}` / `{plain}`: {found}" for ours, plain in PLAIN if (found := accuracies(ours, plain)) != "-"
    ]
    return "\n\n".join(
        (
            "**Test accuracy, %**, after the last epoch, of one seed where nothing else is said (in print the best of all epochs, "
            "300 for CIFAR); [recipes, hardware, weights](weights/README.md).",
            reached(),
            f"With a residual depthwise block in the place of the Global layer, by one recipe: {'; '.join(beside)}.",
            "Check it: `globalcnn verify --data-dir DIR` evaluates the weights that come with the library, `globalcnn bench "
            "--tables engines` measures the times; [results/](results/README.md) has every figure with the command "
            "that wrote it.",
        )
    )


def engines() -> str:
    """The networks beside their baselines, each in its fastest engine."""
    content = read("bench/engines/bench.json")
    found = content["tables"]["engines"]
    rows = []
    for cell in found["cells"]:
        sides = []
        for key in ("ours", "theirs"):
            times = {v["variant"]: v["seconds"] for v in cell[key]["variants"] if v["seconds"] is not None}
            fastest = cell[key]["fastest"]
            sides.append(f"{milliseconds(times[fastest])} ({SHOWN[fastest]})")
        times_fewer = f"{1 / cell['facts']['macs_ratio']:.2f}"
        pair = f"{cell['ours']['name']} / {cell['theirs']['name']}"
        rows.append((pair, cell["facts"]["batch"], *sides, f"**{1 / cell['ratio']:.2f}**", times_fewer))
    columns = ("networks", "batch", "ms", "ms of the baseline", "times as fast", "times fewer multiply-adds")
    return "\n\n".join(
        (
            f"**Inference, each network in its fastest engine** of globalcnn's own variants, ONNX Runtime (also with our "
            f"kernels for the Global layers) and OpenVINO; medians of the same rounds. {found['notes'][0]} {hardware(content)}; "
            f"{content['binding']}; results/bench/engines/.",
            table(columns, rows),
        )
    )


def chosen() -> str:
    """What `optimize_for_inference` chooses, beside the fastest engine alone."""
    content = read("bench/engines/bench.json")
    rows = []
    for cell in content["tables"]["engines"]["cells"]:
        for key in ("ours", "theirs"):
            times = {v["variant"]: v["seconds"] for v in cell[key]["variants"]}
            best, mine = times[cell[key]["fastest"]], times["chosen"]
            about = next(v["about"] for v in cell[key]["variants"] if v["variant"] == "chosen")
            engines = (milliseconds(times.get(name)) for name in SHOWN)
            ratio = "-" if mine is None else f"{mine / best:.2f}"
            name, batch = cell[key]["name"], cell["facts"]["batch"]
            rows.append((name, batch, *engines, milliseconds(mine), ratio, about))
    unique = list(dict.fromkeys(rows))
    return "\n\n".join(
        (
            f"**One network in every engine**, milliseconds, and what `optimize_for_inference` returned (its choice "
            f"beside the fastest engine alone; the same engine timed twice differs too). {hardware(content)}; "
            f"results/bench/engines/.",
            table(("network", "batch", *SHOWN.values(), "chosen", "chosen / fastest", "the choice"), unique),
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


def wheels() -> str:
    """The wheel with kernels in environments without a compiler."""
    rows, machines = [], set()
    for path in sorted((ROOT / "results" / "wheel").glob("*.json")):
        content = read(f"wheel/{path.name}")
        versions, times = content["environment"], content["milliseconds_median"]
        machines.add(hardware({"environment": {**versions, "torch": "as in the table"}}))
        rows.append((versions["python"], versions["torch"], content["native"], *times.values()))
    columns = ("Python", "torch", "kernels", *(f"{name}, ms" for name in times))
    return "\n\n".join(
        (
            f"**The wheel without a compiler**: one file, installed in environments of several versions; a "
            f"Global layer at K = 1 on 64 x 16 x 32 x 32, untrained, seed 0, medians of "
            f"{content['rounds']} rounds. {'; '.join(sorted(machines))}; results/wheel/.",
            table(columns, rows),
        )
    )


def rewrite() -> str:
    """The kernels before and after they were written anew."""
    content = read("bench/rewrite/before_after.json")
    names = {
        "layer, frozen": "layer with folded weights, forward",
        "layer": "plain layer, forward and forward + backward",
        "training": "training step of ResNet-Global",
        "control": "control: convolution, training step of ResNet-32",
    }
    rows = [(words, f"{content['means'][key]:.2f}") for key, words in names.items()]
    added = [
        1e3 * (cell["after"] - cell["before"])
        for cell in content["cells"]
        if cell["name"].startswith("layer:") and ", forward, " in cell["name"]
    ]
    rounds = min(cell["rounds"] for cell in content["cells"])
    return "\n\n".join(
        (
            f"**The CPU kernels before and after they were written anew**, in {rounds} rounds of one run: geometric "
            f"mean of the ratios of times, below 1 is faster. A plain layer checks at every call that nothing of it "
            f"was changed, hooked or overridden: its forward takes {statistics.median(added):.2f} ms more (median "
            f"over shapes; {min(added):.2f} to {max(added):.2f}). {hardware(content)}; {content['binding']}; seed "
            f"{content['seed']}; results/bench/rewrite/.",
            table(("what", "after / before"), rows),
        )
    )


def marked(*sections: str) -> str:
    """Sections between the markers that `put` finds."""
    return "\n\n".join((START, *sections, END))


def sections() -> dict[str, str]:
    """The section of each page, by its path."""
    return {
        "README.md": marked(pairs(), evidence()),
        "docs/measurements.md": marked(
            engines(), chosen(), beside_print(), backbones(), cifar(), speed(), demo(), rewrite(), wheels()
        ),
    }


def main() -> None:
    """Put the speed table into README.md, and every result into docs/measurements.md."""
    for page, section in sections().items():
        put(ROOT / page, section)


if __name__ == "__main__":
    main()
