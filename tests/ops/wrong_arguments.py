"""Hundreds of wrong argument lists for each operator: each must be an error, and none may end the process.

`python -m tests.ops.wrong_arguments [--decomposition] [--count N]` prints one line per finding and ends with
status 1 if there was any. Run in a process of its own, so that a signal is seen; also under the sanitizers.
Right but unusual lists (expanded, strided, permuted tensors) must give the numbers of contiguous ones.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from globalcnn.ops import BACKENDS, signature, spec
from globalcnn.ops.torch_ops import decomposition
from tests.ops.drawn_arguments import CASES, arguments

HUGE = (-1, -(2**62), 2**20, 2**31, 2**62)
# (what is done, how): each makes a right value wrong; None where it would not
WRONG_MAPS: dict[str, Callable[[Tensor], object]] = {
    "None": lambda t: None,
    "three dimensions": lambda t: t[0],
    "five dimensions": lambda t: t[None],
    "a scalar": lambda t: torch.tensor(1.0, dtype=t.dtype),
    "no rows": lambda t: t[:, :, :0],
    "no columns": lambda t: t[..., :0],
    "one channel more": lambda t: torch.cat([t, t[:, :1]], 1),
    "one channel": lambda t: t[:, :1],
    "one row more": lambda t: torch.cat([t, t[:, :, :1]], 2),
    "one image more": lambda t: torch.cat([t, t[:1]]),
    "transposed": lambda t: t.transpose(2, 3),
    "float16": lambda t: t.half(),
    "another float": lambda t: t.float() if t.dtype == torch.float64 else t.double(),
    "whole numbers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "on meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
}
WRONG_PARAMETERS: dict[str, Callable[[Tensor], object]] = {
    "None": lambda t: None,
    "empty": lambda t: t.new_empty(0),
    "one element": lambda t: t.new_ones(1),
    "a scalar": lambda t: torch.tensor(1.0, dtype=t.dtype),
    "first dimension shorter": lambda t: t[:1],
    "first dimension longer": lambda t: torch.cat([t, t[:1]]),
    "another dimension": lambda t: t[None],
    "fewer channels": lambda t: t[:, :1] if t.ndim > 1 else t[:1],
    "another float": lambda t: t.float() if t.dtype == torch.float64 else t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "whole numbers": lambda t: t.long(),
    "on meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
}
WRONG_KERNELS: dict[str, Callable[[Tensor], object]] = {
    "even kernel": lambda t: t.new_ones(*t.shape[:2], 2, 2),
    "not square": lambda t: t.new_ones(*t.shape[:2], 3, 5),
    "no kernel": lambda t: t.new_ones(*t.shape[:2], 0, 0),
    "large kernel": lambda t: t.new_ones(*t.shape[:2], 129, 129),
    "three groups": lambda t: t.new_ones(3, *t.shape[1:]),
    "five groups": lambda t: t.new_ones(5, *t.shape[1:]),
    "no group": lambda t: t[:0],
}
UNUSUAL: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda t: t[:1].expand_as(t),
    "every second element": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "reversed order": lambda t: (
        t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim)))
    ),
    "shifted storage": lambda t: torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
}


def wrong_values(argument: signature.Argument, value: object) -> Iterator[tuple[str, object]]:
    """What is wrong, and the wrong value, for one argument."""
    kind = argument.kind
    if isinstance(kind, signature.Map):
        for what, change in WRONG_MAPS.items():
            if isinstance(value, Tensor) and not (what == "None" and argument.name == "f"):
                yield what, change(value)
    elif isinstance(kind, signature.Parameter):
        assert isinstance(value, Tensor)
        for what, change in (WRONG_PARAMETERS | (WRONG_KERNELS if value.ndim == 4 else {})).items():
            yield what, change(value)
        if kind.max_kernel == spec.MAX_TRAINED_KERNEL:
            yield "a kernel too large to train", value.new_ones(*value.shape[:2], 9, 9)
    elif isinstance(kind, signature.Number):
        values = (float("nan"), float("inf"), -1.0, -1e300, *((0.0,) if kind.positive else ()))
        yield from ((f"{v}", v) for v in values)
    elif isinstance(kind, signature.Count):
        yield from ((f"{v}", v) for v in (kind.least - 1, kind.most + 1, *HUGE))
    elif isinstance(kind, signature.Enumeration):
        yield from ((f"{v}", v) for v in (len(kind.names), *HUGE))
    else:
        yield "text", "yes"


def lists(operator: str, count: int, seed: int = 0) -> Iterator[tuple[str, list[object], bool]]:
    """Each single mistake, and `count` drawn lists with up to three at once; whether the list is wrong.

    Several mistakes may agree with one another by chance, as all maps with a channel more: those are right.
    """
    draw = random.Random(seed)
    taken = spec.OPERATORS[operator].arguments
    for case in CASES[:2]:
        for dtype in (torch.float32, torch.float64):
            given = arguments(operator, case, dtype=dtype)
            single = [(a.name, *w) for a in taken for w in wrong_values(a, given[a.name])]
            chosen = [[one] for one in single] if dtype is torch.float32 else []
            chosen += [draw.sample(single, draw.randint(1, 3)) for _ in range(count)]
            for mistakes in chosen:
                values = {**given, **{name: value for name, _, value in mistakes}}
                what = ", ".join(f"{name}: {what}" for name, what, _ in mistakes)
                wrong = len(mistakes) == 1 or not fits(operator, values)
                yield f"{operator} {case} {dtype} {what}", list(values.values()), wrong


def fits(operator: str, values: dict[str, object]) -> bool:
    """Whether the contract allows the list."""
    try:
        spec.OPERATORS[operator].check(list(values.values()))
    except Exception:
        return False
    return True


def findings(operator: str, call: Callable[..., object], count: int) -> Iterator[str]:
    """Lists that were taken although wrong, and right ones that were not or gave other numbers."""
    for what, values, wrong in lists(operator, count):
        try:
            call(*values)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            if not wrong:
                yield f"refused though right: {what}: {error}"
        else:
            if wrong:
                yield f"taken though wrong: {what}"
    for case in CASES:
        given = arguments(operator, case, dtype=torch.float32)
        for name, change in UNUSUAL.items():
            changed = {n: change(v) if isinstance(v, Tensor) else v for n, v in given.items()}
            plain = {n: v.contiguous() if isinstance(v, Tensor) else v for n, v in changed.items()}
            found, expected = (call(*values.values()) for values in (changed, plain))
            try:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, check_stride=False)
            except AssertionError as error:
                yield f"other numbers: {operator} {case} {name}: {str(error).splitlines()[0]}"


def main() -> int:
    """Check all operators; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--decomposition", action="store_true", help="plain PyTorch and not the native kernels"
    )
    parser.add_argument("--count", type=int, default=60, help="drawn lists per operator, options and dtype")
    options = parser.parse_args()
    if not options.decomposition and (reason := BACKENDS["native"].unavailable()) is not None:
        sys.stdout.write(f"the native kernels are not there: {reason}\n")
        return 1
    bad = tried = 0
    for operator in spec.OPERATORS:
        call = getattr(decomposition if options.decomposition else torch.ops.globalcnn, operator)
        for finding in findings(operator, call, options.count):
            bad += 1
            sys.stdout.write(f"{finding}\n")
        tried += sum(wrong for *_, wrong in lists(operator, options.count))
    sys.stdout.write(f"{tried} wrong lists, {bad} findings\n")
    return int(bad > 0 or tried < 500)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
