"""What compressing the experts of a trained network costs in accuracy, at several ranks, with and without repair.

    python benchmarks/compressed.py best.safetensors --data DIR --out records.jsonl --ranks 2 4 8 16 --repair 0 3

Each line of the records is one network made of the checkpoint: its parameters, those of its static twin, the relative
errors of its layers' mixed kernels, and its accuracy on the validation images.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from condconv.counting.parameters import count_parameters
from condconv.lab.saved import Reading, compress_checkpoint, load_checkpoint
from condconv.models import create_model


def main() -> None:
    """Compress the checkpoint once per setting, and add a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True, help="as for condconv compress")
    parser.add_argument("--out", type=Path, required=True, help="records, one line of JSON per network")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--kernels", type=int, default=1, help="principal kernels of layers with groups")
    parser.add_argument("--repair", type=int, nargs="+", default=[0, 3], help="epochs of repair")
    parser.add_argument("--repair-lr", type=float, default=3e-3)
    parser.add_argument("--max-images", type=int, default=10_000, help="training images that are used")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    name, _, _ = checkpoint.config.model.replace("_cc", "").rpartition("_")
    static = count_parameters(create_model(name, num_classes=len(checkpoint.class_names)).parameters())
    reading = Reading(max_images=arguments.max_images, batch_size=125, progress=False)
    for epochs in arguments.repair:
        for rank in arguments.ranks:
            with TemporaryDirectory() as folder:
                done = compress_checkpoint(
                    arguments.checkpoint,
                    Path(folder) / "small.safetensors",
                    f"shared(outputs={rank})",
                    arguments.data,
                    grouped=f"shared(kernels={arguments.kernels})",
                    max_error=1.0,
                    repair_epochs=epochs,
                    repair_lr=arguments.repair_lr,
                    reading=reading,
                    evaluate=True,
                )
            report, before, after = done.report, done.before, done.after
            assert before is not None
            assert after is not None
            record = {
                "model": checkpoint.config.model,
                "rank": rank,
                "kernels": arguments.kernels,
                "repair_epochs": epochs,
                "repair_images": report.images,
                "params_static": static,
                "params_before": report.params_before,
                "params": report.params_after,
                "errors": [round(each.error, 4) for each in report.layers],
                "divergence": [round(each, 4) for each in report.repair],
                "top1_before": round(100 * before.top1, 2),
                "top1_after": round(100 * after.top1, 2),
                "torch": torch.__version__,
                "machine": platform.machine(),
            }
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(f"rank {rank}, repair {epochs}: {record['params']} parameters, {record['top1_after']} %", flush=True)


if __name__ == "__main__":
    main()
