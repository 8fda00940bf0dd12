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
import io
import json
import math
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from benchmarks.experts_layers import build, convs, count, parse

BATCH = 128
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


Images = tuple[Tensor, Tensor]


def load(data: Path, cache: Path, size: int) -> tuple[Images, Images]:
    """Read the training and the test images, uint8 `[N, 3, size, size]`, decoding them on the first call."""
    sets = []
    for part in ("train", "test"):
        path = cache / f"cifar10-{part}-{size}.npz"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tarfile.open(data / f"cifar10-{part}.tar") as tar:
                files = sorted((each for each in tar if each.name.endswith(".jpg")), key=lambda each: each.name)
                names = [Path(each.name).parent.name for each in files]
                images = np.stack([_decode(tar.extractfile(each), size) for each in files])
            classes = sorted(set(names))
            np.savez(path, images=images, labels=np.array([classes.index(name) for name in names]))
        arrays = np.load(path)
        order = torch.randperm(len(arrays["labels"]), generator=Generator().manual_seed(0))  # files lie class by class
        sets.append((torch.from_numpy(arrays["images"])[order], torch.from_numpy(arrays["labels"]).long()[order]))
    return sets[0], sets[1]


def _decode(file: Any, size: int) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(file.read())).convert("RGB").resize((size, size), Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1)


def normalised(images: Tensor) -> Tensor:
    """Return images of bytes as numbers of about mean 0 and deviation 1."""
    return (images.float() / 255 - 0.473) / 0.25


def batches(train: Images, seed: int, epoch: int, batch_size: int = BATCH) -> Iterator[Images]:
    """Yield an epoch's batches: the same order, flips and shifts (an eighth of the side) in all arms of a seed."""
    images, labels = train
    draw = Generator().manual_seed(1000 * seed + epoch)
    count, _, size, _ = images.shape
    shift = size // 8
    windows = F.pad(images, (shift,) * 4).unfold(2, size, 1).unfold(3, size, 1)
    order = torch.randperm(count, generator=draw)
    down, right = (torch.randint(2 * shift + 1, (count,), generator=draw) for _ in range(2))
    flip = torch.rand(count, generator=draw) < 0.5
    for at in order.split(batch_size):
        x = normalised(windows[at, :, down[at], right[at]])
        yield torch.where(flip[at, None, None, None], x.flip(-1), x), labels[at]


@torch.no_grad()
def evaluate(model: nn.Module, test: Images, probe: str = "") -> tuple[float, float]:
    """Return accuracy in percent and loss."""
    model.eval()
    for conv in convs(model):
        if hasattr(conv, "router"):
            conv.router.probe = probe
    right = loss = 0.0
    for images, labels in zip(*(each.split(1000) for each in test), strict=True):
        logits = model(normalised(images))
        right += float((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return 100 * right / len(test[1]), loss / len(test[1])


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
    """Train one arm and return its record, resuming after the last epoch that was saved."""
    train, test = data
    options = parse(arm)[-1]
    model = build(arm, seed)
    params, madds = count(model, train[0].shape[-1])
    optimizer = optimizer_of(model, arguments.optimizer, arguments.lr, options)
    key = f"{arm}-{seed}-{arguments.epochs}-{arguments.optimizer}-{arguments.lr}-{train[0].shape[-1]}"
    path = arguments.cache / f"state-{key}.pt"
    state: dict[str, Any] = {"losses": [], "seconds": 0.0, "start": growth(model)}
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    steps = math.ceil(len(train[1]) / BATCH)
    for epoch in range(len(state["losses"]), arguments.epochs):
        begin, total = time.perf_counter(), 0.0
        model.train()
        for step, (images, labels) in enumerate(batches(train, seed, epoch), epoch * steps):
            done = (step + 1) / (steps * arguments.epochs)
            warm = min(1.0, (step + 1) / steps)
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * warm * 0.5 * (1 + math.cos(math.pi * done))
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(labels)
        state["losses"].append(round(total / len(train[1]), 5))
        state["seconds"] += time.perf_counter() - begin
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    top1, loss_at_test = evaluate(model, test)
    record: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        **{name: getattr(arguments, name) for name in ("epochs", "optimizer", "lr", "size")},
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
    what = ("arm", "seed", "epochs", "optimizer", "lr", "size")
    lines = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.exists() else []
    done = [[json.loads(line).get(each) for each in what] for line in lines]
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if [arm, seed, *(getattr(arguments, each) for each in what[2:])] in done:
                continue
            record = train_arm(arm, seed, data, arguments)
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | {"torch": torch.__version__, "threads": arguments.threads}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            print(f"{arm}, seed {seed}: {record['top1']} %, {record['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
