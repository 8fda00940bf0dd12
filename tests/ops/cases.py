"""The table of shapes every implementation is tested on, against the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condconv import ops


@dataclass(frozen=True)
class Case:
    """A call of one operation: shapes and options."""

    name: str
    op: Callable[..., Tensor]
    x: tuple[int, ...]
    weight: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def out_channels(self) -> int:
        """O, from the experts' shape."""
        if "transpose" in self.op.__name__:
            return self.weight[2] * self.options.get("groups", 1)
        return self.weight[1]

    def tensors(self, dtype: torch.dtype = torch.float64, *, bias: bool = True) -> list[Tensor | None]:
        """Draw x, weight, routing weights and bias that require gradients."""
        batch, num_experts = self.x[0], self.weight[0]
        drawn = [
            torch.randn(self.x, dtype=dtype),
            torch.randn(self.weight, dtype=dtype),
            torch.rand(batch, num_experts, dtype=dtype),
            torch.randn(num_experts, self.out_channels, dtype=dtype) if bias else None,
        ]
        return [None if tensor is None else tensor.requires_grad_() for tensor in drawn]


CASES = [
    Case("pointwise", ops.cond_conv2d, (3, 4, 5, 6), (5, 6, 4, 1, 1)),
    Case("pointwise-stride2", ops.cond_conv2d, (3, 4, 7, 6), (5, 6, 4, 1, 1), {"stride": 2}),
    Case("pointwise-grouped", ops.cond_conv2d, (2, 4, 5, 5), (3, 6, 2, 1, 1), {"groups": 2}),
    Case("pointwise-padded", ops.cond_conv2d, (2, 4, 5, 5), (3, 6, 4, 1, 1), {"padding": 1}),
    Case("pointwise-pixel", ops.cond_conv2d, (3, 4, 1, 1), (5, 6, 4, 1, 1), {"stride": 2}),
    Case("pointwise-pixel-grouped", ops.cond_conv2d, (3, 4, 1, 1), (5, 6, 2, 1, 1), {"groups": 2}),
    Case("pointwise-pixel-padded", ops.cond_conv2d, (3, 4, 1, 1), (5, 6, 4, 1, 1), {"padding": 1}),
    Case("dense3", ops.cond_conv2d, (3, 4, 7, 6), (5, 6, 4, 3, 3), {"padding": 1}),
    Case("dense3-batch1", ops.cond_conv2d, (1, 4, 7, 6), (5, 6, 4, 3, 3), {"padding": 1}),
    Case("dense3-batch0", ops.cond_conv2d, (0, 4, 7, 6), (5, 6, 4, 3, 3), {"padding": 1}),
    Case("dense3-one-expert", ops.cond_conv2d, (3, 4, 7, 6), (1, 6, 4, 3, 3), {"padding": 1}),
    Case("dense3-stride2", ops.cond_conv2d, (2, 3, 8, 7), (4, 5, 3, 3, 3), {"stride": 2, "padding": 1}),
    Case("dense3-tf-same", ops.cond_conv2d, (2, 3, 8, 7), (4, 5, 3, 3, 3), {"stride": 2, "padding": "tf_same"}),
    Case("dense2-same-even", ops.cond_conv2d, (2, 3, 6, 7), (4, 5, 3, 2, 4), {"padding": "same"}),
    Case("dense3-valid", ops.cond_conv2d, (2, 3, 6, 7), (4, 5, 3, 3, 3), {"padding": "valid"}),
    Case("dense-kernel-is-image", ops.cond_conv2d, (3, 4, 5, 5), (5, 6, 4, 5, 5)),
    Case(
        "dense-uneven",
        ops.cond_conv2d,
        (3, 4, 9, 8),
        (5, 6, 2, 3, 2),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
    ),
    Case("reflect", ops.cond_conv2d, (2, 3, 6, 5), (4, 5, 3, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    Case("circular", ops.cond_conv2d, (2, 3, 6, 5), (4, 5, 3, 3, 3), {"padding": (1, 0), "padding_mode": "circular"}),
    Case("replicate", ops.cond_conv2d, (2, 3, 6, 5), (4, 5, 3, 2, 2), {"padding": "same", "padding_mode": "replicate"}),
    Case("depthwise3", ops.cond_conv2d, (3, 4, 7, 6), (5, 4, 1, 3, 3), {"padding": 1, "groups": 4}),
    Case(
        "depthwise5-tf-same",
        ops.cond_conv2d,
        (2, 4, 9, 8),
        (3, 4, 1, 5, 5),
        {"padding": "tf_same", "groups": 4, "stride": 2},
    ),
    Case("depthwise3-large", ops.cond_conv2d, (2, 2, 21, 22), (3, 2, 1, 3, 3), {"padding": 1, "groups": 2}),
    Case("depthwise-multiplier", ops.cond_conv2d, (2, 3, 6, 6), (4, 6, 1, 3, 3), {"groups": 3, "dilation": 2}),
    Case("depthwise-pointwise", ops.cond_conv2d, (2, 3, 4, 4), (4, 3, 1, 1, 1), {"groups": 3}),
    Case("conv1d", ops.cond_conv1d, (2, 4, 9), (3, 6, 2, 3), {"groups": 2, "dilation": 2}),
    Case("conv1d-tf-same", ops.cond_conv1d, (2, 4, 9), (3, 6, 4, 4), {"padding": "tf_same", "stride": 2}),
    Case("conv3d", ops.cond_conv3d, (2, 4, 5, 6, 4), (3, 6, 2, 3, 2, 1), {"groups": 2, "padding": 1}),
    Case("conv3d-depthwise", ops.cond_conv3d, (2, 3, 4, 5, 4), (3, 3, 1, 3, 3, 3), {"groups": 3, "padding": "same"}),
    Case("transpose1d", ops.cond_conv_transpose1d, (2, 4, 5), (3, 4, 1, 3), {"groups": 4, "dilation": 2}),
    Case(
        "transpose2d",
        ops.cond_conv_transpose2d,
        (2, 4, 5, 6),
        (3, 4, 3, 3, 3),
        {"groups": 2, "padding": 1, "stride": 2, "output_padding": 1},
    ),
    Case("transpose2d-pointwise", ops.cond_conv_transpose2d, (2, 4, 5, 6), (3, 4, 6, 1, 1)),
    Case("transpose2d-batch0", ops.cond_conv_transpose2d, (0, 4, 5, 6), (3, 4, 3, 2, 2), {"stride": 2}),
    Case(
        "transpose3d",
        ops.cond_conv_transpose3d,
        (2, 4, 3, 2, 3),
        (3, 4, 3, 3, 3, 2),
        {"padding": 1, "stride": 2, "output_padding": 1},
    ),
    Case("linear", ops.cond_linear, (3, 5), (4, 6, 5)),
    Case("linear-rows", ops.cond_linear, (3, 2, 7, 5), (4, 6, 5)),
    Case("linear-batch0", ops.cond_linear, (0, 5), (4, 6, 5)),
]
BY_NAME = {case.name: case for case in CASES}
IMPLS = ("mix_outputs", "grouped", "matmul", "loop", "auto")
