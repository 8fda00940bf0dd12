"""Settings of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from condconv.lab.config import TrainConfig
from condconv.lab.rules import whole


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo. The defaults take about three minutes on two CPU cores.

    Attributes:
        out: Directory for the runs, the table and the pictures; finished runs that are there are kept.
        seeds: Number of seeds, counted from 0; each trains both networks.
        epochs: Epochs of each run.
        static: The ordinary network.
        conditional: Its CondConv twin, which starts as the static network of the same seed: with 900 images, experts
            that are initialised separately learn more slowly.
        output_stride: How many times the networks shrink their 8-pixel input.
        batch_size: Images per update.
        lr: Peak learning rate of SGD, for both networks.
        threads: CPU threads. Networks this small gain nothing from a second one, and become a hundred times slower if
            another program uses a core, since threads wait for one another at every layer.

    Raises:
        UsageError: The number of seeds, epochs or threads is below 1 or too large.
    """

    out: str = "runs/demo"
    seeds: int = 3
    epochs: int = 16
    static: str = "mobilenet_v1_025"
    conditional: str = "mobilenet_v1_cc_025_8e"
    output_stride: int = 4
    batch_size: int = 32
    lr: float = 0.05
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "threads"):
            whole(1, 4096 if name == "threads" else 1_000_000).check(name, getattr(self, name))

    def run(self, network: str, seed: int) -> TrainConfig:
        """Return the settings of one run; the two networks differ in their name and in how experts start."""
        start = {"init": "same_output"} if network == self.conditional else {}
        return TrainConfig(
            data="digits",
            model=network,
            out=str(Path(self.out) / f"{network}-seed{seed}"),
            model_options={"output_stride": self.output_stride} | start,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer="sgd",
            lr=self.lr,
            weight_decay=1e-3,
            warmup_epochs=min(2, self.epochs - 1),
            seed=seed,
        )
