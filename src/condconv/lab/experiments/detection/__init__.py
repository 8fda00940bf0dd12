"""Object detection, for Table 2 of the paper: SSD300 with the features of a network of the zoo, on COCO-format data."""

from condconv.lab.experiments.detection.loop import DetectionResult, train_detector
from condconv.lab.experiments.detection.network import create_detector

__all__ = ["DetectionResult", "create_detector", "train_detector"]
