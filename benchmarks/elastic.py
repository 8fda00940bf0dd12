"""Members of one elastic training next to the same networks trained alone, on CIFAR-10 at 16 pixels.

    python benchmarks/elastic.py --data DIR --cache DIR --out records.jsonl --images 10000 --epochs 6 --seeds 0 1

For one seed all arms have the same order of images and augmentation. Finished runs are skipped. A record has the top-1
of every member of the elastic network, or that of the one network that was trained alone.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from benchmarks.trainings import BATCH, Images, batches, evaluate, keep_records, load, normalised
from condconv.convert import estimate_statistics_, keep_member_
from condconv.models import create_model
from condconv.nn.conditional import conditional_layers
from condconv.nn.elastic import sandwich, smaller_member

EXPERTS = 8


def train(model: nn.Module, images: Images, seed: int, epochs: int, *, elastic: bool) -> None:
    """Train a network, in place: AdamW at 0.003 with a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.003, weight_decay=0.05)
    steps = epochs * math.ceil(len(images[1]) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, steps, pct_start=0.1)
    model.train()
    for epoch in range(epochs):
        for x, labels in batches(images, seed, epoch, BATCH):
            smaller = sandwich(EXPERTS)[1:] if elastic else ()
            logits = model(x)
            (F.cross_entropy(logits, labels) / (1 + len(smaller))).backward()
            for number in smaller:
                with smaller_member(model, number):
                    loss = F.cross_entropy(model(x), logits.detach().softmax(1))
                    (loss / (1 + len(smaller))).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def score_members(model: nn.Module, numbers: Iterable[int], images: Images, test: Images) -> dict[str, float]:
    """Return the top-1 of members, all with the statistics of norms estimated."""
    found = {}
    for number in numbers:
        cut = copy.deepcopy(model)
        if conditional_layers(cut):
            keep_member_(cut, number)
        estimate_statistics_(cut, (normalised(each) for each in images[0][:2000].split(200)))
        found[str(number)] = round(evaluate(cut, test)[0], 2)
    return found


def train_arm(arm: str | int, seed: int, epochs: int, images: Images, test: Images) -> dict[str, Any]:
    """Train the elastic network or one alone, and return the top-1 of its members."""
    torch.manual_seed(seed)
    experts = EXPERTS if arm == "elastic" else int(arm)
    name = f"small_separable_cc_100_{experts}e" if experts else "small_separable_100"
    model = create_model(name, num_classes=10)
    train(model, images, seed, epochs, elastic=arm == "elastic")
    numbers = range(EXPERTS + 1) if arm == "elastic" else [experts]
    return {"top1": score_members(model, numbers, images, test)}


def main() -> None:
    """Run all arms of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--alone", type=int, nargs="+", default=[0, 2, 8])
    options = parser.parse_args()
    train_set, test = load(options.data, options.cache, 16)
    images = (train_set[0][: options.images], train_set[1][: options.images])
    runs = [
        (
            {"arm": arm, "seed": seed, "images": len(images[1]), "epochs": options.epochs},
            partial(train_arm, arm, seed, options.epochs, images, test),
        )
        for seed in options.seeds
        for arm in ("elastic", *options.alone)
    ]
    for record in keep_records(options.out, runs):
        print(f"{record['arm']}, seed {record['seed']}: {record['top1']}", flush=True)


if __name__ == "__main__":
    main()
