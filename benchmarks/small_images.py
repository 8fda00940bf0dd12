"""Evidence on small images: networks of the zoo on CIFAR-10 or Tiny-ImageNet-100, each arm on the same seeds.

    python benchmarks/small_images.py --data DIR --cache DIR --out records.jsonl --net dense --arms static deltas-8

An arm is one of `ARMS`, or `NAME-E` with another number of experts, or `static@WIDTH` in percent. For one seed all arms
have the same first kernels, order of images and augmentation, so that differences are paired. Everything else is the
library's default: layers, start, routing; one learning rate for all parameters, decay on all but biases and norms. Of
MobileNetV1 at a quarter width the layers are the paper's, and the rest is that of the small networks. Of the arm
`elastic` the record has the accuracy of all members, too.
Finished runs are skipped, and one that was stopped resumes after its last epoch.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
import condconv
from benchmarks.trainings import (
    BATCH,
    SETS,
    Images,
    batches,
    evaluate,
    keep_records,
    learn,
    learn_all_members,
    load,
    outcome,
    scored,
    train_,
)
from condconv.convert import estimate_statistics_, keep_member_
from condconv.nn.elastic import elastic_units

ARMS: dict[str, dict[str, Any] | None] = {
    "static": None,
    "se": None,  # squeeze-and-excitation, a quarter of the channels wide
    "deltas": {},
    "elastic": {},
    "deltas-constant": {"routing": "constant(learn=True)"},
    "deltas-raw": {"routing": "sigmoid"},
    "scaled": {"experts": "deltas(scale=0.1)"},
    "scaled-constant": {"experts": "deltas(scale=0.1)", "routing": "constant(learn=True)"},
    "shared": {"experts": "shared"},
    "shared-constant": {"experts": "shared", "routing": "constant(learn=True)"},
    "gains": {"experts": "shared(rank=None, gains=True)"},
    "copies": {"experts": "dense", "routing": "sigmoid", "init": "same_output"},
    "paper": {"experts": "dense", "routing": "sigmoid", "init": "random"},
}


NETS: dict[str, tuple[str, str, dict[str, Any]]] = {  # family, width, and options of its conditional networks
    "dense": ("small_dense", "100", {}),
    "separable": ("small_separable", "100", {}),
    "mobilenet": (
        "mobilenet_v1",
        "025",
        {"experts": "deltas", "routing": "sigmoid(standardize=True)", "init": "same_output"},
    ),
}


def build(net: str, arm: str, seed: int, num_classes: int = 10) -> nn.Module:
    """Return the network of an arm, such as `"deltas-8"`, `"deltas-constant-8"`, `"se"` or `"static@125"`.

    Raises:
        ValueError: The name describes none.
    """
    torch.manual_seed(seed)
    name, _, percent = arm.partition("@")
    family, width, usual = NETS[net]
    width = percent or width
    if name == "static":
        return condconv.create_model(f"{family}_{width}", num_classes=num_classes)
    if name == "se":
        return condconv.create_model(f"{family}_{width}", num_classes=num_classes, se=0.25)
    kind, _, experts = name.rpartition("-")
    options = ARMS.get(kind)
    if options is None or not experts.isdigit():
        raise ValueError(f"`arm` must be one of {', '.join(ARMS)}, with the experts as in deltas-8, got {arm!r}")
    return condconv.create_model(f"{family}_cc_{width}_{experts}e", num_classes=num_classes, **usual | options)


def optimizer_of(model: nn.Module, name: str, lr: float, decay: float) -> torch.optim.Optimizer:
    """Return an optimizer with one rate for all parameters; biases and norms do not decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [each for each in parameters if each.dim() > 1], "weight_decay": decay},
        {"params": [each for each in parameters if each.dim() <= 1], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=True)


def train_arm(arm: str, seed: int, data: tuple[Images, Images], settings: argparse.Namespace) -> dict[str, Any]:
    """Train one arm and return what was measured, resuming after the last epoch that was saved."""
    train, test = data
    model = build(settings.net, arm, seed, int(train[1].max()) + 1)
    size = train[0].shape[-1]
    total = condconv.count(model, torch.zeros(1, 3, size, size)).total
    optimizer = optimizer_of(model, settings.optimizer, settings.lr, settings.decay)
    key = f"{settings.net}-{arm}-{seed}-{settings.epochs}-{settings.optimizer}-{settings.lr}-{size}"
    path = settings.cache / f"ev-{settings.images}-{key}.pt"
    is_elastic = arm.startswith("elastic")
    state = train_(
        model,
        optimizer,
        train,
        seed,
        epochs=settings.epochs,
        path=path,
        batch_size=BATCH,
        learn=learn_all_members if is_elastic else learn,
    )
    top1, loss_at_test = evaluate(model, test)
    members = {"members": score_members(model, train, test)} if is_elastic else {}
    path.unlink(missing_ok=True)
    return outcome(total, top1, state, **members, test_loss=round(loss_at_test, 4))


def score_members(model: nn.Module, train: Images, test: Images) -> dict[str, float]:
    """Return the top-1 of every member of an elastic network.

    The statistics of its norms are estimated over images that are augmented as in training: those of the largest member
    are, and without it members are two points worse.
    """
    found = {}
    some = train[0][:10_000], train[1][:10_000]
    for number in range(elastic_units(model).number + 1):
        member = copy.deepcopy(model)
        keep_member_(member, number)
        estimate_statistics_(member, batches(some, 0, 0, BATCH))
        found[str(number)] = round(evaluate(member, test)[0] / 100, 4)
    return found


def main() -> None:
    """Train what the file of records lacks, and add a line per run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of the tars, such as cifar10-train.tar")
    parser.add_argument("--cache", type=Path, required=True, help="directory of decoded images and unfinished runs")
    parser.add_argument("--out", type=Path, required=True, help="records, one line of JSON per finished run")
    parser.add_argument("--net", choices=tuple(NETS), required=True)
    parser.add_argument("--arms", nargs="+", required=True, metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--size", type=int, choices=(16, 32, 64), default=16)
    parser.add_argument("--images", choices=tuple(SETS), default="cifar10")
    settings = parser.parse_args()
    for arm in settings.arms:
        build(settings.net, arm, 0)
    torch.set_num_threads(1)
    data = load(settings.data, settings.cache, settings.size, settings.images)
    given = {name: getattr(settings, name) for name in ("epochs", "optimizer", "lr", "decay", "size")}
    if settings.images != "cifar10":
        given["images"] = settings.images
    runs = [
        ({"what": f"{settings.net}, {arm}", "seed": seed, **given}, partial(train_arm, arm, seed, data, settings))
        for seed in settings.seeds
        for arm in settings.arms
    ]
    for record in keep_records(settings.out, runs):
        print(scored(record), flush=True)


if __name__ == "__main__":
    main()
