"""The report of a recording: a frozen result that can be saved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condconv.analysis.lists import (
    FORMAT,
    intervention_from_lists,
    intervention_to_lists,
    read_lists,
    record_from_lists,
    record_to_lists,
)
from condconv.analysis.records import Intervention, RoutingRecord
from condconv.errors import UsageError, few, shown, shown_name
from condconv.files.atomic import write_atomic


@dataclass(frozen=True)
class RoutingReport:
    """What the routing of a network did for the recorded examples.

    Attributes:
        routings: One record for each routing function, in the network's order.
        class_names: Names in the order of the classes; None for examples without classes.
        interventions: What changed routing weights would cost, if it was measured.
    """

    routings: tuple[RoutingRecord, ...]
    class_names: tuple[str, ...] | None = None
    interventions: tuple[Intervention, ...] = ()

    def routing(self, name: str) -> RoutingRecord:
        """Return the record of a routing function, by its name or that of a layer.

        Raises:
            UsageError: There is no record of this name.
        """
        for record in self.routings:
            if name == record.name or name in record.layers:
                return record
        known = few((record.layers[0] for record in self.routings), most=8)
        raise UsageError(
            f"`name` must be a conditional layer or a routing function, got {shown(name)}: there are {known}"
        )

    def static_cost(self, record: RoutingRecord) -> Intervention | None:
        """Return the intervention that gives only this routing its mean weights; None if it was not measured."""
        return next((each for each in self.interventions if each.routings == (record.name,)), None)

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row for each routing function, for `pandas.DataFrame(report.rows())` or a CSV writer.

        Entropy and mutual information are in bits, costs in points of accuracy; None if classes or measurements are
        missing, or the variation of kernels is not known.
        """
        return [self._row(record) for record in self.routings]

    def _row(self, record: RoutingRecord) -> dict[str, Any]:
        cost = self.static_cost(record)
        return {
            "routing": record.name,
            "layers": " ".join(record.layers),
            "kind": record.kind,
            "experts": record.num_experts,
            "examples": int(record.examples),
            "variation": record.variation,
            "kernel_variation": record.kernel_variation,
            "between_class_share": record.between_class_share,
            "mutual_information": record.mutual_information,
            "entropy": record.entropy,
            "experts_per_example": record.experts_per_example,
            "experts_in_all": record.experts_in_all,
            "bimodality": record.bimodality,
            "dead_experts": len(record.dead),
            "duplicate_pairs": len(record.duplicates),
            "static_cost": None if cost is None else cost.cost,
            "static_cost_error": None if cost is None else cost.cost_error,
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, which `load` reads; `condconv.analysis.save_page` writes a page for a browser.

        Args:
            path: A `.json` file.

        Raises:
            UsageError: Another suffix, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise UsageError(
                f"`path` must end in .json, got {shown_name(path)}: save_page(report, path) writes a page, in .html"
            )
        write_atomic(path, json.dumps(self._to_lists(), allow_nan=False))

    def _to_lists(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "class_names": self.class_names,
            "routings": [record_to_lists(record) for record in self.routings],
            "interventions": [intervention_to_lists(each) for each in self.interventions],
        }

    @classmethod
    def load(cls, path: str | Path) -> RoutingReport:
        """Read a `.json` file that `save` wrote.

        Raises:
            UsageError: The file is missing, cut off, or no report of this version.
        """
        try:
            values = read_lists(Path(path))
            names = None if values["class_names"] is None else tuple(values["class_names"])
            routings = [record_from_lists(each, len(names or ())) for each in values["routings"]]
            return cls(tuple(routings), names, tuple(map(intervention_from_lists, values["interventions"])))
        except ValueError as error:
            raise UsageError(
                f"`path` must be a JSON file that RoutingReport.save wrote (format {FORMAT}), got {shown_name(path)}, "
                f"which {error}: save the report again, under a name in .json"
            ) from error
