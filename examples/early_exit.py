"""A classifier on an intermediate block that answers easy images alone: `python early_exit.py early_exit.onnx`.

Trains a small network with experts and an early classifier on scikit-learn's digits, prints accuracy and mean
multiply-adds for several confidence thresholds, and writes the two halves: `early_exit.onnx` for the first blocks and
the early classifier, `early_exit-rest.onnx` for what is left. A program runs the second only if the first is not sure.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import condconv


class First(nn.Module):
    """The first blocks, and a classifier on them: an image to logits `[B, 10]` and the map that the rest takes."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        self.blocks = nn.Sequential(*stem, nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the early answer, and the map."""
        maps = self.blocks(x)
        return self.classifier(F.avg_pool2d(maps, 4).flatten(1)), maps


class Rest(nn.Module):
    """Blocks with experts: the map to logits `[B, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"num_experts": 4, "experts": "deltas", "routing": "sigmoid(standardize=True)"}
        first = condconv.CondConv2d(12, 24, 3, stride=2, padding=1, bias=False, **options)
        second = condconv.CondConv2d(24, 48, 3, padding=1, bias=False, **options)
        norms = nn.BatchNorm2d(24), nn.BatchNorm2d(48)
        self.blocks = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU())
        self.classifier = nn.Linear(192, 10)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the late answer."""
        logits: Tensor = self.classifier(F.max_pool2d(self.blocks(maps), 2).flatten(1))
        return logits


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, and those for validation: every second one."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    labels = torch.from_numpy(data.target).long()
    return images[::2], labels[::2], images[1::2], labels[1::2]


def train(first: First, rest: Rest, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train both classifiers together, in place: the sum of their losses."""
    network = nn.ModuleList([first, rest])
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            early, maps = first(images[batch])
            loss = F.cross_entropy(early, labels[batch]) + F.cross_entropy(rest(maps), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()


@torch.no_grad()
def curve(first: First, rest: Rest, images: Tensor, labels: Tensor) -> list[tuple[float, float, float, float]]:
    """Return for each threshold: itself, the share of images that leave early, accuracy, mean multiply-adds."""
    early, maps = first(images)
    late = rest(maps)
    confidence = early.softmax(1).amax(1)
    costs = condconv.count(first, images[:1]).total.madds, condconv.count(rest, maps[:1]).total.madds
    rows = []
    for threshold in (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01):
        leaves = confidence >= threshold
        answers = torch.where(leaves[:, None], early, late).argmax(1)
        share, right = float(leaves.float().mean()), float((answers == labels).float().mean())
        rows.append((threshold, share, right, costs[0] + (1 - share) * costs[1]))
    return rows


def export(first: First, rest: Rest, image: Tensor, path: Path) -> None:
    """Write both halves for any batch; the ONNX exporter is torch's."""
    batch = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        maps = first(image)[1]
    halves = ((first, image, path, ["logits", "maps"]), (rest, maps, path.with_stem(f"{path.stem}-rest"), ["logits"]))
    for half, example, file, names in halves:
        inputs = (example.expand(2, *example.shape[1:]).contiguous(),)
        torch.onnx.export(
            half, inputs, file, dynamo=True, dynamic_shapes=(batch,), input_names=["x"], output_names=names
        )


def main(path: Path, epochs: int = 30) -> list[tuple[float, float, float, float]]:
    """Train, print the curve and write the files; returns the curve."""
    torch.manual_seed(0)
    images, labels, val_images, val_labels = digits()
    first, rest = First(), Rest()
    train(first, rest, images, labels, epochs)
    rows = curve(first, rest, val_images, val_labels)
    print("threshold  leave early  top-1    mean multiply-adds")
    for threshold, share, right, madds in rows:
        print(f"{threshold:9.2f}  {100 * share:9.1f} %  {100 * right:5.2f} %  {madds:12,.0f}")
    export(first, rest, val_images[:1], path)
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]))
