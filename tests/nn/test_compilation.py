"""Under torch.compile layers need no graph for each batch size, nor exported ones for each size of image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

from condconv import CondConv1d, CondConv2d, CondLinear
from condconv.ops import cond_conv2d

IMAGE = (6, 9, 10)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1x1": (lambda: CondConv2d(6, 12, 1, num_experts=3), IMAGE),
    "depthwise": (lambda: CondConv2d(6, 6, 3, stride=2, padding="tf_same", groups=6, num_experts=3), IMAGE),
    "dense": (lambda: CondConv2d(6, 12, 3, padding=1, num_experts=3), IMAGE),
    "linear": (lambda: CondLinear(6, 12, num_experts=3), IMAGE[:1]),
}


@pytest.mark.parametrize(
    ("name", "grad"),
    [
        *((name, False) for name in NETWORKS),
        *(pytest.param(name, True, marks=() if name == "dense" else pytest.mark.slow) for name in NETWORKS),
    ],
)
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


@pytest.mark.parametrize(
    ("make", "least", "sizes"),
    [
        pytest.param(
            *(lambda: CondConv1d(3, 4, 3, padding=1, num_experts=3), 2, [(3,), (2,), (40,)]),
            marks=pytest.mark.skipif(torch.__version__.startswith("2.11."), reason="it cannot tell that n <= 3 n"),
        ),
        (lambda: CondConv2d(3, 4, 3, padding=1, num_experts=3), 1, [(3, 3), (9, 1), (20, 31)]),
        (lambda: CondConv2d(3, 4, 3, padding=1, stride=2, num_experts=3), 8, [(9, 10), (11, 8), (31, 32)]),
        (lambda: CondConv2d(3, 3, 5, padding=2, stride=3, groups=3, num_experts=3), 8, [(9, 10), (11, 8), (31, 32)]),
        (lambda: CondConv2d(3, 4, 3, padding=1, num_experts=3).bfloat16(), 1, [(3, 3), (20, 20)]),
    ],
    ids=["conv1d", "conv2d", "stride2", "depthwise-stride3", "bf16"],
)
def test_exported_graphs_hold_no_size(make: Callable[[], nn.Module], least: int, sizes: list[tuple[int, ...]]) -> None:
    network = make().eval()
    dtype = next(network.parameters()).dtype
    dims = {0: Dim("b"), **{2 + i: Dim(f"s{i}", min=least, max=512) for i in range(len(sizes[0]))}}
    with torch.no_grad():
        program = export(network, (torch.randn(2, 3, *[16] * len(sizes[0]), dtype=dtype),), dynamic_shapes=(dims,))
        for size in sizes:
            x = torch.randn(3, 3, *size, dtype=dtype)
            tolerance = 1e-4 if dtype == torch.float32 else 0.05
            torch.testing.assert_close(program.module()(x), network(x), rtol=tolerance, atol=tolerance)


def test_routing_weights_and_biases_in_another_layout_train_compiled() -> None:
    torch._dynamo.reset()
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 6, 3, 3, 3, requires_grad=True)
    logits, bias = torch.randn(4, 2, requires_grad=True), torch.randn(6, 4, requires_grad=True)

    def loss(x, weight, logits, bias):
        return cond_conv2d(x, weight, logits.T * 1.0, bias.T * 1.0).square().sum()

    leaves = (weight, logits, bias)
    expected = torch.autograd.grad(loss(x, *leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss)(x, *leaves), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
