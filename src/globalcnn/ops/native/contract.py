"""Write the C++ side of the operators' contract from `ops/spec.py`.

    python -m globalcnn.ops.native.contract          writes csrc/arguments.h, csrc/calls.h and csrc/numbers.h
    python -m globalcnn.ops.native.contract --check  ends with status 1 if they are not up to date

arguments.h: enumerations, limits, and the structs that kernels are handed. calls.h: a call of each operator
as PyTorch hands it over, its checks, its results, and their way into those structs. numbers.h: the plain
arguments of a whole layer from a row of numbers, as ONNX Runtime hands them over.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from .. import spec
from ..signature import Argument, Count, Enumeration, Flag, Map, Number, Operator, Output, Parameter

_HEAD = """// Written by `python -m globalcnn.ops.native.contract` from ops/spec.py: edit that.
// clang-format off
"""
# the struct of the kernels for each operator; a forward and its backward may share one
_STRUCTS = {
    "SolveArgs": (spec.SOLVE,),
    "SolveBackwardArgs": (spec.SOLVE_BACKWARD,),
    "LayerArgs": (spec.LAYER,),
    "EvolveArgs": (spec.EVOLVE, spec.EVOLVE_BACKWARD),
}
_PLAIN_TYPES = {Number: "double", Count: "int64_t", Flag: "bool"}


def headers() -> dict[str, str]:
    """The text of each header by its file name."""
    return {
        "arguments.h": _arguments_header(),
        "calls.h": _calls_header(),
        "numbers.h": _numbers_header(spec.LAYER),
    }


def _type_name(operator: Operator) -> str:
    return operator.takes.__name__


def _struct_of(operator: Operator) -> str:
    return next(name for name, operators in _STRUCTS.items() if operator in operators)


def _plain_type(argument: Argument) -> str:
    """The type of a plain argument in a kernel's struct."""
    kind = argument.kind
    return kind.type_name if isinstance(kind, Enumeration) else _PLAIN_TYPES[type(kind)]


def _plain(operator: Operator) -> tuple[list[Argument], list[Argument]]:
    """Its plain arguments: those of the equation, and its own."""
    plain = [a for a in operator.arguments if not a.is_tensor]
    return [a for a in plain if len(a.path) > 1], [a for a in plain if len(a.path) == 1]


def _arguments_header() -> str:
    lines = [
        _HEAD + "#pragma once",
        "#include <cstdint>",
        "",
        '#include "map.h"',
        "",
        "namespace globalcnn {",
        "",
    ]
    for e in spec.ENUMERATIONS:
        lines.append(f"enum class {e.type_name} : int {{ {', '.join(e.names)} }};")
    lines += ["", "// side of the coefficients' convolutions in training, at most"]
    lines += [f"constexpr int64_t MAX_KERNEL = {spec.MAX_TRAINED_KERNEL};", ""]
    lines += ["// The equation and its grid; Dx0, Dy0 stand in for an absent Dx, Dy.", "struct Pde {"]
    lines += [f"  {_plain_type(a)} {a.name};" for a in _plain(spec.SOLVE)[0]]
    lines += ["};", ""]
    for name, operators in _STRUCTS.items():
        lines += _kernel_struct(name, operators)
    return "\n".join([*lines, "}  // namespace globalcnn", ""])


def _kernel_struct(name: str, operators: tuple[Operator, ...]) -> Iterator[str]:
    """Maps by address and strides, parameters by address; g_*: gradients; null for what is absent."""
    members: dict[str, str] = {"shape": "Shape", "pde": "Pde"}
    for operator in operators:
        results = {output.name for output in operator.returns}
        for a in operator.tensors:
            if isinstance(a.kind, Map):
                members.setdefault(a.name, "View")
            elif a.name not in members and a.name not in results:
                members[a.name] = "const void*"
        for output in operator.returns:
            members.setdefault(output.name, "View" if _is_map(operator, output) else "void*")
        if any(isinstance(a.kind, Parameter) for a in operator.arguments):
            members |= {"fields": "int64_t", "kernel": "int64_t"}
        members |= {a.name: _plain_type(a) for a in _plain(operator)[1]}
    used = " and ".join(operator.name for operator in operators)
    return iter(
        [f"// of {used}", f"struct {name} {{", *(f"  {t} {n};" for n, t in members.items()), "};", ""]
    )


def _is_map(operator: Operator, output: Output) -> bool:
    return any(a.name == output.like and isinstance(a.kind, Map) for a in operator.arguments)


def _calls_header() -> str:
    lines = [
        _HEAD + "#pragma once",
        "#include <torch/csrc/stable/library.h>",
        "",
        "#include <optional>",
        "#include <tuple>",
        "",
        '#include "arguments.h"',
        '#include "checks.h"',
        '#include "tensors.h"',
        "",
        "namespace globalcnn {",
        "namespace {",
        "",
    ]
    for operator in spec.OPERATORS.values():
        for part in (_call, _check, _pack, _results, _kernel_arguments, _bind, _entry):
            lines += [*part(operator), ""]
    lines += ["}  // namespace", "}  // namespace globalcnn", "", "#define GLOBALCNN_OPERATORS(m) \\"]
    entries = [f'  m.impl("{name}", TORCH_BOX(&globalcnn::{name}_entry));' for name in spec.OPERATORS]
    return "\n".join([*lines, " \\\n".join(entries), ""])


def _numbers_header(operator: Operator) -> str:
    of_pde, own = _plain(operator)
    constant = f"{operator.name.upper()}_NUMBERS"
    lines = [
        _HEAD + "#pragma once",
        "#include <cmath>",
        "",
        '#include "arguments.h"',
        "",
        "namespace globalcnn {",
        "",
        f"constexpr int64_t {constant} = {len(of_pde) + len(own)};",
        f"constexpr int64_t MAX_{operator.name.upper()}_KERNEL = {spec.MAX_KERNEL};",
        "",
        f"// The plain arguments of {operator.name} from so many numbers; what is wrong with them, or null.",
        f"inline const char* read({_struct_of(operator)}& a, const double* numbers) {{",
        f"  for (int64_t i = 0; i < {constant}; ++i)",
        '    if (!std::isfinite(numbers[i])) return "a number is not finite";',
    ]
    for i, a in enumerate((*of_pde, *own)):
        lines.append(f"  const double {a.name} = numbers[{i}];")
        if not isinstance(a.kind, Flag):
            says = f"{a.name} must be {a.kind.allowed}"  # type: ignore[union-attr]
            lines.append(f'  if (!({_fits(a, of="")})) return "{says}";')
        target = f"a.pde.{a.name}" if a in of_pde else f"a.{a.name}"
        value = f"{a.name} != 0" if isinstance(a.kind, Flag) else _cast(a)
        lines.append(f"  {target} = {value};")
    return "\n".join([*lines, "  return nullptr;", "}", "", "}  // namespace globalcnn", ""])


def _cast(a: Argument) -> str:
    """A number of type double as the kernels take it."""
    if isinstance(a.kind, Enumeration):
        return f"static_cast<{_plain_type(a)}>(static_cast<int>({a.name}))"
    return f"static_cast<{_plain_type(a)}>({a.name})"


def _held(argument: Argument) -> str:
    """The type of an argument as PyTorch hands it over."""
    kind = argument.kind
    if isinstance(kind, (Map, Parameter)):
        return "std::optional<Tensor>" if kind.optional else "Tensor"
    return {"float": "double", "int": "int64_t", "bool": "bool"}[kind.schema]


def _call(operator: Operator) -> Iterator[str]:
    yield f"struct {_type_name(operator)}Call {{"
    for a in operator.arguments:
        yield f"  {_held(a)} {a.name};"
    yield "};"


def _check(operator: Operator) -> Iterator[str]:
    yield f"void check(const {_type_name(operator)}Call& c) {{"
    first = operator.arguments[0].name
    yield f'  Checks checks("{operator.name}", "{first}", c.{first});'
    for a in operator.tensors:
        if isinstance(a.kind, Map):
            yield f'  checks.map("{a.name}", c.{a.name});'
        elif isinstance(a.kind, Parameter):
            sizes = "".join(a.kind.sizes)
            yield f'  checks.parameter("{a.name}", c.{a.name}, "{sizes}", {a.kind.max_kernel});'
    for one, other in operator.together:
        yield f'  checks.together("{one}", c.{one}, "{other}", c.{other});'
    for a in operator.arguments:
        if not a.is_tensor and not isinstance(a.kind, Flag):
            yield f'  checks.that({_fits(a)}, "{a.name}", c.{a.name}, "{a.kind.allowed}");'  # type: ignore[union-attr]
    yield "}"


def _fits(a: Argument, *, of: str = "c.") -> str:
    value, kind = of + a.name, a.kind
    if isinstance(kind, Number):
        return f"std::isfinite({value}) && {value} {'>' if kind.positive else '>='} 0"
    if isinstance(kind, Count):
        return f"{value} >= {kind.least} && {value} <= {kind.most}"
    assert isinstance(kind, Enumeration)
    return f"{value} >= 0 && {value} < {len(kind.names)}"


def _pack(operator: Operator) -> Iterator[str]:
    parameters = [a.name for a in operator.arguments if isinstance(a.kind, Parameter)]
    yield f"void pack({_type_name(operator)}Call& {'c' if parameters else ''}) {{"
    for name in parameters:
        yield f"  c.{name} = packed(c.{name});"
    yield "}"


def _results(operator: Operator) -> Iterator[str]:
    name, many = _type_name(operator), len(operator.returns) > 1
    yield f"struct {name}Results {{"
    yield f"  Tensor {', '.join(output.name for output in operator.returns)};"
    yield "};"
    yield ""
    yield f"{name}Results results(const {name}Call& c) {{"
    made = []
    for output in operator.returns:
        like = f"torch::stable::empty_like(c.{output.like})"
        made.append(
            like if output.per is None else f"c.{output.per} ? {like} : torch::stable::new_empty(c.h, {{0}})"
        )
    yield "  return {" + ",\n          ".join(made) + "};"
    yield "}"
    if many:
        yield ""
        yield f"using {name}Tuple = std::tuple<{', '.join('Tensor' for _ in operator.returns)}>;"


def _kernel_arguments(operator: Operator) -> Iterator[str]:
    yield f"{_struct_of(operator)} arguments(const {_type_name(operator)}Call& c) {{"
    yield f"  {_struct_of(operator)} a{{}};"
    yield f"  a.shape = shape(c.{operator.arguments[0].name});"
    of_pde, own = _plain(operator)
    for a in (*of_pde, *own):
        target = f"a.pde.{a.name}" if a in of_pde else f"a.{a.name}"
        value = (
            f"static_cast<{_plain_type(a)}>(c.{a.name})" if isinstance(a.kind, Enumeration) else f"c.{a.name}"
        )
        yield f"  {target} = {value};"
    for a in operator.tensors:
        if isinstance(a.kind, Map):
            yield f"  a.{a.name} = view(c.{a.name});"
        elif isinstance(a.kind, Parameter):
            yield f"  a.{a.name} = c.{a.name}.data_ptr();"
            if "k" in a.kind.sizes:
                k = a.kind.sizes.index("k")
                yield f"  a.fields = c.{a.name}.size(0), a.kernel = c.{a.name}.size({k});"
    yield "  return a;"
    yield "}"


def _bind(operator: Operator) -> Iterator[str]:
    yield f"void bind({_struct_of(operator)}& a, const {_type_name(operator)}Results& r) {{"
    for output in operator.returns:
        value = f"r.{output.name}"
        if not _is_map(operator, output):
            yield f"  a.{output.name} = {value}.data_ptr();"
        elif output.per is None:
            yield f"  a.{output.name} = view({value});"
        else:
            yield f"  if ({value}.dim() == 4) a.{output.name} = view({value});"
    yield "}"


def _entry(operator: Operator) -> Iterator[str]:
    name, one = _type_name(operator), len(operator.returns) == 1
    taken = []
    for a in operator.arguments:
        taken.append(f"const {_held(a)}& {a.name}" if a.is_tensor else f"{_held(a)} {a.name}")
    yield f"{name}Results {operator.name}({name}Call c);  // in operators.cpp"
    yield ""
    yield f"{'Tensor' if one else f'{name}Tuple'} {operator.name}_entry("
    yield "    " + ",\n    ".join(taken) + ") {"
    yield f"  {name}Call c{{{', '.join(a.name for a in operator.arguments)}}};"
    yield "  check(c);"
    yield "  pack(c);"
    yield f"  const {name}Results r = {operator.name}(std::move(c));"
    results = ", ".join(f"r.{output.name}" for output in operator.returns)
    yield f"  return {results if one else f'{{{results}}}'};"
    yield "}"


def main(folder: Path, check: bool) -> int:
    """Write the headers, or say which of them is not up to date. Returns the exit status."""
    stale = [name for name, text in headers().items() if not _same(folder / name, text)]
    for name in stale:
        if not check:
            (folder / name).write_text(headers()[name], encoding="utf-8")
    return int(check and bool(stale))


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent / "csrc", "--check" in sys.argv[1:]))
