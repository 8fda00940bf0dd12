"""Under torch.compile, layers and routed blocks need no graph for each batch size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from condconv import CondConv2d, CondLinear
from tests.nn.test_block_routing import Net

IMAGE = (6, 9, 10)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1x1": (lambda: CondConv2d(6, 12, 1, num_experts=3), IMAGE),
    "depthwise": (lambda: CondConv2d(6, 6, 3, stride=2, padding="tf_same", groups=6, num_experts=3), IMAGE),
    "dense": (lambda: CondConv2d(6, 12, 3, padding=1, num_experts=3), IMAGE),
    "linear": (lambda: CondLinear(6, 12, num_experts=3), IMAGE[:1]),
    "block-routing": (Net, (3, 9, 10)),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_two_graphs_serve_all_batch_sizes(name: str, grad: bool) -> None:
    """One for a single example, as torch takes sizes of 1 for constants, and one for all larger batches."""
    make, shape = NETWORKS[name]
    torch._dynamo.reset()
    network = make().eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    with torch.set_grad_enabled(grad):
        for batch in range(1, 12):
            x = torch.randn(batch, *shape)
            torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2
