"""What a full ImageNet training costs, computed from measured speeds, counts, and stated assumptions.

    python -m benchmarks.imagenet_speed         # measures this machine -> results/imagenet-cost/speed.json
    python -m benchmarks.imagenet_cost          # -> results/imagenet-cost/cost.json
    python -m benchmarks.imagenet_cost_page     # -> the tables of docs/imagenet-cost.md

With the speed of a GPU (`imagenet_speed.py --device cuda ...`) in the place of the assumed one:

    python -m benchmarks.imagenet_cost --measured gpu.json --out cost-gpu.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from globalcnn import create_model
from globalcnn.errors import UserError
from globalcnn.files import read_json, write_json
from globalcnn.measure import count

FOLDER = Path(__file__).resolve().parent.parent / "results" / "imagenet-cost"
SIDE = 224
IMAGES = 1_281_167  # in the training set

# (Global network, its baseline, epochs of the published recipe); the baseline is given the same epochs
RUNS = (
    ("efficientnet_b0_global", "efficientnet_b0", 450),
    ("mobilenetv3_global", "mobilenetv3_large_100", 600),
    ("mobilenetv2_global", "mobilenetv2_100", 200),
)
MODELS = tuple(model for *pair, _ in RUNS for model in pair)

# Measured by others: training in mixed precision at 224 x 224, images per second on one GPU.
_NVIDIA = "NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets/efficientnet/README.md"
_TIMM = "timm, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv"
ELSEWHERE: tuple[dict[str, Any], ...] = (
    {"gpu": "A100 80GB", "peak_flops": 312e12, "model": "efficientnet_b0", "images_per_second": 2489, "source": _NVIDIA},
    {"gpu": "RTX 3090", "peak_flops": 71e12, "model": "efficientnet_b0", "images_per_second": 1751.72, "source": _TIMM},
    {"gpu": "RTX 3090", "peak_flops": 71e12, "model": "mobilenetv3_large_100", "images_per_second": 2732.43, "source": _TIMM},
    {"gpu": "RTX 3090", "peak_flops": 71e12, "model": "mobilenetv2_100", "images_per_second": 2313.1, "source": _TIMM},
)  # fmt: skip

ASSUMED: dict[str, Any] = {
    "gpu": "NVIDIA H100 SXM",
    "peak_flops": 989e12,
    "peak_source": "data sheet: dense bf16, without sparsity",
    "utilisation": [0.005, 0.05],
    "utilisation_why": "depthwise convolutions and the PDE solve wait for memory, not for arithmetic: others "
    "measured 2 to 6 % of the peak of GPUs with less arithmetic for each byte of memory traffic",
    "forward_and_backward": 3,
    "flops_per_multiply_add": 2,
    "scaling": {"8": [0.83, 0.97], "64": [0.5, 0.89]},
    "scaling_why": "others measured 6.68 of 8 (EfficientNet-B0) to 7.75 of 8 (B4), 11.78 of 16 (B0), 57.0 of 64 (B4)",
    "scaling_source": _NVIDIA,
    "compare": "By the same source 400 epochs of EfficientNet-B0 on 8 A100 took 11 hours in mixed precision.",
    "gpus_per_node": 8,
    "cores_per_gpu": [8, 24],
    "loading": "published",
}


def cost(measured: dict[str, Any], gpu: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `cost` writes: inputs, and every run computed from them.

    measured: speeds of a CPU as imagenet_speed.py writes them; gpu: those of a GPU, which then replace those
    computed from the assumed peak and utilisation. Ranges are [low, high].
    """
    counts = {name: _counts(name) for name in MODELS}
    return {
        "seed": measured["seed"],
        "environment": measured["environment"],
        "note": measured["note"],
        "images": IMAGES,
        "measured": measured,
        "measured_gpu": gpu,
        "assumed": ASSUMED,
        "elsewhere": [
            {**e, "utilisation": e["images_per_second"] * _flops(counts[e["model"]]) / e["peak_flops"]}
            for e in ELSEWHERE
        ],
        "counts": counts,
        "runs": [
            _run(model, epochs, counts[model], measured, gpu) for *pair, epochs in RUNS for model in pair
        ],
    }


def _counts(name: str) -> dict[str, int]:
    c = count(create_model(name), (3, SIDE, SIDE))
    return {"params": c.params, "macs": c.macs}


def _flops(counts: dict[str, int]) -> float:
    """Floating-point operations of forward and backward for one image."""
    return float(ASSUMED["forward_and_backward"] * ASSUMED["flops_per_multiply_add"] * counts["macs"])


def _run(
    model: str,
    epochs: int,
    counts: dict[str, int],
    measured: dict[str, Any],
    gpu: dict[str, Any] | None,
) -> dict[str, Any]:
    images, flops = epochs * IMAGES, _flops(counts)
    here = measured["training"][model]["images_per_second"]
    if gpu is None:
        rates = [ASSUMED["peak_flops"] * u / flops for u in ASSUMED["utilisation"]]
    else:
        rates = [gpu["training"][model]["images_per_second"]] * 2
    loading = (gpu and gpu["loading"]) or measured["loading"]
    core = loading["images_per_second_per_core"][ASSUMED["loading"]]
    return {
        "model": model,
        "epochs": epochs,
        "images": images,
        "flops_per_image": flops,
        "days_on_the_measured_cpu": images / here / 86400,
        "flops_per_second_on_the_measured_cpu": here * flops,
        "images_per_second_and_gpu": rates,
        "gpus": {str(n): _on(n, images, rates, core) for n in (8, 64)},
    }


def _on(gpus: int, images: int, rates: list[float], core: float) -> dict[str, list[float]]:
    """Hours of `images` on so many GPUs, each [low, high]; core: images per second that one core loads."""
    scaling, cores = ASSUMED["scaling"][str(gpus)], ASSUMED["cores_per_gpu"]
    speeds = [gpus * rate * share for rate, share in zip(rates, scaling, strict=True)]
    loads = [gpus * c * core for c in cores]
    compute = [images / speed / 3600 for speed in reversed(speeds)]
    loading = [images / load / 3600 for load in reversed(loads)]
    hours = [max(pair) for pair in zip(compute, loading, strict=True)]
    nodes = gpus / ASSUMED["gpus_per_node"]
    return {
        "compute_hours": compute,
        "loading_hours": loading,
        "hours": hours,
        "gpu_hours": [gpus * h for h in hours],
        "images_per_second_and_node": [speed / nodes for speed in speeds],
        "cores_per_gpu_to_keep_up": [speed / gpus / core for speed in speeds],
    }


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--here", type=Path, default=FOLDER / "speed.json", help="speeds of a CPU")
    parser.add_argument("--measured", type=Path, help="speeds of a GPU, written by imagenet_speed.py there")
    parser.add_argument("--out", type=Path, default=FOLDER / "cost.json")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Compute and write; the exit status."""
    args = arguments(words)
    try:
        gpu = None if args.measured is None else read_json(args.measured)
        if gpu is not None and gpu.get("device_type", "cpu") == "cpu":
            raise UserError(f"--measured {str(args.measured)!r} holds the speeds of a CPU; measure on a GPU")
        write_json(args.out, cost(read_json(args.here), gpu))
    except UserError as error:
        print(f"imagenet_cost: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
