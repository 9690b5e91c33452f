"""Faults of the native kernels, one term each, that their checks must find.

They are patches of a copy of the sources, in which all of them can be switched on at run time: one build
serves all. `FAULTS[i]` is number i + 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.native_patches import Patch, PatchError, apply


@dataclass(frozen=True)
class Fault:
    """In `file`, where `anchor` occurs once, its part `good` becomes `bad`.

    Both are expressions, or, ending with a semicolon, statements (an empty `bad`: it is left out). check: the
    name of the check, of `native_checks.CHECKS`, that must find it. breaks: what is wrong then.
    """

    check: str
    breaks: str
    file: str
    anchor: str
    good: str
    bad: str

    def patch(self, number: int) -> Patch:
        """The patch that makes it fault number `number` of a build."""
        found = list(re.finditer(rf"(?<!\w){re.escape(self.good)}(?!\w)", self.anchor))
        if len(found) != 1:
            raise PatchError(f"{self.good!r} occurs {len(found)} times in {self.anchor!r}, not once")
        if self.good.endswith(";"):
            switched = f"if (globalcnn_fault == {number}) {{ {self.bad} }} else {{ {self.good} }}"
        else:
            switched = f"(globalcnn_fault == {number} ? ({self.bad}) : ({self.good}))"
        return Patch(
            self.file, self.anchor, self.anchor[: found[0].start()] + switched + self.anchor[found[0].end() :]
        )


def switchable_sources(to: Path) -> Path:
    """A copy of the sources, in the folder `to`, with all faults; `globalcnn_set_fault` switches one on."""
    declared = Patch("simd.h", "#pragma once", "#pragma once\nextern int globalcnn_fault;")
    apply([declared, *(fault.patch(number) for number, fault in enumerate(FAULTS, 1))], to)
    (to / "fault_switch.cpp").write_text(
        "int globalcnn_fault = 0;\n"
        'extern "C" __attribute__((visibility("default"))) void globalcnn_set_fault(int number) {\n'
        "  globalcnn_fault = number;\n}\n"
    )
    return to


def _whole(check: str, breaks: str, file: str, good: str, bad: str) -> Fault:
    return Fault(check, breaks, file, good, good, bad)


FAULTS = (
    # reading and writing planes
    Fault(
        "solve",
        "the last pixel of a row is not read",
        "layout.h",
        "convert_line(plane + g.at(i, 0), base + i * from.h, g.W);",
        "g.W",
        "g.W - 1",
    ),
    Fault(
        "solve",
        "the last pixel of a row is not written",
        "layout.h",
        "convert_line(base + i * to.h, plane + g.at(i, 0), g.W);",
        "g.W",
        "g.W - 1",
    ),
    Fault(
        "solve",
        "the last channel of a block is not read from channels-last",
        "layout.h",
        "convert_line(to, line, L);",
        "L",
        "L - 1",
    ),
    Fault(
        "solve",
        "the last of fewer channels than a block has is not read from channels-last",
        "layout.h",
        "read_few(to, line, count);",
        "count",
        "count - 1",
    ),
    Fault(
        "solve",
        "the last of fewer channels than a block has is not written to channels-last",
        "layout.h",
        "write_few(line, from, count);",
        "count",
        "count - 1",
    ),
    Fault(
        "solve",
        "a block is transposed wrongly as it is read",
        "layout.h",
        "load(transposed + k * L)",
        "k * L",
        "0",
    ),
    _whole(
        "solve",
        "a block is transposed wrongly as it is written",
        "layout.h",
        "load(plane + walk.next())",
        "load(plane + walk.next()) * T(k)",
    ),
    # halos
    Fault(
        "solve",
        "the normal velocity keeps its sign beyond a wall",
        "halo.h",
        "} else if (odd && o.mirrored) {",
        "odd && o.mirrored",
        "false",
    ),
    _whole(
        "solve",
        "the adjoint of the halo columns is left out",
        "adjoint.h",
        "scatter_add_halo_columns(lambda, g, boundary, false);",
        "",
    ),
    Fault(
        "solve",
        "the adjoint of the velocity's halo rows keeps the sign",
        "adjoint.h",
        "scatter_add_halo_rows(to.u, g, boundary, true);",
        "true",
        "false",
    ),
    Fault(
        "solve",
        "gradients of the left halo columns are lost",
        "adjoint.h",
        "set_column<T, false>(to + g.at(0, -k), of_left, g, left_factor);",
        "left_factor",
        "T(0)",
    ),
    Fault(
        "evolve",
        "gradients from below the last row are lost",
        "adjoint_single_step.h",
        "below[j] = none ? T(0) : from_first[j];",
        "from_first[j]",
        "T(0)",
    ),
    _whole(
        "layer",
        "the velocity's halo rows are not filled",
        "layer.h",
        "fill_halo_rows(to.fields[0], g, a.pde.boundary, true);",
        "",
    ),
    _whole(
        "layer",
        "the convolutions see the boundary's halo",
        "layer.h",
        "clear_halo(to.h, g, a.pde.boundary);",
        "",
    ),
    # the scheme
    Fault(
        "solve",
        "K = 1: one neighbour stands for both",
        "scheme.h",
        "(two_By - Ay) * at.ym",
        "at.ym",
        "at.yp",
    ),
    Fault("solve", "K = 1: h stands for h_old", "scheme.h", "of_old * old", "old", "h_here"),
    Fault("solve", "K > 1: one neighbour stands for both", "scheme.h", "k.c * at.ym", "at.ym", "at.yp"),
    Fault(
        "solve",
        "K > 1, constant diffusion: one neighbour stands for both",
        "scheme.h",
        "(s.Py - Qy) * at.ym",
        "at.ym",
        "at.yp",
    ),
    Fault("solve", "a wrong coefficient is stored", "scheme.h", "store(stream + 2 * L, c)", "c", "e"),
    Fault(
        "solve",
        "the divergence is stored with the wrong sign",
        "scheme.h",
        "store(stream + 4 * L, G)",
        "G",
        "-G",
    ),
    Fault(
        "solve",
        "a coefficient of constant diffusion is stored with the wrong sign",
        "scheme.h",
        "store(stored + L, Qy)",
        "Qy",
        "-Qy",
    ),
    Fault("solve", "half of the source is lost", "scheme.h", "rest += f_here * dt", "dt", "T(0)"),
    Fault(
        "solve",
        "the vector before is the vector here",
        "scheme.h",
        "if constexpr (way == YNeighbours::in_registers) return before;",
        "before",
        "here",
    ),
    # its adjoint
    Fault("solve", "levels computed again are wrong", "adjoint.h", "(Py - Qy) * at.ym", "at.ym", "at.yp"),
    Fault(
        "solve",
        "the gradient of Qy adds both neighbours",
        "adjoint.h",
        "l_yp - l_ym",
        "l_yp - l_ym",
        "l_yp + l_ym",
    ),
    Fault("solve", "the gradient of h_old lacks its factor", "adjoint.h", "of_old * l)", "of_old * l", "l"),
    Fault("solve", "the gradient of Dy lacks that of R", "adjoint.h", "(gPy - gR)", "gPy - gR", "gPy"),
    Fault("solve", "the gradient of the divergence has the wrong sign", "adjoint.h", "-gG * R", "-gG", "gG"),
    Fault(
        "evolve",
        "K = 1: the gradient of Dy lacks that of R",
        "adjoint_single_step.h",
        "l_ym + l_yp - l * old_and_H",
        "old_and_H",
        "T(2) * load(h_old + p)",
    ),
    Fault(
        "evolve",
        "K = 1: the gradient of the divergence has the wrong sign",
        "adjoint_single_step.h",
        "-l * row.here",
        "-l",
        "l",
    ),
    # convolutions, norms, activations
    Fault(
        "layer",
        "all coefficients have the first bias",
        "convolution.h",
        "load(bias + i * L)",
        "i * L",
        "0",
    ),
    Fault("layer", "the output norm is left out", "layer.h", "store(next, y);", "y", "x"),
    Fault(
        "evolve",
        "the halo columns count in the statistics",
        "norms.h",
        "masked<T>(x[i], inside)",
        "masked<T>(x[i], inside)",
        "x[i]",
    ),
    Fault("evolve", "all channels have the first one's statistics", "norms.h", "double(x[e])", "e", "0"),
    Fault(
        "evolve",
        "the norm's backward lacks the mean",
        "evolve_backward.h",
        "y - norm.mean[i]",
        "norm.mean[i]",
        "Vec<T>{}",
    ),
    Fault(
        "evolve",
        "the norm's backward lacks the slope",
        "evolve_backward.h",
        "x[i] * norm.slope[i]",
        "norm.slope[i]",
        "Vec<T>{}",
    ),
    Fault(
        "evolve",
        "the convolution's weights get no gradient",
        "convolution_backward.h",
        "dot[t] += z * x[r];",
        "x[r]",
        "Vec<T>{}",
    ),
    Fault(
        "evolve",
        "the convolution's adjoint is mirrored",
        "convolution_backward.h",
        "t % K - K / 2;",
        "t % K - K / 2",
        "K / 2 - t % K",
    ),
    Fault(
        "evolve",
        "an activation passes gradients that it cuts off",
        "maths.h",
        "return x <= T(0) ? zero : gradient;",
        "x <= T(0) ? zero : gradient",
        "gradient",
    ),
    # not a number, infinity
    Fault(
        "special layer",
        "max drops NaN",
        "simd.h",
        "_mm_max_ps(__m128(l), __m128(x))",
        "_mm_max_ps(__m128(l), __m128(x))",
        "_mm_max_ps(__m128(x), __m128(l))",
    ),
    Fault(
        "special layer",
        "silu(-infinity) is infinite",
        "maths.h",
        "given < lowest ? Vec<float>{} : p * two_to_n",
        "Vec<float>{}",
        "p * two_to_n",
    ),
    Fault(
        "special solve",
        "the two neighbours are factored out",
        "scheme.h",
        "H += (two_Bx - Ax) * at.xm + (two_Bx + Ax) * at.xp;",
        "(two_Bx - Ax) * at.xm + (two_Bx + Ax) * at.xp",
        "two_Bx * (at.xm + at.xp) + Ax * (at.xp - at.xm)",
    ),
    Fault(
        "special evolve",
        "a variance that is NaN is 0",
        "norms.h",
        "(x < 0 ? 0 : x) / before",
        "x < 0",
        "!(x > 0)",
    ),
    Fault(
        "special solve",
        "infinite coefficients in halo columns are gathered",
        "adjoint.h",
        "for (T* x : coefficients) clear_halo_columns(x, g);",
        "clear_halo_columns(x, g);",
        "",
    ),
    # gated sweeps
    Fault(
        "sweeps solve",
        "the axes are swept in the other order",
        "sweeps.h",
        "(i >= 2) != pde.y_first",
        "(i >= 2) != pde.y_first",
        "(i >= 2) == pde.y_first",
    ),
    Fault(
        "sweeps solve",
        "both sweeps of an axis run forward",
        "sweeps.h",
        "from_element = s.backward ? -step : step;",
        "s.backward ? -step : step",
        "step",
    ),
    Fault(
        "sweeps solve",
        "a sweep along a row runs in the wrong direction",
        "sweeps.h",
        "const int64_t step = backward ? -L : L, right = backward ? -1 : 1;",
        "backward ? -L : L",
        "backward ? L : -L",
    ),
    Fault(
        "sweeps solve",
        "the first gate of a row counts at a wall",
        "sweeps.h",
        "d[k] = closed ? in(q) : load(keep + q) * in(q);",
        "closed",
        "false",
    ),
    Fault(
        "sweeps solve",
        "the first gate of a column counts at a wall",
        "sweeps.h",
        "if (k == 0 && starts && closed)\n        d = x;",
        "closed",
        "false",
    ),
    Fault(
        "sweeps solve",
        "a ring is not closed",
        "sweeps.h",
        "d = d / opening_of_ring(lines, line, chain, keep);",
        "d / opening_of_ring(lines, line, chain, keep)",
        "Vec<T>{}",
    ),
    Fault(
        "sweeps layer",
        "the state beyond the wall is zero as the first sweep is fused",
        "sweeps.h",
        "store(level + p - distance, closed ? load(h + p) * factor : Vec<T>{});",
        "closed",
        "false",
    ),
    Fault(
        "sweeps layer",
        "the source is left out of the fused sweep",
        "sweeps.h",
        "factor(FromStart<T, false>(h, nullptr, pde, source).factor),",
        "source",
        "false",
    ),
    Fault(
        "sweeps solve",
        "the velocity acts in both directions",
        "gates.h",
        "max<T>(-velocity, zero)",
        "-velocity",
        "velocity",
    ),
    Fault(
        "sweeps solve",
        "the sigmoid is mirrored",
        "gates.h",
        "(z < T(0) ? broadcast<T>(T(1)) : e)",
        "z < T(0)",
        "z > T(0)",
    ),
    Fault(
        "sweeps solve",
        "the derivative of the transport gate is dropped",
        "gates.h",
        "return -g_keep * (keep * keep);",
        "(keep * keep)",
        "keep",
    ),
    Fault(
        "sweeps solve",
        "the derivative of the sigmoid is dropped",
        "gates.h",
        "return -g_keep * (keep * g);",
        "(keep * g)",
        "keep",
    ),
    Fault(
        "sweeps evolve",
        "the diffusion gets the gradient of one direction",
        "gates.h",
        "diffusion = forward + backward;",
        "forward + backward",
        "forward",
    ),
    Fault(
        "sweeps solve",
        "the adjoint of a sweep does not carry on",
        "sweeps_adjoint.h",
        "s -= keep * s;",
        "keep * s",
        "s",
    ),
    Fault(
        "sweeps solve",
        "the gradient of the state misses its own share",
        "sweeps_adjoint.h",
        "store(grad, fixed ? s : keep * s);",
        "keep * s",
        "s",
    ),
    Fault(
        "sweeps solve",
        "the gradient of a gate misses the neighbour",
        "sweeps_adjoint.h",
        "s * (x - before)",
        "before",
        "Vec<T>{}",
    ),
    Fault(
        "sweeps solve",
        "the first gate at a wall has a gradient",
        "sweeps_adjoint.h",
        "store(result, fixed ?",
        "fixed",
        "false",
    ),
    Fault(
        "sweeps solve",
        "the gradient that goes around a ring is lost",
        "sweeps_adjoint.h",
        "Vec<T> s_here = from_downstream;",
        "from_downstream",
        "Vec<T>{}",
    ),
    Fault(
        "sweeps solve",
        "h_old has a gradient",
        "solve_sweeps.h",
        "write(a.g_h_old, x.g_f);",
        "x.g_f",
        "x.grad",
    ),
    Fault(
        "sweeps evolve",
        "the source of later steps has no gradient",
        "evolve_sweeps.h",
        "i + 1 == steps ? more : load(x.g_f + p) + more",
        "load(x.g_f + p) + more",
        "load(x.g_f + p)",
    ),
)
