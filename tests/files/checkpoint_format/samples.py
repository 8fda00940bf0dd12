"""Files of the format that no training has written: a small header that is right, and files that nobody checks."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from condconv.files.checkpoint_format import FORMAT
from condconv.files.checkpoint_format.file import digests_of


def header(**changes: Any) -> dict[str, Any]:
    epoch = {
        "epoch": 1,
        "lr": 0.1,
        "train_loss": 2.0,
        "val_loss": 1.5,
        "val_top1": 0.5,
        "val_top5": None,
        "train_images_per_second": 100.0,
        "seconds": 9.0,
        "skipped_images": 0,
    }
    preprocessing = {"size": 8, "channels": 1, "crop": 1.0, "interpolation": "bicubic", "mean": [0.3], "std": [0.4]}
    values = {
        "kind": "classifier",
        "config": {"data": "images", "model": "mobilenet_v1_012", "out": "runs/x"},
        "model_options": {"output_stride": 4},
        "class_names": ["cat", "dog"],
        "preprocessing": preprocessing,
        "metrics": [epoch],
        "train_images": 12,
        "optimizer": {"state": {"0": {"step": 3}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "scaler": {"scale": 1024.0},
        "versions": {"torch": "2.11"},
        "static_layers": ["classifier"],
        "stores": {"blocks.0": "shared(outputs=2)"},
    }
    return values | changes


def tensors() -> dict[str, Tensor]:
    values = torch.arange(12, dtype=torch.float32)
    return {
        "model.a.weight": values.reshape(3, 4),
        "model.a.bias": values[:3] / 7,
        "model.count": torch.tensor(5),
        "ema.a.weight": values.reshape(3, 4) + 1,
        "optimizer.0.exp_avg": values.reshape(3, 4).bfloat16(),
        "group.0.flag": torch.tensor([True, False]),
    }


def forge(path: Path, header: Any, tensors: dict[str, Tensor]) -> Path:
    """Writes what the writer would refuse, with digests that are right, as somebody with bad intentions could."""
    if isinstance(header, dict):
        header = json.dumps({"format": FORMAT, "digests": digests_of(tensors), **header})
    metadata = {"condconv": header, "condconv.sha256": hashlib.sha256(header.encode()).hexdigest()}
    safetensors.torch.save_file({name: each.clone() for name, each in tensors.items()}, path, metadata)
    return path


def forge_from(path: Path, source: Path, **changes: Any) -> Path:
    """Writes a checkpoint with other values in its header; `config` has entries to change."""
    with safetensors.safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        header = json.loads(file.metadata()["condconv"])
    header["config"] |= changes.pop("config", {})
    return forge(path, header | changes, tensors)
