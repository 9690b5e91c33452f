"""Which tiny networks fit small devices: weights, peak of the activations, multiply-adds; one run as a check.

    python -m benchmarks.small_devices

Writes results/small-devices/sizes.json and the tables of docs/small-devices.md. Activations are counted by
liveness in the exported program, norms folded. Beside them stands the memory that ExecuTorch plans for the
same program with its portable operators, which is what its runtime allocates on a device; each such file is
run here and compared with PyTorch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from globalcnn import create_model
from globalcnn.engines import exported_program
from globalcnn.engines.liveness import memory_of
from globalcnn.errors import UserError
from globalcnn.export.pte import ExecuTorch, arena_of
from globalcnn.files import write_json
from globalcnn.measure import count
from globalcnn.measure.agreement import compare_outputs
from globalcnn.models import model_info

from . import machine
from .pages import RESULTS, ROOT, put, read, table

FILE, PAGE = "small-devices/sizes.json", ROOT / "docs" / "small-devices.md"
START = "<!-- tables: written by python -m benchmarks.small_devices -->"
END = "<!-- end of tables -->"
NETWORKS = (
    "resnet_tiny_cifar",
    "resnet_depthwise_tiny_cifar",
    "resnet_global_tiny_cifar",
    "resnet_sweeps_tiny_cifar",
    "resnet32_cifar",
    "resnet_depthwise_cifar",
    "resnet_global_cifar",
    "global_mnist",
    "resnet_mnist",
    "digits_global",
)
LIMITS = {"256 KB": 256 * 1024, "1 MB": 1024 * 1024}
KINDS = {"float32": 1.0, "int8": 0.25}


def measured(name: str) -> dict[str, Any]:
    """What the file tells of one network."""
    torch.manual_seed(0)
    model, size = create_model(name).eval(), model_info(name).input_size
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    program = exported_program(model, x, dynamic=False)
    memory, cost = memory_of(program), count(model, size)
    target = ExecuTorch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pte"
        target.write(program, path, {}, backend=False)
        content = path.read_bytes()
        with torch.no_grad():
            agreement = compare_outputs(target.load(path).run(x)[0], model(x))
        if not agreement:
            raise UserError(f"{name} in ExecuTorch: {agreement.disagreement}")
    return {
        "input": list(size),
        "parameters": cost.params,
        "macs": cost.macs,
        "weight_bytes": memory.weights,
        "activation_bytes": memory.activations,
        "peak_at": memory.at,
        "executorch_file_bytes": len(content),
        "executorch_planned_bytes": arena_of(content),
        "executorch_deviation": agreement.deviation,
    }


def fits(found: dict[str, Any]) -> dict[str, list[str]]:
    """For each limit of memory: in which numbers the activations alone fit, and with the weights.

    >>> fits({"weight_bytes": 900_000, "activation_bytes": 400_000})["1 MB"]
    ['float32 (weights in flash)', 'int8']
    """
    cells: dict[str, list[str]] = {}
    for limit, most in LIMITS.items():
        cells[limit] = []
        for kind, share in KINDS.items():
            if share * (found["weight_bytes"] + found["activation_bytes"]) <= most:
                cells[limit].append(kind)
            elif share * found["activation_bytes"] <= most:
                cells[limit].append(f"{kind} (weights in flash)")
    return cells


def section(content: dict[str, Any]) -> str:
    """The text between the markers."""
    rows = []
    for name, found in content["networks"].items():
        cells = [", ".join(words) or "no" for words in fits(found).values()]
        figures = (f"{found[k] / 1024:,.0f}" for k in _BYTES)
        rows.append((f"`{name}`", f"{found['macs'] / 1e6:.2f}", *figures, *cells))
    e = content["environment"]
    about = f"Norms folded, batch 1, untrained weights of seed 0. torch {e['torch']}, executorch {content['executorch']}."
    heads = ("network", "M multiply-adds", "weights, KB", "activations, KB", "planned by ExecuTorch, KB")
    return "\n".join([START, "", about, "", table((*heads, *(f"in {n}" for n in LIMITS)), rows), "", END])


_BYTES = ("weight_bytes", "activation_bytes", "executorch_planned_bytes")


def main() -> None:
    """Measure, write the file and the page."""
    from importlib import metadata

    networks = {}
    for name in NETWORKS:
        print(name, flush=True)
        networks[name] = measured(name)
    content = {
        "executorch": metadata.version("executorch"),
        **machine.facts(seed=0),
        "networks": networks,
    }
    write_json(RESULTS / FILE, content)
    put(PAGE, section(read(FILE)))
    print(f"wrote {RESULTS / FILE} and {PAGE}")


if __name__ == "__main__":
    main()
