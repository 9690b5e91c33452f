"""Writes the tables of docs/imagenet-cost.md from results/imagenet-cost/cost.json.

python -m benchmarks.imagenet_cost_page
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .pages import ROOT, number, put, table
from .pages import read as read_result

PAGE = ROOT / "docs" / "imagenet-cost.md"
START, END = "<!-- tables: written by python -m benchmarks.imagenet_cost_page -->", "<!-- end of tables -->"
KINDS = {
    "decode": "decode a JPEG",
    "crop": "decode, random resized crop, flip",
    "published": "the same with RandAugment and erasing, as in the published recipes",
}


def read() -> dict[str, Any]:
    """The computed costs, parsed."""
    return read_result("imagenet-cost/cost.json")


def span(low_high: Sequence[float]) -> str:
    """A range, or one number where both ends are the same."""
    low, high = map(number, low_high)
    return low if low == high else f"{low} to {high}"


def speeds(content: dict[str, Any]) -> str:
    """Training steps on the CPU: measured, and what they alone make of a whole training."""
    m, env = content["measured"], content["measured"]["environment"]
    rows = []
    for run in content["runs"]:
        s = m["training"][run["model"]]
        low, middle, high = (1e3 * s[key] for key in ("lower_quartile", "seconds_per_step", "upper_quartile"))
        rows.append(
            (
                run["model"],
                f"{content['counts'][run['model']]['macs']:,}",
                f"{number(middle)} ({number(low)} to {number(high)})",
                number(s["images_per_second"]),
                number(run["flops_per_second_on_the_measured_cpu"] / 1e9),
                f"{run['epochs']}",
                f"{run['days_on_the_measured_cpu']:,.0f}",
            )
        )
    head = (
        "network",
        "multiply-adds, one image",
        "ms per step, median (quartiles)",
        "images/s",
        "GFLOP/s",
        "epochs",
        "days for all epochs on this machine",
    )
    return "\n\n".join(
        (
            "### Measured: training steps on a CPU",
            f"{m['device']}, {env['simd']}, {env['threads']} thread(s), torch {env['torch']}; batches of "
            f"{m['batch_size']} at {m['image_size']} x {m['image_size']}, float32, PDE operator {m['backend']}, "
            f"{next(iter(m['training'].values()))['steps']} rounds of one step of each network, seed {m['seed']}. "
            + m["note"],
            table(head, rows),
            f"Images/s of each Global network in those of its baseline: {', '.join(against_baselines(content))}. If "
            "that is so on a GPU too, a Global network takes the hours of its baseline divided by this.",
        )
    )


def against_baselines(content: dict[str, Any]) -> list[str]:
    """Measured speed of each Global network divided by that of the network after it, its baseline."""
    models = [run["model"] for run in content["runs"]]
    speed = {m: content["measured"]["training"][m]["images_per_second"] for m in models}
    return [
        f"{ours} {speed[ours] / speed[theirs]:.2f}"
        for ours, theirs in zip(models[::2], models[1::2], strict=True)
    ]


def loading(content: dict[str, Any]) -> str:
    """Measured loading on one core."""
    found = content["measured"]["loading"]
    rows = [(KINDS[k], number(v)) for k, v in found["images_per_second_per_core"].items()]
    return "\n\n".join(
        (
            "### Measured: loading on one core",
            f"From memory: {found['pictures']}, {found['mean_bytes'] / 1e3:.0f} KB on average.",
            table(("work", "images/s on one core"), rows),
        )
    )


def assumed(content: dict[str, Any]) -> str:
    """The substitute for a GPU, and measurements of others."""
    a = content["assumed"]
    low, high = (100 * u for u in a["utilisation"])
    rows = [
        ("peak of one GPU", f"{number(a['peak_flops'] / 1e12)} TFLOP/s", f"{a['gpu']}; {a['peak_source']}"),
        ("share of the peak that is reached", f"{number(low)} to {number(high)} %", a["utilisation_why"]),
        *(
            (f"efficiency on {n} GPUs", span(a["scaling"][n]), a["scaling_why"] if n == "8" else "the same")
            for n in a["scaling"]
        ),
        ("CPU cores for each GPU", span(a["cores_per_gpu"]), "usual servers"),
        ("GPUs in a node", a["gpus_per_node"], ""),
    ]
    others = [
        (e["gpu"], e["model"], number(e["images_per_second"]), f"{100 * e['utilisation']:.1f} %", e["source"])
        for e in content["elsewhere"]
    ]
    return "\n\n".join(
        (
            "### Assumed",
            table(("what", "value", "why"), rows),
            "Measured by others, training in mixed precision on one GPU; the share of the peak is computed here:",
            table(("GPU", "network", "images/s", "share of its peak", "source"), others),
            f"Efficiencies: {a['scaling_source']}. {a['compare']}",
        )
    )


def costs(content: dict[str, Any]) -> str:
    """Hours and GPU-hours, and what the loading must deliver."""
    gpu = content["measured_gpu"]
    basis = (
        "the assumed peak and share" if gpu is None else f"the measured speed of {gpu['device']}, one process"
    )
    parts = [f"### Computed: a whole training, from {basis}"]
    for n in ("8", "64"):
        rows = []
        for run in content["runs"]:
            g = run["gpus"][n]
            columns = ("compute_hours", "loading_hours", "hours", "gpu_hours")
            rows.append((run["model"], run["epochs"], *(span(g[column]) for column in columns)))
        head = ("network", "epochs", "hours to compute", "hours to load", "hours, the longer", "GPU-hours")
        parts += [f"**{n} GPUs**", table(head, rows)]
    rows = [
        (
            run["model"],
            span(run["images_per_second_and_gpu"]),
            span(run["gpus"]["8"]["images_per_second_and_node"]),
            span(run["gpus"]["8"]["cores_per_gpu_to_keep_up"]),
        )
        for run in content["runs"]
    ]
    what = ("network", "images/s on one GPU", "images/s of a node of 8", "cores per GPU that load as fast")
    return "\n\n".join(
        (*parts, "**What loading must deliver**, so that the GPUs of one node do not wait", table(what, rows))
    )


def section(content: dict[str, Any]) -> str:
    """All tables, markers included."""
    return "\n\n".join((START, speeds(content), loading(content), assumed(content), costs(content), END))


def main() -> None:
    """Put the tables into the page, between its markers."""
    put(PAGE, section(read()))


if __name__ == "__main__":
    main()
