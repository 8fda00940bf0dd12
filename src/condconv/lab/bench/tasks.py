"""Which rows are measured: the quick list, or everything that patterns choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from condconv.lab.bench.cases import LAYERS, NETWORKS, Case, LayerCase, NetworkCase, layers_of
from condconv.lab.bench.contender import Conditions
from condconv.lab.bench.run import Task
from condconv.nn.choice import choose_named

BATCHES = (1, 8, 32, 128)
QUICK_BATCHES = (1, 8, 32)
TRAINING_BATCH = 16
B0 = "tf_efficientnet_cc_b0_8e"
ALL = "all"


def quick_tasks(conditions: Conditions) -> list[Task]:
    """Return the quick list: the fixed layers and EfficientNet-B0 with 8 experts in inference, and one training step.

    Args:
        conditions: Everything but the mode.
    """
    inference, training = replace(conditions, mode="inference"), replace(conditions, mode="training")
    cases: list[Case] = [*LAYERS, NetworkCase(B0)]
    tasks = [Task(case, batch, inference) for case in cases for batch in QUICK_BATCHES]
    return [*tasks, Task(NetworkCase(B0), TRAINING_BATCH, training)]


def full_tasks(
    conditions: Sequence[Conditions],
    batches: Sequence[int] | None,
    layers: str | None,
    networks: str | None,
    experts: str | None = None,
) -> list[Task]:
    """Return what the patterns choose, under each of the conditions.

    Args:
        conditions: At least one.
        batches: Numbers of examples; `None` for `BATCHES`, and the batch that EfficientNet-B0's training aims at.
        layers: Patterns of layers' names, as in a `LayerChoice`; "all" adds the distinct layers of the networks to the
            fixed list. Where neither this nor `networks` is given, both take everything listed.
        networks: As `layers`, for `NETWORKS`.
        experts: Of the networks; the listed layers, whose experts are dense, are then left out.

    Raises:
        UsageError: A pattern fits nothing.
    """
    neither = layers is None and networks is None and experts is None
    cases: list[Case] = []
    if layers is not None or neither:
        cases += _layers(layers)
    if networks is not None or experts is not None or neither:
        cases += networks_of(networks, experts)
    tasks = [Task(case, batch, each) for case in cases for each in conditions for batch in batches or BATCHES]
    if batches is None:
        training = [each for each in conditions if each.mode == "training"]
        tasks += [Task(case, TRAINING_BATCH, each) for case in cases if case.name == B0 for each in training]
    return tasks


def _layers(patterns: str | None) -> list[LayerCase]:
    if patterns == ALL:
        return list(dict.fromkeys([*LAYERS, *(layer for name in NETWORKS for layer in layers_of(name))]))
    named = {case.name: case for case in LAYERS}
    return [*choose_named(named, patterns, argument="--layers", kind="listed layers").values()]


def networks_of(patterns: str | None, experts: str | None = None) -> list[NetworkCase]:
    """Return the networks that patterns choose, as `full_tasks` reads them, with experts of a kind.

    Raises:
        UsageError: A pattern fits none.
    """
    named = {name: NetworkCase(name, experts or "dense") for name in NETWORKS}
    return [*choose_named(named, patterns, argument="--networks", kind="listed networks").values()]
