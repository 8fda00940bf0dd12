"""Watch what routing learns, on some images of each epoch's validation, and warn once if it gains nothing."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from torch import nn

from condconv.analysis import RoutingRecorder, RoutingSummary, layers_by_routing, summarize
from condconv.errors import UsageError
from condconv.lab.saved.evaluate import Batches
from condconv.lab.saved.metrics import EpochMetrics
from condconv.lab.train.run import Run
from condconv.nn import ConstantRouting, ExternalRouting, RoutingFunction, SoftmaxRouting
from condconv.nn.conditional import conditional_layers
from condconv.nn.experts import DenseExperts
from condconv.nn.factory import ROUTING

IMAGES = 1024
"""About how many validation images are watched: with them a variation of 0.03 is known to 0.001."""
FEWEST_EPOCHS = 3
"""Routing is not judged before: also with thousands of updates in each, the first serve batch norm."""
FEWEST_UPDATES = 200
"""Nor before that many updates after warm-up: AdamW at its usual rate of 0.001 moves a router's weight 0.2 by then."""
STARTING = "starting"
"""The state of a routing that is not judged yet."""
UNKNOWN = "unknown"
"""The state of a routing that could not be recorded."""


class RoutingWatch:
    """Records the routing weights of a network on batches that are spread over a pass.

    Classes often follow each other, so the first images alone would be of few classes. In a run of several processes
    only the main one watches, its own share of the images; nothing has to be sent.

    Args:
        network: With conditional layers.
        images: Number of images in the pass.
    """

    def __init__(self, network: nn.Module, images: int) -> None:
        self._recorder = RoutingRecorder(network, top_examples=0)
        self._every = math.ceil(images / IMAGES)
        self._failed = False

    def over(self, batches: Batches) -> Batches:
        """Yield the batches; a watched one is recorded while whoever takes it runs the network."""
        for index, batch in enumerate(batches):
            if index % self._every or self._failed:
                yield batch
                continue
            with self._recorder:
                yield batch
                try:
                    self._recorder.update(batch[1])
                except UsageError:  # training continues unwatched, in step with the other processes
                    self._failed = True

    @cached_property
    def found(self) -> RoutingSummary | None:
        """What the pass has shown; None if that is nothing."""
        try:
            return None if self._failed else summarize(self._recorder.report())
        except UsageError:  # every watched image was unreadable
            return None

    def metrics(self, is_settled: bool) -> dict[str, Any]:
        """Return the fields of `EpochMetrics` that say what was found.

        Args:
            is_settled: Whether the state counts.
        """
        if self._failed:
            return {"routing_state": UNKNOWN}
        if self.found is None:
            return {}
        return {
            "routing_variation": self.found.variation,
            "kernel_variation": self.found.kernel_variation,
            "experts_in_use": self.found.experts_in_use,
            "expert_similarity": self.found.similarity,
            "routing_state": self.found.state if is_settled else STARTING,
        }


def watch(run: Run) -> RoutingWatch | None:
    """Return a watch of the network that is scored; None in other processes, and if no routing depends on the input."""
    if not run.accelerator.is_main_process or not conditional_layers(run.scored):
        return None
    routers = [run.scored.get_submodule(name) for name in layers_by_routing(run.scored)]
    if all(isinstance(each, (ConstantRouting, ExternalRouting)) for each in routers):
        return None
    return RoutingWatch(run.scored, len(run.data.val) // run.accelerator.num_processes)


def is_settled(run: Run, epoch: int) -> bool:
    """Return whether routing has had the time to learn something after an epoch, so that it can be judged."""
    annealed = [each for each in run.network.modules() if isinstance(each, SoftmaxRouting)]
    if any(int(each.annealing_step) < int(each.annealing_steps) for each in annealed):
        return False  # its temperature keeps the weights alike on purpose
    return _had_time(run, epoch)


def _had_time(run: Run, epoch: int) -> bool:
    return epoch >= FEWEST_EPOCHS and _updates(run, epoch) >= FEWEST_UPDATES


def _updates(run: Run, epoch: int) -> int:
    """Return the updates after warm-up, up to the end of an epoch."""
    warmup = 1 if run.config.warmup_epochs is None else run.config.warmup_epochs
    return max(0, epoch - warmup) * run.updates_per_epoch


def warning(run: Run, last: EpochMetrics, watched: RoutingWatch) -> str | None:
    """Return a sentence if routing gains nothing, with the remedy; None if it does, or if the run has said so before.

    Args:
        run: The run, with the metrics of the epochs before.
        last: The epoch's metrics.
        watched: The watch of the epoch.
    """
    said_before = last.routing_state in {each.routing_state for each in run.metrics}
    return None if said_before else _problem(run, last, watched)


def conclusion(run: Run, watched: RoutingWatch | None) -> str | None:
    """Return a sentence if routing gains nothing after the last epoch, or was never judged; with the remedy.

    Args:
        run: The run, at its end.
        watched: The watch of the last epoch; `None` if there is none, or if the run was finished before.
    """
    last = run.metrics[-1]
    if last.routing_state == STARTING and not _had_time(run, last.epoch):
        return (
            f"routing was not judged: that takes {FEWEST_EPOCHS} epochs and {FEWEST_UPDATES} updates after warm-up, "
            f"the run had {last.epoch} and {_updates(run, last.epoch)}: give a smaller --batch-size or more --epochs"
        )
    return None if watched is None else _problem(run, last, watched)


def _problem(run: Run, last: EpochMetrics, watched: RoutingWatch) -> str | None:
    if last.routing_state in (None, "varied", STARTING):
        return None
    if watched.found is None:
        return "routing is not watched: the weights must be finite, one vector for each image of a batch"
    return (
        f"after epoch {last.epoch} {watched.found.finding}: train again in another --out with "
        f"{_remedy(run, watched.found)}"
    )


def _remedy(run: Run, found: RoutingSummary) -> str:
    """Return the settings that most often help in a state."""
    scale = run.config.router_lr_scale
    if found.state == "one expert":
        return f"--expert-dropout 0.2, or --router-lr-scale {scale / 10:g}"
    if found.state == "stuck":
        return f"--router-lr-scale {scale / 10:g}"
    dense = any(isinstance(each.experts, DenseExperts) for each in conditional_layers(run.network).values())
    if found.state == "alike":
        return "--method deltas" if dense else "--model-option init=random"
    routers = [run.network.get_submodule(name) for name in found.affected]
    raw = [each for each in routers if isinstance(each, RoutingFunction) and each.standardization is None]
    if not raw:
        return f"--router-lr-scale {scale * 10:g}"
    if dense:
        return "--method deltas"
    name = next((name for name, kind in ROUTING.items() if kind is type(raw[0])), "sigmoid")
    return f"--model-option 'routing={name}(standardize=True)'"
