"""Giving an existing network experts, in place, without changing what it computes."""

from condconv.convert import select
from condconv.convert.api import convert_
from condconv.convert.fold import fold_batch_norms_
from condconv.convert.report import ConversionReport, ConvertedLayer
from condconv.convert.scope import Scope

__all__ = ["ConversionReport", "ConvertedLayer", "Scope", "convert_", "fold_batch_norms_", "select"]
