"""Counting as TensorFlow's profiler: each kind of operation by hand, networks against the profiler and the paper."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condconv import CondConv2d, CondLinear, convert_, count, create_model
from condconv.errors import UsageError
from condconv.nn import SigmoidRouting, route_block_
from scripts import tf_profiler
from scripts.tf_profiler import profiler_madds
from tests.messages import Row, assert_four_parts

_LONG: Any = "x" * 100_000
anything: Any = object()

ROWS: list[Row] = [
    ("model", lambda: profiler_madds(anything)),
    ("batched_products", lambda: profiler_madds(nn.Conv2d(3, 3, 1), batched_products=_LONG)),
    ("example_input", lambda: profiler_madds(nn.Linear(3, 3))),
    ("example_input", lambda: profiler_madds(nn.Conv2d(3, 3, 1), torch.zeros(0, 3, 4, 4))),
]


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def images(size: int = 224) -> Tensor:
    return torch.zeros(1, 3, size, size, device="meta")


# On [4, 6, 6]: 144 elements in, 144 out unless it says otherwise.
OPERATIONS = {
    "x + x": (lambda x: x + x, 144),
    "x + 1": (lambda x: x + 1, 144),
    "x - 1": (lambda x: x - 1, 144),
    "1 - x": (lambda x: 1 - x, 144),
    "x * x": (lambda x: x * x, 144),
    "x / 2": (lambda x: x / 2, 144),
    "in place": (lambda x: x.clone().add_(1).mul_(x).sub_(x).div_(3), 4 * 144),
    "broadcast": (lambda x: x[:, :, :1, :1] * x, 144),
    "maximum": (lambda x: torch.maximum(x, x), 144),
    "minimum": (lambda x: torch.minimum(x, x), 144),
    "square": (lambda x: x**2, 144),
    "comparison": (lambda x: x > 0, 144),
    "neg": (lambda x: -x, 144),
    "log": (torch.log, 144),
    "rsqrt": (torch.rsqrt, 2 * 144),
    "softmax": (partial(F.softmax, dim=1), 5 * 144),
    "swish": (F.silu, 144),
    "swish in place": (lambda x: F.silu(x.clone(), inplace=True), 144),
    "swish spelled out": (lambda x: x * x.sigmoid(), 144),
    "hard sigmoid": (F.hardsigmoid, 2 * 144),
    "hard swish": (F.hardswish, 3 * 144),
    "hard swish spelled out": (lambda x: x * F.relu6(x + 3) / 6, 3 * 144),
    "mean": (lambda x: x.mean((2, 3)), 144),
    "sum to 4": (lambda x: x.sum((2, 3)), 144 - 4),
    "argmax to 36": (lambda x: x.argmax(1), 144 - 36),
    "global pooling": (nn.AdaptiveAvgPool2d(1), 144),
    "adaptive pooling": (nn.AdaptiveAvgPool2d(2), 144),
    "average pooling to 4 x 4 x 4": (nn.AvgPool2d(3, 1), 9 * 64),
    "max pooling to 4 x 3 x 3": (nn.MaxPool2d(3, 2, 1), 9 * 36),
    "oblong max pooling to 4 x 4 x 5": (nn.MaxPool2d((3, 2), 1), 6 * 80),
    "ReLU": (F.relu, 0),
    "ReLU6": (F.relu6, 0),
    "sigmoid": (torch.sigmoid, 0),
    "tanh": (torch.tanh, 0),
    "padding": (nn.ZeroPad2d(1), 0),
    "concatenation": (lambda x: torch.cat([x, x], 1), 0),
    "reshaping": (lambda x: x.flatten(1).unflatten(1, (36, 4)).transpose(1, 2), 0),
    "several outputs": (lambda x: x.split(2, 1), 0),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations(operation: str, device: str) -> None:
    function, expected = OPERATIONS[operation]
    madds = profiler_madds(Function(function), torch.ones(2, 4, 6, 6, device=device))
    assert madds == (2 * 144 + expected) // 2  # a difference and a quotient for each element of the image


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 8, 3, bias=False), 36 * 128),  # 8 x 4 x 4 outputs
        (nn.Conv2d(4, 8, 3), 36 * 128 + 64),
        (nn.Conv2d(4, 4, 3, 2, 1, groups=4), 9 * 36 + 18),
        (nn.Linear(6, 5, bias=False), 6 * 120),  # 4 x 6 x 5 outputs
        (nn.Linear(6, 5), 6 * 120 + 60),
        (nn.BatchNorm2d(4), 0),
        (nn.Dropout(), 0),
    ],
    ids=str,
)
def test_layers(layer: nn.Module, expected: int) -> None:
    assert profiler_madds(nn.Sequential(layer), torch.ones(2, 4, 6, 6)) == 144 + expected


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("impl", ["auto", "reference", "grouped", "matmul", "mix_outputs"])
def test_a_conditional_layer_is_a_mixing_a_convolution_and_a_bias(impl: str, device: str) -> None:
    layer = CondConv2d(4, 6, 1, num_experts=3, impl=impl, device=device)
    # Kernel 24 at 25 pixels, mixing 3 x (24 + 6), routing 4 x 3; half of 2 x 100 for the image, 100 for the mean of
    # the routing, 3 for its bias, 150 for the layer's.
    expected = 24 * 25 + 3 * 30 + 12 + (200 + 100 + 3 + 150) // 2
    assert profiler_madds(layer, torch.ones(2, 4, 5, 5, device=device)) == expected
    assert profiler_madds(nn.Sequential(layer, nn.ReLU()), torch.ones(1, 4, 5, 5, device=device)) == expected


def test_shift_of_a_folded_norm_is_a_bias() -> None:
    layer = CondConv2d(4, 6, 1, bias=False, num_experts=3)
    before = profiler_madds(layer, torch.ones(1, 4, 5, 5))
    layer.folded_bias = nn.Parameter(torch.zeros(6))
    assert profiler_madds(layer, torch.ones(1, 4, 5, 5)) == before + 75  # half of 303, and half of 303 + 150


@pytest.mark.parametrize(
    ("routing", "expected"),
    [
        # Without bias: kernel 24 at 25 pixels, mixing 3 x 24. The image is 200, the mean of the routing 100.
        ("sigmoid", 600 + 72 + 12 + (200 + 100 + 3) // 2),
        # 3 quotients by the temperature, 5 x 3 for the softmax
        ("softmax", 600 + 72 + 12 + (200 + 100 + 3 + 3 + 15) // 2),
        # 4 x 4 and 4 x 3, with biases; its ReLU is free
        ("hidden", 600 + 72 + 28 + (200 + 100 + 4 + 3) // 2),
        ("constant", 600 + 72 + (200 + 100) // 2),
    ],
)
def test_routing_inside_a_layer(routing: str, expected: int) -> None:
    layer = CondConv2d(4, 6, 1, bias=False, num_experts=3, routing=routing)
    assert profiler_madds(layer, torch.ones(1, 4, 5, 5)) == expected


def test_routing_from_outside() -> None:
    layer = CondConv2d(4, 6, 1, bias=False, num_experts=3, routing="external")
    assert profiler_madds(layer, (torch.ones(2, 4, 5, 5), torch.ones(2, 3))) == 600 + 72 + 100


def test_routing_of_a_block_counts_once_and_what_is_between_its_layers_counts() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = CondConv2d(4, 4, 1, bias=False, num_experts=3)
            self.second = CondConv2d(4, 4, 1, bias=False, num_experts=3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(F.silu(self.first(x)))

    block = Block()
    route_block_(block, SigmoidRouting(4, 3), [block.first, block.second])
    # Each layer 16 x 25 and mixing 3 x 16, routing 12 once; operations: image 200, mean 100, bias of the routing 3,
    # swish 100, sum 100.
    assert profiler_madds(block, torch.ones(2, 4, 5, 5)) == 2 * (400 + 48) + 12 + 503 // 2


def test_products_with_mixed_matrices_may_be_left_out() -> None:
    model = nn.Sequential(CondLinear(4, 5, num_experts=2), nn.ReLU(), nn.Linear(5, 3, bias=False))
    # Mixing 2 x (20 + 5), routing 4 x 2, 15 for the static layer; operations: image 8, routing's bias 2, bias 5.
    rest = 50 + 8 + 15 + 15 // 2
    assert profiler_madds(model, torch.ones(2, 4)) == 20 + rest
    assert profiler_madds(model, torch.ones(2, 4), batched_products=False) == rest
    # 3 rows: the mean of the routing takes 12, biases 15, the image 24
    rest = 50 + 8 + 3 * 15 + (24 + 12 + 2 + 15) // 2
    assert profiler_madds(model, torch.ones(2, 3, 4)) == 60 + rest
    assert profiler_madds(model, torch.ones(2, 3, 4), batched_products=False) == rest


# What TensorFlow 2.21's `tf.compat.v1.profiler` gives for these networks, written there in plain operations on
# placeholders (SAME padding, fused batch norm, mixing as the authors do): float operations of the graph, halved.
PAPERS = {"scope": "block", "routing": "sigmoid", "experts": "dense", "init": "random"}
BLOCKS_7_TO_14 = "blocks.3.*,blocks.4.*"


@pytest.mark.parametrize(
    ("width", "classes", "experts", "classifier", "tensorflow"),
    [
        (1.0, 1000, None, False, 568_916_468),
        (1.0, 1000, 8, True, 602_016_600),
        (0.25, 1001, None, False, 41_187_828),
        (0.25, 1001, 32, True, 55_912_484),
        (0.25, 1001, 32, False, 47_672_052),
    ],
)
def test_mobilenet_v1_as_the_profiler(
    width: float, classes: int, experts: int | None, classifier: bool, tensorflow: int
) -> None:
    model = mobilenet_v1(width, classes, experts, classifier=classifier)
    assert profiler_madds(model, images()) == tensorflow


@pytest.mark.parametrize(
    ("experts", "tensorflow"), [(None, 391_492_352), (4, 402_251_088), (8, 412_950_240)], ids=["static", "4e", "8e"]
)
def test_efficientnet_as_the_profiler(experts: int | None, tensorflow: int) -> None:
    model = from_timm("tf_efficientnet_b0", experts, "blocks.[456].*")
    assert profiler_madds(model, images()) == tensorflow


def mobilenet_v1(
    width: float, classes: int, experts: int | None, *, classifier: bool = True, **options: object
) -> nn.Module:
    with torch.device("meta"):
        model = create_model(f"mobilenet_v1_{round(100 * width):03d}", num_classes=classes)
    if experts is not None:
        options = {**PAPERS, "classifier": classifier, **options}
        convert_(model, experts, layers=BLOCKS_7_TO_14, example_input=images(), **options)
    return model


def from_timm(name: str, experts: int | None, *patterns: str, classifier: bool = False) -> nn.Module:
    with torch.device("meta"):
        model = pytest.importorskip("timm").create_model(name)
    if experts is not None:
        options = {**PAPERS, "classifier": classifier}
        convert_(model, experts, layers=patterns, skip="*.se.*", example_input=images(), **options)
    return model


def test_counts_per_example() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), CondConv2d(4, 4, 1, num_experts=2), nn.MaxPool2d(2))
    one = profiler_madds(model, torch.randn(1, 3, 10, 10))
    assert one > count(model, torch.randn(1, 3, 10, 10)).total.madds
    assert profiler_madds(model, torch.randn(5, 3, 10, 10)) == one


def test_guesses_an_example() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False))
    assert profiler_madds(model) == (3 * 2 + 3) * 224**2


def test_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), CondConv2d(4, 4, 1, num_experts=2)).train()
    model[0].eval()
    hooks = [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()]
    modes = [module.training for module in model.modules()]
    profiler_madds(model, torch.randn(1, 3, 6, 6))
    with pytest.raises(RuntimeError):
        profiler_madds(model, torch.randn(1, 5, 6, 6))  # the first layer takes 3 channels
    assert [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()] == hooks
    assert [module.training for module in model.modules()] == modes


def test_an_example_without_a_batch() -> None:
    model = Function(lambda x: x)
    with pytest.raises(UsageError, match=r"`example_input` must hold a tensor \[B, ...\] with B > 0, got no tensor"):
        profiler_madds(model, ([1, 2],))
    with pytest.raises(UsageError, match=r"with B > 0, got shape \(0, 3\): pass one image or more"):
        profiler_madds(model, torch.zeros(0, 3))
    with pytest.raises(UsageError, match=r"with B > 0, got shape \(\)"):
        profiler_madds(model, torch.tensor(1.0))


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_messages_have_four_parts(row: int) -> None:
    assert_four_parts(*ROWS[row])


def test_the_example() -> None:
    assert doctest.testmod(tf_profiler, extraglobs={"torch": torch, "nn": nn}).failed == 0
