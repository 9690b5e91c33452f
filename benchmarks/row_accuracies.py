"""Accuracies of the rows of weights/ and of their earlier recipes: pairs by one recipe, and each network beside print."""

from __future__ import annotations

import itertools
import json
import statistics
from dataclasses import dataclass

from globalcnn.models import list_models
from globalcnn.reproduce.rows import published_rows
from globalcnn.reproduce.table import DATASETS

from .pages import RESULTS, table
from .row_cards import How, enumerated


@dataclass(frozen=True)
class Trained:
    """A network after training: on which data, with which seeds, how, and the mean test accuracy, %, of its seeds."""

    data: str
    seeds: tuple[int, ...]
    how: How
    accuracy: float

    @property
    def alike(self) -> tuple[str, tuple[int, ...], str]:
        """Equal for networks that one recipe trained on the same data with the same seeds."""
        return self.data, self.seeds, self.how.alike

    @property
    def epochs(self) -> str:
        """Those of one training after another."""
        return " + ".join(map(str, self.how.epochs))

    def words(self) -> str:
        """Accuracy, epochs, and what else there was.

        >>> from globalcnn.train import Recipe
        >>> Trained("mnist", (0, 1), How(Recipe(epochs=9), {"path": "large-mnist"}), 99.14).words()
        '99.14 after 9 epochs, learning from `large-mnist` (mean of 2 seeds)'
        """
        teachers = [name if " " in name else f"`{name}`" for name in self.how.teachers]
        taught = f", learning from {enumerated(teachers)}" if teachers else ""
        mean = f" (mean of {len(self.seeds)} seeds)" if len(self.seeds) > 1 else ""
        return f"{self.accuracy:.2f} after {self.epochs} epochs{taught}{mean}"


def trained(network: str) -> list[Trained]:
    """All results of results/rows/ for that network, those by earlier recipes among them."""
    found = []
    for path in sorted((RESULTS / "rows").rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        name, _, data = content["row"].rpartition("-")
        if name == network:
            runs, seeds = content["runs"], tuple(sorted(content["seeds"]))
            accuracy = 100 * statistics.fmean(run["test_accuracy"] for run in runs)
            found.append(Trained(data, seeds, How.of(runs[0]), accuracy))
    return found


def accuracies(ours: str, theirs: str) -> str:
    """Test accuracies of two networks by one recipe and seeds, on each data set after the most epochs that there are."""
    by_data: dict[str, tuple[int, str]] = {}
    for one, other in itertools.product(trained(ours), trained(theirs)):
        if one.alike != other.alike:
            continue
        epochs = sum(one.how.epochs)
        words = f"{one.accuracy:.1f} / {other.accuracy:.1f} ({one.data}, {one.epochs} epochs)"
        if epochs > by_data.get(one.data, (0, ""))[0]:
            by_data[one.data] = epochs, words
    return ", ".join(words for _, words in by_data.values()) or "-"


def reached() -> str:
    """What each network reached on each data set, beside print."""
    rows = []
    for network in list_models():
        by_data: dict[str, list[Trained]] = {}
        for one in trained(network):
            by_data.setdefault(one.data, []).append(one)
        for data, each in sorted(by_data.items()):
            cells = ("-" if one is None else one.words() for one in _longest(each))
            rows.append((f"`{network}`", data, *cells, _printed(network, data)))
    return table(("network", "data", "from labels alone", "with a teacher too", "in print"), rows)


def _longest(each: list[Trained]) -> tuple[Trained | None, Trained | None]:
    """The longest training from labels alone, and the longest with a teacher."""
    order = sorted(each, key=lambda one: sum(one.how.epochs))
    alone = [one for one in order if not one.how.teachers]
    taught = [one for one in order if one.how.teachers]
    return alone[-1] if alone else None, taught[-1] if taught else None


def _printed(network: str, data: str) -> str:
    """The printed accuracy, of two tables the more exact one."""
    found = [
        row.published["acc"]
        for row in published_rows()
        if row.model == network and row.dataset in DATASETS[data] and "acc" in row.published
    ]
    return str(found[0]) if found else "-"
