"""The code in the guides runs, block after block, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDES = Path(__file__).parent.parent / "docs" / "guides"


@pytest.mark.parametrize("name", ["own-network.md"])
def test_the_code_of_a_guide_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (GUIDES / name).read_text(encoding="utf-8"), re.S | re.M)
    assert len(blocks) > 2
    names = {}
    for block in blocks:
        exec(compile(block, name, "exec"), names)
