"""What an export wrote and found, ready to print or to write as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..measure import Latency
from .checking import Check

MOST_OPERATORS = 12  # that are printed


@dataclass(frozen=True)
class Accuracy:
    """Shares of `images` test images of the data called `data` whose class is found, in both."""

    data: str
    images: int
    engine: float
    pytorch: float


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote, and how it agrees with the network; `print` shows it as lines.

    files: with their bytes; target: its name in `TARGETS`; engine: what ran the file, with version;
    input_shape: numbers, and names of axes of any length; operators: how many of each kind; checks: the
    deviations by shape; engine_latency, pytorch_latency: of a batch of `timed_shape`, None if not measured;
    accuracy: None without data; notes: remarks.
    """

    files: Mapping[str, int]
    target: str
    engine: str
    input_name: str
    input_shape: tuple[int | str, ...]
    operators: Mapping[str, int]
    checks: tuple[Check, ...]
    timed_shape: tuple[int, ...]
    engine_latency: Latency | None = None
    pytorch_latency: Latency | None = None
    accuracy: Accuracy | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "size": self.size}

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) pairs, for a table."""
        rows = [("file", f"{path}, {size:,} bytes") for path, size in self.files.items()]
        rows += [
            ("engine", self.engine),
            (f"input {self.input_name!r}", _times(self.input_shape)),
            (f"operators, {sum(self.operators.values())}", self._operators()),
        ]
        for check in self.checks:
            batches = f", {check.batches} batches" if check.batches > 1 else ""
            rows.append((f"deviation, {_times(check.shape)}{batches}", f"{check.deviation:.1e}"))
        if self.engine_latency is not None and self.pytorch_latency is not None:
            times = self.engine_latency.median, self.pytorch_latency.median
            words = f"{1e3 * times[0]:.3g} ms, in PyTorch {1e3 * times[1]:.3g} ms"
            rows.append((f"latency, {_times(self.timed_shape)}", words))
        if self.accuracy is not None:
            a = self.accuracy
            rows.append(
                (
                    f"accuracy, {a.images} images of {a.data}",
                    f"{100 * a.engine:.2f} %, in PyTorch {100 * a.pytorch:.2f} %",
                )
            )
        return rows

    def _operators(self) -> str:
        shown = [f"{count} {kind}" for kind, count in list(self.operators.items())[:MOST_OPERATORS]]
        more = len(self.operators) - len(shown)
        return ", ".join(shown) + (f" and {more} kinds more" if more else "")

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(what) for what, _ in rows)
        return "\n".join([*(f"{what.ljust(width)}  {value}" for what, value in rows), *self.notes])


def _times(shape: tuple[int | str, ...]) -> str:
    return " x ".join(map(str, shape))
