"""Record routing weights while a network runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from statistics import fmean
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from condconv.analysis import statistics
from condconv.analysis.accumulator import Accumulator
from condconv.analysis.experts import expert_similarity, kernel_products
from condconv.analysis.records import RoutingRecord
from condconv.analysis.report import RoutingReport
from condconv.analysis.targets import check_whole_numbers, known_classes
from condconv.errors import UsageError, check_type, shown
from condconv.nn import ConditionalLayer
from condconv.nn.block_routing import routing_functions
from condconv.nn.conditional import conditional_layers


def layers_by_routing(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the names of a network's routing functions, each with the names of the layers that it routes.

    Both in the network's order. Layers that share a routing function are listed together.

    Args:
        network: Any module.

    Raises:
        UsageError: The network has no conditional layer.
    """
    check_type("network", network, nn.Module, "be a torch.nn.Module", "give the network to look at")
    owners = routing_functions(network)
    names = {module: name for name, module in network.named_modules()}
    served: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        if isinstance(module, ConditionalLayer):
            served.setdefault(names[owners[module.routing_fn]], []).append(name)
    if not served:
        raise UsageError(
            f"`network` must have a conditional layer, got {type(network).__name__} without one: "
            "convert it with condconv.convert_, take a conditional network, or, of a static one, the file from before"
        )
    return {routing: tuple(layers) for routing, layers in served.items()}


class RoutingRecorder:
    """Records what the routing functions of a network return, as sums; memory does not grow with the examples.

    A context manager whose hooks exist only inside the `with` block; the network does not change. A routing function
    that several layers share is recorded once. If it runs several times in a forward pass, each time counts as an
    example. Inside the block all compiled code of the process runs eagerly, since compiled code does not call new
    hooks.

    Args:
        network: Network with conditional layers, routed by their own input or by that of a block.
        class_names: One name per class, in the order of the targets given to `update`; None for examples without
            classes.
        top_examples: How many of the examples with the highest weights are kept per expert.

    Raises:
        UsageError: The network has no conditional layer, there is no class, or `top_examples` is negative.

    Example:
        ::

            with RoutingRecorder(network, class_names) as recorder, torch.inference_mode():
                for images, targets in loader:
                    network(images)
                    recorder.update(targets)
            report = recorder.report()
            condconv.analysis.save_page(report, "report.html")
    """

    def __init__(self, network: nn.Module, class_names: Sequence[str] | None = None, top_examples: int = 10) -> None:
        if class_names is not None and not class_names:
            raise UsageError("`class_names` must name at least one class, got none: give None for unlabelled images")
        if isinstance(class_names, str) or not isinstance(class_names, (Sequence, type(None))):
            raise UsageError(
                f"`class_names` must be a list of names or None, got {shown(class_names)}: name each class"
            )
        if type(top_examples) is not int or top_examples < 0:
            raise UsageError(
                f"`top_examples` must be a whole number of at least 0, got {shown(top_examples)}: 0 remembers none"
            )
        self.class_names = None if class_names is None else tuple(class_names)
        self._network = network
        self._layers = layers_by_routing(network)
        layers = conditional_layers(network)
        self._experts = {name: layers[routed[0]].experts for name, routed in self._layers.items()}
        self._top_examples = top_examples
        self._pending: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._accumulators: dict[str, Accumulator] = {}
        self._compared: dict[str, tuple[Tensor, Tensor | None]] = {}  # similarity and products of each layer's experts
        self._images = 0
        self._handles: list[RemovableHandle] = []
        self._eagerly = ExitStack()
        self._passes: list[bool] = []  # of the network since the last update: whether each came to its end

    def __enter__(self) -> RoutingRecorder:
        if self._handles:
            raise UsageError("`recorder` must be entered once at a time, got a second time: leave its with block first")
        self._forget()
        self._eagerly.enter_context(torch.compiler.set_stance("force_eager"))
        self._handles.append(self._network.register_forward_pre_hook(self._begin))
        self._handles.append(self._network.register_forward_hook(self._end))
        for name in self._layers:
            routing_fn = self._network.get_submodule(name)
            self._handles.append(routing_fn.register_forward_hook(partial(self._store, name)))
        for name, layer in conditional_layers(self._network).items():
            # While it runs: only then does a process have all of parameters that are sharded.
            self._handles.append(layer.experts.register_forward_pre_hook(partial(self._compare, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._eagerly.close()

    def _forget(self) -> None:
        self._passes.clear()
        for calls in self._pending.values():
            calls.clear()

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._passes and not self._passes[-1]:
            self._forget()  # that pass failed: what it left belongs to no example
        self._passes.append(False)

    def _end(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._passes[-1] = True

    def _store(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._pending[name].append(output.detach())

    def _compare(self, name: str, *call: Any) -> None:
        self._comparison(name)

    def update(self, targets: Tensor | None = None, ids: Tensor | None = None) -> None:
        """Add the examples of the last forward pass.

        Args:
            targets: Class of each example, `[B]` integers. Negative ones (images that could not be read) are left out.
                Without class names it may be None, and only the sign matters.
            ids: Numbers `[B]` that the report gives the examples with the highest weights; None to number the examples
                from 0 in their order.

        Raises:
            UsageError: There was not one forward pass since the last update, or it had another number of examples or
                weights that are not finite; or targets are missing, no whole numbers (as mixup's are), or name a
                class that there is not.
        """
        check_whole_numbers(targets=targets, ids=ids)
        count = self._check_pending(targets)
        seen = torch.ones(count, dtype=torch.bool) if targets is None else targets.detach().cpu() >= 0
        known = known_classes(targets, seen, self.class_names)
        numbers = torch.arange(self._images, self._images + count) if ids is None else ids.detach().cpu().long()
        if numbers.shape != (count,):
            raise UsageError(
                f"`ids` must have shape [B] = {(count,)}, got {tuple(numbers.shape)}: one for each example"
            )
        self._images += count
        for name, calls in self._pending.items():
            for weights in calls:
                vectors = weights.double().cpu()[seen]
                of_experts = self._experts[name].weights_of_experts(vectors)
                self._accumulator(name, *of_experts.shape[1:], *vectors.shape[1:]).add(
                    of_experts, vectors, known, numbers[seen]
                )
        self._forget()

    def _check_pending(self, targets: Tensor | None) -> int:
        if len(self._passes) > 1:
            raise UsageError(
                f"`update` must be called once after each forward pass, got {len(self._passes)} passes since the last "
                "call: call it after each"
            )
        if not any(self._pending.values()):
            raise UsageError(
                "`network` must run before update is called, got a call before any routing function has run: run it "
                "inside the with block"
            )
        for name, calls in self._pending.items():
            if not all(bool(weights.isfinite().all()) for weights in calls):
                raise UsageError(
                    f"`network` must give finite routing weights, got others in {name!r}, so it "
                    "has diverged: take weights from before"
                )
        sizes = {len(weights) for calls in self._pending.values() for weights in calls}
        if len(sizes) != 1 or (targets is not None and sizes != {len(targets)}):
            given = "none" if targets is None else len(targets)
            raise UsageError(
                f"`targets` must have one class for each example of one forward pass, got {given} for weights of "
                f"{sorted(sizes) or 'no'} examples: call update once after each forward pass"
            )
        return sizes.pop()

    def _accumulator(self, name: str, num_experts: int, num_weights: int) -> Accumulator:
        if name not in self._accumulators:
            sizes = (len(self.class_names or ()), num_experts, num_weights)
            self._accumulators[name] = Accumulator(*sizes, self._top_examples)
        return self._accumulators[name]

    def report(self) -> RoutingReport:
        """Return what was recorded, one record for each routing function that ran, in the network's order.

        Raises:
            UsageError: No example was recorded.
        """
        ran = [name for name in self._layers if name in self._accumulators]
        records = [self._record(name) for name in ran if int(self._accumulators[name].sums["examples"])]
        if not records:
            raise UsageError(
                "`recorder` must see an example first, got none: run the network inside the with block, then update"
            )
        return RoutingReport(tuple(records), self.class_names)

    def _record(self, name: str) -> RoutingRecord:
        accumulator = self._accumulators[name]
        found = accumulator.top_weights[0].isfinite()  # all experts have seen as many examples
        return RoutingRecord(
            name=name,
            layers=self._layers[name],
            kind=type(self._network.get_submodule(name)).__name__,
            highest_shares=accumulator.highest_shares.clone(),
            top_weights=accumulator.top_weights[:, found].clone(),
            top_ids=accumulator.top_ids[:, found].clone(),
            similarity=torch.stack([self._comparison(layer)[0] for layer in self._layers[name]]).amin(0),
            kernel_variation=self._kernel_variation(name),
            **{field: value.clone() for field, value in accumulator.sums.items()},
        )

    def _kernel_variation(self, name: str) -> float | None:
        accumulator = self._accumulators[name]
        sums = (accumulator.sums["examples"], accumulator.sums["weight_sums"], accumulator.weight_products)
        terms = [self._comparison(layer)[1] for layer in self._layers[name]]
        found = [statistics.kernel_variation(*sums, each) for each in terms if each is not None]
        return fmean(found) if found else None

    def _comparison(self, name: str) -> tuple[Tensor, Tensor | None]:
        if name not in self._compared:  # otherwise it did not run, though another one that shares its routing did
            layer = conditional_layers(self._network)[name]
            device = next(layer.experts.parameters()).device
            with torch.autocast(device.type, enabled=False):  # of bf16 kernels small differences would be rounding
                self._compared[name] = (expert_similarity([layer]), kernel_products(layer))
        return self._compared[name]
