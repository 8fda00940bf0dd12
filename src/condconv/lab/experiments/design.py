"""The design of an experiment: networks to train under the same conditions, and the paper's figures for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from condconv.errors import UsageError, shown
from condconv.lab.experiments.verdicts import RULES, Results


@dataclass(frozen=True)
class Arm:
    """One row of an experiment's table.

    Attributes:
        label: Name of the row; unique in its experiment.
        model: Name of the network, of `condconv.models` or of `condconv.lab.experiments.branches`.
        options: Arguments it is created with; values that JSON can hold.
        members: Networks whose probabilities are averaged; 1 for a single network.
        chained: Whether each member continues from the one before and all of them share the epochs of one run
            (snapshots); otherwise each has its own seed and trains for all epochs.
        paper: Score that the paper prints for the row, in percent; `None` if it prints none.
        against: Label of the arm whose score it is compared with; `None` for the first arm, its own label for none.
        curve: Name of the line that the row is a point of, in a plot of accuracy by cost; `None` for none.
        method: Published method by name, as in `TrainConfig`; `None` for none.
    """

    label: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    members: int = 1
    chained: bool = False
    paper: float | None = None
    against: str | None = None
    curve: str | None = None
    method: str | None = None

    @property
    def has_experts(self) -> bool:
        """Whether the network has conditional layers."""
        return "_cc_" in self.model


@dataclass(frozen=True)
class Experiment:
    """Networks to compare.

    Attributes:
        name: Its name on the command line.
        title: Of table and plot.
        source: Table or figure of the paper.
        arms: In the order of the table.
        note: A note below the table.
        metric: What is compared, in percent.
        task: `"classification"` or `"detection"`.
        rule: Name of the rule that answers its question, a key of `condconv.lab.experiments.verdicts.RULES`; empty
            for none.

    Raises:
        UsageError: There is no such rule.
    """

    name: str
    title: str
    source: str
    arms: tuple[Arm, ...]
    note: str = ""
    metric: str = "top-1 (%)"
    task: str = "classification"
    rule: str = ""

    def __post_init__(self) -> None:
        if self.rule and self.rule not in RULES:
            raise UsageError(
                f"`rule` must be empty or one of {', '.join(RULES)}, got {shown(self.rule)}: choose one of these"
            )

    def verdicts(self, results: Results) -> list[str]:
        """Return what the rule says of the results, in sentences; none without a rule."""
        return RULES[self.rule](results) if self.rule else []

    def reference(self, arm: Arm) -> Arm | None:
        """Return the arm that another is compared with, or `None` for an arm that is a reference itself."""
        label = arm.against or self.arms[0].label
        return None if label == arm.label else next(each for each in self.arms if each.label == label)
