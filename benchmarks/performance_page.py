"""Writes the tables of docs/performance.md from the files under results/bench/: python -m benchmarks.performance_page"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .pages import ROOT, milliseconds, put
from .pages import hardware as machine
from .pages import read as read_result
from .pages import table as markdown_table

PAGE = ROOT / "docs" / "performance.md"
START, END = "<!-- tables: written by python -m benchmarks.performance_page -->", "<!-- end of tables -->"
ROOFLINE = ("bytes", "arithmetic", "call")


def read(name: str) -> dict[str, Any]:
    """One result of results/bench/, parsed."""
    return read_result(f"bench/{name}")


def hardware(content: dict[str, Any]) -> str:
    """The versions and class of hardware as a phrase, and the seed."""
    return machine(content) + ("" if content["seed"] is None else f", seed {content['seed']}")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table in Markdown, an empty one after it."""
    return [*markdown_table(columns, rows).splitlines(), ""]


def fastest(side: dict[str, Any]) -> float | None:
    """Seconds of the side's fastest variant."""
    return next((f["seconds"] for f in side["variants"] if f["variant"] == side["fastest"]), None)


def variant(side: dict[str, Any], name: str) -> float | None:
    """Seconds of a variant."""
    return next((f["seconds"] for f in side["variants"] if f["variant"] == name), None)


def rounds(cell: dict[str, Any]) -> int:
    """How often the variants of a cell were timed."""
    timed = [v for side in ("ours", "theirs") for v in cell[side]["variants"] if v["seconds"] is not None]
    return min(int(v["rounds"]) for v in timed)


def cells(content: dict[str, Any], word: str) -> list[dict[str, Any]]:
    """The cells of a table that could be measured; none where the table was not run."""
    return [c for c in content["tables"].get(word, {}).get("cells", []) if c["ratio"] is not None]


def layer_cell(content: dict[str, Any], shape: list[int], steps: int, training: bool) -> dict[str, Any]:
    """A cell of the table `layer`."""
    wanted = {"shape": shape, "steps": steps, "training": training}
    return next(c for c in cells(content, "layer") if c["facts"] == wanted)


def shapes(content: dict[str, Any]) -> list[list[int]]:
    """Those of the table `layer`."""
    found: list[list[int]] = []
    for cell in cells(content, "layer"):
        if cell["facts"]["shape"] not in found:
            found.append(cell["facts"]["shape"])
    return found


def targets(content: dict[str, Any], compared: dict[str, Any]) -> list[str]:
    """The targets next to the measurements, and how many are missed."""
    rows: list[tuple[object, ...]] = []
    for shape in shapes(content)[:3]:
        one, five = (layer_cell(content, shape, steps, False) for steps in (1, 5))
        name = "x".join(map(str, shape))
        rows.append(
            (f"layer / 3x3 convolution, {name}, K 1", "<= 0.50 (stretch 0.35)", f"{one['ratio']:.2f}")
        )
        # measured in the same rounds
        alone = [
            f["seconds"]
            for f in five["ours"]["variants"]
            if f["variant"].startswith("K = 1") and f["seconds"]
        ]
        growth = fastest(five["ours"]) / min(alone)
        rows.append((f"layer, K 5 / K 1, {name}", "<= 1.5", f"{growth:.2f}"))
    for cell in cells(compared, "networks"):
        if cell["name"].startswith("resnet_global_cifar"):
            batch = cell["facts"]["batch"]
            name = f"ResNet-32 / ResNet-Global, batch {batch} ({rounds(cell)} rounds)"
            rows.append((name, ">= 3.5 (stretch 4)", f"{1 / cell['ratio']:.2f}"))
    for cell in cells(content, "training"):
        name = f"training step, ResNet-32 / ResNet-Global, batch {cell['facts']['batch']} ({rounds(cell)} rounds)"
        rows.append((name, ">= 3", f"{1 / cell['ratio']:.2f}"))
    kept = {r["steps"]: r["kept"] for r in content["tables"]["memory"]["rows"] if r["backend"] == "automatic"}
    rows.append(("memory kept for the backward, K 10 / K 1", "1", f"{kept[10] / kept[1]:.2f}"))
    return table(("ratio of times", "target", "measured"), rows)


def roofline(content: dict[str, Any]) -> list[str]:
    """The layer next to its roofline, the bound on its speed."""
    rows = []
    for shape in shapes(content):
        for steps in (1, 5):
            cell = layer_cell(content, shape, steps, False)
            bounds = [milliseconds(variant(cell["ours"], f"roofline: {word}")) for word in ROOFLINE]
            rows.append(
                (
                    "x".join(map(str, shape)),
                    steps,
                    f"{milliseconds(fastest(cell['ours']))} ({cell['ours']['fastest']})",
                    *bounds,
                    milliseconds(fastest(cell["theirs"])),
                    f"{cell['ratio']:.2f}",
                    f"{layer_cell(content, shape, steps, True)['ratio']:.2f}",
                )
            )
    columns = ("shape", "K", "layer, ms", *ROOFLINE, "convolution, ms", "ratio", "ratio, forward + backward")
    return table(columns, rows)


def phases(content: dict[str, Any]) -> list[str]:
    """Where the kernel's time goes."""
    names = list(content["rows"][0]["phases"])
    rows = [
        (
            "x".join(map(str, r["shape"])),
            r["steps"],
            r["format"],
            *(f"{r['phases'][name]:.1f}" for name in names),
            f"{r['all']:.1f}",
            f"{r['arithmetic']:.1f}",
        )
        for r in content["rows"]
    ]
    return table(("shape", "K", "memory", *names, "whole call", "roofline: arithmetic"), rows)


def steps(content: dict[str, Any]) -> list[str]:
    """The loops alone, on planes that stay in the caches."""
    names = ("convolutions", "only", "first", "again", "memory", "halo", "two_rows", "prepare", "from_planes")
    heads: tuple[str, ...] = (
        "the only step, K 1",
        "the first of several",
        "a further one",
        "its memory alone",
        "halo",
    )
    heads += ("K 1, two rows at once", "coefficients in a pass", "a step from planes")
    rows = [
        (f"{r['side']} x {r['side']}", f"{r['bytes'] / 1024:.0f}", *(f"{r[name]:.2f}" for name in names))
        for r in content["rows"]
    ]
    return table(("map", "KiB of a plane", "convolutions", *heads), rows)


def least_growth(alone: dict[str, Any], kernel: dict[str, Any]) -> list[str]:
    """K 5 / K 1 if a further step took no longer than its reading and writing."""
    rows = []
    for shape in shapes_of(kernel)[:3]:
        call = {
            r["steps"]: r["all"]
            for r in kernel["rows"]
            if r["shape"] == shape and r["format"] == "channels-last"
        }
        r = next(r for r in alone["rows"] if r["side"] == shape[2])
        bound = call[1] + r["first"] - r["only"] + 4 * r["memory"]
        rows.append(("x".join(map(str, shape)), f"{call[5] / call[1]:.2f}", f"{bound / call[1]:.2f}"))
    return table(("shape", "K 5 / K 1, whole calls", "if each further step took its memory alone"), rows)


def spent(content: dict[str, Any]) -> list[str]:
    """Where the networks' time goes."""
    parts = ("call", "primitives", "layers", "rest", "arithmetic")
    rows: list[tuple[object, ...]] = []
    for batch in dict.fromkeys(r["batch"] for r in content["rows"]):
        # in the order that they are measured
        theirs, ours = (r for r in content["rows"] if r["batch"] == batch)
        for r in (theirs, ours):
            rows.append((r["network"], batch, *(milliseconds(r[part]) for part in parts)))
        busy = [sum(r[part] for part in ("primitives", "layers")) for r in (theirs, ours)]
        call, product = (f"{theirs[part] / ours[part]:.2f}" for part in ("call", "arithmetic"))
        rows.append(("**ratio**", batch, call, f"{busy[0] / busy[1]:.2f}", "with those", "-", product))
    heads = ("a call", "in oneDNN", "in Global layers", "the rest", "roofline: arithmetic")
    return table(("network", "batch", *heads), rows)


def variants(content: dict[str, Any]) -> list[str]:
    """Other builds of the kernels: the phases of the layer at K 1."""
    rows = []
    for name, measured in {"as built": content["rows"], **content["variants"]}.items():
        for r in measured:
            if r["steps"] == 1 and r["shape"] in shapes_of(content)[:3]:
                p = r["phases"]
                spent = (p["convolutions"], p["steps"], sum(p.values()))
                rows.append(("x".join(map(str, r["shape"])), r["format"], name, *(f"{x:.1f}" for x in spent)))
    rows.sort(key=lambda row: (row[0] != "64x16x32x32", row[0] != "64x32x16x16", row[1] == "channels-last"))
    return table(("shape", "memory", "build", "convolutions", "steps", "all phases"), rows)


def shapes_of(content: dict[str, Any]) -> list[list[int]]:
    """Those of the phases."""
    return [
        r["shape"]
        for i, r in enumerate(content["rows"])
        if r["shape"] not in [s["shape"] for s in content["rows"][:i]]
    ]


def networks(content: dict[str, Any], word: str) -> list[str]:
    """Networks, each side at its fastest variant."""
    rows = [
        (
            c["name"],
            *(f"{milliseconds(fastest(c[side]))} ({c[side]['fastest']})" for side in ("ours", "theirs")),
            f"{1 / c['ratio']:.2f}",
            f"{1 / c['facts']['macs_ratio']:.2f}",
            rounds(c),
        )
        for c in cells(content, word)
    ]
    if not rows:
        return ["Not measured.", ""]
    columns = ("networks", "ours, ms", "theirs, ms", "times as fast", "times fewer multiply-adds", "rounds")
    return table(columns, rows)


def about(name: str, content: dict[str, Any]) -> str:
    """What a file of results is of."""
    settings = content["settings"]
    return (
        f"- `results/bench/{name}/bench.json`: {hardware(content)}; medians, at most {settings['rounds']} rounds or "
        f"{settings['seconds']:g} s a cell"
    )


def of_the_kernel(kernel: dict[str, Any], alone: dict[str, Any]) -> list[str]:
    """Measurements inside the kernel."""
    return [
        "## Where the kernel's time goes",
        "",
        f"`results/bench/phases.json`: {hardware(kernel)}; nanoseconds per vector of {kernel['lanes']} elements, the",
        f"least of {kernel['runs']} runs.",
        "",
        *phases(kernel),
        "## The loops alone",
        "",
        f"`results/bench/step.json`: {hardware(alone)}, of which one is used; nanoseconds per vector of",
        f"{alone['lanes']} elements on planes that stay in the caches. *Its memory alone*: a loop that reads and writes what a",
        "further step does, and computes next to nothing. The last three are what was tried instead: the only step two rows at",
        "a time; and the coefficients in six planes of their own, filled by a pass before the first step.",
        "",
        *steps(alone),
        "So much longer than one step five take, one thread, channels-last (calls from `phases.json`):",
        "",
        *least_growth(alone, kernel),
        "## Other builds",
        "",
        "The same at K 1, from kernels built with other choices.",
        "",
        *variants(kernel),
    ]


def of_networks(compared: dict[str, Any], apart: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Networks against networks."""
    return [
        "## Networks",
        "",
        "Each side at its fastest of eager, channels-last, compiled and optimised (`optimize_for_inference`).",
        "",
        *networks(compared, "networks"),
        "## Where the networks' time goes",
        "",
        f"`results/bench/network_phases.json`: {hardware(apart)}; milliseconds. Both networks in one variant: norms folded,",
        "Global layers fused, channels-last, compiled; the least of the medians of three processes.",
        "",
        *spent(apart),
        "## Other networks",
        "",
        "Not measured again since the kernels and the compiled variant became faster; some ratios are from one or two rounds.",
        "At 224 x 224:",
        "",
        *networks(others, "imagenet"),
        "Against implicit networks:",
        "",
        *networks(others, "solvers"),
    ]


def section() -> str:
    """The tables."""
    bench, compared, others = (read(f"{name}/bench.json") for name in ("layer", "networks", "others"))
    lines = [
        START,
        "",
        *(
            about(name, content)
            for name, content in (("layer", bench), ("networks", compared), ("others", others))
        ),
        "",
        *targets(bench, compared),
        "## The layer and its roofline",
        "",
        "Milliseconds of a forward; the roofline is measured in the same run: a copy of the map (bytes), a matrix",
        "product of as many multiply-adds (arithmetic), the layer on a map of one pixel (call).",
        "",
        *roofline(bench),
        *of_the_kernel(read("phases.json"), read("step.json")),
        *of_networks(compared, read("network_phases.json"), others),
        END,
    ]
    return "\n".join(lines)


def main() -> None:
    """Put the tables into the page."""
    put(PAGE, section())


if __name__ == "__main__":
    main()
