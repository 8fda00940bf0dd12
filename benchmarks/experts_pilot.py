"""A pilot: which routed part brings most for about one kernel, in dense and in separable layers.

    python benchmarks/experts_pilot.py --data DIR --cache DIR --out records.jsonl --arms s-static s-all-gains

An arm is `NET-static`, or `NET-PLACE-FORM[-const]`. NET is `d` (four dense 3 x 3 layers) or `s` (separable), PLACE is
`pw`, `dw` or `all`, the layers with a routed part, and `const` removes the routers' input.
`benchmarks/experts_layers.py` explains FORM, and the options, which follow as in `s-all-gains@experts=4,rate=3`.

For one seed all arms have the same first kernels, order of images and augmentation, so that differences are paired.
Finished runs are skipped, and one that was stopped resumes after its last epoch.
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
from benchmarks import trainings
from benchmarks.experts_layers import build, convs, count, parse
from benchmarks.trainings import BATCH, Images, load

DECAY = 5e-4


def optimizer_of(model: nn.Module, name: str, lr: float, options: dict[str, float]) -> torch.optim.Optimizer:
    """Return the optimizer. Routers do not decay, and how fast parts decay does not depend on their rate."""
    groups: dict[str, list[nn.Parameter]] = {"kernels": [], "parts": [], "routers": []}
    for key, values in model.named_parameters():
        groups["routers" if ".router." in key else "parts" if ".parts." in key else "kernels"].append(values)
    rates = {"kernels": 1.0, "parts": options["rate"], "routers": options["router"]}
    decays = {"kernels": DECAY, "parts": DECAY * options["decay"] / options["rate"], "routers": 0.0}
    settings = [
        {
            "params": groups[key],
            "lr": lr * rates[key],
            "base": lr * rates[key],
            "weight_decay": decays[key],
        }
        for key in groups
    ]
    if name == "adamw":
        return torch.optim.AdamW(settings, fused=True)
    return torch.optim.SGD(settings, lr=lr, momentum=0.9, nesterov=True, fused=True)


def evaluate(model: nn.Module, test: Images, probe: str = "") -> tuple[float, float]:
    """Return accuracy in percent and loss, with other routing weights than each image's own if a probe is named."""
    for conv in convs(model):
        if hasattr(conv, "router"):
            conv.router.probe = probe
    return trainings.evaluate(model, test)


@torch.no_grad()
def growth(model: nn.Module) -> list[dict[str, Any]]:
    """Return, per layer with experts, how far the last batch's kernels and routing weights are spread.

    `weights`: deviation of the routing weights over images. `parts`: norm of the kernel's change for one expert's
    weight 1, to W0's. `routed`: norm of an image's kernel less the mean kernel, to the mean kernel's.
    """
    found = []
    for conv in convs(model):
        if not hasattr(conv, "router") or conv.router.last is None:
            continue
        own = conv.kernels(conv.router.last[:512]).flatten(1)
        one = conv.kernels(torch.eye(conv.experts)).flatten(1) - conv.weight.flatten()
        mean, norm = own.mean(0), conv.weight.norm()
        found.append(
            {
                "layer": f"{conv.inputs}->{conv.outputs} {'dw' if conv.depthwise else f'{conv.side}x{conv.side}'}",
                "weights": round(float(conv.router.last.std(0, correction=0).mean()), 4),
                "parts": round(float(one.norm(dim=1).square().mean().sqrt() / norm), 4),
                "routed": round(float((own - mean).norm(dim=1).square().mean().sqrt() / mean.norm()), 4),
            }
        )
    return found


def train_arm(arm: str, seed: int, data: tuple[Images, Images], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one arm and return what was measured, resuming after the last epoch that was saved."""
    train, test = data
    options = parse(arm)[-1]
    model = build(arm, seed)
    params, madds = count(model, train[0].shape[-1])
    optimizer = optimizer_of(model, arguments.optimizer, arguments.lr, options)
    key = f"{arm}-{seed}-{arguments.epochs}-{arguments.optimizer}-{arguments.lr}-{train[0].shape[-1]}"
    path = arguments.cache / f"state-{key}.pt"
    state = trainings.train_(
        model,
        optimizer,
        train,
        seed,
        epochs=arguments.epochs,
        path=path,
        batch_size=BATCH,
        start=growth(model),
    )
    top1, loss_at_test = evaluate(model, test)
    record: dict[str, Any] = {
        "params": params,
        "madds": madds,
        "top1": round(top1, 2),
        "test_loss": round(loss_at_test, 4),
        "train_loss": state["losses"],
        "start": state["start"],
        "end": growth(model),
    }
    if record["end"]:
        record |= {f"top1_{probe}_weights": round(evaluate(model, test, probe)[0], 2) for probe in ("mean", "shuffled")}
    path.unlink(missing_ok=True)
    return record | {"seconds": round(state["seconds"], 1)}


def main() -> None:
    """Train what the file of records lacks, and add a line per run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of cifar10-train.tar and cifar10-test.tar")
    parser.add_argument("--cache", type=Path, required=True, help="directory of decoded images and unfinished runs")
    parser.add_argument("--out", type=Path, required=True, help="records, one line of JSON per finished run")
    parser.add_argument("--arms", nargs="+", required=True, metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--size", type=int, choices=(16, 32), default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    for arm in arguments.arms:
        parse(arm)
    torch.set_num_threads(arguments.threads)
    data = load(arguments.data, arguments.cache, arguments.size)
    settings = {name: getattr(arguments, name) for name in ("epochs", "optimizer", "lr", "size")}
    runs = [
        ({"arm": arm, "seed": seed, **settings}, partial(train_arm, arm, seed, data, arguments))
        for seed in arguments.seeds
        for arm in arguments.arms
    ]
    for record in trainings.keep_records(arguments.out, runs):
        print(f"{record['arm']}, seed {record['seed']}: {record['top1']} %, {record['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
