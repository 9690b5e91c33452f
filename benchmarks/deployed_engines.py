"""Networks at inference in several engines: globalcnn's fastest variant, ONNX Runtime, that with globalcnn's
kernels for the Global layers, OpenVINO.

Each engine computes in float32 with the threads that it takes by default. OpenVINO would compute in bfloat16 on
processors that have it, which changes outputs by 0.3 %; it is told not to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from globalcnn.engines import RUNTIMES, exported_program, installed_runtimes
from globalcnn.engines.onnx_file import onnx_proto
from globalcnn.engines.own_operator import operator_library
from globalcnn.errors import UserError, unknown_name
from globalcnn.graph import eval_mode
from globalcnn.measure import latency
from globalcnn.measure.agreement import compare_outputs
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.optimize import Variant, optimize_for_inference
from globalcnn.optimize.variant import prepare

Run = Callable[[Tensor], Tensor]
File = Callable[[], bytes]
TOLERANCE = 1e-4
# each by itself; `chosen` is one of them again
COMPETING = ("globalcnn", "onnxruntime", "onnxruntime, own kernels", "openvino")
SEARCH = 3.0  # seconds of globalcnn's search for a model's fastest form, at most
SEARCH_ALL = 60.0  # the same, where engines are tried as well: the default of optimize_for_inference
BURST = 0.05  # seconds of a candidate in a round: as many calls as fit
SETTLED = 0.5  # seconds of calls before them: threads of the candidate before spin for a while


def latencies(
    model: nn.Module,
    example: Tensor,
    *,
    engines: Sequence[str] = COMPETING,
    rounds: int = 30,
    seconds: float = 60.0,
    compile: bool = True,
) -> dict[str, dict[str, Any]]:
    """Median seconds of a batch like `example` by engine.

    seconds: at most, for each engine; compile: whether globalcnn's search may compile. Each engine's output is
    compared with the model's first (1e-4 of the largest value); an engine that fails or differs has a `failure` and no time.
    """
    return latencies_of(
        {"": model}, example, engines=engines, rounds=rounds, seconds=seconds, compile=compile
    )[""]


def latencies_of(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    engines: Sequence[str] = COMPETING,
    rounds: int = 30,
    seconds: float = 60.0,
    compile: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """`latencies` of several models that take the same input: by model, by engine.

    The models of an engine are timed in the same rounds, one engine after the other: engines keep threads of
    their own, and those of one that waits would take cores from the next.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in models}
    wanted, files = {}, {}
    for name, model in models.items():
        with eval_mode(model), torch.no_grad():
            wanted[name] = model(example)
        files[name] = cache(partial(onnx_bytes, model, example))  # exported once for all engines
    for engine in engines:
        runs: dict[str, Run] = {}
        for name, model in models.items():
            progress(f"{name} in {engine}")
            about = found[name][engine] = {"seconds": None, "failure": ""}
            try:
                run, about["about"] = prepared(
                    model,
                    example,
                    engine,
                    compile=compile,
                    search_seconds=SEARCH_ALL if compile else SEARCH,
                    file=files[name],
                )
                with torch.inference_mode():
                    agreement = compare_outputs(run(example), wanted[name], tolerance=TOLERANCE)
                about["deviation"] = agreement.deviation
                if not agreement:
                    raise UserError(f"{engine} gives another function: {agreement.disagreement}")
                runs[name] = run
            except Exception as error:  # recorded, so that one engine does not stop a long benchmark
                lines = str(error).strip().splitlines() or [""]
                about["failure"] = f"{type(error).__name__}: {lines[0]}"[:200]
        if runs:
            times = latency(
                runs, example, runs=rounds, warmup=1, seconds=seconds,
                burst=min(BURST, seconds / 100), settle=min(SETTLED, seconds / 100), least=3,
            )  # fmt: skip
            for name, t in times.items():
                found[name][engine].update(seconds=t.median, lower=t.lower, upper=t.upper, rounds=t.runs)
    return found


def prepared(
    model: nn.Module,
    example: Tensor,
    engine: str,
    *,
    compile: bool = True,
    search_seconds: float = 20.0,
    file: File | None = None,
) -> tuple[Run, str]:
    """A function that runs the model in that engine on batches of that shape, and a line on how."""
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    file = file or cache(lambda: onnx_bytes(model, example))
    return ENGINES[engine](model, example, compile, search_seconds, file)


def _globalcnn(
    model: nn.Module, example: Tensor, compile: bool, search_seconds: float, file: File
) -> tuple[Run, str]:
    """Its own kernels and PyTorch's."""
    return _searched(model, example, compile=compile, seconds=search_seconds, engines=())


def _chosen(
    model: nn.Module, example: Tensor, compile: bool, search_seconds: float, file: File
) -> tuple[Run, str]:
    """What a user of `optimize_for_inference` gets, with all engines."""
    return _searched(
        model, example, compile=compile, seconds=max(search_seconds, SEARCH_ALL), engines=installed_runtimes()
    )


def _searched(
    model: nn.Module, example: Tensor, *, compile: bool, seconds: float, engines: tuple[str, ...]
) -> tuple[Run, str]:
    with eval_mode(model):
        found = optimize_for_inference(
            copy.deepcopy(model), example, seconds=seconds, compile=compile, engines=engines
        )
    return found, "" if found.report is None else found.report.chosen


def _in_runtime(
    name: str, model: nn.Module, example: Tensor, compile: bool, search_seconds: float, file: File
) -> tuple[Run, str]:
    session = RUNTIMES[name].load(file())
    return (lambda x: session.run(x)[0]), session.engine


def _own_operators(
    model: nn.Module, example: Tensor, compile: bool, search_seconds: float, file: File
) -> tuple[Run, str]:
    """ONNX Runtime, whole Global layers computed by globalcnn's kernels."""
    library = operator_library()
    made, _ = prepare(model.eval(), Variant(fused=True), example)
    if library is None or not any(isinstance(m, FusedGlobalLayer) for m in made.modules()):
        raise UserError(
            "the native kernels cannot run here" if library is None else "it has no Global layers"
        )
    content = onnx_bytes(made, example, own_operators=True)
    session = RUNTIMES["onnxruntime"].load(content, operators=library)
    return (lambda x: session.run(x)[0]), session.engine


ENGINES: dict[str, Callable[..., tuple[Run, str]]] = {
    "globalcnn": _globalcnn,
    "onnxruntime": partial(_in_runtime, "onnxruntime"),
    "onnxruntime, own kernels": _own_operators,
    "openvino": partial(_in_runtime, "openvino"),
    "chosen": _chosen,
}


def onnx_bytes(model: nn.Module, example: Tensor, *, own_operators: bool = False) -> bytes:
    """The model in the form for engines, as an ONNX file for batches of that shape."""
    with eval_mode(model):
        program = exported_program(model, example, dynamic=False, own_operators=own_operators)
    content: bytes = onnx_proto(program, own_operators=own_operators).SerializeToString()
    return content
