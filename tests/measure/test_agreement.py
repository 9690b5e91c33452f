"""Comparing what two networks gave."""

from __future__ import annotations

import torch

from globalcnn.measure.agreement import compare_outputs


def test_outputs_agree_or_it_is_said_why_not():
    wanted = torch.tensor([[1.0, 0.999999, -2.0], [0.0, 1.0, 2.0]])
    same = compare_outputs(wanted, wanted)
    assert (same.deviation, same.disagreement, bool(same)) == (0.0, None, True)
    near = compare_outputs(wanted + 1e-5, wanted)
    assert (round(near.deviation, 7), near.disagreement) == (5e-6, None)
    off = compare_outputs(wanted + 1e-3, wanted)
    assert not off
    assert "deviates" in off.disagreement
    assert "deviates" in compare_outputs(wanted * torch.nan, wanted).disagreement
    assert compare_outputs(wanted[:1, [1, 0, 2]], wanted[:1])  # a tie, but for rounding
    lead = torch.tensor([[1.0, 0.9999, 0.0]])
    other = compare_outputs(lead[:, [1, 0, 2]], lead, tolerance=2e-4)
    assert "another class wins for 1 of 1" in other.disagreement
    assert "structure" in compare_outputs([wanted], wanted).disagreement
    assert "float64" in compare_outputs(wanted.double(), wanted).disagreement
