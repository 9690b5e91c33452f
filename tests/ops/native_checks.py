"""Checks of the native kernels that also run in processes of their own: per instruction set, with sanitizers
on, and with faults switched on, which they must find. `python native_checks.py [--faults] [--few]`.

Prints one line per finding and ends with status 1 if there was any (with --faults: if one was not found).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys

import torch

from globalcnn import PDE
from globalcnn.ops import torch_ops
from globalcnn.ops.judge import judge
from globalcnn.ops.torch_ops import decomposition

SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (2, 17, 8, 8), (3, 16, 4, 33), (1, 2, 1, 9), (2, 1, 9, 1), (0, 3, 4, 5)]
PDES = [
    PDE(steps=K, spacing=spacing, boundary=boundary, dt=0.15)
    for boundary in ("periodic", "zero-flux", "zero")
    for K, spacing in ((0, 1), (1, 1), (1, (2, 3)), (2, (1, 3)), (5, (9, 1)), (20, 1))
]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
LAYOUTS = {
    "contiguous": lambda A: A.contiguous(),
    "channels-last": lambda A: A.contiguous(memory_format=torch.channels_last),
    "transposed": lambda A: A.transpose(2, 3).contiguous().transpose(2, 3),
}


def fields(shape, dtype, layout, *, seed=0, learned=True, source=True, one=False):
    """Inputs of the solve. one: h, h_old and f are the same tensor, as in the published layer."""
    g = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randn(shape, generator=g, dtype=torch.float64) for n in ("h", "h_old", "f", "u", "v")}
    drawn |= {n: 0.2 + torch.rand(shape, generator=g, dtype=torch.float64) for n in ("Dx", "Dy")}
    drawn["u"] *= 0.5
    drawn["v"] *= 0.5
    made = {n: LAYOUTS[layout](A.to(dtype)) for n, A in drawn.items()}
    if one:
        made["h_old"] = made["f"] = made["h"]
    if not learned:
        made |= {"Dx": 0.7, "Dy": 1.3}
    return made if source else made | {"f": None}


def solve_findings(shapes=SHAPES, pdes=PDES, dtypes=DTYPES, layouts=tuple(LAYOUTS)):
    """What is wrong with the solve and its gradients, by the one rule."""
    cases = itertools.product(shapes, pdes, dtypes, layouts, (True, False))
    for i, (shape, pde, dtype, layout, learned) in enumerate(cases):
        inputs = fields(shape, dtype, layout, seed=i, learned=learned, source=i % 3 > 0, one=i % 3 == 1)
        verdict = judge(torch_ops.solve, inputs, pde)
        if verdict.failed:
            yield f"solve {shape} {pde} {dtype} {layout} learned={learned}: {verdict.failed}"


def layer_arguments(i, shape, dtype, layout, pde):
    """Arguments of the operator `layer`: options by the digits of i."""
    g = torch.Generator().manual_seed(i)
    C = shape[1]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    k, fields_count = (3, 5, 3, 1)[i % 4], 4 if i % 3 else 2

    def normal(*size, by=1.0):
        return (torch.randn(size, generator=g, dtype=torch.float64) * by).to(wide)

    h, f = (LAYOUTS[layout](normal(*shape).to(dtype)) for _ in range(2))
    f = h if i % 2 else f
    weight, bias = normal(fields_count, C, k, k, by=0.3), normal(fields_count, C, by=0.2)
    act = (1, 1, 2, 3, 4)[i % 5]
    flags = [bool(i >> bit & 1) for bit in range(2, 7)]
    D = (0.5, 1.5)
    return (h, f, weight, bias, normal(C), normal(C), *torch_ops.numbers(*D, pde), act, *flags)


def in_float64(arguments):
    """The operator `layer` in plain PyTorch and float64."""
    wide = (a.double() if isinstance(a, torch.Tensor) else a for a in arguments)
    return decomposition.layer(*wide)


# without the 20 steps: a ReLU's diffusion of exactly 0 makes them unstable, and rounding grows with the rest
LAYER_PDES = [pde for pde in PDES if pde.steps <= 5]


def layer_findings(shapes=SHAPES, pdes=LAYER_PDES, dtypes=DTYPES, layouts=tuple(LAYOUTS)):
    """What is wrong with the whole layer: its error against float64, set against that of plain PyTorch."""
    for i, (shape, pde, dtype, layout) in enumerate(itertools.product(shapes, pdes, dtypes, layouts)):
        arguments = layer_arguments(i, shape, dtype, layout, pde)
        found, plain = torch.ops.globalcnn.layer(*arguments), decomposition.layer(*arguments)
        exact = in_float64(arguments)
        if found.shape != exact.shape or found.dtype != dtype or found.stride() != plain.stride():
            yield f"layer {shape} {pde} {dtype} {layout} case {i}: shape, dtype or strides"
        if exact.numel() == 0:
            continue
        error, by_plain = ((x.double() - exact).abs().max().item() for x in (found, plain))
        allowed = max(2 * by_plain, 16 * torch.finfo(dtype).eps * (1 + exact.abs().max().item()))
        if not error <= allowed:
            yield f"layer {shape} {pde} {dtype} {layout} case {i}: error {error:.3g}, allowed {allowed:.3g}"


def evolve_arguments(i, shape, layout, pde):
    """A gradient, and arguments of the operator `evolve`, in float64: options by the digits of i."""
    g = torch.Generator().manual_seed(i)
    C, k, count = shape[1], (3, 5, 1)[i % 3], 4 if i % 4 else 2

    def normal(*size, by=1.0, shift=0.0):
        return torch.randn(size, generator=g, dtype=torch.float64) * by + shift

    h, f, grad = (LAYOUTS[layout](normal(*shape)) for _ in range(3))
    norms = (normal(count, C, by=0.3, shift=1.0), normal(count, C, by=0.3))
    act = (1, 1, 2, 3, 4)[i % 5]
    options = (2.0, *torch_ops.numbers(0.6, 1.2, pde), act, *(bool(i >> bit & 1) for bit in (1, 2, 3)))
    return grad, (h, None if i % 2 else f, normal(count, C, k, k, by=0.3), *norms, *options)


def in_dtype(arguments, dtype):
    """The operator's arguments with maps in `dtype`, and weights in the dtype that it computes in."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    maps = (None if a is None else a.to(dtype) for a in arguments[:2])
    return (*maps, *(a.to(wide) if isinstance(a, torch.Tensor) else a for a in arguments[2:]))


def evolve_findings(shapes=SHAPES, pdes=LAYER_PDES, dtypes=DTYPES, layouts=tuple(LAYOUTS)):
    """What is wrong with the evolution in training and its gradients, set against plain PyTorch."""
    names = ("H", "mean", "var", "g_h", "g_f", "g_weight", "g_gamma", "g_beta")
    cases = list(enumerate(itertools.product(shapes, pdes, dtypes, layouts)))
    # every seventh: plain PyTorch compiles its convolutions anew for every shape, which takes the time
    for i, (shape, pde, dtype, layout) in cases[::7]:
        if shape[0] * shape[2] * shape[3] < 2:
            continue
        grad, exact_arguments = evolve_arguments(i, shape, layout, pde)
        exact = decomposition.evolve(*exact_arguments)
        exact += decomposition.evolve_backward(grad, *exact_arguments[:5], *exact[1:], *exact_arguments[5:])
        given = in_dtype(exact_arguments, dtype)
        results = []
        for forward, backward in (
            (torch.ops.globalcnn.evolve, torch.ops.globalcnn.evolve_backward),
            (decomposition.evolve, decomposition.evolve_backward),
        ):
            out = tuple(forward(*given))
            results.append(out + tuple(backward(grad.to(dtype), *given[:5], *out[1:], *given[5:])))
        for name, found, plain, right in zip(names, *results, exact, strict=True):
            if found.dtype != plain.dtype or found.shape != plain.shape or found.stride() != plain.stride():
                yield f"evolve {shape} {pde} {dtype} {layout} case {i}: {name} shape, dtype or strides"
            elif found.numel():
                error, by_plain = ((x.double() - right).abs().max().item() for x in (found, plain))
                unit = torch.finfo(found.dtype if name in ("H", "g_h", "g_f") else dtype).eps
                if not error <= max(4 * by_plain, 64 * unit * (1 + right.abs().max().item())):
                    where = f"{shape} {pde} {dtype} {layout} case {i}"
                    yield f"evolve {where}: {name} {error:.3g} ({by_plain:.3g})"


def findings(few=False):
    """All findings; few: over few cases."""
    reduced = (
        {"shapes": SHAPES[:4], "dtypes": DTYPES[:1], "layouts": ("contiguous", "channels-last")}
        if few
        else {}
    )
    yield from solve_findings(**reduced)
    yield from layer_findings(**reduced)
    yield from evolve_findings(**reduced)


def undetected_faults(library, count):
    """Numbers of the faults that `findings` does not see."""
    with_faults = ctypes.CDLL(library)
    for number in range(1, count + 1):
        with_faults.globalcnn_set_fault(number)
        if next(findings(few=True), None) is None:
            yield number
    with_faults.globalcnn_set_fault(0)


def main():
    from globalcnn.ops import native

    reason = native.load()
    if reason is not None:
        print(f"native kernels: {reason}")
        return 1
    # memory that was not written shows as NaN
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)
    bad = list(findings(few="--few" in sys.argv))
    if "--faults" in sys.argv and not bad:
        count = int(sys.argv[sys.argv.index("--faults") + 1])
        missed = list(undetected_faults(os.environ["GLOBALCNN_NATIVE_LIBRARY"], count))
        bad = [f"fault {number} is not seen" for number in missed]
    for line in bad[:20]:
        print(line)
    print(f"{native.instruction_set()}: {len(bad)} findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
