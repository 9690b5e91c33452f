"""Pictures of the benchmark's tables, also where figures are missing."""

from __future__ import annotations

import pytest
from matplotlib.image import imread

from benchmarks.pictures import plot_bench


def variant(name, seconds):
    return {"variant": name, "seconds": seconds}


def cell(name, ratio, facts):
    ours = {"name": "a", "fastest": "eager", "variants": [variant("eager", 1e-3), variant("compiled", None)]}
    theirs = {
        "name": name,
        "fastest": "eager",
        "variants": [variant("eager", 2e-3), variant("compiled", 3e-3)],
    }
    return {
        "name": f"a / {name}",
        "images": 1,
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio,
        "facts": facts,
    }


EMPTY = {"name": "a", "fastest": None, "variants": []}
TABLES = {
    "one": {"kind": "comparison", "title": "t", "cells": [cell("b", 0.5, {"macs_ratio": 0.4})]},
    "failed": {
        "kind": "comparison",
        "title": "t",
        "cells": [
            cell("b", 0.5, {}),
            {"name": "c", "images": 1, "ours": EMPTY, "theirs": EMPTY, "ratio": None, "facts": {}},
        ],
    },
    "nothing": {
        "kind": "comparison",
        "title": "t",
        "cells": [{"name": "c", "images": 1, "ours": EMPTY, "theirs": EMPTY, "ratio": None, "facts": {}}],
    },
    "memory": {
        "kind": "memory",
        "title": "t",
        "input_bytes": 1000,
        "rows": [
            {"backend": b, "steps": k, "kept": kept, "peak": kept}
            for b, k, kept in (("automatic", 1, 2000), ("automatic", 5, None), ("eager", 1, 9000))
        ],
    },
}


@pytest.mark.parametrize("name", TABLES)
def test_drawn(name, tmp_path):
    plot_bench(TABLES[name], tmp_path / "p.png")
    picture = imread(tmp_path / "p.png")
    assert picture.shape[1] > 900
    assert picture.std() > 0.02
