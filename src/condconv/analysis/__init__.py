"""Looking at what the routing learned: recording, statistics, pictures."""

from condconv.analysis.plots import plot_learning_curves, plot_routing
from condconv.analysis.routing import RoutingRecorder, RoutingStatistics

__all__ = ["RoutingRecorder", "RoutingStatistics", "plot_learning_curves", "plot_routing"]
