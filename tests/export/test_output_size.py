"""Transposed convolutions that are given the size of their output keep it in what is exported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from condconv import CondConvTranspose2d
from condconv.export.rewrite import rewrite


class Upsampling(nn.Module):
    def __init__(self, by_keyword: bool) -> None:
        super().__init__()
        self.up = CondConvTranspose2d(3, 2, 3, stride=3, num_experts=3)
        self.by_keyword = by_keyword

    def forward(self, x: Tensor) -> Tensor:
        size = [3 * x.shape[2] + 1, 3 * x.shape[3] + 2]
        return self.up(x, output_size=size) if self.by_keyword else self.up(x, size)


@pytest.mark.parametrize("by_keyword", [True, False])
def test_sizes_are_kept(by_keyword: bool) -> None:
    model, x = Upsampling(by_keyword).eval(), torch.randn(2, 3, 4, 5)
    rewritten, _ = rewrite(model, "onnx", x)
    y = rewritten(x)
    assert y.shape == (2, 2, 13, 17)
    torch.testing.assert_close(y, model(x))
