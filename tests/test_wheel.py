"""The wheel with compiled kernels: installs into a folder that is later read-only, needs no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from globalcnn.ops import native
from globalcnn.ops.native import library
from globalcnn.ops.native.build import engine_library

ROOT = Path(__file__).parents[1]
ABSENT = native.load()

USE = """
import torch, globalcnn
from globalcnn.ops import BACKENDS
print(globalcnn.__file__)
print(BACKENDS["native"].unavailable())
assert globalcnn.create_model("resnet32_cifar", pretrained="cifar10").num_classes == 10
model = globalcnn.create_model("resnet_global_tiny_cifar", num_classes=10).eval()
with torch.no_grad():
    print(tuple(model(torch.zeros(1, 3, 32, 32)).shape))
"""


@pytest.mark.slow
@pytest.mark.skipif(ABSENT is not None, reason=f"native kernels: {ABSENT}")
def test_a_wheel_with_kernels_runs_without_a_compiler_in_a_read_only_folder(tmp_path):
    target = tmp_path / "kernels" / library.file_name()
    target.parent.mkdir()
    target.write_bytes(native.library_path().read_bytes())
    if library.damage(target, sealed=True) is not None:
        library.seal(target)
    for_engine = library.beside(target)
    shutil.copy(engine_library(), for_engine)
    environment = {**os.environ, "GLOBALCNN_WHEEL_LIBRARY": str(target)}
    source = tmp_path / "source"  # building leaves files next to the sources
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src" / "globalcnn", source / "src" / "globalcnn")
    shutil.copytree(ROOT / "weights", source / "weights")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)],
        env=environment,
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"globalcnn/ops/native/lib/{file.name}" for file in (target, for_engine)} <= set(names)
    assert {f"globalcnn/weights/{file.name}" for file in (ROOT / "weights").iterdir()} <= set(names)
    assert not any(name.startswith(("benchmarks/", "tests/")) for name in names)

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=300)
    for folder, _, files in os.walk(site, topdown=False):
        for name in files:
            (Path(folder) / name).chmod(0o444)
        Path(folder).chmod(0o555)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GLOBALCNN_")}
    done = subprocess.run(
        [sys.executable, "-c", USE],
        env={**clean, "PYTHONPATH": str(site), "PATH": "", "HOME": "/proc", "XDG_CACHE_HOME": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, reason, shape = done.stdout.split("\n")[:3]
    assert (reason, shape) == ("None", "(1, 10)")
    assert where.startswith(str(site))
    assert done.stderr == ""
