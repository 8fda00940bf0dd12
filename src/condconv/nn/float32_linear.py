"""The linear layer of routing functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condconv.ops.autocast import autocast_disabled
from condconv.ops.mixing import accumulation_dtype, as_dtype


class Float32Linear(nn.Module):
    """A linear layer that computes in fp32 (fp64 for fp64) for any dtype of its own, also under autocast.

    Rounding a logit to bf16 moves a routing weight by up to 0.2 %, and the layer is too small for bf16 to save time. It
    is not a `torch.nn.Linear`, so that tools which quantize, adapt or initialise those by type skip routing functions.

    Args:
        in_features: C.
        out_features: O.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel glorot-uniform and set the bias to zero, as the authors do."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C]` to `[B, out_features]`, fp32 or fp64."""
        wide = accumulation_dtype(x.dtype)
        with autocast_disabled(x.device):
            return F.linear(as_dtype(x, wide), as_dtype(self.weight, wide), as_dtype(self.bias, wide))

    def extra_repr(self) -> str:
        """Describe the sizes in `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}"
