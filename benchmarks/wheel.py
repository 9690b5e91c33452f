"""Does the wheel with kernels install and run fast where there is no compiler?

    python -m benchmarks.wheel --python python3.12 --torch 2.10.0

Builds the wheel (as `make wheel` does), makes a fresh virtual environment of that Python, installs torch,
torchvision, timm and the wheel, and times there, with an empty PATH and a home folder that cannot be written, a
Global layer by the native kernels and by plain PyTorch beside a 3x3 convolution, in rounds. Writes
results/wheel/pythonX.Y-torchZ.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

PROBE = """
import json, statistics, sys, time
import torch, globalcnn
from torch import nn
from globalcnn.measure import environment
from globalcnn.ops import BACKENDS, PDE, eager, native

reason = BACKENDS["native"].unavailable()
x = torch.randn(64, 16, 32, 32, generator=torch.Generator().manual_seed(0))
layer = globalcnn.GlobalLayer(16, PDE(steps=1)).eval()
convolution = nn.Conv2d(16, 16, 3, padding=1, bias=False).eval()

def plainly(x):
    c = layer.fields(x, x)
    H = eager.solve(x, x, x, c.u, c.v, c.Dx, c.Dy, layer.pde)
    return layer.act(layer.norm(H))

calls = {"layer, native kernels": layer, "layer, plain PyTorch": plainly, "3x3 convolution": convolution}
times = {name: [] for name in calls}
with torch.no_grad():
    difference = (layer(x) - plainly(x)).abs().max().item()
    for _ in range(30):
        for name, call in calls.items():
            start = time.perf_counter()
            call(x)
            times[name].append(1e3 * (time.perf_counter() - start))
print(json.dumps({
    "native": reason or native.instruction_set(),
    "largest_difference": difference,
    "shape": [64, 16, 32, 32],
    "milliseconds_median": {name: round(statistics.median(t[3:]), 3) for name, t in times.items()},
    "rounds": 27,
    "seed": 0,
    "environment": environment(),
}))
"""


def main() -> None:
    """Build, install, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter of the fresh environment")
    parser.add_argument("--torch", default=None, help="version of torch; default the newest")
    parser.add_argument(
        "--environment", type=Path, help="an environment that is there, instead of a fresh one"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "wheel")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = _wheel(Path(folder))
        start = time.perf_counter()
        python = _environment(args, Path(folder)) / "bin" / "python"
        _pip(python, "install", "--no-deps", "--force-reinstall", str(wheel))
        facts: dict[str, Any] = {"wheel": wheel.name, "wheel_bytes": wheel.stat().st_size}
        if args.environment is None:
            facts["seconds_to_install"] = round(time.perf_counter() - start)
        facts |= _measured(python)
    versions = facts["environment"]
    minor = ".".join(versions["python"].split(".")[:2])
    target = args.out / f"python{minor}-torch{versions['torch'].split('+')[0]}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(
        f"{facts['wheel']}: native kernels: {facts['native']}, {facts['milliseconds_median']}; wrote {target}"
    )


def _pip(python: Path | str, *words: str, **environment: str) -> None:
    command = [str(python), "-m", "pip", "-q", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True, env={**os.environ, **environment})


def _wheel(folder: Path) -> Path:
    from globalcnn.ops import native
    from globalcnn.ops.native.build import build

    source = folder / "source"
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], check=True, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if name.startswith("src/") or name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    build()
    library = str(native.library_path())
    _pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source),
         GLOBALCNN_WHEEL_LIBRARY=library)  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def _environment(args: argparse.Namespace, folder: Path) -> Path:
    if args.environment is not None:
        return Path(args.environment)
    place = folder / "environment"
    subprocess.run([args.python, "-m", "venv", str(place)], check=True)
    torch = "torch" if args.torch is None else f"torch=={args.torch}"
    packages = ["accelerate", "safetensors", "tyro", "rich", "matplotlib"]
    _pip(place / "bin" / "python", "install", torch, "torchvision", "timm", *packages)
    return place


def _measured(python: Path) -> dict[str, Any]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GLOBALCNN_", "PYTHON"))}
    clean |= {"PATH": "", "HOME": "/proc", "XDG_CACHE_HOME": ""}
    done = subprocess.run(
        [str(python), "-c", PROBE], env=clean, cwd="/", check=True, capture_output=True, text=True
    )
    if done.stderr:
        print(done.stderr, file=sys.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
