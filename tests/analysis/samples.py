"""Networks whose routing weights a test chooses, as the first numbers of each input."""

import torch
from torch import Tensor, nn

from condconv.analysis import RoutingRecorder, RoutingReport
from condconv.nn import CondLinear, route_block_


class FirstTwo(nn.Module):
    """Takes the routing weights straight from the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2]


def layer(routing: nn.Module | None = None) -> CondLinear:
    return CondLinear(2, 2, num_experts=2, routing=FirstTwo() if routing is None else routing)


class Block(nn.Module):
    """Two layers that a routing function of the block serves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layer(), layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def routed_block() -> Block:
    block = Block()
    route_block_(block, FirstTwo(), [block.first, block.second])
    return block


def classifier() -> nn.Sequential:
    """A network that says the class of the larger weight: input (r1, r2) becomes logits (r1 s, r2 s), s = r1 + r2."""
    network = nn.Sequential(CondLinear(2, 2, bias=False, num_experts=2, routing=FirstTwo()))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]))
    return network.eval()


CLASSES = ("cat", "dog", "fox")


def recorded(
    network: nn.Module, inputs: Tensor, targets: Tensor | None = None, class_names=CLASSES, top_examples=10
) -> RoutingReport:
    """The report of one batch."""
    names = None if targets is None else class_names
    with RoutingRecorder(network, names, top_examples) as recorder, torch.inference_mode():
        network(inputs)
        recorder.update(targets)
    return recorder.report()
