"""Give an existing network experts, in place, without changing its output."""

from condconv.convert import select
from condconv.convert.again import convert_like_
from condconv.convert.api import convert_
from condconv.convert.compress import compress_experts_
from condconv.convert.compression_report import CompressedLayer, CompressionReport
from condconv.convert.elastic import Member, estimate_statistics_, keep_member_, members, set_budget_
from condconv.convert.fold import fold_batch_norms_
from condconv.convert.make_static import make_static_
from condconv.convert.quantize import QuantizationReport, QuantizedLayer, quantize_experts_
from condconv.convert.record import Conversion
from condconv.convert.report import ConversionReport, ConvertedLayer
from condconv.convert.scope import Group, Scope
from condconv.convert.stores import exchange_experts_

__all__ = [
    "CompressedLayer",
    "CompressionReport",
    "Conversion",
    "ConversionReport",
    "ConvertedLayer",
    "Group",
    "Member",
    "QuantizationReport",
    "QuantizedLayer",
    "Scope",
    "compress_experts_",
    "convert_",
    "convert_like_",
    "estimate_statistics_",
    "exchange_experts_",
    "fold_batch_norms_",
    "keep_member_",
    "make_static_",
    "members",
    "quantize_experts_",
    "select",
    "set_budget_",
]
