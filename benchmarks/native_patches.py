"""Patches of the native kernels' sources, for builds that are not the library: with phase timers, with other
choices, with faults that the tests must find.

A patch names a text that must occur exactly once in its file, so that it says clearly when it no longer
applies. Patches are applied to a copy; the sources know nothing of them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from globalcnn.ops.native.library import SOURCES


@dataclass(frozen=True)
class Patch:
    """In `file`, `replacement` takes the place of `text`; white space may differ."""

    file: str
    text: str
    replacement: str


class PatchError(ValueError):
    """A patch does not fit the sources."""


def find(source: str, text: str) -> list[re.Match[str]]:
    """Where `text` occurs, whatever the line breaks and indentation."""
    return list(re.finditer(r"\s+".join(map(re.escape, text.split())), source))


def apply(patches: Sequence[Patch], to: Path, *, sources: Path = SOURCES) -> Path:
    """A copy of the kernels' sources in the folder `to`, patched in order. The folder.

    Raises `PatchError` if the text of a patch does not occur exactly once.
    """
    shutil.copytree(sources, to)
    for patch in patches:
        path = to / patch.file
        source = path.read_text()
        found = find(source, patch.text)
        if len(found) != 1:
            raise PatchError(
                f"the patch of {patch.file} no longer applies: {patch.text!r} occurs {len(found)} times"
            )
        path.write_text(source[: found[0].start()] + patch.replacement + source[found[0].end() :])
    return to


def _timed(file: str, text: str, phase: int) -> Patch:
    return Patch(file, text, f"{text} GLOBALCNN_PHASE({phase});")


# The phases of `layer`, in ticks of the processor's clock, added up for one thread: GLOBALCNN_PHASE(i) ends phase
# i, GLOBALCNN_PHASE(-1) starts the clock.
PHASE_TIMERS = (
    Patch(
        "simd.h",
        "#pragma once",
        """#pragma once
#include <cstdint>
inline uint64_t globalcnn_phase_ticks[8], globalcnn_phase_since;
#define GLOBALCNN_PHASE(i)                                                      \\
  do {                                                                          \\
    const uint64_t now = __builtin_ia32_rdtsc();                                \\
    if ((i) >= 0) globalcnn_phase_ticks[(i) & 7] += now - globalcnn_phase_since; \\
    globalcnn_phase_since = now;                                                \\
  } while (0)""",
    ),
    Patch(
        "kernel_table.h",
        "const Kernels* ISA_TABLE() { return &table; }",
        """const Kernels* ISA_TABLE() { return &table; }
extern "C" __attribute__((visibility("default"), weak)) uint64_t* globalcnn_phases() {
  return globalcnn_phase_ticks;
}""",
    ),
    Patch(
        "layer.h",
        "T* weight = weights + (block == 1",
        "GLOBALCNN_PHASE(-1); T* weight = weights + (block == 1",
    ),
    Patch(
        "layer.h",
        "run_block<relu>(a, g, s, to, b, weight, f_is_h);",
        "GLOBALCNN_PHASE(0); run_block<relu>(a, g, s, to, b, weight, f_is_h); GLOBALCNN_PHASE(5);",
    ),
    _timed("layer.h", "if (!f_is_h) read_planes<T, Stored>(to.f, g, a.f, b.n, b.c, b.count);", 1),
    _timed(
        "layer.h",
        "compute_fields<relu>(g, a, to.h, velocity_from, weight, prefetch_of(a, g.block, b), to.fields);",
        2,
    ),
    _timed("layer.h", "fill_halo(to.h, g, a.pde.boundary);", 3),
    Patch(
        "layer.h",
        "clear_halo(to.h, g, a.pde.boundary);",
        "GLOBALCNN_PHASE(4); clear_halo(to.h, g, a.pde.boundary); GLOBALCNN_PHASE(3);",
    ),
)


def vectors_at_once(count: int) -> Patch:
    """So many vectors in an unrolled block of the convolutions."""
    text = "constexpr int N = VECTOR_BYTES == 64 ? 4 : G == 4 ? 3 : 5;"
    return Patch("convolution.h", text, f"constexpr int N = {count};")


# planes of one channel, whatever the number of channels
SINGLE_CHANNELS = Patch(
    "kernel_table.h", "return dtype == Dtype::f64 ? LANES<double> : LANES<float>;", "return (void)dtype, 1;"
)
