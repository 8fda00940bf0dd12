"""Multiply-adds as the tool behind the paper's tables counts them: TensorFlow 1's profiler."""

from __future__ import annotations

from contextlib import ExitStack
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from condconv.counting import count_trace
from condconv.counting.tracing import Call, trace
from condconv.errors import UsageError, check_type
from condconv.nn import CondLinear
from condconv.nn.conditional import conditional_layers

# Float operations for each element of the output; what is in neither table costs nothing, as in the profiler: ReLU,
# ReLU6, sigmoid, tanh, padding, concatenation, batch norm (fused) among them.
_EACH_ELEMENT = {
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow"), 1),
    **dict.fromkeys(("neg", "reciprocal", "log", "gt", "ge", "lt", "le", "eq", "ne"), 1),
    "rsqrt": 2,
    "_softmax": 5,
    # TensorFlow 1 has no operation for these. Networks write them as x * sigmoid(x), relu6(x + 3) / 6 and
    # x * relu6(x + 3) / 6, whose sums, products and quotients count.
    "silu": 1,
    "hardsigmoid": 2,
    "hardswish": 3,
}
# Name, and position of the bias among the arguments.
_WITH_BIAS = {"convolution": 2, "addmm": 0}


def profiler_madds(model: nn.Module, example_input: Any = None, *, batched_products: bool = True) -> int:
    """Count multiply-adds as the CondConv paper does: half the float operations TensorFlow 1's profiler reports.

    To the convolutions, linear layers and mixing of `condconv.count` it adds half of the element-wise operations,
    reductions and poolings the profiler has a formula for, biases and the normalisation of the image (a difference
    and a quotient for each element of the first tensor). Conditional layers are taken as the authors compute them:
    a matrix product that mixes, a convolution, a bias; how they run here does not matter. The formulas fit what
    the paper's networks are made of. Layer and group norms, which TensorFlow 1 writes as several operations, and
    attention are left out.

    Args:
        model: Any module on any device, the meta device too; left as it was. It is run once, in evaluation mode
            without gradients.
        example_input: A tensor `[B, ...]` of any dtype the model takes, or a tuple of arguments of which the first
            tensor has that shape; `None` for `condconv.counting.tracing.default_example`.
        batched_products: Whether the products of conditional linear layers with their mixed matrices count. Where
            TensorFlow computes them as `BatchMatMul` they do not: the profiler had no formula for it until August
            2019. `False` gives the figures of conditional MobileNetV1 in the paper's Table 3.

    Returns:
        The multiply-adds for one example, rounded down.

    Raises:
        UsageError: The example has no tensor, or one without a batch.
        ValueError: No example is given and none can be guessed.

    Source:
        TensorFlow 1, `tensorflow/python/profiler/internal/flops_registry.py` (element-wise operations, reductions,
        pooling, products) and `tensorflow/python/ops/nn_ops.py` (convolutions, biases); `BatchMatMul`:
        tensorflow/tensorflow, issue 22071 and pull request 31993.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.SiLU())
        >>> profiler_madds(net, torch.zeros(1, 3, 5, 5))  # 24 x 25, and half of 2 x 75, 8 x 25 and 8 x 25
        875
    """
    check_type("model", model, nn.Module, "be a torch.nn.Module", "give the network itself")
    check_type("batched_products", batched_products, bool, "be True or False", "False is what Table 3 counts")
    with _Profiler() as profiler, ExitStack() as hooks:
        for layer in conditional_layers(model).values():
            hooks.callback(layer.register_forward_pre_hook(profiler.enter_layer).remove)
            hooks.callback(layer.register_forward_hook(profiler.leave_layer).remove)
            hooks.callback(layer.routing_fn.register_forward_pre_hook(profiler.enter_routing).remove)
            hooks.callback(layer.routing_fn.register_forward_hook(profiler.leave_routing).remove)
        watched = trace(model, example_input)
    calls = watched.calls
    shape = calls[0].input_shape
    if not shape or not shape[0]:
        found = "no tensor" if shape is None else f"shape {shape}"
        raise UsageError(f"`example_input` must hold a tensor [B, ...] with B > 0, got {found}: pass one image or more")
    normalisation = 2 * prod(shape)
    madds = count_trace(model, watched).total.madds + (profiler.operations + normalisation) // (2 * shape[0])
    return madds if batched_products else madds - sum(map(_batched_products, calls)) // shape[0]


def _batched_products(call: Call) -> int:
    """Return the multiply-adds, over the batch, of one call of a conditional linear layer, mixing not included."""
    if not isinstance(call.module, CondLinear) or not call.output_shape:
        return 0
    return prod(call.output_shape[:-1]) * prod(call.module.experts.spec.shape)


class _Profiler(TorchDispatchMode):
    """Adds up the float operations of what runs under it, except inside conditional layers.

    Attributes:
        operations: The sum so far, over the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self._counting = [True]  # a stack: a layer pauses, its own routing function inside resumes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._counting[-1]:
            self.operations += _operations(func, args, output)
        return output

    def enter_layer(self, layer: nn.Module, args: Any) -> None:
        self._counting.append(False)

    def leave_layer(self, layer: Any, args: Any, output: Tensor) -> None:
        self._counting.pop()
        if layer.bias is not None or layer.folded_bias is not None:
            self.operations += output.numel()

    def enter_routing(self, routing_fn: nn.Module, args: Any) -> None:
        self._counting.append(True)

    def leave_routing(self, routing_fn: nn.Module, args: Any, output: Any) -> None:
        self._counting.pop()


def _operations(func: Any, args: tuple[Any, ...], output: Any) -> int:
    """Return the float operations of one call of an operator, other than those of products and convolutions."""
    result = output[0] if isinstance(output, tuple) else output
    if not isinstance(result, Tensor):
        return 0
    name = func._schema.name.removeprefix("aten::").rstrip("_")  # in place or not
    if name in _EACH_ELEMENT:
        return _EACH_ELEMENT[name] * result.numel()
    if name in _WITH_BIAS:
        return 0 if args[_WITH_BIAS[name]] is None else result.numel()
    if name in ("avg_pool2d", "max_pool2d_with_indices"):
        sizes = args[1]
        return result.numel() * (sizes[0] * sizes[-1])
    inputs = args[0].numel() if args and isinstance(args[0], Tensor) else 0
    if name in ("mean", "_adaptive_avg_pool2d"):  # a sum and a division for each output
        return inputs
    if name in ("sum", "argmax", "argmin"):
        return inputs - result.numel()
    return 0
