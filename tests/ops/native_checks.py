"""Checks of the native kernels that also run in processes of their own: per instruction set, with sanitizers
on, and with faults switched on, which they must find. `python native_checks.py [--few] [--faults CHECKS]`.

Prints one line per finding and ends with status 1 if there was any. CHECKS: for each fault of the library, in
order, the name of the check that must find it, separated by commas (a fault that is not found is a finding).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys

import torch

from globalcnn import PDE
from globalcnn.ops import GatedSweeps, reference, torch_ops
from globalcnn.ops.judge import judge
from globalcnn.ops.torch_ops import decomposition

SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (2, 29, 8, 8), (3, 16, 4, 33), (1, 2, 1, 9), (2, 1, 9, 1), (0, 3, 4, 5)]
PDES = [
    PDE(steps=K, spacing=spacing, boundary=boundary, dt=0.15)
    for boundary in ("periodic", "neumann", "dirichlet")
    for K, spacing in ((0, 1), (1, 1), (1, (2, 3)), (2, (1, 3)), (5, (9, 1)), (20, 1))
]
SWEEPS = [
    PDE(steps=K, spacing=spacing, boundary=boundary, dt=0.9, scheme=GatedSweeps(gate, first))
    for K, spacing, boundary, gate, first in (
        (1, 1, "neumann", "transport", "x"),
        (1, 1, "neumann", "transport", "y"),
        (1, 1, "dirichlet", "transport", "x"),
        (1, 1, "periodic", "transport", "y"),
        (3, 1, "neumann", "sigmoid", "x"),
        (3, 1, "neumann", "transport", "x"),
        (1, 1, "neumann", "rational", "y"),
        (2, (2, 3), "periodic", "transport", "x"),
        (2, (9, 4), "neumann", "transport", "y"),
        (1, (2, 1), "dirichlet", "rational", "x"),
        (1, 1, "neumann", "transport", "x"),  # once more, with other options of the layer
        (0, 1, "neumann", "transport", "x"),
        (1, 1, "periodic", "sigmoid", "x"),
        (2, 1, "dirichlet", "transport", "y"),
    )
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


def solve_findings(shapes=SHAPES, pdes=PDES, dtypes=DTYPES, layouts=tuple(LAYOUTS), every=1):
    """What is wrong with the solve and its gradients, by the one rule. every: which cases are taken."""
    cases = itertools.product(shapes, pdes, dtypes, layouts, (True, False))
    for i, (shape, pde, dtype, layout, learned) in list(enumerate(cases))[::every]:
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


def layer_findings(shapes=SHAPES, pdes=LAYER_PDES, dtypes=DTYPES, layouts=tuple(LAYOUTS), every=1):
    """What is wrong with the whole layer: its error against float64, set against that of plain PyTorch."""
    cases = list(enumerate(itertools.product(shapes, pdes, dtypes, layouts)))
    for i, (shape, pde, dtype, layout) in cases[::every]:
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


def evolve_findings(shapes=SHAPES, pdes=LAYER_PDES, dtypes=DTYPES, layouts=tuple(LAYOUTS), every=7):
    """What is wrong with the evolution in training and its gradients, set against plain PyTorch."""
    names = ("H", "mean", "var", "g_h", "g_f", "g_weight", "g_gamma", "g_beta")
    cases = list(enumerate(itertools.product(shapes, pdes, dtypes, layouts)))
    # every seventh: plain PyTorch compiles its convolutions anew for every shape, which takes the time
    for i, (shape, pde, dtype, layout) in cases[::every]:
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


SPECIAL = (float("nan"), float("inf"), float("-inf"), 1e-39, -1e30, 1e30)


def sprinkle(tensors, *, seed, kinds=SPECIAL):
    """The tensors with NaN, infinities, denormals and huge values in a few places of some of them."""
    g = torch.Generator().manual_seed(seed)
    chosen = [kind for kind in kinds if torch.rand((), generator=g) < 0.5] or [kinds[0]]
    same = {}
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, torch.Tensor) or id(tensor) in same:
            continue
        same[id(tensor)] = made = tensor.clone()
        if made.numel() and (i == 0 or torch.rand((), generator=g) < 0.4):
            for _ in range(int(torch.randint(1, 4, (), generator=g))):
                place = tuple(int(torch.randint(n, (), generator=g)) for n in made.shape)
                made[place] = chosen[int(torch.randint(len(chosen), (), generator=g))]
    return [same.get(id(tensor), tensor) for tensor in tensors]


def magnitude(tensors, pde):
    """For each plane what the largest finite value among the tensors may have grown to."""
    finite = [torch.nan_to_num(A.double(), 0, 0, 0).abs() for A in tensors if isinstance(A, torch.Tensor)]
    return 1 + torch.stack(finite).amax((0, 3, 4))[..., None, None] ** (pde.steps + 1)


def special_fault(found, plain, exact, unit, scale=1):
    """What `found` does wrong, if anything, given the result in float64 and that of plain PyTorch.

    Not a number must be not a number, infinity not finite, and what is finite (in plain PyTorch too) right
    up to rounding, measured by the largest finite value of the same plane and by `scale`.
    """
    found, plain = found.double(), plain.double()
    if (exact.isnan() & ~found.isnan()).any():
        return f"{int((exact.isnan() & ~found.isnan()).sum())} NaN lost"
    if (exact.isinf() & found.isfinite()).any():
        return "infinity lost"
    finite = exact.isfinite() & plain.isfinite()
    if (finite & ~found.isfinite()).any():
        return f"{int((finite & ~found.isfinite()).sum())} finite values lost"
    dims = tuple(range(2, exact.ndim)) or (1,)
    zero = exact.new_zeros(())
    scale = exact.where(finite, zero).abs().amax(dims, keepdim=True) + scale
    error, by_plain = ((x - exact).where(finite, zero).abs() for x in (found, plain))
    if (error > 4 * by_plain + 256 * unit * scale).any():
        return f"error {error.max():.3g}"
    return None


# a spacing wider than the map among them; few steps, since huge values grow with each
SPECIAL_PDES = [
    PDE(steps=K, spacing=spacing, boundary=boundary, dt=0.15)
    for K, spacing in ((1, 1), (2, 1), (1, (2, 3)), (3, 1), (1, (9, 12)), (0, 1), (2, (1, 3)))
    for boundary in ("periodic", "neumann", "dirichlet")
]


def special_case(i, pdes=SPECIAL_PDES):
    """A generator, and a shape, PDE, dtype and layout drawn by number."""
    g = torch.Generator().manual_seed(i)
    # and a single channel, wider than one pixel
    choices = ([*SHAPES[:6], (2, 1, 5, 7)], pdes, DTYPES, list(LAYOUTS))
    return g, *(choice[int(torch.randint(len(choice), (), generator=g))] for choice in choices)


def solve_special_findings(cases):
    """What the solve and its gradients make of NaN, infinities, denormals and huge values."""
    for i in cases:
        g, shape, pde, dtype, layout = special_case(i)
        learned, source, one = (torch.rand(3, generator=g) < 0.6).tolist()
        inputs = fields(shape, dtype, layout, seed=i, learned=learned, source=source, one=one and source)
        values = sprinkle(list(inputs.values()), seed=i)
        D = (None, None) if not learned else values[5:]
        arguments = (*values[:5], *D, *torch_ops.numbers(*((0.0, 0.0) if learned else values[5:]), pde))
        exact_arguments = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
        exact = reference.solve(*(a.double() if isinstance(a, torch.Tensor) else a for a in values), pde)
        unit = torch.finfo(dtype).eps * (pde.steps + 1)
        results = [("H", torch.ops.globalcnn.solve(*arguments), decomposition.solve(*arguments), exact)]
        grad, scale = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype), magnitude(values, pde)
        results += zip(
            ("g_h", "g_h_old", "g_f", "g_u", "g_v", "g_Dx", "g_Dy"),
            torch.ops.globalcnn.solve_backward(grad, *arguments),
            decomposition.solve_backward(grad, *arguments),
            decomposition.solve_backward(grad.double(), *exact_arguments),
            strict=True,
        )
        for name, found, plain, right in results:
            fault = special_fault(found, plain, right, unit, scale) if right.numel() else None
            if fault:
                yield f"special solve case {i} {shape} {pde} {dtype} {layout} {learned=}: {name}: {fault}"


def layer_special_findings(cases):
    """The same of the whole layer."""
    for i in cases:
        _, shape, pde, dtype, layout = special_case(i)
        arguments = layer_arguments(i, shape, dtype, layout, pde)
        arguments = (*sprinkle(arguments[:2], seed=i), *arguments[2:])
        found, plain = torch.ops.globalcnn.layer(*arguments), decomposition.layer(*arguments)
        unit = torch.finfo(dtype).eps * (pde.steps + 1)
        scale = magnitude(arguments[:2], pde)
        fault = special_fault(found, plain, in_float64(arguments), unit, scale)
        if fault:
            yield f"special layer case {i} {shape} {pde} {dtype} {layout}: {fault}"


def evolve_special_findings(cases):
    """The same of the evolution in training and its gradients."""
    names = ("H", "mean", "var", "g_h", "g_f", "g_weight", "g_gamma", "g_beta")
    for i in cases:
        _, shape, pde, dtype, layout = special_case(i)
        if shape[0] * shape[2] * shape[3] < 2:
            continue
        grad, arguments = evolve_arguments(i, shape, layout, pde)
        # huge values are left out: squared in a variance they overflow, here and there at other places
        grad, *maps = sprinkle([grad, *arguments[:2]], seed=i, kinds=SPECIAL[:4])
        results = []
        for forward, backward, kind in (
            (torch.ops.globalcnn.evolve, torch.ops.globalcnn.evolve_backward, dtype),
            (decomposition.evolve, decomposition.evolve_backward, dtype),
            (decomposition.evolve, decomposition.evolve_backward, torch.float64),
        ):
            rounded = [None if a is None else a.to(dtype) for a in maps]
            given = in_dtype((*rounded, *arguments[2:]), kind)
            out = tuple(forward(*given))
            back = backward(grad.to(dtype).to(kind), *given[:5], *out[1:], *given[5:])
            results.append(out + tuple(back))
        unit = 8 * torch.finfo(dtype).eps * (pde.steps + 1)
        for name, found, plain, right in zip(names, *results, strict=True):
            if arguments[-4] == 2 and name.startswith("g_"):
                # ReLU6 of NaN: PyTorch passes the gradient in some elements and cuts it off in others
                right = torch.where(found.isnan(), torch.nan, right)
            fault = special_fault(found, plain, right, unit) if right.numel() else None
            if fault:
                yield f"special evolve case {i} {shape} {pde} {dtype} {layout}: {name}: {fault}"


def sweeps_special_findings(cases):
    """Where the sweeps are finite, given a state and source that are not finite in places."""
    for i in cases:
        _, shape, pde, dtype, layout = special_case(i, SWEEPS)
        inputs = fields(shape, dtype, layout, seed=i, source=i % 2 == 0)
        values = [*sprinkle(list(inputs.values())[:3], seed=i, kinds=SPECIAL[:4]), *list(inputs.values())[3:]]
        arguments = (*values, *torch_ops.numbers(0.0, 0.0, pde))
        found, plain = torch.ops.globalcnn.solve(*arguments), decomposition.solve(*arguments)
        exact = reference.solve(*(A.double() if isinstance(A, torch.Tensor) else A for A in values), pde)
        known = exact.isfinite() == plain.isfinite()
        if (known & (found.isfinite() != exact.isfinite())).any():
            yield f"special sweeps case {i} {shape} {pde} {dtype} {layout}"


FEW = {"shapes": SHAPES[:4], "dtypes": DTYPES[:1], "layouts": ("contiguous", "channels-last")}
# the checks by name: all cases, few cases
CHECKS = {
    "solve": (solve_findings, {}, FEW),
    "layer": (layer_findings, {}, FEW),
    "evolve": (evolve_findings, {}, FEW),
    "special solve": (solve_special_findings, {"cases": range(400)}, {"cases": range(120)}),
    "special layer": (layer_special_findings, {"cases": range(400)}, {"cases": range(120)}),
    "special evolve": (evolve_special_findings, {"cases": range(120)}, {"cases": range(30)}),
    # 5 is prime to the numbers of layouts and dtypes: the cases taken have them all
    "sweeps solve": (solve_findings, {"pdes": SWEEPS, "every": 5}, FEW | {"pdes": SWEEPS}),
    "sweeps layer": (layer_findings, {"pdes": SWEEPS, "every": 5}, FEW | {"pdes": SWEEPS}),
    "sweeps evolve": (evolve_findings, {"pdes": SWEEPS}, FEW | {"pdes": SWEEPS, "every": 1}),
    "special sweeps": (sweeps_special_findings, {"cases": range(200)}, {"cases": range(60)}),
}


def findings(few=False, only=None):
    """All findings; few: over few cases; only: of the check of this name."""
    for name, (check, every, some) in CHECKS.items():
        if only is None or only == name:
            yield from check(**(some if few else every))


def undetected_faults(library, checks):
    """Numbers of the faults that the checks do not see."""
    with_faults = ctypes.CDLL(library)
    for number, check in enumerate(checks, 1):
        with_faults.globalcnn_set_fault(number)
        if next(findings(few=True, only=check), None) is None:
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
        checks = sys.argv[sys.argv.index("--faults") + 1].split(",")
        missed = undetected_faults(os.environ["GLOBALCNN_NATIVE_LIBRARY"], checks)
        bad = [f"fault {number} is not seen by the check {checks[number - 1]!r}" for number in missed]
    for line in bad[:20]:
        print(line)
    print(f"{native.instruction_set()}: {len(bad)} findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
