"""What a runtime leaves behind in the process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

CODE = """
import faulthandler, gc, os, signal, sys, torch
from torch import nn
from globalcnn.engines import RUNTIMES, exported_program
from globalcnn.engines.onnx_file import onnx_proto
faulthandler.enable()  # gives the thread a stack for signals, as test runners and servers do
calls = []
signal.signal(signal.SIGUSR1, lambda *_: calls.append(1))
net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
content = onnx_proto(exported_program(net, x, dynamic=False)).SerializeToString()
sessions = [RUNTIMES[sys.argv[1]].load(content, threads=1) for _ in range(3)]
while sessions:
    sessions[0].run(x)
    del sessions[0]  # the oldest first
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(calls))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there are no such signals here")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_signals_arrive_after_sessions_are_freed(name):
    pytest.importorskip(name)
    done = subprocess.run([sys.executable, "-c", CODE, name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr[-2000:]
