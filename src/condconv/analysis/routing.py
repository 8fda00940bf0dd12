"""Recording routing weights while a network runs, and their statistics by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from condconv.nn import ConditionalLayer


@dataclass(frozen=True)
class RoutingStatistics:
    """Routing weights of one layer over the examples seen, by class.

    Attributes:
        mean: Mean weight, `[K, E]` float64; NaN in the row of a class that was not seen.
        std: Standard deviation over the class's examples (population), `[K, E]` float64; NaN likewise.
        examples: Examples seen of each class, `[K]` int64.
    """

    mean: Tensor
    std: Tensor
    examples: Tensor


class RoutingRecorder:
    """Records the routing weights of all conditional layers, as sums, so that any number of examples fits.

    A context manager that owns its hooks: they are there inside the `with` block only. The network is not
    changed.

    Args:
        network: Network with conditional layers, routed by their own input or by that of a block.
        class_names: One name a class, in the order of the targets given to `update`.

    Raises:
        ValueError: The network has no conditional layer, or there is no class.

    Example:
        ::

            with RoutingRecorder(network, class_names) as recorder:
                for images, targets in loader:
                    network(images)
                    recorder.update(targets)
            statistics = recorder.statistics()  # {"blocks.12.pointwise": RoutingStatistics(...), ...}
    """

    def __init__(self, network: nn.Module, class_names: Sequence[str]) -> None:
        if not class_names:
            raise ValueError("`class_names` must name at least one class, got none")
        self.class_names = tuple(class_names)
        self._routing = {
            name: module.routing_fn for name, module in network.named_modules() if isinstance(module, ConditionalLayer)
        }
        if not self._routing:
            raise ValueError(
                f"`network` must have a conditional layer, got {type(network).__name__} without one: "
                "convert it with condconv.convert_, or take a conditional network"
            )
        self._pending: dict[str, list[Tensor]] = {name: [] for name in self._routing}
        self._sums: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._calls: dict[str, Tensor] = {}
        self._examples = torch.zeros(len(self.class_names), dtype=torch.long)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> RoutingRecorder:
        for name, routing in self._routing.items():
            self._handles.append(routing.register_forward_hook(partial(self._store, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _store(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._pending[name].append(output.detach())

    def update(self, targets: Tensor) -> None:
        """Add the examples of the forward pass just made.

        Args:
            targets: Class of each example, `[B]` integers. Negative ones (an image that could not be
                read) are left out.

        Raises:
            ValueError: There was no forward pass since the last update, or it had another number of examples.
        """
        targets = targets.detach().cpu()
        seen = targets >= 0
        for name, calls in self._pending.items():
            sizes = {len(weights) for weights in calls}
            if sizes != {len(targets)}:
                raise ValueError(
                    f"`targets` must have one class for each example of one forward pass, got "
                    f"{len(targets)} targets "
                    f"for {name}, which routed {sorted(sizes) or 'nothing'}: call update once after each "
                    f"forward pass"
                )
            for weights in calls:
                self._add(name, weights.double().cpu()[seen], targets[seen])
            calls.clear()
        self._examples += torch.bincount(targets[seen], minlength=len(self._examples))

    def _add(self, name: str, weights: Tensor, targets: Tensor) -> None:
        if name not in self._sums:
            zeros = torch.zeros(len(self.class_names), weights.shape[1], dtype=torch.float64)
            self._sums[name], self._squares[name] = zeros, zeros.clone()
            self._calls[name] = torch.zeros(len(self.class_names), 1, dtype=torch.float64)
        self._sums[name].index_add_(0, targets, weights)
        self._squares[name].index_add_(0, targets, weights.square())
        # A layer that runs twice in a forward pass, or shares its routing with another, is counted as often
        # as it routes.
        self._calls[name].index_add_(0, targets, torch.ones(len(targets), 1, dtype=torch.float64))

    def statistics(self) -> dict[str, RoutingStatistics]:
        """Return the statistics of each conditional layer, in the network's order.

        Raises:
            ValueError: Nothing was recorded.
        """
        if not self._sums:
            raise ValueError(
                "the recorder must see a forward pass first: run the network inside the with block, then update"
            )
        result = {}
        for name in self._routing:
            mean = self._sums[name] / self._calls[name]
            variance = (self._squares[name] / self._calls[name] - mean.square()).clamp(min=0)
            result[name] = RoutingStatistics(mean, variance.sqrt(), self._examples.clone())
        return result
