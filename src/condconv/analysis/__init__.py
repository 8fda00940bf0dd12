"""Show what the routing learned: recording, statistics, what it is worth, pictures and a page."""

from condconv.analysis.advice import Verdict, make_static_command, verdicts
from condconv.analysis.interventions import changed_routing, keep_top, measure_interventions, measure_static
from condconv.analysis.page import render_page, save_page
from condconv.analysis.pictures import Picture, choose_pictures, make_picture
from condconv.analysis.recorder import RoutingRecorder, layers_by_routing
from condconv.analysis.records import Intervention, RoutingRecord
from condconv.analysis.report import RoutingReport
from condconv.analysis.summary import RoutingSummary, headline, summarize

__all__ = [
    "Intervention",
    "Picture",
    "RoutingRecord",
    "RoutingRecorder",
    "RoutingReport",
    "RoutingSummary",
    "Verdict",
    "changed_routing",
    "choose_pictures",
    "headline",
    "keep_top",
    "layers_by_routing",
    "make_picture",
    "make_static_command",
    "measure_interventions",
    "measure_static",
    "render_page",
    "save_page",
    "summarize",
    "verdicts",
]
