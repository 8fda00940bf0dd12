"""Find which modules of a model run, on which shapes, and what they cost."""

from condconv.counting.cost import CostReport, LayerCost, count, count_trace, format_table

__all__ = ["CostReport", "LayerCost", "count", "count_trace", "format_table"]
