"""MobileNetV1 on digits, static and with dense experts, for benchmarks that need trained networks."""

from __future__ import annotations

from pathlib import Path

from condconv.lab.config import TrainConfig

STATIC, CONDITIONAL = "mobilenet_v1_025", "mobilenet_v1_cc_025_8e"
SEEDS = range(3)


def settings(runs: Path, network: str, seed: int) -> TrainConfig:
    """Return the training of a network; `condconv.lab.train.train` returns at once if `runs` has it finished.

    Args:
        runs: Directory of all runs.
        network: `STATIC` or `CONDITIONAL`.
        seed: One of `SEEDS`.
    """
    experts = {"experts": "dense", "routing": "sigmoid", "init": "same_output"} if network == CONDITIONAL else {}
    return TrainConfig(
        data="digits",
        model=network,
        out=str(runs / f"{network}-seed{seed}"),
        model_options={"output_stride": 4} | experts,
        epochs=16,
        batch_size=32,
        optimizer="sgd",
        lr=0.05,
        weight_decay=1e-3,
        warmup_epochs=2,
        seed=seed,
    )
