"""ExecuTorch: a program for phones and small devices, run here by its runtime for Python."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, final

from torch import Tensor
from torch.export import ExportedProgram

from ..engines import quiet
from ..engines.onnx_file import onnx_proto
from ..errors import UserError
from .target import AsOnnx, Loaded, Target, counted

METHOD, ABOUT = "forward", "about"


@final
class ExecuTorch(Target):
    """A .pte file, what it can of the network for XNNPACK, in float32, for one shape."""

    name, suffix, extra = "executorch", ".pte", "executorch"
    about = "ExecuTorch with XNNPACK, for phones and small devices"
    packages = ("executorch",)
    dynamic = False  # its memory is planned when it is written

    def write(
        self,
        program: ExportedProgram,
        path: Path,
        about: Mapping[str, Any],
        *,
        as_onnx: AsOnnx = onnx_proto,
        backend: bool = True,
    ) -> None:
        """The program; `about` as JSON by a method "about" without inputs. backend: XNNPACK where it can be;
        else ExecuTorch's portable operators alone.
        """
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            try:
                made = to_edge_transform_and_lower(
                    program,
                    partitioner=[XnnpackPartitioner()] if backend else [],
                    constant_methods={ABOUT: json.dumps(dict(about), ensure_ascii=False)},
                ).to_executorch()
            except Exception as error:  # an operator that it does not have raises many kinds
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise UserError(f"the network cannot be written for ExecuTorch: {lines[0][:200]}") from error
        path.write_bytes(made.buffer)

    def load(self, path: Path) -> Loaded:
        """The file in the runtime."""
        with quiet():
            from executorch.runtime import Runtime

            content = path.read_bytes()
            program = Runtime.get().load_program(content)
            method: Any = program.load_method(METHOD)
        keep_forever(content, program, method)

        def run(x: Tensor) -> list[Tensor]:
            # the outputs lie in the memory of the method, which the next call overwrites
            return [out.clone() for out in method.execute([x.contiguous()])]

        return Loaded(
            engine=f"ExecuTorch {metadata.version('executorch')}, XNNPACK",
            run=run,
            input_name="0",
            input_shape=tuple(method.metadata.input_tensor_meta(0).sizes()),
            operators=counted(_operators(content)),
        )


def keep_forever(*objects: object) -> None:
    """Never free these objects of ExecuTorch, not even when Python ends.

    A method points into its program, and that into the bytes of the file, without holding them: freed in
    another order, as garbage in a cycle may be, they crash the process.
    """
    for thing in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def arena_of(content: bytes) -> int:
    """Bytes of the memory that is planned in a .pte file for all that is not constant."""
    return sum(_plan(content).non_const_buffer_sizes)


def _plan(content: bytes) -> Any:
    from executorch.exir._serialize._program import deserialize_pte_binary

    found: Any = deserialize_pte_binary(content)
    plans = getattr(found, "program", found).execution_plan
    (plan,) = (plan for plan in plans if plan.name == METHOD)
    return plan


def _operators(content: bytes) -> Iterator[str]:
    """The calls that the program makes: of operators, and of parts that a backend runs as a whole."""
    plan = _plan(content)
    for instruction in (i for chain in plan.chains for i in chain.instructions):
        call = instruction.instr_args
        if hasattr(call, "op_index"):
            yield plan.operators[call.op_index].name
        elif hasattr(call, "delegate_index"):
            yield f"part for {plan.delegates[call.delegate_index].id}"
