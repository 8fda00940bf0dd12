"""The epochs' metrics in TensorBoard or Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

import re
import uuid
from dataclasses import asdict
from pathlib import Path

from condconv.errors import UsageError, first_line, shown, shown_name
from condconv.files.atomic import write_own
from condconv.files.paths import read_text
from condconv.lab.saved.metrics import EpochMetrics
from condconv.lab.train.previous import LOGS
from condconv.lab.train.run import Run


def start_logs(run: Run) -> None:
    """Start the run's logger, if it has one; it writes into the run's directory."""
    if run.config.log_with is not None:
        options = {"name": run.out.name, "dir": str(run.out), "resume": "allow"}
        if run.config.log_with == "wandb" and run.accelerator.is_main_process:
            options["id"] = identity(run.out / "wandb-id")
        run.accelerator.init_trackers(LOGS, init_kwargs={"wandb": options})


def identity(path: Path) -> str:
    """Return an identifier of the run, drawn once and kept: a resumed run is the same run there.

    Raises:
        UsageError: The file holds something else, which is not sent anywhere.
    """
    if not path.exists():
        write_own(path, uuid.uuid4().hex[:16])
    try:
        drawn = read_text(path, 2**10)
    except (OSError, ValueError) as error:
        drawn = first_line(error)
    if re.fullmatch(r"[0-9a-f]{16}", drawn) is None:
        raise UsageError(
            f"`out` must hold a wandb-id as this run wrote it, 16 hexadecimal digits, got {shown_name(path)} with "
            f"{shown(drawn)}: remove the file, for a new run there"
        )
    return drawn


def log_epoch(run: Run, metrics: EpochMetrics) -> None:
    """Log the numbers of one epoch; the step is the epoch."""
    if run.config.log_with is not None:
        values = {name: value for name, value in asdict(metrics).items() if value is not None and name != "epoch"}
        run.accelerator.log(values, step=metrics.epoch)


def finish_logs(run: Run) -> None:
    """Flush and close the logger."""
    # Not end_training(): it would end the process group as well, which another run may need.
    for tracker in run.accelerator.trackers if run.accelerator.is_main_process else ():
        tracker.finish()
