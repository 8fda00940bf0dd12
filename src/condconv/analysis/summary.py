"""What the routing of a whole network learned: a few numbers, a state, and a sentence for a newcomer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import fmean

from condconv.analysis import statistics
from condconv.analysis.records import Intervention, RoutingRecord
from condconv.analysis.report import RoutingReport
from condconv.errors import check_type

ONE_EXPERT = 1.5
"""With a smaller effective number of experts one of them has about nine tenths of all mixtures."""
SAME = 0.03
"""If weights vary less, an image's kernel differs from the mean one by at most 3 %, a thousandth of its energy."""
STUCK = 0.1
"""Below this leeway, gradients of the weights are ten times smaller than in the middle."""
ALIKE = 0.9
"""From this cosine on, the mean over pairs of experts, at most a tenth of a kernel's energy tells experts apart."""
STATES = {
    "varied": "routing depends on the image",
    "one expert": "all images get almost the same kernels, because one expert has nearly all the weight",
    "stuck": "all images get the same kernels, because their routing weights are stuck near 0 and 1",
    "same weights": "all images get almost the same kernels, because their routing weights hardly differ",
    "alike": "all images get almost the same kernels, because the experts are nearly copies of each other",
}
"""The states of a routing, in words; all but the first gain nothing over a static network."""
_CONSTANT = ("ConstantRouting", "ExternalRouting")


@dataclass(frozen=True)
class RoutingSummary:
    """The routing of a whole network in a few numbers, means over its routing functions, and a state.

    Attributes:
        variation: How much weights vary over images, relative to their size; 0 if all images have the same, below 1.
        kernel_variation: How much kernels vary over images, relative to their size; 0 if all images have the same, at
            most 1. None if it is known of no routing function: for experts whose kernels are not linear in the weights.
        experts_in_use: Effective number of experts over all images, 1 to E.
        num_experts: E.
        similarity: Cosine similarity of the experts' kernels, the mean over pairs; 1 for copies.
        state: A key of `STATES`: of those that gain nothing, the most frequent, if they are more than half of the
            routing functions, otherwise `"varied"`. Good networks have such routing functions too, mostly early ones.
        affected: Names of the routing functions in that state.
        routings: Number of routing functions that count.
    """

    variation: float
    kernel_variation: float | None
    experts_in_use: float
    num_experts: float
    similarity: float
    state: str
    affected: tuple[str, ...]
    routings: int

    @property
    def numbers(self) -> str:
        """The numbers in words."""
        kernels = "" if self.kernel_variation is None else f"kernels by {100 * self.kernel_variation:.1f} %, "
        return (
            f"weights vary by {100 * self.variation:.0f} % over images, {kernels}{self.experts_in_use:.1f} of "
            f"{self.num_experts:g} experts in use, their similarity {self.similarity:.2f} (1 = identical)"
        )

    @property
    def finding(self) -> str:
        """The state in words, with the number of routing functions if these are not all."""
        words = STATES[self.state]
        if self.state == "varied" or len(self.affected) == self.routings:
            return words
        return f"{words} (in {len(self.affected)} of {self.routings} routing functions)"


def summarize(report: RoutingReport) -> RoutingSummary | None:
    """Return what the routing of a network learned; None if none of it depends on the input or has a choice.

    Routing functions that are constant by choice or have one expert do not count.

    Args:
        report: Of `RoutingRecorder.report()`.

    Example:
        ::

            with RoutingRecorder(network) as recorder, torch.inference_mode():
                for images, targets in loader:
                    network(images)
                    recorder.update(targets)
            print(summarize(recorder.report()).numbers)
    """
    check_type("report", report, RoutingReport, "be a RoutingReport", "give what RoutingRecorder.report() returns")
    records = [each for each in report.routings if each.kind not in _CONSTANT and each.num_experts > 1]
    if not records:
        return None
    states = {record.name: _state(record) for record in records}
    idle = Counter(state for state in states.values() if state != "varied")
    kernels = [record.kernel_variation for record in records if record.kernel_variation is not None]
    state = idle.most_common(1)[0][0] if 2 * idle.total() > len(records) else "varied"
    return RoutingSummary(
        variation=fmean(record.variation for record in records),
        kernel_variation=fmean(kernels) if kernels else None,
        experts_in_use=fmean(record.experts_in_all for record in records),
        num_experts=fmean(record.num_experts for record in records),
        similarity=fmean(statistics.mean_similarity(record.similarity) for record in records),
        state=state,
        affected=tuple(name for name, each in states.items() if each == state),
        routings=len(records),
    )


def _state(record: RoutingRecord) -> str:
    if record.experts_in_all < ONE_EXPERT:
        return "one expert"
    if record.variation < SAME:
        sums = (record.examples, record.weight_sums, record.weight_squares)
        return "stuck" if not int(record.outside) and statistics.leeway(*sums) < STUCK else "same weights"
    return "alike" if statistics.mean_similarity(record.similarity) >= ALIKE else "varied"


def headline(report: RoutingReport) -> str:
    """Return what the routing of a network learned, in one or two sentences for a newcomer.

    Args:
        report: Of `RoutingRecorder.report()`; with interventions it says what routing is worth.
    """
    summary = summarize(report)
    mean = next((each for each in report.interventions if each.name == "mean" and not each.routings), None)
    if summary is not None:
        text = f"{summary.finding}: {summary.numbers}."
    elif any(len(each.vector_sums) > each.num_experts and each.kind not in _CONSTANT for each in report.routings):
        text = "each layer has one kernel, which routing modulates."
    else:
        return "All images get the same kernels: the routing is constant by choice, or there is one expert."
    return f"{text[0].upper()}{text[1:]}{'' if mean is None else f' {_worth(mean)}'}"


def _worth(mean: Intervention) -> str:
    """Say what it costs to give every image the mean weights."""
    error = f"± {mean.cost_error:.2f}"
    if mean.right is None:
        return f"With the same weights for every image, {mean.cost:.2f} {error} % of the predictions change."
    if abs(mean.cost) <= 2 * mean.cost_error:
        return f"With the same weights for every image, accuracy is the same within error ({-mean.cost:+.2f} {error})."
    change = "falls" if mean.cost > 0 else "rises"
    return f"With the same weights for every image, accuracy {change} by {abs(mean.cost):.2f} {error} points."
