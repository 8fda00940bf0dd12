"""A verdict on each routing function: is its dependence on the input worth keeping?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from condconv.analysis.records import Intervention, RoutingRecord
from condconv.analysis.report import RoutingReport
from condconv.analysis.statistics import chance_share
from condconv.errors import check_type, command_line

LOW_SHARE = 0.1
"""Below this between-class share, minus what chance gives, a routing hardly distinguishes classes."""
FREE_COST = 0.1
"""Points of accuracy that a static layer may cost and still count as free."""
FEWEST_IMAGES = round(100 / FREE_COST)
"""With fewer images a single one is more than `FREE_COST` points, so that nothing found free would be known to be."""

_REASONS = {
    "static": "Make it static: the weights hardly depend on the class.",
    "spare": "Distinguishes classes, but alone costs nothing to remove: other layers compensate.",
    "needed": "Keep it.",
    "unknown": "What static weights would cost was not measured.",
}


@dataclass(frozen=True)
class Verdict:
    """What to do about one routing function.

    Attributes:
        routing: Its name.
        layers: The layers that it routes.
        kind: `"static"` (make its layers static), `"spare"` (it distinguishes classes, but accuracy is the same if only
            it is constant), `"needed"`, `"few"` (too few images to judge), or `"unknown"` (the cost was not measured).
        text: The reason.
        images: On how many images the cost was measured; None with `"unknown"`.
        images_needed: With `"few"`, about how many images are needed; otherwise None.
    """

    routing: str
    layers: tuple[str, ...]
    kind: str
    text: str
    images: int | None = None
    images_needed: int | None = None


def verdicts(report: RoutingReport) -> tuple[Verdict, ...]:
    """Judge each routing function by two figures: its between-class share, and what its mean weights cost.

    Its layers should be static if the share, minus what chance would give, is below 0.1 and the mean weights cost at
    most 0.1 points of accuracy. Without classes the share counts as low, and the cost is the percentage of predictions
    that change.

    The cost needs at least 1000 images, and enough for a standard error of at most 0.1 points, or to lie more than two
    standard errors away from 0.1 points. The share needs ten images per class, with which chance alone gives 0.1.

    Args:
        report: With interventions; otherwise every verdict is `"unknown"`.
    """
    check_type("report", report, RoutingReport, "be a RoutingReport", "give what RoutingRecorder.report() returns")
    return tuple(_judge(record, report.static_cost(record)) for record in report.routings)


def _judge(record: RoutingRecord, cost: Intervention | None) -> Verdict:
    if cost is None:
        return Verdict(record.name, record.layers, "unknown", _REASONS["unknown"])
    if (needed := _images_needed(record, cost)) is not None:
        text = f"Too few images to judge: use at least {needed:,}. {_describe(cost)}"
        return Verdict(record.name, record.layers, "few", text, cost.images, needed)
    share = record.between_class_share
    low = share is None or share - chance_share(record.class_examples) < LOW_SHARE
    kind = "needed" if cost.cost > FREE_COST else "static" if low else "spare"
    return Verdict(record.name, record.layers, kind, f"{_REASONS[kind]} {_describe(cost)}", cost.images)


def _images_needed(record: RoutingRecord, cost: Intervention) -> int | None:
    """Return how many images a verdict needs; None if there are enough."""
    plain = cost.cost_error > 0 and abs(cost.cost - FREE_COST) > 2 * cost.cost_error
    if plain and cost.cost > FREE_COST:
        return None
    # The error falls with the root of the images, as long as the same part of them changes sides.
    for_cost = 0 if plain else max(FEWEST_IMAGES, math.ceil(cost.images * (cost.cost_error / FREE_COST) ** 2))
    classes = int((record.class_examples > 0).sum())
    for_share = math.ceil((classes - 1) / LOW_SHARE) + 1 if classes else 0
    if cost.images >= for_cost and int(record.examples) >= for_share:
        return None
    return _round_up(max(for_cost, for_share))


def _round_up(number: int) -> int:
    """Return a number rounded up to two digits, since it is an estimate."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return math.ceil(number / unit) * unit


def _describe(cost: Intervention) -> str:
    error = f"± {cost.cost_error:.2f}"
    if cost.right is None:
        return f"With its mean weights {cost.cost:.2f} {error} % of the predictions change."
    return f"Its mean weights {'cost' if cost.cost >= 0 else 'gain'} {abs(cost.cost):.2f} {error} points."


def make_static_command(
    report: RoutingReport, checkpoint: str, data: str | None = None, data_dir: str | None = None
) -> str | None:
    """Return the shell command that makes the advised layers static; None if none is advised.

    Args:
        report: With interventions.
        checkpoint: Path of the network's checkpoint.
        data: Path of other images than the network's training images; None for these.
        data_dir: Directory of the files of a named dataset; None for that of the training.
    """
    check_type("checkpoint", checkpoint, str, "be the path of a checkpoint", "give a text")
    advised = [verdict for verdict in verdicts(report) if verdict.kind == "static"]
    if not advised:
        return None
    every = [layer for record in report.routings for layer in record.layers]
    patterns = ",".join(_pattern(verdict.layers, every) for verdict in advised)
    options = {"--data": data, "--data-dir": data_dir, "--layers": patterns, "-o": "static.safetensors"}
    given = [word for option, value in options.items() if value is not None for word in (option, value)]
    return command_line(["condconv", "make-static", checkpoint, *given])


def _pattern(layers: tuple[str, ...], every: list[str]) -> str:
    """Return a pattern that matches only these layers, a short one if they are all layers of a block."""
    block = layers[0].rpartition(".")[0]
    inside = tuple(name for name in every if name.startswith(f"{block}."))
    return f"{block}.*" if len(layers) > 1 and inside == layers else ",".join(layers)
