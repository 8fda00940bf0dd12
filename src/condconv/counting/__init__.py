"""What runs in a model, on which shapes, and what it costs."""

from condconv.counting.cost import CostReport, LayerCost, count, count_trace, format_table

__all__ = ["CostReport", "LayerCost", "count", "count_trace", "format_table"]
