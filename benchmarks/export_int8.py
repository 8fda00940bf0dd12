"""See what full int8 costs networks trained on digits, with experts and without, in ONNX Runtime.

    python benchmarks/export_int8.py --runs runs/digits

Each trained network is exported to ONNX, and the file goes through examples/export/quantize_static.py, which calibrates
on training images. Both files then classify the validation images.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condconv.export import FORMATS, export
from condconv.lab.data import open_data
from condconv.lab.data.digits import DigitsReader
from condconv.lab.saved import load_checkpoint, load_network
from condconv.lab.train import train
from condconv.ops.native.library import instruction_set

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from benchmarks import digits_networks

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "export-int8.json"
EXAMPLE = ROOT / "examples" / "export" / "quantize_static.py"


def save_pictures(folder: Path, count: int) -> None:
    """Save the first training images as files, since the example reads pictures."""
    reader = DigitsReader("train")
    for index in range(count):
        reader[index][0].save(folder / f"{index:04}.png")


def write_files(checkpoint: Path, pictures: Path, folder: Path) -> tuple[Path, Path]:
    """Export a trained network, quantise the file, and return where both are.

    Raises:
        subprocess.CalledProcessError: The example failed.
    """
    loaded = load_checkpoint(checkpoint)
    wide, narrow = folder / "fp32.onnx", folder / "int8.onnx"
    example = torch.zeros(1, loaded.in_chans, loaded.image_size, loaded.image_size)
    facts = loaded.preprocessing.facts()
    export(load_network(loaded, checkpoint), wide, format="onnx", example_input=example, preprocessing=facts)
    subprocess.run([sys.executable, EXAMPLE, wide, narrow, pictures], check=True)
    return wide, narrow


def measure(runs: Path, pictures: Path, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Return a row for each trained network.

    Args:
        runs: Directory of the trainings.
        pictures: Folder of pictures to calibrate on.
        images: `[N, C, H, W]`, prepared for the networks.
        labels: `[N]`, the right answers.
    """
    rows = []
    for name in (digits_networks.STATIC, digits_networks.CONDITIONAL):
        for seed in digits_networks.SEEDS:
            checkpoint = train(digits_networks.settings(runs, name, seed)).last
            with tempfile.TemporaryDirectory() as folder:
                files = write_files(checkpoint, pictures, Path(folder))
                wide, narrow = (FORMATS["onnx"].load(file)(images) for file in files)
                sizes = [file.stat().st_size for file in files]
            rows.append(
                {
                    "network": name,
                    "seed": seed,
                    "bytes": sizes,
                    "right": [int((output.argmax(1) == labels).sum()) for output in (wide, narrow)],
                    "other_answers": int((narrow.argmax(1) != wide.argmax(1)).sum()),
                    "error": float((narrow - wide).norm() / wide.norm()),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure the networks, print a row each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, required=True, help="directory of the trainings; finished ones are kept")
    parser.add_argument("--pictures", type=int, default=128, help="training images to calibrate on (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(digits_networks.settings(arguments.runs, digits_networks.STATIC, 0))
    images, labels = zip(*(data.val[index] for index in range(len(data.val))), strict=True)
    with tempfile.TemporaryDirectory() as pictures:
        save_pictures(Path(pictures), arguments.pictures)
        rows = measure(arguments.runs, Path(pictures), torch.stack(images), torch.tensor(labels))
    record = {
        "command": f"python benchmarks/export_int8.py --runs runs/digits --pictures {arguments.pictures}",
        "machine": platform.machine(),
        "instructions": instruction_set(),
        "threads": 1,
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
        "images": len(labels),
        "networks": rows,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
