import math

import pytest
import torch
from torch import Tensor, nn

from condconv.analysis import RoutingRecorder
from condconv.nn import CondLinear, route_block_


class FirstTwo(nn.Module):
    """Takes the routing weights straight from the input, so that a test can choose them."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2]


def layer(routing: nn.Module | None = None) -> CondLinear:
    return CondLinear(2, 2, num_experts=2, routing=FirstTwo() if routing is None else routing)


CLASSES = ("cat", "dog", "fox")


def test_statistics_worked_by_hand_over_two_batches():
    network = nn.Sequential(layer())
    with RoutingRecorder(network, CLASSES) as recorder:
        network(torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
        recorder.update(torch.tensor([0, 1]))
        network(torch.tensor([[1.0, 1.0], [0.25, 0.0], [9.0, 9.0]]))
        recorder.update(torch.tensor([0, 0, -100]))  # the last one could not be read
    (statistics,) = recorder.statistics().values()
    # cat: weights (0, 1), (1, 1), (0.25, 0): means 1.25 / 3 and 2 / 3
    assert statistics.examples.tolist() == [3, 1, 0]
    assert statistics.mean[0].tolist() == pytest.approx([1.25 / 3, 2 / 3])
    assert statistics.mean[1].tolist() == [0.5, 0.5]
    assert statistics.mean[2].isnan().all()
    first = math.sqrt((0 + 1 + 0.0625) / 3 - (1.25 / 3) ** 2)
    assert statistics.std[0].tolist() == pytest.approx([first, math.sqrt(2 / 3 - 4 / 9)])
    assert statistics.std[1].tolist() == [0, 0]


def test_layers_are_named_in_the_order_of_the_network():
    network = nn.Sequential(nn.Identity(), layer(), nn.Sequential(layer()))
    with RoutingRecorder(network, CLASSES) as recorder:
        network(torch.tensor([[0.0, 1.0]]))
        recorder.update(torch.tensor([2]))
    assert list(recorder.statistics()) == ["1", "2.0"]


def test_layers_routed_by_their_block_share_its_weights_and_count_examples_once():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layer(), layer()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    block = Block()
    route_block_(block, FirstTwo(), [block.first, block.second])
    with RoutingRecorder(block, CLASSES) as recorder:
        block(torch.tensor([[0.25, 0.75]]))
        recorder.update(torch.tensor([1]))
    assert list(recorder.statistics()) == ["first", "second"]
    for statistics in recorder.statistics().values():
        assert statistics.mean[1].tolist() == [0.25, 0.75]
        assert statistics.std[1].tolist() == [0, 0]
        assert statistics.examples.tolist() == [0, 1, 0]


def test_the_hooks_are_gone_after_the_block_even_after_an_error():
    conditional = layer()
    network, hooks = nn.Sequential(conditional), conditional.routing_fn._forward_hooks
    recorder = RoutingRecorder(network, CLASSES)
    assert len(hooks) == 0
    with recorder:
        assert len(hooks) == 1
    assert len(hooks) == 0
    with pytest.raises(RuntimeError, match="size of tensor"), recorder:
        network(torch.ones(2, 3) + torch.ones(2, 2))
    assert len(hooks) == 0


def test_a_forgotten_update_is_noticed():
    network = nn.Sequential(layer())
    with RoutingRecorder(network, CLASSES) as recorder:
        network(torch.ones(2, 2))
        network(torch.ones(3, 2))
        with pytest.raises(ValueError, match=r"got 3 targets for 0, which routed \[2, 3\]: call update once"):
            recorder.update(torch.tensor([0, 0, 0]))


def test_an_update_without_a_forward_pass_is_refused():
    with RoutingRecorder(nn.Sequential(layer()), CLASSES) as recorder:
        with pytest.raises(ValueError, match="routed nothing"):
            recorder.update(torch.tensor([0]))
        with pytest.raises(ValueError, match="must see a forward pass first"):
            recorder.statistics()


def test_a_static_network_and_no_classes_are_refused():
    with pytest.raises(ValueError, match="`network` must have a conditional layer, got Sequential without one"):
        RoutingRecorder(nn.Sequential(nn.Conv2d(1, 1, 1)), CLASSES)
    with pytest.raises(ValueError, match="`class_names` must name at least one class"):
        RoutingRecorder(nn.Sequential(layer()), ())
