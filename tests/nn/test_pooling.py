"""`grid_average` is PyTorch's adaptive pooling, also in graphs whose height and width vary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from globalcnn.nn.pooling import grid_average


class Pool(nn.Module):
    def forward(self, x):
        return grid_average(x, 7)


@pytest.mark.parametrize("size", [(28, 28), (20, 32), (7, 9), (5, 40)], ids=str)
def test_exported_with_dynamic_height_and_width(size):
    dynamic = ({2: torch.export.Dim("height", min=3), 3: torch.export.Dim("width", min=3)},)
    program = torch.export.export(Pool(), (torch.randn(2, 1, 28, 27),), dynamic_shapes=dynamic)
    x = torch.randn(2, 1, *size)
    expected = F.adaptive_avg_pool2d(x, 7)
    torch.testing.assert_close(program.module()(x), expected)
    torch.testing.assert_close(torch.jit.trace(Pool(), torch.randn(2, 1, 28, 28))(x), expected)
    assert torch.equal(Pool()(x), expected)
