"""Every figure in README's results section is the one in the files under results/."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location(
        "results_section", ROOT / "benchmarks" / "results_section.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_says_what_the_results_say(script):
    assert script.section() in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "run: python benchmarks/results_section.py"
    )


def test_a_changed_figure_would_be_noticed(script, monkeypatch):
    real = script.read

    def changed(name):
        content = json.loads(json.dumps(real(name)))
        if name.startswith("cifar10"):
            content["test_accuracy"] += 0.001
        return content

    monkeypatch.setattr(script, "read", changed)
    assert script.section() not in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / "results").rglob("*.json")), ids=lambda p: p.name)
def test_results_name_seed_versions_and_hardware(file):
    content = json.loads(file.read_text(encoding="utf-8"))
    assert "seed" in content or "seeds" in content
    assert {"torch", "python", "cpu", "threads"} <= set(content["environment"])


def test_no_weights_or_data_among_the_results():
    assert {p.suffix for p in (ROOT / "results").rglob("*") if p.is_file()} <= {".json", ".png", ".md"}


def test_the_performance_page_says_what_the_benchmarks_say():
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "performance_page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.section() in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), (
        "run: python benchmarks/performance_page.py"
    )
