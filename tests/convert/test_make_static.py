import copy

import pytest
import torch
from torch import nn

from condconv import CondConv2d, CondLinear
from condconv.analysis import changed_routing
from condconv.convert import make_static_
from condconv.errors import UsageError
from condconv.nn import HierarchicalRouting, RoutingSlot, SigmoidRouting, route_block_

WEIGHTS = torch.tensor([0.9, 0.2, 0.4])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = CondConv2d(4, 4, 3, padding=1, groups=4, num_experts=3)
        self.second = CondConv2d(4, 4, 1, num_experts=3)

    def forward(self, x):
        return self.second(self.first(x))


def routed(routing_fn, **options) -> Block:
    block = Block()
    route_block_(block, routing_fn, [block.first, block.second], **options)
    return block


def network() -> nn.Sequential:
    """A layer of its own routing, a block, and a linear layer."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), CondLinear(4, 2, num_experts=3))
    return nn.Sequential(CondConv2d(3, 4, 3, stride=2, padding=1, num_experts=3), routed(SigmoidRouting(4, 3)), head)


def output_with_constant(model, x, routings):
    with changed_routing(model, lambda name, weights: WEIGHTS.expand_as(weights), routings):
        return model(x)


@pytest.mark.parametrize(
    ("layers", "routings"),
    [
        (["0"], ["0.routing_fn"]),
        (["1.first", "1.second"], ["1.routing_fn"]),
        (["2.2"], ["2.2.routing_fn"]),
        (["0", "1.first", "1.second", "2.2"], None),
    ],
)
def test_a_static_network_gives_what_constant_weights_gave(layers, routings):
    model = network()
    x = torch.randn(2, 3, 8, 8)
    expected = output_with_constant(model, x, routings)
    make_static_(model, dict.fromkeys(layers, WEIGHTS))
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert all(type(model.get_submodule(name)) in (nn.Conv2d, nn.Linear) for name in layers)


def test_routing_that_nothing_uses_is_removed_with_its_hooks():
    model = network()
    make_static_(model, {"1.first": WEIGHTS})
    assert "1.routing_fn.fc.weight" in model.state_dict()  # the second layer still uses it
    make_static_(model, {"1.second": WEIGHTS, "0": WEIGHTS})
    assert not any("routing_fn" in name for name in model.state_dict() if not name.startswith("2."))
    block = model[1]
    assert not block._forward_pre_hooks
    assert not block._forward_pre_hooks_with_kwargs
    assert not block._forward_hooks
    assert not hasattr(block, "routing_fn")
    block.register_forward_pre_hook(lambda *arguments: None)
    model(torch.randn(1, 3, 8, 8))  # torch's own books of hooks are in order too


def test_routing_that_only_a_copy_of_a_layer_reads_stays():
    model = network()
    model[1].second = copy.deepcopy(model[1].second)
    make_static_(model, {"1.first": WEIGHTS})
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 2)


def chain() -> tuple[nn.Sequential, RoutingSlot]:
    slot = RoutingSlot("the first", 3)
    first = routed(HierarchicalRouting(4, 3), slot=slot, hand_over=True)
    second = routed(HierarchicalRouting(4, 3, previous_experts=3), previous=slot)
    return nn.Sequential(first, second), slot


def test_a_routing_that_hands_its_weights_on_stays():
    model, _ = chain()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        weights = model[0].routing_fn(x)[0]
    expected = model(x)[0]
    make_static_(model, {"0.first": weights, "0.second": weights})
    assert "0.routing_fn.fc.weight" in model.state_dict()
    assert torch.allclose(model(x)[0], expected, atol=1e-6)


def test_the_end_of_a_chain_is_removed_and_the_slot_before_it_is_emptied():
    model, slot = chain()
    make_static_(model, {"1.first": WEIGHTS, "1.second": WEIGHTS})
    assert not hasattr(model[1], "routing_fn")
    model(torch.randn(2, 4, 6, 6))
    with pytest.raises(UsageError, match="which is not running"):
        slot(torch.zeros(1))


def test_a_whole_chain_is_removed():
    model, _ = chain()
    make_static_(model, dict.fromkeys(["0.first", "0.second", "1.first", "1.second"], WEIGHTS))
    assert not any("routing_fn" in name for name in model.state_dict())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model)
    assert model(torch.randn(2, 4, 6, 6)).shape == (2, 4, 6, 6)


def test_none_takes_equal_weights():
    model = nn.Sequential(CondLinear(2, 2, num_experts=4))
    mean = model[0].weight.mean(0)
    make_static_(model, {"0": None})
    assert torch.allclose(model[0].weight, mean)


def test_wrong_names_and_shapes_change_nothing():
    model = network()
    before = model.state_dict()
    with pytest.raises(
        UsageError, match="`routing_weights` must be for conditional layers of the network, got '1': there are 0, "
    ):
        make_static_(model, {"0": WEIGHTS, "1": WEIGHTS})
    with pytest.raises(UsageError, match=r"`routing_weights` must have one finite float for each of the 3 experts"):
        make_static_(model, {"0": WEIGHTS, "2.2": WEIGHTS[:2]})
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize(
    ("weights", "got"),
    [
        ([0.1, 0.2, 0.7], "got list: give a tensor"),
        (torch.ones(2, 3), r"got shape \(2, 3\): give the mean over the examples"),
        (torch.tensor(1.0), r"got shape \(\): give the mean"),
        (torch.tensor([1, 0, 0]), "got torch.int64: give weights.float()"),
        (torch.ones(3, dtype=torch.complex64), "got torch.complex64: give weights.float()"),
        (torch.ones(3, device="meta"), "got a tensor on the meta device, which has no values"),
        (torch.tensor([0.5, float("nan"), 0.5]), r"got \[0.5, nan, 0.5\]: the network or the mean is not valid"),
        (torch.tensor([0.5, float("inf"), 0.5]), r"got \[0.5, inf, 0.5\]: the network or the mean is not valid"),
    ],
)
def test_weights_that_are_no_finite_floats_change_nothing(weights, got):
    model = network()
    before = list(model.state_dict())
    with pytest.raises(UsageError, match=rf"`routing_weights` must have .* of the 3 experts of '2.2', {got}"):
        make_static_(model, {"0": WEIGHTS, "2.2": weights})
    assert list(model.state_dict()) == before


def test_weights_of_any_width_are_taken():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = network()
        make_static_(model, {"0": WEIGHTS.to(dtype)})
        assert model[0].weight.dtype == torch.float32


def test_a_static_layer_learns_if_its_experts_did():
    model = network()
    model[0].weight.requires_grad_(False)
    model[2].requires_grad_(False)
    make_static_(model, dict.fromkeys(["0", "2.2"], WEIGHTS))
    learns = [each.requires_grad for each in (*model[0].parameters(), *model[2].parameters())]
    assert learns == [False, True, False, False]


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda layer: layer.register_full_backward_hook(lambda *_: None), "it has backward hooks"),
        (lambda layer: layer.register_state_dict_post_hook(lambda *_: None), "it has state-dict hooks"),
        (lambda layer: layer.weight.register_hook(lambda gradient: gradient), "its parameters have hooks"),
    ],
)
def test_a_layer_whose_hooks_would_be_lost_is_refused(register, message):
    model = network()
    register(model[0])
    with pytest.raises(UsageError, match=f"`routing_weights` must be for layers .* got '0': {message}"):
        make_static_(model, {"2.2": WEIGHTS, "0": WEIGHTS})
    assert isinstance(model[2][2], CondLinear)


def test_a_static_network_is_compared_on_an_example():
    model, x = network(), torch.randn(2, 3, 8, 8)
    expected = output_with_constant(model.eval(), x, None)
    make_static_(model.train(), dict.fromkeys(["0", "1.first", "1.second", "2.2"], WEIGHTS), example_input=x)
    assert model.training
    assert torch.allclose(model.eval()(x), expected, atol=1e-6)


class Penalised(nn.Module):
    """Looks at the experts of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x):
        return self.body(x) + self.body[1].second.weight.square().mean()


def test_a_network_that_looks_at_experts_is_restored():
    model, x = Penalised(), torch.randn(2, 3, 8, 8)
    expected, names = model(x), list(model.state_dict())
    with pytest.raises(UsageError, match="what it did before, got an output that differs"):
        make_static_(model, {"body.0": WEIGHTS, "body.1.second": WEIGHTS}, example_input=x)
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), expected)
    make_static_(model, {"body.0": WEIGHTS, "body.1.first": WEIGHTS}, example_input=x)
