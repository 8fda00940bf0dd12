"""Write networks for other runtimes; each file is run there and compared before it is kept."""

from condconv.errors import ExportError
from condconv.export.api import export
from condconv.export.choose import Choice
from condconv.export.formats import FORMATS
from condconv.export.report import ExportReport
from condconv.export.rewrite import rewrite

__all__ = ["FORMATS", "Choice", "ExportError", "ExportReport", "export", "rewrite"]
