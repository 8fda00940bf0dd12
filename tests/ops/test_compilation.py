"""torch.compile, torch.export and torch.func see the operation as they see torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, vmap

from condconv.ops import cond_conv2d, cond_linear
from condconv.ops.native import library

# Every size differs from every other and from the batches: equal sizes would share a symbol.
KERNELS = {
    "pointwise": ((5, 6, 4, 1, 1), {}),
    "dense": ((5, 6, 4, 3, 3), {"padding": 1}),
    "depthwise": ((5, 4, 1, 3, 3), {"groups": 4, "padding": "tf_same", "stride": 2}),
}
NATIVE = pytest.param("native", marks=pytest.mark.skipif(library.LOADED is None, reason="built without a C compiler"))
# Not in `make test`, where "auto" takes some of them.
FORMS = [pytest.param(n, marks=pytest.mark.slow) for n in ("grouped", "matmul", "loop", "mix_outputs")]


class Layer(nn.Module):
    def __init__(self, kernel: str, impl: str = "auto") -> None:
        super().__init__()
        shape, self.options = KERNELS[kernel]
        self.weight = nn.Parameter(torch.randn(shape))
        self.impl = impl

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        return cond_conv2d(x, self.weight, routing_weights, impl=self.impl, **self.options)


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 4, 11, 10), torch.rand(batch, 5)


def count_graphs(function: Callable[..., Tensor], batches: tuple[int, ...], **options: Any) -> int:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, **options)
    for batch in batches:
        arguments = inputs(batch)
        torch.testing.assert_close(compiled(*arguments), function(*arguments), rtol=1e-4, atol=1e-4)
    return counter.frame_count


@pytest.mark.parametrize("impl", ["auto", *FORMS, NATIVE])
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_graph_for_all_batch_sizes(kernel: str, impl: str) -> None:
    layer = Layer(kernel, impl)
    assert count_graphs(layer, (7, 13, 9), dynamic=True) == 1
    if impl in ("auto", "native"):  # the others are the same with and without gradients
        with torch.no_grad():
            assert count_graphs(layer, (7, 13, 9), dynamic=True) == 1


def test_automatic_dynamic_shapes_need_a_second_graph_only() -> None:
    """Without `dynamic=True` torch first assumes a constant batch, then a free one."""
    assert count_graphs(Layer("dense"), (7, 13, 9, 8)) == 2


@pytest.mark.parametrize("kernel", KERNELS)
def test_compiled_gradients(kernel: str) -> None:
    torch._dynamo.reset()
    layer = Layer(kernel)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (7, 13):
        x, routing = (tensor.requires_grad_() for tensor in inputs(batch))
        leaves = (x, routing, layer.weight)
        expected = torch.autograd.grad(layer(x, routing).square().sum(), leaves)
        got = torch.autograd.grad(compiled(x, routing).square().sum(), leaves)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_inductor(kernel: str) -> None:
    torch._dynamo.reset()
    layer = Layer(kernel)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for batch in (7, 13):
        arguments = inputs(batch)
        torch.testing.assert_close(compiled(*arguments), layer(*arguments), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*arguments), layer(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_export_has_a_free_batch_and_only_torch_operators(kernel: str, strict: bool) -> None:
    layer = Layer(kernel).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, inputs(3), dynamic_shapes=({0: batch}, {0: batch}), strict=strict)
    assert not [node for node in program.graph.nodes if "condconv" in str(node.target)]
    for size in (1, 2, 7):
        arguments = inputs(size)
        torch.testing.assert_close(program.module()(*arguments), layer(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", ["reference", "grouped", "loop"])
def test_export_refuses_forms_that_fix_the_batch(impl: str) -> None:
    with pytest.raises(Exception, match=f"`impl` must be able to run this call, got '{impl}': .* one batch size"):
        torch.export.export(Layer("dense", impl), inputs(3), strict=False)


@pytest.mark.parametrize("impl", ["auto", "reference", "grouped", "matmul", "loop", "mix_outputs"])
def test_per_example_gradients_by_vmap_over_grad(impl: str) -> None:
    layer = Layer("dense", impl)
    parameters = dict(layer.named_parameters())
    x, routing = inputs(3)

    def loss(parameters: dict[str, Tensor], x: Tensor, routing: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x[None], routing[None])).square().sum()

    batched = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, routing)["weight"]
    looped = torch.stack([grad(loss)(parameters, *pair)["weight"] for pair in zip(x, routing, strict=True)])
    torch.testing.assert_close(batched, looped, rtol=1e-4, atol=1e-3)
    total = torch.autograd.grad(layer(x, routing).square().sum(), layer.weight)[0]
    torch.testing.assert_close(batched.sum(0), total, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("impl", ["grouped", "matmul", "loop"])
def test_transforms_of_an_empty_batch(impl: str) -> None:
    weight = torch.randn(3, 6, 4, 3, 3)

    def loss(weight: Tensor) -> Tensor:
        return cond_conv2d(torch.zeros(0, 4, 5, 5), weight, torch.zeros(0, 3), impl=impl).sum()

    assert torch.equal(grad(loss)(weight), torch.zeros_like(weight))


def test_vmap_over_an_ensemble_of_parameters() -> None:
    layer = Layer("depthwise")
    stacked = {"weight": torch.randn(2, *layer.weight.shape)}
    x, routing = inputs(3)
    outputs = vmap(lambda parameters: functional_call(layer, parameters, (x, routing)))(stacked)
    for weight, output in zip(stacked["weight"], outputs, strict=True):
        torch.testing.assert_close(output, functional_call(layer, {"weight": weight}, (x, routing)))


# torch's own decompositions for forward mode are registered through a deprecated function.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_forward_mode_derivative() -> None:
    layer = Layer("dense")
    x, routing = (tensor.double() for tensor in inputs(2))
    weight = layer.weight.detach().double()
    direction = torch.randn_like(routing)
    _, tangent = jvp(lambda r: cond_conv2d(x, weight, r, padding=1), (routing,), (direction,))
    torch.testing.assert_close(tangent, cond_conv2d(x, weight, direction, padding=1))


def test_linear_compiles_with_a_free_batch() -> None:
    weight = torch.randn(5, 6, 4)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, r: cond_linear(x, weight, r), backend=counter, fullgraph=True, dynamic=True)
    for batch in (7, 13):
        x, routing = torch.randn(batch, 4), torch.rand(batch, 5)
        torch.testing.assert_close(compiled(x, routing), cond_linear(x, weight, routing))
    assert counter.frame_count == 1
