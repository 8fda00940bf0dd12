"""Trace one forward pass: which modules ran, in which order, on which shapes."""

from condconv.counting.tracing.example import arguments_of, default_example
from condconv.counting.tracing.running import evaluating, is_on_meta, undisturbed
from condconv.counting.tracing.watching import Call, Trace, trace

__all__ = ["Call", "Trace", "arguments_of", "default_example", "evaluating", "is_on_meta", "trace", "undisturbed"]
