"""What experts bring to a network that is trained already: it is trained on, with and without them.

    python benchmarks/continued_training.py --data DIR --cache DIR --out records.jsonl --seeds 50 51 52 53 54 55

The zoo's small static network is trained on CIFAR-10 first. Then each arm starts from it, and all have the same images,
rates and epochs: the network as it is; `convert_` as it is by default, to 8 experts; the same experts with learned
weights that do not depend on the image; and experts that take whole steps, not a tenth.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
import condconv
from benchmarks.small_images import optimizer_of
from benchmarks.trainings import BATCH, Images, evaluate, keep_records, load, outcome, scored, train_

ARMS: dict[str, dict[str, Any] | None] = {
    "static": None,
    "converted-8": {},
    "converted-constant-8": {"routing": "constant(learn=True)"},
    "deltas-8": {"experts": "deltas"},
    "deltas-constant-8": {"experts": "deltas", "routing": "constant(learn=True)"},
}


def trained(net: str, seed: int, data: tuple[Images, Images], settings: argparse.Namespace) -> nn.Module:
    """Return the static network after its first training, which all arms of a seed share."""
    train, _ = data
    size = train[0].shape[-1]
    torch.manual_seed(seed)
    model = condconv.create_model(f"small_{net}_100", num_classes=10)
    optimizer = optimizer_of(model, "sgd", settings.first_lr, settings.decay)
    path = settings.cache / f"first-{net}-{seed}-{settings.first_epochs}-{settings.first_lr}-{size}.pt"
    train_(model, optimizer, train, seed, epochs=settings.first_epochs, path=path, batch_size=BATCH)
    return model


def train_arm(arm: str, seed: int, data: tuple[Images, Images], settings: argparse.Namespace) -> dict[str, Any]:
    """Train one arm on and return what was measured, resuming after the last epoch that was saved."""
    train, test = data
    model = trained(settings.net, seed, data, settings)
    before, _ = evaluate(model, test)
    size = train[0].shape[-1]
    example = torch.zeros(1, 3, size, size)
    torch.manual_seed(seed)
    options = ARMS[arm]
    if options is not None:
        condconv.convert_(model, 8, example_input=example, **options)
    total = condconv.count(model, example).total
    optimizer = optimizer_of(model, settings.optimizer, settings.lr, settings.decay)
    key = f"{settings.net}-{arm}-{seed}-{settings.epochs}-{settings.optimizer}-{settings.lr}-{size}"
    path = settings.cache / f"on-{settings.first_epochs}-{settings.first_lr}-{key}.pt"
    state = train_(model, optimizer, train, seed + 1000, epochs=settings.epochs, path=path, batch_size=BATCH)
    top1, loss_at_test = evaluate(model, test)
    path.unlink(missing_ok=True)
    return outcome(total, top1, state, before=round(before / 100, 4), test_loss=round(loss_at_test, 4))


def main() -> None:
    """Train what the file of records lacks, and add a line per run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of cifar10-train.tar and cifar10-test.tar")
    parser.add_argument("--cache", type=Path, required=True, help="decoded images, first trainings, unfinished runs")
    parser.add_argument("--out", type=Path, required=True, help="records, one line of JSON per finished run")
    parser.add_argument("--net", choices=("separable", "dense"), default="dense")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=["static", "converted-8"])
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--first-epochs", type=int, default=20)
    parser.add_argument("--first-lr", type=float, default=0.4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="adamw")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--size", type=int, choices=(16, 32), default=16)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    data = load(settings.data, settings.cache, settings.size)
    names = ("net", "first_epochs", "first_lr", "epochs", "optimizer", "lr", "decay", "size")
    given = {name: getattr(settings, name) for name in names}
    runs = [
        ({"what": arm, "seed": seed, **given}, partial(train_arm, arm, seed, data, settings))
        for seed in settings.seeds
        for arm in settings.arms
    ]
    for record in keep_records(settings.out, runs):
        print(f"{scored(record)}, before {100 * record['before']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
