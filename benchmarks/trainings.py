"""Images in memory, trainings on them that resume, and their records: what several scripts here have in common."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor, nn

from condconv.counting import LayerCost
from condconv.nn.elastic import elastic_units, sandwich, smaller_member

BATCH = 128
SETS = {"cifar10": ("train", "test"), "tinyimagenet100": ("train", "val")}
Images = tuple[Tensor, Tensor]


def load(data: Path, cache: Path, size: int, name: str = "cifar10") -> tuple[Images, Images]:
    """Read the training and the test images, uint8 `[N, 3, size, size]`, decoding them on the first call.

    Args:
        data: Directory of `NAME-train.tar` and of the other part in `SETS`, whose files are `CLASS/FILE.jpg`.
        cache: Directory of the decoded images.
        size: Pixels a side, to which images are reduced.
        name: One of `SETS`.
    """
    sets = []
    for part in SETS[name]:
        path = cache / f"{name}-{part}-{size}.npz"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tarfile.open(data / f"{name}-{part}.tar") as tar:
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


def batches(train: Images, seed: int, epoch: int, batch_size: int) -> Iterator[Images]:
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
def evaluate(model: nn.Module, test: Images) -> tuple[float, float]:
    """Return accuracy in percent and loss."""
    model.eval()
    right = loss = 0.0
    for images, labels in zip(*(each.split(1000) for each in test), strict=True):
        logits = model(normalised(images))
        right += float((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return 100 * right / len(test[1]), loss / len(test[1])


def learn(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Add the gradients of a batch to the parameters, and return its loss."""
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return loss.detach()


def learn_all_members(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Do so for an elastic network: smaller members learn from the largest. The gradient is the mean over members."""
    smaller = sandwich(elastic_units(model).number)[1:]
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    (loss / (1 + len(smaller))).backward()
    for number in smaller:
        with smaller_member(model, number):
            (F.cross_entropy(model(images), logits.detach().softmax(1)) / (1 + len(smaller))).backward()
    return loss.detach()


def train_(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Images,
    seed: int,
    *,
    epochs: int,
    path: Path,
    batch_size: int,
    warmup: float = 1.0,
    learn: Callable[[nn.Module, Tensor, Tensor], Tensor] = learn,
    **more: Any,
) -> dict[str, Any]:
    """Train a network, in place, resuming after the last epoch that was saved.

    Rates rise over `warmup` epochs to those that the optimizer has, and fall along a cosine.

    Args:
        model: Classifier.
        optimizer: Of the model.
        train: The training images.
        seed: Decides order and augmentation.
        epochs: How many.
        path: File of the unfinished training; whoever has the record of the finished one removes it.
        batch_size: Images per update.
        warmup: Epochs, or a share of one.
        learn: Adds the gradients of a batch and returns its loss.
        **more: What the file keeps besides, from the first start on.

    Returns:
        Training losses of the epochs as `"losses"`, `"seconds"`, and what it kept besides.
    """
    for group in optimizer.param_groups:
        group.setdefault("base", group["lr"])
    state: dict[str, Any] = {"losses": [], "seconds": 0.0, **more}
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    steps = math.ceil(len(train[1]) / batch_size)
    for epoch in range(len(state["losses"]), epochs):
        begin, total = time.perf_counter(), 0.0
        torch.manual_seed(1000 * seed + epoch)  # a training that resumes draws what one without a stop does
        model.train()
        for step, (images, labels) in enumerate(batches(train, seed, epoch, batch_size), epoch * steps):
            done = (step + 1) / (steps * epochs)
            warm = min(1.0, (step + 1) / (warmup * steps))
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * warm * 0.5 * (1 + math.cos(math.pi * done))
            optimizer.zero_grad()
            total += float(learn(model, images, labels)) * len(labels)
            optimizer.step()
        state["losses"].append(round(total / len(train[1]), 5))
        state["seconds"] += time.perf_counter() - begin
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return state


def keep_records(
    out: Path, runs: Iterable[tuple[Mapping[str, Any], Callable[[], Mapping[str, Any]]]]
) -> Iterator[dict[str, Any]]:
    """Do the runs that a file of records lacks, write the record of each at once, and yield it.

    Args:
        out: One line of JSON per finished run.
        runs: What distinguishes each run, which its record will have, and the function that does it and returns more.
    """
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    done = [json.loads(line) for line in lines]
    for known, run in runs:
        if any(known.items() <= each.items() for each in done):
            continue
        record = {**known, **run(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        yield record


def outcome(total: LayerCost, top1: float, state: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return what the record of a finished training says of it.

    Args:
        total: What the network costs.
        top1: In percent.
        state: What `train_` returned.
        **more: What else is known.
    """
    return {
        "params": total.params,
        "madds": total.madds,
        "top1": [round(top1 / 100, 4)],
        **more,
        "train_loss": state["losses"],
        "seconds": round(state["seconds"], 1),
    }


def scored(record: Mapping[str, Any]) -> str:
    """Return a line on the record of a network: what it was, its seed, accuracy and time."""
    return f"{record['what']}, seed {record['seed']}: {100 * record['top1'][0]:.2f} %, {record['seconds']} s"
