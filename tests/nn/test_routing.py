"""Routing functions on numbers worked by hand, in odd dtypes, and their state."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from condconv import CondConv2d
from condconv.errors import UsageError
from condconv.nn import (
    ROUTING,
    ConstantRouting,
    ExternalRouting,
    HiddenRouting,
    HierarchicalRouting,
    SigmoidRouting,
    SoftmaxRouting,
    TopKRouting,
    anneal_,
    make_routing,
)
from condconv.nn.float32_linear import Float32Linear

SELF_ROUTED = [name for name in ROUTING if name != "external"]


def set_linear(linear: Float32Linear, weight: list[list[float]], bias: list[float]) -> None:
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(weight))
        linear.bias.copy_(torch.tensor(bias))


def image(*means: float) -> torch.Tensor:
    """Return one 2x2 image whose channels have the given means, and are not constant."""
    return torch.tensor([[[[mean - 1.0, mean + 1.0], [mean, mean]] for mean in means]])


def test_sigmoid_by_hand() -> None:
    routing = SigmoidRouting(2, 3)
    set_linear(routing.fc, [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.0, 1.0, 0.0])
    # Means 0 and ln 3: logits 0, 1 + ln 3, ln 3; sigmoid(ln 3) = 3/4; sigmoid(1 + ln 3) = 3e / (3e + 1)
    expected = [0.5, 3 * math.e / (3 * math.e + 1), 0.75]
    torch.testing.assert_close(routing(image(0.0, math.log(3))), torch.tensor([expected]))


def test_softmax_by_hand() -> None:
    routing = SoftmaxRouting(2, 2, temperature=2.0)
    set_linear(routing.fc, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    # Logits 2 ln 3 and 0, halved by the temperature: odds 3 to 1
    torch.testing.assert_close(routing(image(2 * math.log(3), 0.0)), torch.tensor([[0.75, 0.25]]))


def test_hidden_by_hand() -> None:
    routing = HiddenRouting(2, 1, hidden_ratio=1.0)
    set_linear(routing.hidden, [[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0])
    set_linear(routing.fc, [[1.0, 5.0]], [0.0])
    # Hidden relu(ln 3) = ln 3 and relu(-ln 3) = 0; logit ln 3
    torch.testing.assert_close(routing(image(math.log(3), 9.0)), torch.tensor([[0.75]]))


def test_hierarchical_by_hand() -> None:
    routing = HierarchicalRouting(1, 1, previous_experts=2)
    set_linear(routing.fc, [[1.0, 1.0, -1.0]], [0.0])
    # ln 3 + 0.7 - 0.7
    weights = routing(image(math.log(3)), torch.tensor([[0.7, 0.7]]))
    torch.testing.assert_close(weights, torch.tensor([[0.75]]))


def test_top_k_by_hand() -> None:
    routing = TopKRouting(1, 4, k=2)
    set_linear(routing.fc, [[0.0], [1.0], [0.0], [0.0]], [0.0, 0.0, -1.0, -2.0])
    # Logits 0, ln 3, -1, -2: the first two are kept, odds 1 to 3
    torch.testing.assert_close(routing(image(math.log(3))), torch.tensor([[0.25, 0.75, 0.0, 0.0]]))


def test_constant() -> None:
    routing = ConstantRouting(5, 3, weights=[0.2, 0.3, 0.5])
    torch.testing.assert_close(routing(torch.randn(2, 5, 4, 4)), torch.tensor([[0.2, 0.3, 0.5]]).expand(2, 3))
    torch.testing.assert_close(ConstantRouting(5, 4)(torch.randn(1, 5)), torch.full((1, 4), 0.25))
    routing = make_routing("constant(weights=0.5)", 5, 3)
    torch.testing.assert_close(routing(torch.randn(2, 5)), torch.full((2, 3), 0.5))


def test_a_constant_that_is_learned() -> None:
    """It moves with the gradient, is the same for every input, and stays constant where it starts."""
    layer = CondConv2d(5, 4, 1, num_experts=3, routing="constant(weights=0.5, learn=True)")
    routing = layer.routing_fn
    assert dict(layer.named_parameters())["routing_fn.weights"].tolist() == [0.5] * 3
    assert not list(routing.buffers())
    layer(torch.randn(2, 5, 4, 4)).square().sum().backward()
    assert (routing.weights.grad != 0).all()
    with torch.no_grad():
        routing.weights.copy_(torch.tensor([0.1, 0.2, 0.7]))
    torch.testing.assert_close(routing(torch.randn(2, 5)), torch.tensor([[0.1, 0.2, 0.7]]).expand(2, 3))
    torch.testing.assert_close(routing.start_constant_(), torch.tensor([0.1, 0.2, 0.7]).double())
    assert "learn=True" in repr(routing)
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(layer.to_static(routing.weights)(x), layer(x))


def test_hidden_sizes_of_the_paper() -> None:
    sizes = [HiddenRouting(16, 4, hidden_ratio=ratio).hidden.out_features for ratio in (1 / 8, 1, 8)]
    assert sizes == [2, 16, 128]


def test_initialisation_of_the_authors() -> None:
    """Glorot-uniform kernel: within sqrt(6 / (in + out)); zero bias."""
    fc = SigmoidRouting(400, 8).fc
    limit = math.sqrt(6 / 408)
    assert 0.99 * limit < fc.weight.abs().max() <= limit
    assert not fc.bias.any()


@pytest.mark.parametrize("name", SELF_ROUTED)
@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 3, 4), (2, 6, 2, 3, 2), (0, 6, 3, 3)])
def test_any_number_of_positions(name: str, shape: tuple[int, ...]) -> None:
    assert make_routing(name, 6, 4)(torch.randn(shape)).shape == (shape[0], 4)


@pytest.mark.parametrize("name", SELF_ROUTED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_fp32_or_wider_whatever_the_dtype(name: str, dtype: torch.dtype) -> None:
    routing = make_routing(name, 6, 4, dtype=dtype)
    weights = routing(torch.randn(2, 6, 3, 3, dtype=dtype))
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", SELF_ROUTED)
def test_autocast_does_not_reach_the_routing(name: str) -> None:
    routing, x = make_routing(name, 6, 4), torch.randn(2, 6, 3, 3)
    expected = routing(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(routing(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", SELF_ROUTED)
def test_batch_one_trains(name: str) -> None:
    layer = CondConv2d(6, 4, 3, num_experts=4, routing=name).train()
    layer(torch.randn(1, 6, 5, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("name", ROUTING)
def test_start_constant_gives_the_weights_it_returns(name: str) -> None:
    routing = make_routing(name, 6, 4)
    weights = routing.start_constant_()
    if name != "external":
        given = routing(torch.randn(3, 6, 5, 5))
        torch.testing.assert_close(given.double(), weights.expand(3, -1))
    assert weights.shape == (4,)


def test_expert_dropout_drops_and_rescales_in_training_only() -> None:
    routing = ConstantRouting(1, 4, expert_dropout=0.25, weights=[3.0] * 4)
    x = torch.zeros(4000, 1)
    weights = routing(x)
    assert set(weights.unique().tolist()) == {0.0, 4.0}  # 3 / (1 - 0.25)
    assert abs((weights == 0).float().mean().item() - 0.25) < 0.02  # 16000 draws: four standard deviations are 0.014
    torch.testing.assert_close(routing.eval()(x), torch.full((4000, 4), 3.0))


def test_expert_dropout_of_hierarchical_routing() -> None:
    routing = HierarchicalRouting(1, 8, expert_dropout=0.5)
    assert (routing(torch.zeros(50, 1)) == 0).any()
    assert (routing.eval()(torch.zeros(50, 1)) == 0.5).all()


def test_top_k_starts_with_the_same_experts_for_all_inputs() -> None:
    routing = TopKRouting(3, 6, k=2)
    weights = routing.start_constant_()
    assert weights.nonzero().flatten().tolist() == [0, 1]
    assert weights[0] > weights[1]  # no tie, which each device would break in its own way


def test_pooling_adds_up_in_fp32() -> None:
    """4096 positions of 1 and one of 4096: a bf16 sum would lose the ones."""
    x = torch.ones(1, 1, 4097).bfloat16()
    x[..., 0] = 4096.0
    pooled = SigmoidRouting(1, 2).pool(x)
    assert pooled.item() == pytest.approx(8192 / 4097, rel=1e-6)


class TestAnnealing:
    def make(self) -> SoftmaxRouting:
        return SoftmaxRouting(2, 2, temperature=30.0, final_temperature=1.0, annealing_steps=10)

    def test_linear_then_constant(self) -> None:
        routing = self.make()
        seen = []
        for _ in range(12):
            seen.append(float(routing.temperature))
            anneal_(nn.Sequential(routing, nn.ReLU()))
        # 29 degrees over 10 steps
        torch.testing.assert_close(torch.tensor(seen), torch.tensor([30 - 2.9 * min(i, 10) for i in range(12)]))

    def test_a_checkpoint_goes_on_where_it_stood(self) -> None:
        routing, resumed = self.make(), SoftmaxRouting(2, 2)
        routing.anneal_(4)
        resumed.load_state_dict(routing.state_dict())
        x = torch.randn(3, 2, 4, 4)
        torch.testing.assert_close(resumed(x), routing(x), rtol=0, atol=0)
        for module in (routing, resumed):
            module.anneal_(3)
        torch.testing.assert_close(resumed(x), routing(x), rtol=0, atol=0)
        assert float(resumed.temperature) == pytest.approx(30 - 2.9 * 7)

    def test_without_a_schedule_nothing_changes(self) -> None:
        routing = SoftmaxRouting(2, 2, temperature=5.0)
        routing.anneal_()
        assert float(routing.temperature) == 5.0

    def test_compiled_models_are_not_compiled_again(self) -> None:
        from torch._dynamo.testing import CompileCounterWithBackend

        torch._dynamo.reset()
        routing = self.make()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(routing, backend=counter, fullgraph=True)
        x = torch.randn(3, 2)
        for _ in range(3):
            torch.testing.assert_close(compiled(x), routing(x))
            routing.anneal_()
        assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SigmoidRouting(0, 4), "`in_channels` must be a positive int, got 0"),
        (lambda: SigmoidRouting(4, 2.0), "`num_experts` must be a positive int, got 2.0"),
        (lambda: SigmoidRouting(4, 2, expert_dropout=1.0), r"`expert_dropout` must be a number in \[0, 1\), got 1.0"),
        (lambda: TopKRouting(4, 2, k=3), "`k` must be at most num_experts = 2, got 3"),
        (lambda: HiddenRouting(4, 2, hidden_ratio=0), "`hidden_ratio` must be a number above 0 and finite, got 0"),
        (lambda: ConstantRouting(4, 2, learn="yes"), "`learn` must be True or False, got .yes."),
        (lambda: ConstantRouting(4, 2, weights=[1.0]), r"`weights` must be a number or E = 2 of them, got \[1.0\]"),
        (lambda: SoftmaxRouting(4, 2, temperature=0), "`temperature` must be a number above 0 and finite, got 0"),
        (
            lambda: SoftmaxRouting(4, 2, annealing_steps=5),
            "`annealing_steps` must be positive with a final_temperature",
        ),
        (lambda: make_routing("relu", 4, 2), "`routing` must be one of sigmoid, .*, got 'relu': or give a factory"),
        (
            lambda: make_routing(SigmoidRouting(4, 3), 4, 2),
            "`routing` must give num_experts = 2 weights, got a module for 3",
        ),
        (
            lambda: SigmoidRouting(4, 2)(torch.zeros(1, 3, 2, 2)),
            r"`x` must have shape \[B, 4, ...\] to be routed, got \(1, 3,",
        ),
        (
            lambda: HierarchicalRouting(4, 2, previous_experts=2)(torch.zeros(1, 4)),
            r"`previous` must have shape \[B, 2\], got None",
        ),
    ],
)
def test_bad_values(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_types() -> None:
    with pytest.raises(UsageError, match="`routing` must be a name, a factory or a module, got int 3: "):
        make_routing(3, 4, 2)
    with pytest.raises(UsageError, match="`routing` must make a torch.nn.Module, got dict"):
        make_routing(lambda *sizes: {}, 4, 2)


def test_external_routing_says_what_is_missing() -> None:
    layer = CondConv2d(3, 4, 1, num_experts=2, routing="external")
    with pytest.raises(UsageError, match=r"`routing_weights` must be given, \[B, 2\], got None: "):
        layer(torch.zeros(1, 3, 2, 2))
    assert isinstance(layer.routing_fn, ExternalRouting)
    assert layer(torch.zeros(1, 3, 2, 2), torch.ones(1, 2)).shape == (1, 4, 2, 2)


def test_a_factory_with_settings() -> None:
    layer = CondConv2d(3, 4, 1, num_experts=2, routing=functools.partial(SoftmaxRouting, temperature=7.0))
    assert float(layer.routing_fn.temperature) == 7.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: SoftmaxRouting(6, 3, temperature=30.0, final_temperature=1.0, annealing_steps=10),
        lambda: ConstantRouting(6, 3, weights=[0.25, 0.5, 0.75]),
        lambda: ConstantRouting(6, 3, weights=[0.25, 0.5, 0.75], learn=True),
    ],
    ids=["softmax", "constant", "learned constant"],
)
def test_a_routing_from_the_meta_device_gets_its_numbers(make) -> None:
    """As sharding builds networks: without storage, then with any, then reset. A linear layer is drawn again."""
    expected = {name: each.clone() for name, each in make().state_dict().items() if not name.startswith("fc.")}
    with torch.device("meta"):
        routing = make()
    assert all(tensor.is_meta for tensor in routing.state_dict().values())
    routing.to_empty(device="cpu")
    for tensor in routing.state_dict().values():
        tensor.fill_(77)
    for module in routing.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, tensor in expected.items():
        assert torch.equal(routing.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", SELF_ROUTED)
def test_tools_that_look_for_linear_layers_pass_routers_by(name: str) -> None:
    """They quantize, adapt or initialise all `torch.nn.Linear` of a network, and a router is none."""
    layer = CondConv2d(6, 4, 1, num_experts=3, routing=name)
    assert not any(isinstance(module, nn.Linear) for module in layer.modules())
    if hasattr(layer.routing_fn, "fc"):
        assert list(layer.routing_fn.fc.state_dict()) == ["weight", "bias"]
        assert "in_features=6, out_features=3" in repr(layer.routing_fn.fc)
