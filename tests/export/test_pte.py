"""ExecuTorch's objects are never freed in an order that crashes."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("executorch")

CODE = """
import gc, sys, torch, globalcnn
from globalcnn.engines import exported_program
from globalcnn.export.pte import ExecuTorch, arena_of
from pathlib import Path
net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()).eval()
path, x = Path(sys.argv[1]), torch.randn(1, 1, 6, 6)
ExecuTorch().write(exported_program(net, x, dynamic=False), path, {})
for _ in range(20):
    loaded = ExecuTorch().load(path)
    assert torch.allclose(loaded.run(x)[0], net(x), atol=1e-6)
    cycle = [loaded]
    cycle.append(cycle)
    del loaded, cycle
    gc.collect()
last = [ExecuTorch().load(path)]
last.append(last)
assert arena_of(path.read_bytes()) > 0
print("done")
"""


def test_garbage_in_cycles_and_the_end_of_python(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "net.pte")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr[-2000:]
