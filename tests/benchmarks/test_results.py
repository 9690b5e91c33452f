"""Every figure in README's results section is the one in the files under results/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import performance_page, results_section

ROOT = Path(__file__).resolve().parents[2]


def test_readme_says_what_the_results_say():
    for page, section in results_section.sections().items():
        assert section in (ROOT / page).read_text(encoding="utf-8"), (
            "run: python -m benchmarks.results_section"
        )


def test_a_changed_figure_would_be_noticed(monkeypatch):
    real = results_section.read

    def changed(name):
        content = json.loads(json.dumps(real(name)))
        if name.startswith("cifar10"):
            content["test_accuracy"] += 0.001
        return content

    monkeypatch.setattr(results_section, "read", changed)
    section = results_section.sections()["docs/measurements.md"]
    assert section not in (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / "results").rglob("*.json")), ids=lambda p: p.name)
def test_results_name_seed_versions_and_hardware(file):
    content = json.loads(file.read_text(encoding="utf-8"))
    assert "seed" in content or "seeds" in content
    assert {"torch", "python", "cpu", "threads"} <= set(content["environment"])


def test_no_weights_or_data_among_the_results():
    assert {p.suffix for p in (ROOT / "results").rglob("*") if p.is_file()} <= {".json", ".png", ".md"}


def test_the_performance_page_says_what_the_benchmarks_say():
    assert performance_page.section() in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), (
        "run: python -m benchmarks.performance_page"
    )
