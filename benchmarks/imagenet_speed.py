"""Measures how fast the ImageNet networks train on this machine, and how fast one core loads images.

    python -m benchmarks.imagenet_speed                     # -> results/imagenet-cost/speed.json
    python -m benchmarks.imagenet_speed --device cuda --batch-size 128 --precision bf16 --channels-last \\
        --steps 30 --out gpu.json                           # where there is a GPU

`imagenet_cost.py` computes from these files what whole trainings cost.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.transforms_factory import create_transform
from timm.optim import create_optimizer_v2

from globalcnn import create_model
from globalcnn.errors import UserError
from globalcnn.files import write_json
from globalcnn.measure.environment import environment
from globalcnn.ops import PDE
from globalcnn.ops.dispatch import automatic

OUT = Path(__file__).resolve().parent.parent / "results" / "imagenet-cost" / "speed.json"
SEED = 0
SIDE = 224
MODELS = (
    "efficientnet_b0_global",
    "efficientnet_b0",
    "mobilenetv3_global",
    "mobilenetv3_large_100",
    "mobilenetv2_global",
    "mobilenetv2_100",
)
OTHER_WORK = "Other work may have run on the machine; the quartiles show how steady the speeds were."


def training_speeds(
    models: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    steps: int,
    warmup: int,
    precision: str = "no",
    channels_last: bool = False,
    compiled: bool = False,
    side: int = SIDE,
) -> dict[str, dict[str, float]]:
    """Speed of whole optimiser steps on images that are already on the device, by model.

    Every round makes one step of each, so that a slow phase of the machine falls on all.
    """
    torch.manual_seed(SEED)
    step = {
        name: _stepper(name, device, batch_size, precision, channels_last, compiled, side) for name in models
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for i in range(-warmup, steps):
        for name in models:
            start = time.perf_counter()
            step[name]()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: _summary(spent, batch_size) for name, spent in seconds.items()}


def _stepper(
    name: str,
    device: torch.device,
    batch_size: int,
    precision: str,
    channels_last: bool,
    compiled: bool,
    side: int,
) -> Callable[[], None]:
    """A function that makes one step: forward, backward and update as in the published recipes."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = create_model(name).to(device).to(memory_format=memory_format).train()
    x = torch.randn(batch_size, 3, side, side, device=device).to(memory_format=memory_format)
    y = torch.randint(1000, (batch_size,), device=device)
    optimizer = create_optimizer_v2(
        model, opt="rmsproptf", lr=1e-3, momentum=0.9, eps=1e-3, weight_decay=1e-5
    )
    if compiled:
        model.compile()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            logits = model(x)
        F.cross_entropy(logits.float(), y, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _summary(seconds: list[float], batch_size: int) -> dict[str, float]:
    lower, median, upper = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {
        "images_per_second": batch_size / median,
        "seconds_per_step": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
        "steps": len(seconds),
    }


def loading_speeds(*, seconds: float) -> dict[str, Any]:
    """Images per second that one core decodes and transforms, from two photographs as large as ImageNet's."""
    files = photographs()
    cropped = create_transform((3, SIDE, SIDE), is_training=True, color_jitter=0.0)
    published = create_transform(
        (3, SIDE, SIDE), is_training=True, color_jitter=0.0, auto_augment="rand-m9-mstd0.5", re_prob=0.2
    )
    transforms = {"decode": lambda picture: picture, "crop": cropped, "published": published}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    try:
        speeds = {name: _images_per_second(files, t, seconds) for name, t in transforms.items()}
    finally:
        torch.set_num_threads(threads)
    return {
        "pictures": "the two photographs of scikit-learn, longer side 500 pixels, JPEG quality 98",
        "mean_bytes": sum(map(len, files)) / len(files),
        "images_per_second_per_core": speeds,
    }


def photographs() -> list[bytes]:
    """JPEG files of about the size of ImageNet's (its mean is about 110 KB)."""
    from PIL import Image

    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise UserError(
            'the two photographs come from scikit-learn: pip install "globalcnn[demo]"'
        ) from error
    files = []
    for pixels in load_sample_images().images:
        picture = Image.fromarray(pixels)
        picture.thumbnail((500, 500))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=98)
        files.append(file.getvalue())
    return files


def _images_per_second(files: list[bytes], transform: Callable[[Any], Any], seconds: float) -> float:
    from PIL import Image

    done, start = 0, 0.0
    for i in range(10**9):
        if i == 10:  # the first ones warm up
            start = time.perf_counter()
        with Image.open(io.BytesIO(files[i % len(files)])) as image:
            transform(image.convert("RGB"))
        done += i >= 10
        if done and time.perf_counter() - start >= seconds:
            break
    return done / (time.perf_counter() - start)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All that the command writes."""
    device = torch.device(args.device)
    training = training_speeds(
        MODELS,
        device=device,
        batch_size=args.batch_size,
        steps=args.steps,
        warmup=args.warmup,
        precision=args.precision,
        channels_last=args.channels_last,
        compiled=args.compile,
    )
    env = environment()
    return {
        "seed": SEED,
        "environment": env,
        "note": OTHER_WORK,
        "device": env["cpu"] if device.type == "cpu" else env["gpu"],
        "device_type": device.type,
        "batch_size": args.batch_size,
        "image_size": SIDE,
        "precision": args.precision,
        "channels_last": args.channels_last,
        "compile": args.compile,
        "backend": automatic(torch.zeros(1, 1, 8, 8, device=device), PDE()).name,
        "training": training,
        "loading": loading_speeds(seconds=args.loading_seconds) if args.loading_seconds else None,
    }


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each network")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them that are not timed")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--loading-seconds", type=float, default=5.0, help="for each kind of loading; 0: none"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write; the exit status."""
    args = arguments(words)
    try:
        write_json(args.out, measured(args))
    except UserError as error:
        print(f"imagenet_speed: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
